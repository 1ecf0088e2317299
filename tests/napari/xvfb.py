"""A real X server without a screen."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tests import requirements

MISSING = None if shutil.which("Xvfb") else requirements.X_SERVER


@contextmanager
def display() -> Iterator[str]:
    """Start a server on a free display; yields its name, for the variable DISPLAY."""
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x800x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        try:
            with os.fdopen(reading) as number:
                yield f":{number.readline().strip()}"
        finally:
            server.kill()


def qt_draws(environment: dict[str, str]) -> bool:
    """Return whether Qt can draw on the server of this environment: its libraries are installed."""
    program = "from qtpy.QtWidgets import QApplication; QApplication([])"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=False)
    return done.returncode == 0

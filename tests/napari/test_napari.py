"""The plugin in a real napari on a real X server, in its own process: napari and Qt have global state."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests import requirements
from tests.napari.xvfb import MISSING, display, qt_draws

CASES = Path(__file__).with_name("in_napari.py")
NAMES = re.findall(r"^def (test_\w+)", CASES.read_text(), flags=re.MULTILINE)
pytestmark = pytest.mark.skipif(not find_spec("napari"), reason=requirements.NAPARI)


@pytest.fixture(scope="module")
def outcomes(tiny_model, tmp_path_factory):
    """Run all cases; returns the failure of each, empty if it passed."""
    if MISSING:
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("napari")
    # napari warns during its import, not about our code.
    options = ["-W", "default::DeprecationWarning", "-p", "no:cacheprovider", f"--junitxml={folder / 'outcomes.xml'}"]
    with display() as name:
        places = {"DISPLAY": name, "QT_QPA_PLATFORM": "xcb", "QT_API": "pyqt6", "XDG_CONFIG_HOME": str(folder)}
        environment = {**os.environ, **places, "UNETRT_MODEL": str(tiny_model)}
        if not qt_draws(environment):
            pytest.skip(requirements.X_SERVER)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", CASES, *options],
            env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[str, str] = {}
    for case in ET.parse(folder / "outcomes.xml").iter("testcase"):
        name = case.get("name").partition("[")[0]
        found[name] = found.get(name, "") + "".join(part.text or part.tag for part in case)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_in_napari(outcomes, name):
    assert outcomes[name] == "", outcomes[name]


def test_the_manifest_is_valid():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "npe2", "validate", "unetrt"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "valid" in done.stdout

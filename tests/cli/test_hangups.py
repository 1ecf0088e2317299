"""A terminal that is closed in mid-run ends every command that writes files, with complete files and status 129."""

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaozarrs
import zarr

from tests.acquisition.files import rows_of
from unetrt.trainer.drawn_cells import draw

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pseudo-terminals")

SIZE = (80, 96)
# Runs the program; exceptions that would be printed to the terminal are written to a file.
PROGRAM = """
import runpy, signal, sys, threading, traceback
log, sys.argv[:] = sys.argv[1], ["unetrt", *sys.argv[2:]]

def note(*what):
    with open(log, "a") as file:
        print(*what, file=file)

sys.excepthook = threading.excepthook = sys.unraisablehook = note
runpy.run_module("unetrt", run_name="__main__", alter_sys=True)
"""


class Terminal:
    """A program at a terminal of its own, as its session's leader."""

    def __init__(self, folder, *arguments, ignores=False):
        import fcntl
        import pty
        import termios

        self._ours, theirs = pty.openpty()
        self._log = folder / "exceptions.txt"

        def prepare():
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)
            signal.signal(signal.SIGHUP, signal.SIG_IGN if ignores else signal.SIG_DFL)

        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(self._log), *map(str, arguments)],
            stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color"}, preexec_fn=prepare,  # noqa: PLW1509 - takes no lock
        )  # fmt: skip
        os.close(theirs)
        self.shown = b""

    def wait_for(self, condition, seconds=60.0):
        end = time.monotonic() + seconds
        while not condition():
            if select.select([self._ours], [], [], 0.02)[0]:
                self.shown += os.read(self._ours, 65536)
            assert time.monotonic() < end, self.shown.decode(errors="replace")
            assert self.process.poll() is None, self.shown.decode(errors="replace")

    def close(self, hangups=3):
        """Close the terminal; a shell in it would send signals too. Return the exit status, and what was raised."""
        os.close(self._ours)
        for _ in range(hangups - 1):
            time.sleep(0.01)
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGHUP)
        try:
            status = self.process.wait(60)
        finally:
            self.process.kill()
        return status, self._log.read_text() if self._log.exists() else ""


def hidden_in(folder):
    return [path for path in folder.rglob("*") if path.name.startswith(".unetrt-") and path.is_dir()]


@pytest.fixture
def images(tmp_path):
    """Many images, which are labels too."""
    folder = tmp_path / "images"
    folder.mkdir()
    tifffile.imwrite(folder / "0.tif", draw(SIZE, seed=0).labels.astype(np.uint16))
    for number in range(1, 500):
        (folder / f"{number}.tif").symlink_to(folder / "0.tif")
    return folder


def test_the_labels_of_a_live_run_are_complete_when_its_terminal_closes(tiny_model, images, tmp_path):
    labels, table = tmp_path / "labels.ome.zarr", tmp_path / "labels.csv"
    replay = ("--replay", images, "--loop", "--fps", 50)
    terminal = Terminal(tmp_path, "live", tiny_model, *replay, "--save", labels)
    terminal.wait_for(lambda: table.is_file() and table.read_bytes().count(b"\n") > 5)
    assert terminal.close() == (129, "")

    yaozarrs.validate_zarr_store(str(labels))
    stored, rows = zarr.open_array(labels / "0", mode="r"), rows_of(table)
    assert table.read_bytes().endswith(b"\n")
    done = [row for row in rows if row["outcome"] == "done"]
    assert len(done) >= 3
    assert all(int(row["frame"]) < stored.shape[0] and stored[int(row["frame"])].max() > 0 for row in done)
    assert not hidden_in(tmp_path)


def test_a_live_run_under_nohup_outlives_its_terminal(tiny_model, images, tmp_path):
    table = tmp_path / "labels.csv"
    replay = ("--replay", images, "--fps", 0, "--frames", 60)
    terminal = Terminal(tmp_path, "live", tiny_model, *replay, "--save", tmp_path / "labels.ome.zarr", ignores=True)
    terminal.wait_for(lambda: table.is_file() and table.read_bytes().count(b"\n") > 1)
    status, raised = terminal.close()
    assert (status, raised) == (2, ""), "standard output is a terminal that is gone"
    assert len(rows_of(table)) == 60


# Command -> its arguments, and what it has created when the terminal closes; the library that it has loaded.
COMMANDS = {
    "predict": ("predict {model} images -o out --table", "out"),
    "convert": ("convert images -o out --save table --save geojson --save outlines", "out"),
    "train": ("train {data} -o run --depth 1 --base 2 --tile 60 --steps 1000000", "run"),
    "export": ("export {checkpoint} -o model.onnx", "libtorch"),
    "demo": ("demo --out demo --steps 100000", "demo"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_ends_when_its_terminal_closes(tiny_model, tiny_run, drawn_folder, images, tmp_path, name):
    line, sign = COMMANDS[name]
    inputs = {"model": tiny_model, "checkpoint": tiny_run, "data": drawn_folder}
    terminal = Terminal(tmp_path, *(word.format(**inputs) for word in line.split()))
    maps = Path(f"/proc/{terminal.process.pid}/maps")
    if sign == "libtorch" and not maps.exists():
        pytest.skip("needs /proc")
    terminal.wait_for((lambda: sign in maps.read_text()) if sign == "libtorch" else (tmp_path / sign).exists)
    assert terminal.close() == (129, "")
    assert not hidden_in(tmp_path)
    assert not (tmp_path / "model.onnx").exists()
    for file in (tmp_path / "out").glob("*.tif"):
        assert tifffile.imread(file).shape == SIZE

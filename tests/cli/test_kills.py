"""Commands that are killed or stopped at random moments: files are complete, and a rerun gives the results.

Each command runs once without interruption, which gives its duration and its results. Then, for each moment, it runs in
an empty folder with its own cache and temporary files, gets a signal, and runs again.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import onnx
import pytest

from unetrt.runtime.engines.engine_file import read_sidecar
from unetrt.trainer.checkpoint import load

pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"), pytest.mark.timeout(7200)]

# Number of moments of each signal in the long test.
MOMENTS = {signal.SIGKILL: 20, signal.SIGTERM: 5, signal.SIGINT: 5, signal.SIGHUP: 5}
# A run in which nothing is left to do ends with this error.
COMPLETE = "has spent its budget"
# Seconds in which the processes that a killed command started must be gone.
GRACE = 10.0
BENCHED = "--depth 2 --base 2 --frame 400x390 --rounds 1 --only onnxruntime --device cpu"
SMALL = "--depth 1 --base 2 --tile 60 --steps 12"


@dataclass(frozen=True)
class Case:
    """A command and its rerun, as texts with names of inputs in braces.

    Attributes
    ----------
    line, rerun
        Arguments; `rerun` replaces `line` if the file `state` exists.
    results
        Number of files that it writes.
    """

    line: str
    results: int
    state: str = ""
    rerun: str = ""
    requires: str = "unetrt"


CASES = {
    "train": Case(f"train {{data}} -o run {SMALL}", 6, "run/last.safetensors", "train --resume run"),
    "export": Case("export {run} -o model.onnx", 1),
    "build": Case("build {model} -o model.engine --capability 8.6", 2, requires="tensorrt_rtx"),
    "predict": Case("predict {model} {data}/images -o out --table --tile model", 9),
    "package": Case("package {model} bioimageio --images {data}/images -o model.zip --name tiny-net --author A", 1),
    "bench": Case(f"bench {BENCHED} --json bench.json --png bench.png", 2),
}


def of_checkpoint(path: Path) -> object:
    checkpoint = load(path)
    arrays = {**checkpoint.weights, **{f"state {name}": array for name, array in checkpoint.state.items()}}
    return checkpoint.training["steps"], {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()}


def of_model(path: Path) -> object:
    model = onnx.load(path)
    onnx.checker.check_model(model)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def of_package(path: Path) -> object:
    with zipfile.ZipFile(path) as package:
        assert package.testzip() is None
        return {name: package.read(name) for name in package.namelist() if name.endswith(".npy")}


# What must be equal in two runs, by the end of a file's name; reading fails where a file is not complete. Times differ.
RESULTS: dict[str, Callable[[Path], object]] = {
    ".safetensors": of_checkpoint,
    ".onnx": of_model,
    ".zip": of_package,
    ".engine": lambda path: read_sidecar(path).facts,  # compares the file with the hash in its sidecar
    ".engine.json": lambda path: json.loads(path.read_text())["facts"],
    "bench.json": lambda path: [one["name"] for one in json.loads(path.read_text()).get("contenders", ())],
    "bench.png": lambda path: path.read_bytes()[-8:],
    "": Path.read_bytes,
}


def result_of(path: Path) -> object:
    return RESULTS[max((end for end in RESULTS if path.name.endswith(end)), key=len)](path)


def results_in(folder: Path) -> dict[str, object]:
    """Return the results under final names, by path."""
    files = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): result_of(folder / path) for path in files if not hidden(path)}


def hidden(path: Path) -> bool:
    return any(part.startswith(".unetrt-") for part in path.parts)


class Commands:
    """Runs one command, in a new folder each time."""

    def __init__(self, case: Case, root: Path, inputs: dict[str, Path]) -> None:
        self.case, self._root, self._inputs, self._runs = case, root, inputs, 0
        folder = self.new_folder()
        begin = time.monotonic()
        self.completed(self.start(folder))
        self.seconds = time.monotonic() - begin
        self.results = results_in(folder / "work")
        assert len(self.results) == case.results, list(self.results)
        assert leftovers(folder) == []

    def new_folder(self) -> Path:
        self._runs += 1
        folder = self._root / f"{self._runs}"
        for part in ("work", "cache", "tmp"):
            (folder / part).mkdir(parents=True)
        return folder

    def start(self, folder: Path) -> subprocess.Popen[str]:
        case = self.case
        line = case.rerun if case.state and (folder / "work" / case.state).exists() else case.line
        own = {"XDG_CACHE_HOME": str(folder / "cache"), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"}
        with (folder / "said").open("w") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "unetrt", *line.format(**self._inputs).split()],
                cwd=folder / "work", env={**os.environ, **own}, stdout=said, stderr=said, start_new_session=True,
            )  # fmt: skip

    def completed(self, process: subprocess.Popen[str]) -> None:
        folder = self._root / f"{self._runs}"
        status, said = process.wait(timeout=600), (folder / "said").read_text()
        assert status == 0 or COMPLETE in said, said

    def interrupted(self, number: int, moment: float) -> int:
        """Send a signal at a moment, from 0 to 1; check what is left, and run again. Returns the exit code."""
        folder = self.new_folder()
        process = self.start(folder)
        time.sleep(moment * self.seconds)
        # As a terminal does, Ctrl-C goes to all processes of the group; the others to the program alone.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        status = process.wait(timeout=120)
        said = (folder / "said").read_text()
        where = f"{signal.Signals(number).name} at {moment:.3f} of {self.seconds:.1f} s, exit code {status}: {said}"
        assert status in {0, -number, 128 + number}, where
        assert "Traceback" not in said, where
        assert gone(process.pid), where
        for name, result in results_in(folder / "work").items():
            # A training saves more than once, and a benchmark stores what it has measured so far.
            assert result == self.results[name] or name.endswith((".safetensors", ".csv", ".png", ".json")), where
        if number != signal.SIGKILL:
            assert leftovers(folder) == [], where
        self.completed(self.start(folder))
        assert results_in(folder / "work") == self.results, where
        assert leftovers(folder) == [], where
        return status


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if hidden(path.relative_to(folder))]


def gone(group: int) -> bool:
    """Return whether all processes of a group end within the grace period."""
    until = time.monotonic() + GRACE
    while members(group):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def members(group: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group, session = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if str(group) in (process_group, session) and state != "Z":
            found.append(path.parent.name)
    return found


@pytest.fixture
def commands(drawn_folder, tiny_run, tiny_model, tmp_path) -> Callable[[str], Commands]:
    inputs = {"data": drawn_folder, "run": tiny_run, "model": tiny_model}

    def prepare(name: str) -> Commands:
        case = CASES[name]
        if find_spec(case.requires) is None:
            pytest.skip(f"needs {case.requires}")
        return Commands(case, tmp_path, inputs)

    return prepare


@pytest.mark.parametrize("name", [pytest.param("train", marks=pytest.mark.slow), "predict"])
def test_a_kill_leaves_nothing_that_a_rerun_does_not_remove(commands, name):
    commands(name).interrupted(signal.SIGKILL, random.Random(name).uniform(0.5, 0.9))


@pytest.mark.slow
@pytest.mark.parametrize("number", MOMENTS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", CASES)
def test_signals_at_random_moments(commands, name, number):
    command, moments = commands(name), random.Random(f"{name} {number}")
    statuses = [command.interrupted(number, moments.random()) for _ in range(MOMENTS[number])]
    sys.stdout.write(f"{name}: {number.name} during {command.seconds:.1f} s, exit codes {statuses}\n")

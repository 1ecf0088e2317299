"""The check of a GPU, in steps: each in a separate process with a time limit, each result on disk at once.

    python -m unetrt.benchmarks.gpu_check --seconds 265 facts ptx calls copies torch

Run it in the root of a clone, as some steps are tests of `tests/gpu`. A step leaves `STEP.json` (exit status, seconds,
measurements) and `STEP.log` (all its output) in the folder of results. A step that reaches its limit is killed, and the
next one runs; its measurements so far are kept, in `STEP-figures.json` too, from which `--resume` continues. With
`--dry` everything runs without a GPU, on small data, which shows that the steps work before a GPU's time is spent.
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click
from filelock import FileLock, Timeout

from unetrt.benchmarks.journal import Patience
from unetrt.benchmarks.terminal import OneLine
from unetrt.runtime.errors import FrameError, InferenceError, OptionError, OutputError
from unetrt.runtime.files.atomic import (
    cache_folder,
    private_folder,
    require_regular,
    scratch_folder,
    whole_file,
    writable_folder,
)
from unetrt.runtime.records import parse, to_json, validated

SCHEMA = 1
RESULTS = Path("benchmarks", "results", "gpu-check")
TESTS = Path("tests", "gpu")
# Prefix of a step's lines that hold data.
DATA = "JSON "
# Environment variables: set for a dry run; the folder where steps may leave files.
DRY, FOLDER = "UNETRT_CHECK_DRY", "UNETRT_CHECK_FOLDER"
# Limit in seconds of every step in a dry run, on machines of any speed.
DRY_LIMIT = 600.0
# A step does not start with fewer seconds left.
LEAST = 5.0
# Characters of the log of a failed step that are shown.
SHOWN = 1500
# Warnings are not errors here: another version of a library may warn.
PYTEST = ("-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=60", "-W", "default", "-m", "gpu", "-q", "-ra")


@dataclass(frozen=True)
class Step:
    """One step.

    Attributes
    ----------
    name
        Name on the command line.
    limit
        Seconds after which it is killed.
    shows
        What it checks, in a few words.
    tests
        Test files, and pytest's `-k` expression that selects among their tests; None for a function of `gpu_steps`.
    """

    name: str
    limit: float
    shows: str
    tests: tuple[str, str] | None = None

    @property
    def command(self) -> list[str]:
        """The command line."""
        if self.tests is None:
            return [sys.executable, "-m", "unetrt.benchmarks.gpu_steps", self.name]
        files, chosen = self.tests
        return [sys.executable, *PYTEST, "--tb=short", *files.split(), "-k", chosen]


# The tests of tests/gpu that each step selects.
_COPIES = "(copies and not ten_thousand and not pycuda) or does_not_fit or take_turns or memory_ran_out or machine_is"
_EXACT = "tests/gpu/test_parity.py tests/gpu/test_exactness.py"
_OPTIONS, _MEMORY = "tests/gpu/test_onnxruntime_options.py", "tests/gpu/test_memory.py tests/gpu/test_wrong_engines.py"
_SMOKE = "onnxruntime-cuda and (fp32_is_fp32 or tiled_is_whole or natural)"
_LANES = " ".join(f"tests/gpu/test_{name}.py" for name in ("lanes", "processes", "live", "graphs"))
_TENSORRT = (
    "(tensorrt or test_engines or test_wrong_engines or test_runtime_cache or rtx or share_their_weights) "
    "and not onnxruntime and not pycuda and not ten_thousand"
)
# In this order: without an engine, ONNX Runtime, TensorRT, TensorRT for RTX, and the longest.
STEPS = (
    Step("facts", 30, "driver, libraries, versions, which backends are usable"),
    Step("ptx", 40, "the kernels load on this driver and cut as numpy does; rates of cutting and copies"),
    Step("calls", 90, "each call of the driver", ("tests/gpu/test_cuda_calls.py", "cuda-python")),
    Step("copies", 100, "streams, pinned memory, contexts, torch in the same process", ("tests/gpu", _COPIES)),
    Step("torch", 150, "the rate of dense products; eager FP32 and compiled FP16"),
    Step("training", 60, "training on the GPU", ("tests/gpu/test_training.py", "test")),
    Step("ort-load", 60, "ONNX Runtime's CUDA provider loads, and agrees with the CPU"),
    Step("ort-variants", 120, "its sets of options, with a profile by kernel"),
    Step("ort-goals", 200, "the goals, with ONNX Runtime"),
    Step("ort-smoke", 60, "its labels and scores equal those of the CPU", (_EXACT, _SMOKE)),
    Step("ort-arrays", 110, "frames and labels on the GPU", ("tests/gpu/test_device_arrays.py", "onnxruntime-cuda")),
    Step("ort-lanes", 110, "lanes, processes, live", (_LANES, "onnxruntime-cuda and not pycuda")),
    Step("ort-options", 120, "its sets of options return correct results; memory of a lane", (_OPTIONS, "test")),
    Step("ort-parity", 200, "every kind of file", (_EXACT, "onnxruntime-cuda")),
    Step("ort-memory", 60, "memory is released", (_MEMORY, "onnxruntime-cuda and not ten_thousand")),
    Step("trt-tests", 200, "the installed TensorRT, or why it does not run", ("tests/gpu", _TENSORRT)),
    Step("trt-goals", 200, "the goals, with TensorRT"),
    Step("rtx-attempts", 150, "outcome of TensorRT for RTX on this device, with engines for each capability"),
    Step("contenders", 400, "unetrt beside torch and MONAI: `unetrt bench --device gpu`"),
    Step("training-speed", 200, "training steps per second: `unetrt bench --training`"),
    Step("long", 600, "ten thousand frames; PyCUDA", ("tests/gpu", "ten_thousand or pycuda")),
)
NAMES = tuple(step.name for step in STEPS)


@dataclass(frozen=True)
class StepOutcome:
    """The outcome of a step.

    Attributes
    ----------
    step, command
        Name of the step, and its command line without the interpreter.
    dry
        Whether it ran without a GPU.
    status
        Its exit status; None where it was killed at its limit.
    seconds
        Its duration.
    data
        Its measurements.
    skipped
        Whether all its tests were skipped, so that nothing was checked.
    """

    step: str
    command: list[str]
    dry: bool
    status: int | None
    seconds: float
    data: list[Any]
    skipped: bool = False

    def __str__(self) -> str:
        how = {None: "ended at its limit", 0: "skipped" if self.skipped else "passed"}.get(
            self.status, f"failed ({self.status})"
        )
        return f"{self.step}: {how} in {self.seconds:.1f} s"


def run(steps: Sequence[Step], folder: Path, patience: Patience, dry: bool) -> list[StepOutcome]:
    """Run steps one after another, and return the outcomes of those that started or are stored.

    Parameters
    ----------
    steps
        In this order.
    folder
        For the results.
    patience
        Time limit, at which the running step is killed. With `resume`, steps that have passed are not run again, and
        others continue from their figures; otherwise all start from the beginning.
    dry
        Whether to run without a GPU.

    Raises
    ------
    OutputError
        The folder cannot be written to.
    """
    writable_folder(folder)
    with _alone(folder):
        return list(_outcomes(steps, folder, patience, dry))


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Lock the folder against a second check; raises OptionError where one runs."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise OptionError(f"another check writes to {folder}: wait for it, or give another --out") from None
    try:
        yield
    finally:
        lock.release()


def _outcomes(steps: Sequence[Step], folder: Path, patience: Patience, dry: bool) -> Iterator[StepOutcome]:
    for step in steps:
        known = _known(folder / f"{step.name}.json", dry) if patience.resume else None
        if known is None:
            limit = min(DRY_LIMIT if dry else step.limit, patience.left)
            if limit < LEAST:
                click.echo(f"{step.name}: not begun: the time is up", err=True)
                continue
            if not patience.resume:
                figures_path(folder, step.name, dry).unlink(missing_ok=True)
            known = _outcome(step, folder, limit, dry)
            with whole_file(folder / f"{step.name}.json") as temporary:
                temporary.write_text(to_json({"schema": SCHEMA, **asdict(known)}, indent=1) + "\n", encoding="utf-8")
        click.echo(str(known))
        if known.status != 0:
            click.echo((folder / f"{step.name}.log").read_text(encoding="utf-8", errors="replace")[-SHOWN:])
        yield known


def figures_path(folder: Path, step: str, dry: bool) -> Path:
    """Return the file in which a step stores its figures one by one."""
    return folder / f"{step}-figures{'-dry' if dry else ''}.json"


def _known(path: Path, dry: bool) -> StepOutcome | None:
    """Return the outcome of a step that has passed; None if no such outcome is stored."""
    if not path.exists():
        return None
    try:
        stored = parse(require_regular(path).read_bytes(), str(path), OptionError)
        known = validated(stored, StepOutcome, str(path), OptionError, unknown=True)
        if (stored.get("schema"), known.step) != (SCHEMA, path.stem):
            raise OptionError(f"{path} is of schema {stored.get('schema')} and step {known.step}")
    except (FrameError, OSError, OptionError) as error:
        raise OptionError(f"{path} holds no outcome of step {path.stem}: remove it, or leave --resume out") from error
    passed = known.status == 0 and known.dry == dry and (dry or not known.skipped)
    return known if passed else None


def _outcome(step: Step, folder: Path, limit: float, dry: bool) -> StepOutcome:
    """Run a step, and return its outcome."""
    begin, log = time.monotonic(), folder / f"{step.name}.log"
    # A separate folder for temporary files, as a killed step does not remove its own.
    with _new(log) as file, scratch_folder() as temporary:
        status = _status(step.command, file, limit, _environment(folder, dry) | {"TMPDIR": str(temporary)})
    said = log.read_text(encoding="utf-8", errors="replace")
    seconds = round(time.monotonic() - begin, 1)
    skipped = step.tests is not None and status == 0 and " passed" not in said.rstrip().rpartition("\n")[2]
    return StepOutcome(step.name, step.command[1:], dry, status, seconds, _data(said), skipped)


def _new(log: Path) -> Any:
    """Open a new log; raises OutputError where that cannot be."""
    try:
        return log.open("w", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"cannot write {log}: {error.strerror or error}") from error


def _environment(folder: Path, dry: bool) -> dict[str, str]:
    # torch caches compiled kernels among temporary files by default; kept here, so that steps share them.
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(private_folder(cache_folder("inductor")))}
    variables = compiled | os.environ | {FOLDER: str(folder.absolute()), "PYTHONUNBUFFERED": "1"}
    return variables | {DRY: "1", "CUDA_VISIBLE_DEVICES": ""} if dry else variables


def _status(command: list[str], log: Any, limit: float, environment: dict[str, str]) -> int | None:
    """Return the exit status of a command; None where it was killed, with all processes that it started."""
    group: dict[str, Any] = {}
    if os.name == "posix":
        group = {"start_new_session": True, "preexec_fn": _end_with_parent if sys.platform == "linux" else None}
    with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, **group) as process:
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if os.name == "posix":
        os.killpg(process.pid, signal.SIGKILL)
    else:
        process.kill()


def _end_with_parent() -> None:
    """Let Linux kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def _data(said: str) -> list[Any]:
    """Return the measurements in a log; a line that was cut off is left out."""
    found = []
    for line in said.splitlines():
        if line.startswith(DATA):
            try:
                found.append(json.loads(line.removeprefix(DATA)))
            except ValueError:
                continue
    return found


@click.command(cls=OneLine)
@click.argument("steps", nargs=-1, metavar="[STEP]...")
@click.option("--seconds", type=float, help="Start no step after this time, and kill the running one.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS, show_default=True, help="Folder for results.")
@click.option(
    "--resume", is_flag=True, help="Skip steps that have passed, and continue from the figures of the others."
)
@click.option("--dry", is_flag=True, help="Run without a GPU, on small data, to show that the steps work.")
@click.option("--list", "listed", is_flag=True, help="List the steps.")
def command(steps: tuple[str, ...], seconds: float | None, out: Path, resume: bool, dry: bool, listed: bool) -> None:
    """Check a GPU in steps, all of them by default; each leaves STEP.json and STEP.log."""
    if listed:
        for step in STEPS:
            click.echo(f"{step.name:15s} {step.limit:4.0f} s  {step.shows}")
        return
    if unknown := [name for name in steps if name not in NAMES]:
        near = get_close_matches(unknown[0].lower(), NAMES, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise OptionError(f"there is no step {unknown[0]!r}: the steps are {', '.join(NAMES)}{meant}")
    if out == Path():
        raise OptionError("the root of the clone cannot hold the results: name a folder with --out")
    if not TESTS.is_dir():
        raise OptionError(f"there is no {TESTS} here: run this in the root of a clone of unetrt")
    for number in (getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # ends the step that runs, too
    chosen = [next(step for step in STEPS if step.name == name) for name in steps or NAMES]
    outcomes = run(chosen, out, Patience(seconds, resume), dry)
    failed = [str(one) for one in outcomes if one.status != 0]
    begun = [one.step for one in outcomes]
    failed += [f"{step.name}: not begun" for step in chosen if step.name not in begun]
    if failed:
        raise InferenceError(f"{len(failed)} of {len(chosen)} steps did not pass: {'; '.join(failed)}")


if __name__ == "__main__":
    command()

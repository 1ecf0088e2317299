"""The check of a GPU in steps, without a GPU: dry runs, limits, kills, and what is carried to a host."""

import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from contextlib import suppress
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from click.testing import CliRunner
from filelock import FileLock

from tests import requirements
from tests.benchmarks.sleepers import alive
from unetrt.benchmarks.gpu_check import NAMES, STEPS, Step, command, run
from unetrt.benchmarks.gpu_steps import FUNCTIONS
from unetrt.benchmarks.journal import Patience
from unetrt.runtime.errors import OptionError

REPOSITORY = Path(__file__).parents[2]
HOST = REPOSITORY / "benchmarks" / "gpu_host"
# A script, as the host that it packs for has no unetrt yet.
SPEC = spec_from_file_location("pack", HOST / "pack.py")
pack = module_from_spec(SPEC)
SPEC.loader.exec_module(pack)
# Seconds in which a step begins, and after which one that sleeps is ended.
LIMIT = 3.0
# What takes seconds: no network is exported in them.
QUICK = ("facts", "ptx", "calls")


def check(folder, *words):
    """The words of a dry check, in the root of the clone."""
    return [sys.executable, "-m", "unetrt.benchmarks.gpu_check", "--dry", "--out", str(folder), *words]


@pytest.fixture(autouse=True)
def begun_late(monkeypatch):
    """Steps are begun although they have less time than a real one wants."""
    monkeypatch.setattr("unetrt.benchmarks.gpu_check.LEAST", 1.0)


def outcomes(folder):
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.json")}


class Shell(Step):
    """A step that runs a line of Python."""

    @property
    def command(self):
        return [sys.executable, "-c", self.shows]


@pytest.fixture(scope="module")
def resumed(tmp_path_factory):
    """The folder of a dry run that was killed at a random moment and resumed; the outcomes that were there between."""
    folder = tmp_path_factory.mktemp("resumed")
    process = subprocess.Popen(check(folder, *QUICK), cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not outcomes(folder) and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(random.uniform(0, 1.5))
    process.kill()
    process.wait()
    before = outcomes(folder)  # each is whole: it parses
    done = subprocess.run(
        check(folder, "--resume", *QUICK), cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, before


def test_killed_at_a_random_moment_all_outcomes_are_whole_and_the_rest_is_done_later(resumed):
    folder, before = resumed
    assert before
    after = outcomes(folder)
    assert sorted(after) == sorted(QUICK)
    assert {name: after[name] for name in before} == before


def test_a_dry_run_leaves_an_outcome_of_each_step(resumed):
    folder, _ = resumed
    left = outcomes(folder)
    assert sorted(left) == sorted(QUICK)
    for name, outcome in left.items():
        assert (outcome["step"], outcome["dry"], outcome["status"]) == (name, True, 0)
        assert (folder / f"{name}.log").read_text()
    (versions,) = (one["versions"] for one in left["facts"]["data"] if "versions" in one)
    assert versions["unetrt"]
    assert left["ptx"]["data"][0]["kernels"] == ["cut", "histogram", "stitch_labels", "not_finite"]
    assert left["calls"]["skipped"]
    assert sys.executable not in json.dumps(left)


@pytest.mark.slow
def test_a_dry_run_of_every_step_passes(tmp_path):
    """.ci/run does the same by `make gpu-check DRY=1`."""
    done = subprocess.run(check(tmp_path), cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert set(NAMES) <= set(outcomes(tmp_path))


def test_a_step_that_takes_too_long_is_ended_with_all_it_started_and_the_next_one_runs(tmp_path, capsys):
    child = tmp_path / "child"
    sleeper = (
        "import subprocess, sys, time; print('JSON {\"half\": 1}'); print('JSON {\"cut');"
        "process = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        f"open({str(child)!r}, 'w').write(str(process.pid)); sys.stdout.flush(); time.sleep(60)"
    )
    steps = (Shell("slow", LIMIT, sleeper), Shell("next", 30, "print('JSON {\"done\": 2}')"))
    first, second = run(steps, tmp_path, Patience(), dry=False)
    assert (first.status, first.data) == (None, [{"half": 1}])
    assert (second.status, second.data) == (0, [{"done": 2}])
    assert "slow: ended at its limit" in capsys.readouterr().out
    assert outcomes(tmp_path)["slow"]["status"] is None
    if os.name == "posix":
        time.sleep(0.5)
        assert not alive(int(child.read_text()))


def test_nothing_begins_when_the_time_is_up(tmp_path, capsys):
    assert run((Shell("one", 30, "pass"),), tmp_path, Patience(seconds=0.5), dry=False) == []
    assert "one: not begun: the time is up" in capsys.readouterr().err
    assert outcomes(tmp_path) == {}


def test_what_failed_is_run_again_and_what_passed_is_not(tmp_path):
    marker = tmp_path / "marker"
    failing = Shell("one", 30, f"import pathlib; p = pathlib.Path({str(marker)!r}); p.touch() or 1 / p.stat().st_size")
    assert run((failing,), tmp_path, Patience(), dry=False)[0].status == 1
    resume = Patience(resume=True)

    def outcome(number, dry=False):
        (one,) = run((replace(failing, shows=f"print('JSON {number}')"),), tmp_path, resume, dry)
        return one

    assert (outcome(2).status, outcome(3).data) == (0, [2])
    assert outcome(4, dry=True).data == [4]  # what passed without a GPU has not been shown on one


def test_a_step_whose_tests_were_all_skipped_has_shown_nothing(tmp_path):
    """On a machine without a GPU all of them are; with --resume it is run again."""
    (step,) = (one for one in STEPS if one.name == "training")
    quick = replace(step, tests=("tests/gpu/test_training.py", "tiles_are_the_cpus"))
    (one,) = run((quick,), tmp_path, Patience(resume=True), dry=False)
    assert (one.status, one.skipped) == (0, True)
    assert ": skipped in" in str(one)
    again = Shell("training", 30, "print('JSON 1')", quick.tests)
    (one,) = run((again,), tmp_path, Patience(resume=True), dry=False)
    assert one.data == [1]


def test_figures_are_taken_up_on_request_alone(tmp_path):
    figures = tmp_path / "one-figures.json"
    step = Shell("one", 30, f"import pathlib; print('JSON', int(pathlib.Path({str(figures)!r}).exists()))")
    for resume, there in ((False, 0), (True, 1)):
        figures.touch()
        (one,) = run((step,), tmp_path, Patience(resume=resume), dry=False)
        assert one.data == [there]
        (tmp_path / "one.json").unlink()


def test_every_test_of_a_gpu_is_in_a_step():
    chosen = []
    for step in STEPS:
        files, expression = step.tests or ("", "")
        names = [Path(file).stem for file in files.split() if file.endswith(".py")]
        chosen += [f"(({expression}) and ({' or '.join(names) or 'test'}))"] if files else []
    rest = " and ".join(f"not {one}" for one in chosen)
    words = ["-m", "pytest", "--collect-only", "-q", "-m", "gpu", "-k", rest, "tests/gpu"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == pytest.ExitCode.NO_TESTS_COLLECTED, done.stdout


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        ({"seconds": None}, "one.json"),
        ({"status": False}, "one.json"),
        ({"schema": 99}, "one.json"),
        ({"step": "two"}, "one.json"),
    ],
)
def test_a_damaged_outcome_is_not_taken_for_one(tmp_path, damage, file):
    step = Shell("one", 30, "pass")
    run((step,), tmp_path, Patience(), dry=False)
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(OptionError, match="holds no outcome of step one: remove it"):
        run((step,), tmp_path, Patience(resume=True), dry=False)


def test_of_two_checks_in_one_folder_the_second_is_refused(tmp_path):
    with FileLock(tmp_path / ".lock"), pytest.raises(OptionError, match="another check writes to"):
        run((Shell("one", 30, "pass"),), tmp_path, Patience(), dry=False)


def test_a_step_has_a_folder_of_its_own_for_temporary_files(tmp_path):
    makes_one = "import tempfile, time; print(f'JSON \"{tempfile.mkdtemp()}\"', flush=True); time.sleep(60)"
    step = Shell("one", LIMIT, makes_one)
    (outcome,) = run((step,), tmp_path, Patience(), dry=False)
    assert outcome.status is None
    assert not Path(outcome.data[0]).exists()


def test_what_torch_compiles_outlives_a_step(tmp_path):
    line = "import json, os, tempfile; print('JSON', json.dumps([os.environ[%r], tempfile.gettempdir()]))"
    steps = [Shell(name, 30, line % "TORCHINDUCTOR_CACHE_DIR") for name in ("one", "two")]
    (one, temporary), (two, another) = (outcome.data[0] for outcome in run(steps, tmp_path, Patience(), dry=False))
    assert one == two
    assert temporary != another
    assert not one.startswith((temporary, another))


@pytest.mark.skipif(sys.platform == "win32", reason="ends by signal")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_ended_from_outside_it_ends_the_step_that_runs(tmp_path, number, status):
    process = subprocess.Popen(
        check(tmp_path, "torch"), cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    end = time.monotonic() + 60
    while not (tmp_path / "torch.log").exists() and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == status, said
    assert b"Traceback" not in said
    assert not [line for line in running() if str(tmp_path) in line]


def running():
    """The environments of all processes: a step knows its folder by a variable."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            yield path.read_text(errors="replace")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fact"], "there is no step 'fact': the steps are facts, ptx,"),
        (["Facts"], "; did you mean facts?"),
        (["--out", "", "facts"], "the root of the clone cannot hold the results"),
        (["--seconds", "0", "facts"], "0 seconds measure nothing: use more than 0"),
    ],
)
def test_bad_input_is_one_line(tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(REPOSITORY)
    result = CliRunner().invoke(command, ["--out", str(tmp_path / "out"), *words])
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_it_wants_to_be_in_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["--out", "out", "facts"])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
    assert "run this in the root of a clone" in result.stderr


def test_a_step_that_fails_makes_the_whole_fail_and_the_others_run(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    steps = (Shell("bad", 30, "raise SystemExit(3)"), Shell("good", 30, "pass"))
    monkeypatch.setattr("unetrt.benchmarks.gpu_check.STEPS", steps)
    monkeypatch.setattr("unetrt.benchmarks.gpu_check.NAMES", ("bad", "good"))
    result = CliRunner().invoke(command, ["--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "1 of 2 steps did not pass: bad: failed (3)" in result.stderr
    assert outcomes(tmp_path)["good"]["status"] == 0
    over = CliRunner().invoke(command, ["--out", str(tmp_path), "--seconds", "0.001", "good"])
    assert (over.exit_code, "1 of 1 steps did not pass: good: not begun" in over.stderr) == (1, True)


def test_each_step_is_a_test_that_exists_or_a_function():
    assert set(FUNCTIONS) == {step.name for step in STEPS if step.tests is None}
    for step in STEPS:
        files, _ = step.tests or ("", "")
        assert all((REPOSITORY / file).exists() for file in files.split())


def test_the_page_lists_the_steps_in_their_order():
    page = (REPOSITORY / "docs" / "gpu-check.md").read_text()
    assert tuple(re.findall(r"^\| `([\w-]+)` \| \d", page, flags=re.MULTILINE)) == NAMES
    for step in STEPS:
        assert f"| `{step.name}` | {step.limit:.0f} | {step.shows} |" in page


def fat_binary(*entries):
    """A fat binary as nvcc lays it out: a header of 16 bytes, then entries of a 64-byte header and code."""
    code = b"".join(
        struct.pack("<HHIQ", kind, 0, 64, len(payload)).ljust(28, b"\x01")
        + struct.pack("<I", arch).ljust(36, b"\2")
        + payload
        for kind, arch, payload in entries
    )
    return struct.pack("<IHHQ", pack.FATBIN, 1, 16, len(code)) + code


@pytest.fixture
def library(tmp_path):
    """A real shared object, with three fat binaries in its section."""
    if shutil.which("gcc") is None:
        pytest.skip(requirements.C_COMPILER)
    parts = (
        fat_binary((2, 80, b"A" * 64), (2, 90, b"B" * 40), (1, 90, b"P" * 24)),
        fat_binary((2, 80, b"C" * 16)),  # nothing for 9.0: as it is
        fat_binary((2, 90, b"D" * 8)),
    )
    data, source = tmp_path / "fat.bin", tmp_path / "library.s"
    data.write_bytes(b"".join(part.ljust(-(-len(part) // 8) * 8, b"\0") for part in parts))
    source.write_text(f'.section .nv_fatbin, "a"\n.balign 8\n.incbin "{data}"\n')
    subprocess.run(["gcc", "-shared", "-o", tmp_path / pack.PROVIDER, source], check=True)
    return tmp_path / pack.PROVIDER, data


def test_a_library_is_cut_down_to_one_capability_and_nothing_moves(library):
    path, data = library
    whole = path.read_bytes()
    assert pack.cut_down(path, 90) == (48, 64 + 24)
    cut, size = path.read_bytes(), data.stat().st_size
    begin = whole.index(data.read_bytes())
    assert len(cut) == len(whole)
    assert (cut[:begin], cut[begin + size :]) == (whole[:begin], whole[begin + size :])
    section = cut[begin : begin + size]
    expected = data.read_bytes().replace(b"A" * 64, bytes(64)).replace(b"P" * 24, bytes(24))
    assert section == expected


def test_a_library_without_the_capability_is_refused(library):
    path, _ = library
    with pytest.raises(SystemExit, match="no machine code for compute capability 75"):
        pack.cut_down(path, 75)


def wheel(folder, name, module, content=b""):
    """A small wheel that pip installs."""
    path, info = folder / f"{name}-1.0-py3-none-any.whl", f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{module}/__init__.py", "")
        file.writestr(f"{module}/{pack.PROVIDER}", content)
        file.writestr(f"{module}/tools/big.py", "")
        file.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", f"{module}/__init__.py,,\n{module}/tools/big.py,,\n")
    return path


def unpacking(tmp_path):
    places = {"SITE": str(tmp_path / "site"), "STORE": str(tmp_path / "store"), "PARTS": str(tmp_path / "carried")}
    words = [sys.executable, str(HOST / "unpack.py")]
    return subprocess.run(words, env=os.environ | places, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "there are no parts in "),
        ({"unetrt-1.0-py3-none-any.whl": b"no wheel"}, "not installed: "),
        ({"a-1.0-py3-none-any.whl.pieces": b"", "a-1.0-py3-none-any.whl.1": b"x"}, "not installed: "),
        (
            {"a-1.0-py3-none-any.whl.pieces": b"1 0123", "a-1.0-py3-none-any.whl.1": b"x"},
            "a-1.0-py3-none-any.whl is damaged: ",
        ),
    ],
    ids=["no parts", "no wheel", "no pieces", "other pieces"],
)
def test_damaged_parts_are_one_line(tmp_path, files, said):
    for name, content in (files or {}).items():
        part = tmp_path / "carried" / "part-01"
        part.mkdir(parents=True, exist_ok=True)
        (part / name).write_bytes(content)
    done = unpacking(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(said)
    assert "Traceback" not in done.stderr


def test_what_is_packed_is_installed_part_by_part(library, tmp_path):
    """A wheel in two pieces is installed once both are there; optional ones where their module is missing."""
    made = [tmp_path / "carried" / f"part-{number:02}" for number in (1, 2)]
    for part in made:
        part.mkdir(parents=True)
    ort = pack.slim(wheel(tmp_path, "onnxruntime_gpu", "onnxruntime", library[0].read_bytes()), tmp_path / "slim", 90)
    for module in ("json", "unetrt_lacks_this"):
        (made[0] / "optional" / module).mkdir(parents=True)
        wheel(made[0] / "optional" / module, module, module)
    wheel(made[0], "unetrt", "unetrt_itself")
    pack.divide(ort, made, ort.stat().st_size // 3)
    two = tmp_path / "later"
    made[1].rename(two)

    def unpack():
        return unpacking(tmp_path).stdout

    assert unpack() == f"still to be carried: {ort.name}.2\ninstalled: base, unetrt_lacks_this\n"
    assert sorted(path.name for path in (tmp_path / "site").iterdir() if "." not in path.name) == [
        "unetrt_itself",
        "unetrt_lacks_this",
    ]
    two.rename(made[1])
    assert unpack() == "installed: base, onnxruntime_gpu, unetrt_lacks_this\n"
    installed = tmp_path / "site" / "onnxruntime"
    assert pack.cut_down(installed / pack.PROVIDER, 90)[0] == 48
    assert not (installed / "tools").exists()
    assert unpack() == "installed: base, onnxruntime_gpu, unetrt_lacks_this\n"
    # What was mended and packed again takes the place of what is there.
    wheel(made[0], "unetrt", "unetrt_itself", b"mended")
    assert unpack() == "installed: base, onnxruntime_gpu, unetrt_lacks_this\n"
    assert (tmp_path / "site" / "unetrt_itself" / pack.PROVIDER).read_bytes() == b"mended"

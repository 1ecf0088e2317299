import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.sleepers import alive
from unetrt.benchmarks import processes
from unetrt.benchmarks.cases import store_drawn, stored
from unetrt.benchmarks.processes import COUNTED, WARM_UP, fresh, in_turn, joules, joules_between, one_core
from unetrt.runtime.errors import InferenceError, OptionError, OutputError
from unetrt.runtime.files.atomic import require_place
from unetrt.trainer.drawn_cells import draw


def test_each_round_is_another_process():
    assert len({os.getpid(), fresh(os.getpid), fresh(os.getpid)}) == 3


def test_what_a_round_raises_is_raised(tmp_path):
    with pytest.raises(OutputError, match="is a folder: name a file in it"):
        fresh(require_place, tmp_path)


def test_a_process_that_dies_is_an_error():
    with pytest.raises(InferenceError, match=r"died \(exit status 9\)"):
        fresh(os._exit, 9)


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_ends_with_the_one_that_waits_for_it(tmp_path, number):
    """A killed benchmark leaves none behind, and after Ctrl-C, which all processes get, only one prints a traceback."""
    lines = ("from unetrt.benchmarks.processes import fresh", "from tests.benchmarks.sleepers import noted")
    program = "\n".join([*lines, "if __name__ == '__main__':", f"    fresh(noted, {str(tmp_path / 'pid')!r})"])
    (tmp_path / "program.py").write_text(program)
    place = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, tmp_path / "program.py"]
    parent = subprocess.Popen(
        command, env=os.environ | place, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    while not (tmp_path / "pid").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    (os.killpg if number == signal.SIGINT else os.kill)(parent.pid, number)
    said = parent.communicate(timeout=60)[1]
    assert said.count("Traceback") == (number == signal.SIGINT), said
    child = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 20
    while alive(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(child)


def test_another_error_is_told_in_one_line():
    with pytest.raises(InferenceError, match=r"^ValueError: invalid literal for int\(\) with base 10: 'a'$"):
        fresh(int, "a")


def test_runs_take_turns_and_warm_ups_do_not_count():
    """By a clock that each run moves on by its own time: the first, uncounted time, far too long."""
    now, order = [0.0], []

    def run(name, seconds):
        def taken():
            now[0] += 100.0 if name not in order else seconds + order.count(name)
            order.append(name)

        return taken

    seconds = in_turn({"a": run("a", 1.0), "b": run("b", 2.0)}, clock=lambda: now[0])
    assert order == ["a", "b"] * (WARM_UP + COUNTED)
    assert seconds == {"a": [2.0, 3.0, 4.0], "b": [3.0, 4.0, 5.0]}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system does not say which cores a thread uses")
def test_one_core_is_given_back():
    before = os.sched_getaffinity(0)
    with pytest.raises(OptionError), one_core():
        assert len(os.sched_getaffinity(0)) == 1
        raise OptionError("whatever happens")
    assert os.sched_getaffinity(0) == before


def test_what_is_stored_is_what_was_drawn(tmp_path):
    store_drawn(tmp_path, (40, 50), 2)
    for seed, drawing in enumerate(stored(tmp_path)):
        np.testing.assert_array_equal(drawing.frame, draw((40, 50), seed).frame)
        np.testing.assert_array_equal(drawing.labels, draw((40, 50), seed).labels)
    assert seed == 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own file says it")
def test_the_peak_is_this_processs_own():
    """A child does not begin with its parent's peak, and memory that was given back counts."""
    kept = bytearray(b"x") * (200 << 20)
    program = """
from unetrt.benchmarks.processes import peak_memory
before = peak_memory()
taken = bytearray(b"x") * (300 << 20)
del taken
print(before, peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < len(kept)
    assert 300 << 20 <= after - before + (20 << 20) < 400 << 20


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """The kernel's folder of two processors, a part of one of them, and the memory's."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
    zones |= {"intel-rapl-mmio:0": "package-0"}
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("1500000\n")
    monkeypatch.setattr(processes, "POWERCAP", tmp_path)
    return tmp_path


def test_energy_is_that_of_all_processors(powercap):
    assert joules(gpu=False) == 3.0
    (powercap / "intel-rapl:1" / "energy_uj").write_text("no number")
    assert joules(gpu=False) is None


def test_where_nobody_tells_there_is_no_energy(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "POWERCAP", tmp_path / "none")
    assert joules(gpu=False) is None


@pytest.mark.parametrize(("before", "after", "between"), [(1.0, 3.5, 2.5), (None, 3.5, None), (3.0, 1.0, None)])
def test_a_counter_that_began_anew_tells_nothing(before, after, between):
    assert joules_between(before, after) == between

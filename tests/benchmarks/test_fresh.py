import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks.sleepers import alive
from unetrt.benchmarks import fresh as module
from unetrt.benchmarks.fresh import COUNTED, WARM_UP, fresh, in_turn, one_core, store_drawn, stored
from unetrt.runtime.errors import OptionError, OutputError
from unetrt.runtime.files.atomic import require_place
from unetrt.trainer.drawn_cells import draw


def test_each_round_is_another_process():
    assert len({os.getpid(), fresh(os.getpid), fresh(os.getpid)}) == 3


def test_what_a_round_raises_is_raised(tmp_path):
    with pytest.raises(OutputError, match="is a folder: name a file in it"):
        fresh(require_place, tmp_path)


def test_a_process_that_dies_is_an_error():
    with pytest.raises(RuntimeError, match=r"died \(exit status 9\)"):
        fresh(os._exit, 9)


@pytest.mark.skipif(os.name == "nt", reason="kills by signal")
def test_a_process_ends_with_the_one_that_waits_for_it(tmp_path):
    """A killed benchmark leaves none behind."""
    lines = ("from unetrt.benchmarks.fresh import fresh", "from tests.benchmarks.sleepers import noted")
    program = "\n".join([*lines, "if __name__ == '__main__':", f"    fresh(noted, {str(tmp_path / 'pid')!r})"])
    (tmp_path / "program.py").write_text(program)
    place = {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONSAFEPATH": "1"}
    parent = subprocess.Popen([sys.executable, tmp_path / "program.py"], env=os.environ | place)
    while not (tmp_path / "pid").exists():
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    child = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 60
    while alive(child) and time.monotonic() < end:
        time.sleep(0.1)
    assert not alive(child)


def test_runs_take_turns_and_warm_ups_do_not_count(monkeypatch):
    """By a clock that each run moves on as far as it takes: the first, uncounted time, far too long."""
    now, order = [0.0], []
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def run(name, seconds):
        def taken():
            now[0] += 100.0 if name not in order else seconds + order.count(name)
            order.append(name)

        return taken

    told = in_turn({"a": run("a", 1.0), "b": run("b", 2.0)})
    assert order == ["a", "b"] * (WARM_UP + COUNTED)
    assert told == {"a": 1.0 + 2, "b": 2.0 + 2}


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

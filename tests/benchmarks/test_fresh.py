import os

import numpy as np
import pytest

from unetrt.benchmarks import fresh as module
from unetrt.benchmarks.fresh import COUNTED, WARM_UP, fresh, in_turn, one_core, store_drawn, stored
from unetrt.runtime.artifacts import require_place
from unetrt.runtime.errors import OptionError, OutputError
from unetrt.trainer.drawn_cells import draw


def test_each_round_is_another_process():
    assert len({os.getpid(), fresh(os.getpid), fresh(os.getpid)}) == 3


def test_what_a_round_raises_is_raised(tmp_path):
    with pytest.raises(OutputError, match="is a folder: name a file in it"):
        fresh(require_place, tmp_path)


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

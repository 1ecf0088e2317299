import sys
from itertools import count

import numpy as np
import pytest

from tests.benchmarks.sleepers import ABOUT, contender
from unetrt.benchmarks import resources, worker
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.ready import Ready
from unetrt.benchmarks.result import PREDICT, SEGMENT
from unetrt.benchmarks.worker import MOST, Worker, measured
from unetrt.runtime.errors import InferenceError


def test_a_contender_is_timed_in_its_own_process(tmp_path):
    with Worker(contender("sleeper"), Job(tmp_path, enough=0.5)) as process:
        assert process.about == ABOUT
        np.testing.assert_array_equal(process.labels(), np.full((96, 130), 7))
        found = process.round()
        assert min(found.seconds[PREDICT]) > 3 * min(found.seconds[SEGMENT])
        assert found.phases == {"cut": 0.5}
        assert (found.host_memory or 0) > 1 << 20 or sys.platform != "linux"
    process.close()


@pytest.mark.parametrize(
    ("name", "message"),
    [("failure", "the failure: ZeroDivisionError: division by zero"), ("dead", "the dead: .* died")],
)
def test_a_contender_that_fails_says_how(tmp_path, name, message):
    with Worker(contender(name), Job(tmp_path)) as process, pytest.raises(InferenceError, match=message):
        process.round()


def test_a_contender_that_cannot_load_says_how(tmp_path):
    with pytest.raises(InferenceError, match="the stranger: FileNotFoundError: "):
        Worker(contender("stranger"), Job(tmp_path))


@pytest.mark.parametrize(("each", "turns"), [(0.001, MOST), (1.0, 3), (100.0, 1)])
def test_ways_run_in_turn_until_enough_was_measured(each, turns, monkeypatch, tmp_path):
    job = Job(tmp_path, enough=5.0)
    counter = count(step=2.5)
    monkeypatch.setattr(resources, "joules", lambda _: next(counter))
    now, ran = [0.0], []

    def run(way):
        ran.append(way)
        now[0] += each

    ways = {way: (lambda way=way: run(way)) for way in (SEGMENT, PREDICT)}
    found = measured(Ready(ABOUT, ways, lambda: {"cut": now[0]}), job, clock=lambda: now[0])
    assert ran == (1 + turns) * [SEGMENT, PREDICT], "a warm-up, then as many turns as are counted"
    assert found.seconds == {way: pytest.approx([each] * turns) for way in ways}
    assert found.joules == 2.5
    assert turns in (1, MOST) or 2 * each * (turns - 1) < job.enough <= 2 * each * turns


def test_a_round_reads_the_memory_of_a_gpu_before_and_after(monkeypatch, tmp_path):
    monkeypatch.setattr(worker.resources, "device_memory", lambda: 700)
    ready = Ready(ABOUT, {SEGMENT: lambda: None})
    for device, taken in (("gpu", 200), ("cpu", None)):
        job = Job(tmp_path, device)
        assert measured(ready, job, used=500, clock=count(step=10.0).__next__).device_memory == taken

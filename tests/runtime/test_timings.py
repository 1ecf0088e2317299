import sys
from contextlib import contextmanager

import pytest

from tests import requirements
from unetrt.runtime import timings
from unetrt.runtime.timings import Occupancy, Passed, Timings


@pytest.mark.parametrize(
    ("passes", "in_flight", "span"),
    [
        ([], 0, 0),
        ([(5, 2)], 2, 2),
        ([(0, 2), (3, 2)], 4, 5),
        ([(0, 2), (1, 2)], 3, 3),
        ([(0, 4), (1, 2), (3, 2)], 5, 5),
        ([(1, 1), (0.5, 1)], 1, 1),
    ],
    ids=["none", "one", "a gap", "an overlap", "one within another", "one that began before"],
)
def test_in_flight_is_when_at_least_one_lane_has_a_pass(passes, in_flight, span):
    occupancy = Occupancy()
    for begin, compute in passes:
        occupancy.add(Passed(begin=begin, compute=compute))
    assert (occupancy.in_flight, occupancy.span) == (in_flight, span)


def test_a_phase_adds_up_and_counts_what_failed_too():
    timings = Timings()
    for _ in range(2):
        with pytest.raises(ValueError, match="no"), timings.phase("cut"):
            raise ValueError("no")
    assert timings.cut > 0


def test_the_frames_add_up_to_the_call():
    timings = Timings(total=9, queue=2, frames=[Timings(cut=1, tiles=2, queue=5), Timings(cut=3, upload=1, tiles=1)])
    timings.sum_frames(Occupancy())
    assert (timings.cut, timings.upload, timings.tiles, timings.queue, timings.total) == (4, 1, 3, 7, 9)


@pytest.fixture
def fresh_ranges():
    timings._nvtx.cache_clear()
    yield
    timings._nvtx.cache_clear()


def test_phases_are_ranges_for_profilers(monkeypatch, fresh_ranges):
    nvtx, seen = pytest.importorskip("nvtx", reason=requirements.NVTX), []

    @contextmanager
    def annotate(name, domain):
        seen.append((name, domain))
        with real(name, domain=domain):
            yield

    real = nvtx.annotate
    monkeypatch.setattr(nvtx, "annotate", annotate)
    with Timings().phase("stitch"):
        pass
    assert seen == [("stitch", "unetrt")]


def test_without_nvtx_there_are_none(monkeypatch, fresh_ranges):
    monkeypatch.setitem(sys.modules, "nvtx", None)
    monkeypatch.setattr(timings, "find_spec", lambda name: None)
    spent = Timings()
    with spent.phase("cut"):
        pass
    assert spent.cut > 0

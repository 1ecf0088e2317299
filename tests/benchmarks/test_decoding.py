"""The benchmark of decoding, and the ways to objects of `unetrt bench`."""

import time

import numpy as np
import pytest

from tests.runtime.test_objects import blobs, grown_reference
from unetrt.benchmarks import runtime_cases
from unetrt.benchmarks.cases import measure
from unetrt.benchmarks.contenders import BenchJob
from unetrt.benchmarks.decoding import BORDER, by_cores, class_maps, watershed, with_objects
from unetrt.benchmarks.processes import in_turn, one_core
from unetrt.benchmarks.result import OBJECTS, SEGMENT
from unetrt.benchmarks.runtime_cases import ClassMapDecoding, first_instances
from unetrt.runtime.errors import ParityError
from unetrt.runtime.model.objects import instances
from unetrt.trainer.drawn_cells import draw


@pytest.mark.alone
def test_it_states_how_many_times_as_fast_as_the_first_version():
    result = measure(ClassMapDecoding(256), rounds=2)
    figures = {one.name: one for one in result.figures}
    assert figures["cores against the first version"].goal == 5
    first, now = figures["first version, components"], figures["components"]
    ratios = [before / after for before, after in zip(first.rounds, now.rounds, strict=True)]
    assert list(figures["components against the first version"].rounds) == pytest.approx(ratios)
    assert min(result.detail["objects"].values()) > 10


@pytest.mark.alone
def test_decoding_is_at_least_3_times_as_fast_as_the_first_version():
    """The goal is 5 (`ClassMapDecoding`); the best of several turns, CPU time on one core."""
    maps = class_maps(draw((1024, 1024), seed=1, density=0.2).labels)
    ways = {name: lambda one=one: instances(*one) for name, one in maps.items()}
    ways["first"] = lambda: first_instances(maps["components"][0], BORDER)
    with one_core():
        seconds = {name: min(each) for name, each in in_turn(ways, 5, clock=time.process_time).items()}
    for name in maps:
        assert seconds["first"] > 3 * seconds[name]


def test_the_first_version_is_what_it_was():
    from scipy import ndimage

    classes = np.minimum(blobs(3, (80, 60)), 1)
    expected = grown_reference(ndimage.label(classes)[0].astype(np.int32), 3)
    np.testing.assert_array_equal(first_instances(classes, 3), expected)


def test_nothing_is_timed_where_the_versions_disagree(monkeypatch, tmp_path):
    monkeypatch.setattr(runtime_cases, "first_instances", lambda classes, border: np.zeros(classes.shape))
    with pytest.raises(ParityError, match="gives other objects than the first version"):
        ClassMapDecoding(128).prepare(tmp_path)


def test_both_ways_find_the_drawn_cells():
    labels = draw((400, 500), seed=1).labels
    classes = class_maps(labels)["cores"][0]
    count = len(np.unique(labels)) - 1
    for decode in (by_cores, watershed):
        assert decode(classes).max() == pytest.approx(count, rel=0.3)


def test_objects_are_timed_where_the_job_has_a_class_map(tmp_path):
    job, decoded = BenchJob(tmp_path), []
    assert set(with_objects(job, lambda: None, decoded.append)) == {SEGMENT}
    job.write_classes(np.ones((3, 4), np.uint8))
    assert set(with_objects(job, lambda: None, None)) == {SEGMENT}
    with_objects(job, lambda: None, decoded.append)[OBJECTS]()
    assert decoded[0].shape == (3, 4)

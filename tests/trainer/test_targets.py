import os
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from tests.conftest import NUCLEI
from unetrt.runtime.files.images import read_labels
from unetrt.runtime.model.objects import instances
from unetrt.runtime.model.spec import Decoding
from unetrt.trainer import targets
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.evaluation import evaluate_instances, pooled
from unetrt.trainer.label_values import as_instances
from unetrt.trainer.metrics import count_objects
from unetrt.trainer.targets import (
    Target,
    cached_separation_weights,
    class_weights,
    cut_between,
    prune_cache,
    separation_weights,
)

LABELS = draw((80, 90), seed=2).labels


def test_separation_weights_are_the_direct_formula():
    """Distance transforms of the whole image for each object, in float64."""
    labels = draw((150, 170), seed=4).labels
    distances = np.sort([distance_to(labels, number) for number in range(1, labels.max() + 1)], axis=0)
    expected = 10 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * 5**2))
    np.testing.assert_allclose(separation_weights(labels, 10, 5), expected, atol=1e-4)
    assert expected.max() > 5


def distance_to(labels, number):
    """Distance to the border of one object: to its pixels from outside, out of it from inside."""
    inside = labels == number
    return ndimage.distance_transform_edt(~inside) + ndimage.distance_transform_edt(inside)


def as_the_field_writes_it(labels):
    """One distance transform an object, and the two smallest of all at each pixel."""
    each = (ndimage.distance_transform_edt(labels != number) for number in range(1, labels.max() + 1))
    distances = np.stack([distance.astype(np.float32) for distance in each])
    distances.partition(1, axis=0)
    return 10 * np.exp(-((distances[0] + distances[1]) ** 2) / (2 * 5**2))


def best_of(runs, function, *arguments):
    """The least of some seconds, and the result."""
    seconds = []
    for _ in range(runs):
        begin = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - begin)
    return min(seconds), result


@pytest.mark.slow
def test_many_objects_take_a_fortieth_of_the_direct_formulas_time():
    """369 nuclei in 520 x 696 px, as drawn by hand; drawn cells where that image is not at hand."""
    path = NUCLEI / "train" / "labels" / "0ea22171.tif"
    labels = as_instances(read_labels(path)) if path.exists() else draw((520, 696), seed=1).labels
    ours, weights = best_of(5, separation_weights, labels, 10, 5)
    direct, outside = best_of(1, as_the_field_writes_it, labels)
    # Outside the objects it is this formula in any reading of "distance to the border".
    np.testing.assert_allclose(weights[labels == 0], outside[labels == 0], atol=1e-4)
    # About 100 times for 369 objects; fewer gain less.
    assert direct / ours > 40 * min(1, labels.max() / 369)


@pytest.mark.parametrize("labels", [np.zeros((9, 9), np.int32), np.eye(9, dtype=np.int32)])
def test_fewer_than_two_objects_have_no_separation(labels):
    assert not separation_weights(labels).any()


def test_w0_of_zero_switches_it_off():
    assert not separation_weights(draw((64, 64), seed=0).labels, w0=0).any()


@given(st.integers(0, 2**32 - 1), st.integers(0, 4))
def test_the_cut_takes_pixels_near_another_object_alone(seed, width):
    labels = np.repeat(np.repeat(np.random.default_rng(seed).integers(0, 4, (3, 4)), 5, 0), 5, 1).astype(np.int32)
    cut = cut_between(labels, width)
    np.testing.assert_array_equal(cut[cut > 0], labels[cut > 0])
    padded = np.pad(labels, 2, mode="reflect")
    for y, x in np.argwhere(cut != labels):
        window = padded[y : y + 5, x : x + 5]
        assert (window[window > 0] != labels[y, x]).any()
    if width == 0:
        np.testing.assert_array_equal(cut, labels)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_the_cut_is_as_wide_as_asked(width):
    touching = np.repeat([[1, 2]], 8, axis=1).reshape(1, 16).repeat(5, axis=0).astype(np.int32)
    assert (cut_between(touching, width)[2] == 0).sum() == width


def test_class_weights_balance_and_average_to_one():
    counts = np.array([900, 100, 0])
    weights = class_weights(counts)
    assert weights[0] * 900 == pytest.approx(weights[1] * 100)
    assert (weights * counts).sum() / counts.sum() == pytest.approx(1)
    assert weights[2] == 0


@pytest.fixture
def counted(monkeypatch):
    """The computations of separation weights, one entry each."""
    calls = []

    def count(*arguments):
        calls.append(arguments)
        return separation_weights(*arguments)

    monkeypatch.setattr(targets, "separation_weights", count)
    return calls


def test_the_same_labels_and_options_are_worked_out_once(tmp_path, counted):
    for _ in range(3):
        weights = cached_separation_weights(LABELS, 10.0, 5.0, tmp_path)
        np.testing.assert_array_equal(weights, separation_weights(LABELS, 10.0, 5.0))
    assert len(counted) == 1


CHANGES = {
    "w0": lambda labels: (labels, 9.0, 5.0),
    "sigma": lambda labels: (labels, 10.0, 4.0),
    "shape": lambda labels: (labels.T, 10.0, 5.0),
    "labels": lambda labels: (np.where(labels == 3, 0, labels).astype(np.int32), 10.0, 5.0),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_any_change_is_worked_out_anew(tmp_path, counted, change):
    cached_separation_weights(LABELS, 10.0, 5.0, tmp_path)
    changed = change(LABELS)
    np.testing.assert_array_equal(cached_separation_weights(*changed, tmp_path), separation_weights(*changed))
    assert len(counted) == 2


@pytest.mark.parametrize("damage", [b"", b"no array", None])
def test_a_damaged_or_unwritable_cache_costs_time_and_nothing_else(tmp_path, counted, damage):
    folder = tmp_path / "cache"
    if damage is None:
        folder.write_text("a file where the folder should be")
    else:
        cached_separation_weights(LABELS, 10.0, 5.0, folder)
        next(folder.glob("*.npy")).write_bytes(damage)
    weights = cached_separation_weights(LABELS, 10.0, 5.0, folder)
    np.testing.assert_array_equal(weights, separation_weights(LABELS, 10.0, 5.0))


@pytest.mark.skipif(os.name != "posix", reason="modes and users of POSIX")
def test_a_cache_below_a_folder_that_may_not_be_entered(tmp_path):
    """As in a container that runs as somebody else: even asking whether the folder exists raises."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    program = (
        "import os, sys; from pathlib import Path; from unetrt.trainer.drawn_cells import draw; "
        "from unetrt.trainer.targets import cached_separation_weights; labels = draw((40, 40), seed=2).labels; "
        "os.geteuid() or os.seteuid(65534); "
        "print(cached_separation_weights(labels, 10.0, 5.0, Path(sys.argv[1])).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, closed / "cache"], capture_output=True, text=True, check=False, timeout=120
    )
    closed.chmod(0o700)
    assert done.stdout.strip() == "(40, 40)", done.stderr


def test_the_longest_unused_go_first(tmp_path, counted):
    for w0 in (1.0, 2.0, 3.0):
        cached_separation_weights(LABELS, w0, 5.0, tmp_path)
    size = next(tmp_path.glob("*.npy")).stat().st_size
    cached_separation_weights(LABELS, 1.0, 5.0, tmp_path)  # used again: the newest now
    prune_cache(tmp_path, limit=2 * size)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    cached_separation_weights(LABELS, 1.0, 5.0, tmp_path)
    assert len(counted) == 3


def discs(diameters, gap=0):
    """Return discs side by side, `gap` px apart, as instances (H, W)."""
    side = max(diameters) + 4
    labels = np.zeros((side, sum(diameters) + (len(diameters) + 1) * max(gap, 0) + 4), np.int32)
    rows, columns = np.indices(labels.shape)
    left = 2.0
    for number, diameter in enumerate(diameters, 1):
        centre = left + diameter / 2
        labels[(rows - side / 2) ** 2 + (columns - centre) ** 2 < diameter**2 / 4] = number
        left += diameter + gap
    return labels


def test_the_rim_follows_from_the_median_size_and_is_thinner_in_small_objects():
    labels = discs([30, 30, 30, 8], gap=3)
    target = Target.cores([labels], rim=0.2)
    assert target.rim == pytest.approx(0.2 * 30, rel=0.03)
    assert target.class_names == ("background", "rim", "core")
    classes = target.classes(labels)
    np.testing.assert_array_equal(classes > 0, labels > 0)
    core_widths = [int((classes[len(labels) // 2] == 2)[labels[len(labels) // 2] == n].sum()) for n in (1, 4)]
    assert core_widths[0] == pytest.approx(30 - 12, abs=2)
    assert core_widths[1] == pytest.approx(8 / 2, abs=1)


def test_rims_lie_between_touching_objects_and_not_at_the_edge_of_the_image():
    labels = np.zeros((40, 40), np.int32)
    labels[:, :20], labels[:, 20:] = 1, 2
    classes = Target.cores([labels], rim=0.1).classes(labels)
    assert (classes[:, [0, 39]] == 2).all()
    assert (classes[:, [19, 20]] == 1).all()


@pytest.mark.parametrize("sizes", [[20], [20, 20, 20], [9, 40, 14], [10, 12, 30]])
def test_decoding_undoes_the_target(sizes):
    labels = discs(sizes, gap=-1)
    target = Target.cores([labels], rim=0.2)
    found = instances(target.classes(labels).astype(np.uint8), target.decoding)
    assert found.max() == len(sizes)
    np.testing.assert_array_equal(found > 0, labels > 0)
    assert count_objects(found, labels).seg > 0.95


def test_a_training_set_without_objects_has_a_target():
    target = Target.cores([np.zeros((9, 9), np.int32)], rim=0.2)
    assert target.decoding == Decoding("cores", 3, 1, 0)
    assert not target.classes(np.zeros((9, 9), np.int32)).any()


@pytest.mark.skipif(not NUCLEI.exists(), reason=f"{NUCLEI} does not exist")
def test_real_annotations_survive_target_and_decoding():
    paths = sorted((NUCLEI / "val" / "labels").iterdir())
    labels = [as_instances(read_labels(path)) for path in paths]
    target = Target.cores(labels, rim=0.2)
    tallies = [
        evaluate_instances(instances(target.classes(each).astype(np.uint8), target.decoding), each, warping=False)
        for each in labels
    ]
    objects = pooled(tallies).objects
    assert objects.seg > 0.96  # a fiftieth are specks
    assert objects.merged + objects.split < 0.02 * objects.objects

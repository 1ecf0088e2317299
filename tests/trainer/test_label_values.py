"""What the values of label files are taken for: ids, masks, grey values, and a background that has a number."""

import json
from io import BytesIO

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage
from scipy.spatial import cKDTree
from skimage import measure

from tests.conftest import NUCLEI
from unetrt.__main__ import main
from unetrt.runtime.errors import DatasetError, FrameError, OptionError
from unetrt.runtime.files.images import read_labels
from unetrt.runtime.records import validated
from unetrt.trainer.dataset import read_dataset
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.evaluation import LabelFormat, compare_files
from unetrt.trainer.label_values import (
    LabelDoubts,
    LabelRule,
    as_instances,
    count_pieces,
    require_background,
    require_ids,
)
from unetrt.trainer.run import DataSource

CELLS = draw((160, 200), seed=3).labels
MASK = np.where(CELLS > 0, 255, 0).astype(np.uint8)
PIECES = ndimage.label(MASK)[1]


def resized(labels, factor, method=Image.Resampling.BILINEAR):
    size = [round(side * factor) for side in reversed(labels.shape)]
    return np.rint(np.asarray(Image.fromarray(labels.astype(np.float32)).resize(size, method))).clip(0).astype(np.int64)


def jpeg(mask, quality):
    file = BytesIO()
    Image.fromarray(mask).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def discs(*places, size=(60, 80)):
    """Numbered discs: (row, column, radius)."""
    rows, columns = np.mgrid[: size[0], : size[1]]
    labels = np.zeros(size, np.uint8)
    for number, (row, column, radius) in enumerate(places, 1):
        labels[np.hypot(rows - row, columns - column) <= radius] = number
    return labels


DISCS = discs((15, 15, 8), (15, 40, 8), (40, 20, 8), (40, 60, 12))


def folder(path, *labels, images=None):
    for part in ("images", "labels"):
        (path / part).mkdir(parents=True, exist_ok=True)
    for index, plane in enumerate(labels):
        frame = np.random.default_rng(index).integers(0, 4000, np.shape(plane)).astype(np.uint16)
        tifffile.imwrite(path / "images" / f"{index}.tif", frame, photometric="minisblack")
        tifffile.imwrite(path / "labels" / f"{index}.tif", np.asarray(plane), photometric="minisblack")
    return path


def objects(data):
    return [int(image.labels.max()) for image in data.images]


def test_ids_are_numbered_in_order_and_not_split():
    np.testing.assert_array_equal(as_instances(np.array([[7, 7, 0, 3]])), [[2, 2, 0, 1]])
    np.testing.assert_array_equal(as_instances(np.array([[4_000_000_000, 3]], np.uint32)), [[2, 1]])
    np.testing.assert_array_equal(as_instances(np.array([[255, 0, 255]], np.uint8)), [[1, 0, 1]])
    assert as_instances(np.zeros((0, 3), int)).shape == (0, 3)


def test_a_rule_says_what_is_an_object():
    plane = np.array([[9, 0, 9, 0, 4]])
    for rule, expected in (
        (LabelRule(), [[2, 0, 2, 0, 1]]),
        (LabelRule(masks=False), [[2, 0, 2, 0, 1]]),
        (LabelRule(masks=True), [[2, 0, 2, 0, 1]]),
        (LabelRule(threshold=5), [[1, 0, 2, 0, 0]]),
        (LabelRule(threshold=4), [[1, 0, 2, 0, 3]]),
    ):
        np.testing.assert_array_equal(rule.objects(plane), expected)
    np.testing.assert_array_equal(LabelRule(masks=True).objects(plane % 2), [[1, 0, 2, 0, 0]])
    np.testing.assert_array_equal(LabelRule().objects(plane % 2), [[1, 0, 1, 0, 0]])


INTERPOLATED = {
    **{f"a mask resized by {factor}": resized(MASK, factor) for factor in (0.4, 0.5, 1.5, 2, 4)},
    **{f"a mask resized by Lanczos, {factor}": resized(MASK, factor, Image.Resampling.LANCZOS) for factor in (0.5, 2)},
    **{f"labels resized by {factor}": resized(CELLS, factor) for factor in (0.4, 0.5, 1.5, 2, 4)},
    **{f"a mask blurred by {sigma} px": ndimage.gaussian_filter(MASK, sigma) for sigma in (0.5, 1, 2, 4)},
    **{f"a JPEG of quality {quality}": jpeg(MASK, quality) for quality in (50, 75, 90, 95)},
    "a micrograph": draw((160, 200), seed=3).frame,
    "one anti-aliased cell": resized(255 * discs((30, 40, 20)), 1.7),
    "two grey values": np.where(discs((30, 40, 20)) > 0, 255, np.where(discs((30, 40, 21)) > 0, 128, 0)),
}


@pytest.mark.parametrize("values", INTERPOLATED.values(), ids=INTERPOLATED)
def test_interpolated_values_are_no_ids(values):
    with pytest.raises(
        DatasetError, match="a.tif holds (an anti-aliased or resized mask|grey values, or labels resized)"
    ):
        require_ids(values, "a.tif")


def test_the_message_gives_the_threshold_of_a_mask():
    with pytest.raises(DatasetError, match="mask: [0-9]+% of .* --threshold 128 makes a mask of it .--ids takes"):
        require_ids(INTERPOLATED["a mask resized by 1.5"], "a.tif")
    with pytest.raises(
        DatasetError, match="labels resized with .*: save one value for each object, and resize|nearest"
    ):
        require_ids(INTERPOLATED["labels resized by 2"], "a.tif")


def tessellation(seed, count):
    """Cells without background, of 64 x 64 px / count each, in random order of numbers."""
    points = np.random.default_rng(seed).random((count, 2)) * 64
    return cKDTree(points).query(np.stack(np.mgrid[:64, :64], axis=-1))[1] + 1


@given(st.integers(0, 2**32 - 1), st.integers(2, 400))
def test_objects_of_any_shape_and_number_are_ids(seed, count):
    rng = np.random.default_rng(seed)
    labels = tessellation(seed, count)
    require_ids(labels, "a.tif")
    require_ids(np.where(rng.random(count + 1)[labels] < 0.4, 0, labels), "a.tif")
    require_ids(np.where(ndimage.grey_dilation(labels, 2) == labels, labels, 0), "a.tif")  # a line between them


@pytest.mark.parametrize("factor", [0.4, 0.5, 1.5, 2, 4])
def test_labels_resized_to_the_nearest_pixel_are_ids(factor):
    require_ids(resized(CELLS, factor, Image.Resampling.NEAREST), "a.tif")


@pytest.mark.skipif(not NUCLEI.exists(), reason=f"{NUCLEI} does not exist")
def test_real_annotations_are_ids_without_a_doubt():
    doubts = LabelDoubts()
    for path in sorted(NUCLEI.glob("*/labels/*")):
        labels = read_labels(path)
        require_ids(labels, path.name)
        require_background(as_instances(labels), path.name)
        doubts.add(path.name, as_instances(labels))
    assert doubts.sentences() == []


def test_few_ids_that_were_interpolated_widely_are_noted(tmp_path):
    """Rims that are several pixels wide: 1 around 2, 1 and 2 around 3."""
    data = read_dataset(folder(tmp_path, resized(DISCS, 8).astype(np.uint8)))
    assert data.notes[0].startswith("0 holds 4 values in ")


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 9), st.integers(1, 12)))
def test_pieces_are_components_of_equal_values(seed, size):
    labels = np.random.default_rng(seed).integers(0, 4, size)
    assert count_pieces(labels) == measure.label(labels, connectivity=1).max()


INVERTED = {
    "a mask": DISCS == 0,
    "a mask of many cells": CELLS == 0,
    "labels whose background has a number": DISCS + 1,
    "labels with lines of 0": np.where(ndimage.grey_dilation(DISCS, 3) == DISCS, DISCS + 1, 0),
}


@pytest.mark.parametrize("values", INVERTED.values(), ids=INVERTED)
def test_a_background_is_no_object(tmp_path, values):
    values = values.astype(np.uint8)
    with pytest.raises(
        DatasetError, match="labels of 0 holds an object that covers .* of the image, reaches all sides"
    ):
        read_dataset(folder(tmp_path, values))
    assert objects(read_dataset(tmp_path, rule=LabelRule(masks=False))) == [values.max()]
    assert "if it is the background, make that 0" in read_dataset(tmp_path, rule=LabelRule(masks=True)).notes[0]


HOLED = np.where(discs((9, 9, 3), (9, 25, 3), (22, 9, 3), size=(40, 40)) > 0, 0, 1)
LEGAL = {
    "a cell that fills most of a small image": discs((20, 20, 24), size=(40, 40)),
    "a cell that fills the image": np.ones((30, 30), np.uint8),
    "a cell with a hole": np.where(discs((20, 20, 5), size=(40, 40)) > 0, 0, 1),
    "a cell with a few pinholes": 1 - np.pad(np.kron(np.eye(4, dtype=np.uint8), np.pad([[1]], 3)), 6),
    "a cell that leaves one side free": np.where(np.arange(40)[:, None] < 35, HOLED, 0),
}  # fmt: skip


@pytest.mark.parametrize("labels", LEGAL.values(), ids=LEGAL)
def test_a_large_cell_is_legal_and_noted(tmp_path, labels):
    data = read_dataset(folder(tmp_path, labels.astype(np.uint8), DISCS))
    assert objects(data) == [1, 4]
    (note,) = data.notes
    assert note.startswith(f"one object covers {np.mean(labels > 0):.0%} of 0: if it is the background, make that 0")


def test_a_background_between_dense_cells_is_noted(tmp_path):
    dense = np.kron(np.ones((5, 5), np.uint8), np.pad(np.ones((9, 9), np.uint8), 1))
    (note,) = read_dataset(folder(tmp_path, 1 - dense)).notes
    assert note == "one object covers 33% of 0: if it is the background, make that 0"
    assert read_dataset(folder(tmp_path / "cells", dense), rule=LabelRule(masks=True)).notes == ()


def test_labels_without_a_doubt_have_no_notes(tmp_path):
    assert read_dataset(folder(tmp_path, DISCS, CELLS.astype(np.uint16), 0 * DISCS)).notes == ()


@pytest.mark.parametrize("high", [1, 255])
def test_a_folder_of_masks_is_read_as_masks_and_says_so(tmp_path, high):
    masks = [np.uint8(high) * (labels > 0) for labels in (DISCS, CELLS, 0 * DISCS)]
    data = read_dataset(folder(tmp_path, *masks))
    assert objects(data) == [4, PIECES, 0]
    assert data.notes == (
        f"labels hold a single value, and are taken as masks, whose {4 + PIECES} connected components are the objects: "
        "--masks says so, --ids that each label file holds one object",
    )
    assert data.split_by(["0"])[0].notes == data.notes
    told = read_dataset(tmp_path, rule=LabelRule(masks=True))
    assert (objects(told), told.notes) == ([4, PIECES, 0], ())
    assert objects(read_dataset(tmp_path, rule=LabelRule(masks=False))) == [1, 1, 0]


def test_one_value_among_ids_is_one_object_and_noted(tmp_path):
    broken = np.where(DISCS == 2, 0, DISCS == 1) + (DISCS == 4)
    data = read_dataset(folder(tmp_path, DISCS, broken.astype(np.uint8)))
    assert objects(data) == [4, 1]
    assert data.notes == (
        "1 holds 1 values in 2 pieces, and each value is one object: give --masks for masks, --classes for class maps, "
        "and do not interpolate labels",
    )
    assert objects(read_dataset(tmp_path, rule=LabelRule(masks=True))) == [4, 2]


def test_single_objects_in_one_piece_need_no_note(tmp_path):
    data = read_dataset(folder(tmp_path, discs((20, 20, 9)), discs((30, 30, 9))))
    assert (objects(data), data.notes) == ([1, 1], ())


def test_noise_is_noted(tmp_path):
    noise = (np.random.default_rng(0).random((128, 128)) < 0.15).astype(np.uint8)
    _, note = read_dataset(folder(tmp_path, noise)).notes
    assert note.startswith("0 holds ")
    assert note.endswith(
        "objects of 1 px (median): if that is noise, remove it, or give another --threshold for grey values"
    )


SOFT = resized(np.where(DISCS > 0, 255, 0), 2).astype(np.uint8)


def test_a_threshold_makes_masks_of_grey_values(tmp_path):
    data = read_dataset(
        folder(tmp_path, SOFT, (SOFT / np.float32(255)).astype(np.float32) * 200), rule=LabelRule(threshold=100)
    )
    for image, values in zip(data.images, (SOFT, SOFT / 255 * 200), strict=True):
        np.testing.assert_array_equal(image.labels, ndimage.label(values >= 100)[0])
    assert data.notes == ()


def test_pixels_that_are_ignored_are_no_foreground_of_a_threshold(tmp_path):
    marked = np.where(np.arange(SOFT.shape[1]) < 60, 254, SOFT).astype(np.uint8)
    (image,) = read_dataset(folder(tmp_path, marked), ignore=254, rule=LabelRule(threshold=128)).images
    assert not image.labels[:, :60].any()
    assert image.ignored[:, :60].all()


def test_grey_values_and_nan_name_the_remedy(tmp_path):
    soft = (SOFT / np.float32(255)).astype(np.float32)
    with pytest.raises(FrameError, match="0.tif holds float32 values that are not labels: .*--threshold VALUE"):
        read_dataset(folder(tmp_path, soft))
    soft[3, 4] = np.nan
    with pytest.raises(FrameError, match="0.tif: 1 pixels are NaN or infinite, the first at row 3, column 4"):
        read_dataset(folder(tmp_path, soft), rule=LabelRule(threshold=0.5))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LabelRule(masks=False, threshold=3), "--threshold makes masks of label files, --ids takes"),
        (lambda: LabelRule(threshold=0), "a threshold of 0 makes the background, 0, foreground: use one above 0"),
        (lambda: LabelRule(threshold=float("nan")), "a threshold of nan"),
        (lambda: LabelFormat(classes=3, rule=LabelRule(masks=True)), "--classes for class indices: give one"),
        (lambda: read_dataset("none", classes=2, rule=LabelRule(threshold=3)), "--classes for class indices: give one"),
    ],
)
def test_rules_that_contradict(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def pair(tmp_path, predicted, truth):
    for name, labels in (("predicted", predicted), ("truth", truth)):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.asarray(labels), photometric="minisblack")
    return tmp_path / "predicted.tif", tmp_path / "truth.tif"


def tally(paths, rule=LabelRule(), doubts=None):  # noqa: B008 - frozen
    ((_, found),) = compare_files(*paths, LabelFormat(rule=rule), doubts=doubts)
    return found.to_dict()


def test_one_id_in_two_places_is_one_object_in_both_maps(tmp_path):
    one = (DISCS == 1).astype(np.uint8) + (DISCS == 4)
    for predicted, truth in ((one, DISCS), (DISCS, one), (one, one)):
        doubts = LabelDoubts()
        scores = tally(pair(tmp_path, predicted, truth), doubts=doubts)
        assert (scores["found"], scores["objects"]) == (len(np.unique(predicted)) - 1, len(np.unique(truth)) - 1)
        assert (
            "holds 1 values in 2 pieces, and each value is one object: give --masks for masks" in doubts.sentences()[0]
        )
    assert tally(pair(tmp_path, one, one), LabelRule(masks=True))["objects"] == 2
    assert tally(pair(tmp_path, DISCS, one), LabelRule(masks=True))["found"] == 4


def test_evaluation_checks_the_annotations_and_not_the_prediction(tmp_path):
    inverted = (DISCS == 0).astype(np.uint8)
    assert tally(pair(tmp_path, inverted, DISCS))["found"] == 1
    with pytest.raises(DatasetError, match="truth of the annotations holds an object that covers"):
        tally(pair(tmp_path, DISCS, inverted))
    assert tally(pair(tmp_path, DISCS, inverted), LabelRule(masks=False))["objects"] == 1
    with pytest.raises(DatasetError, match="truth of the annotations holds an anti-aliased or resized mask"):
        tally(pair(tmp_path, SOFT, SOFT))


def test_eval_takes_masks_and_thresholds(tmp_path, capsys):
    paths = [str(path) for path in pair(tmp_path, ndimage.label(SOFT >= 128)[0].astype(np.uint8), SOFT)]
    assert main(["eval", *paths, "--threshold", "128", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["pooled"]["ap"]["0.95"], err) == (1, "")
    assert main(["eval", *paths]) == 2
    assert "an anti-aliased or resized mask" in capsys.readouterr().err
    mask = str(pair(tmp_path, DISCS, np.where(DISCS > 0, 255, 0).astype(np.uint8))[1])
    assert main(["eval", paths[0], mask, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["pooled"]["objects"] == 1
    assert err == (
        "note: truth of the annotations holds 1 values in 4 pieces, and each value is one object: give --masks for "
        "masks, --classes for class maps, and do not interpolate labels\n"
    )
    assert main(["eval", paths[0], mask, "--json", "--masks"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["pooled"]["ap"]["0.95"], err) == (1, "")
    assert main(["eval", *paths, "--threshold", "0"]) == 2
    assert main(["eval", paths[0], mask, "--masks", "--classes", "2"]) == 2


def test_a_resumed_run_reads_labels_by_the_same_rule(tmp_path):
    source = DataSource(folder(tmp_path / "data", SOFT, SOFT), rule=LabelRule(threshold=128))
    stored = json.loads(json.dumps(source.to_dict())) | {"data": source.data}
    resumed = validated(stored, DataSource, "the origin")
    assert resumed == source
    train, held = resumed.read(seed=0)
    assert (objects(train), objects(held)) == ([4], [4])
    del stored["rule"]
    assert validated(stored, DataSource, "an earlier origin").rule == LabelRule()


def test_train_says_how_labels_are_taken(tmp_path, capsys):
    data = folder(tmp_path / "data", *[np.where(DISCS > 0, 255, 0).astype(np.uint8)] * 2)
    small = ["--depth", "1", "--base", "1", "--tile", "28", "--steps", "1", "--no-export"]
    assert main(["train", str(data), "-o", str(tmp_path / "run"), *small]) == 0
    out, _ = capsys.readouterr()
    assert "1 images (1 of 60x80; uint16; channels: 1), 4 objects" in out
    assert out.count("labels hold a single value, and are taken as masks, whose 8 connected components are the") == 1
    soft = folder(tmp_path / "soft", SOFT, SOFT)
    assert main(["train", str(soft), "-o", str(tmp_path / "new"), *small]) == 2
    assert "an anti-aliased or resized mask" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    assert main(["train", str(soft), "-o", str(tmp_path / "new"), "--threshold", "128", *small]) == 0

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetrt.runtime.errors import DatasetError, FrameError, UnetrtError
from unetrt.trainer.dataset import read_dataset

FRAME = np.arange(20, dtype=np.uint16).reshape(4, 5)
LABELS = np.array([[0, 1, 1, 0, 2]] * 4, np.uint8)


def write(folder, images=None, labels=None):
    for kind, files in (("images", images), ("labels", labels)):
        (folder / kind).mkdir()
        for name, pixels in (files or {}).items():
            path = folder / kind / name
            tifffile.imwrite(path, pixels) if path.suffix == ".tif" else Image.fromarray(pixels).save(path)
    return folder


def test_pairs_by_stem_whatever_the_format(tmp_path):
    data = read_dataset(write(tmp_path, {"a.tif": FRAME, "b.png": FRAME}, {"a.png": LABELS, "b.tif": LABELS}))
    assert [image.name for image in data.images] == ["a", "b"]
    assert data.images[0].frame.shape == (1, 4, 5)
    assert data.images[1].frame.dtype == np.uint16
    np.testing.assert_array_equal(data.images[0].labels, LABELS)
    assert str(data) == "2 images (2 of 4x5; uint16; channels: 1), 4 objects (median 6 px)"


def test_class_maps(tmp_path):
    data = read_dataset(write(tmp_path, {"a.tif": FRAME}, {"a.tif": LABELS}), classes=3)
    assert data.class_names == ("background", "class 1", "class 2")
    assert not data.instances


def test_an_image_without_objects_is_a_negative_example(tmp_path):
    data = read_dataset(write(tmp_path, {"a.tif": FRAME, "b.tif": FRAME}, {"a.tif": LABELS, "b.tif": 0 * LABELS}))
    assert len(data.images) == 2


NAN = np.where(FRAME == 7, np.nan, FRAME).astype(np.float32)
RGB = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "error", "message"),
    [
        ({}, {"a.tif": LABELS}, None, DatasetError, "images holds no image"),
        ({"a.tif": FRAME}, {"b.tif": LABELS}, None, DatasetError, "image a.tif has no partner of that name"),
        (
            {"a.tif": FRAME},
            {"a.tif": LABELS, "b.tif": LABELS, "c.tif": LABELS},
            None,
            DatasetError,
            r"label b.tif \(and 1 more\) has no partner",
        ),
        ({"a.tif": FRAME, "a.png": FRAME}, {"a.tif": LABELS}, None, DatasetError, "names must differ in the stem"),
        (
            {"a.tif": FRAME},
            {"a.tif": LABELS[:3]},
            None,
            DatasetError,
            "images.a.tif is 4 x 5 px, .*labels.a.tif is 3 x 5 px",
        ),
        ({"a.tif": FRAME}, {"a.tif": 0 * LABELS}, None, DatasetError, "all 1 label images are empty"),
        ({"a.tif": NAN}, {"a.tif": LABELS}, None, FrameError, "a.tif: 1 pixels are NaN.*row 1, column 2"),
        ({"a.tif": FRAME, "b.png": RGB}, {"a.tif": LABELS, "b.tif": LABELS}, None, DatasetError, "3 channels"),
        ({"a.tif": np.stack([FRAME] * 2)}, {"a.tif": LABELS}, None, DatasetError, "stack of 2 frames"),
        ({"a.tif": FRAME}, {"a.tif": LABELS}, 2, DatasetError, r"holds class 2, 2 classes are 0 \.\.\. 1"),
    ],
)
def test_what_does_not_fit(tmp_path, images, labels, classes, error, message):
    with pytest.raises(error, match=message):
        read_dataset(write(tmp_path, images, labels), classes)


@pytest.mark.parametrize("missing", ["", "images", "labels"])
def test_a_missing_folder(tmp_path, missing):
    (tmp_path / {"": "x", "images": "labels", "labels": "images"}[missing]).mkdir()
    (tmp_path / "images" / "a.tif").touch() if missing == "labels" else None
    folder = tmp_path / "none" if missing == "" else tmp_path
    with pytest.raises(UnetrtError, match="does not exist|holds no image"):
        read_dataset(folder)


def test_a_split_loses_no_image_and_repeats_itself(drawn_folder):
    data = read_dataset(drawn_folder)
    train, held = data.split(0.25, seed=3)
    names = [image.name for part in (train, held) for image in part.images]
    assert sorted(names) == [image.name for image in data.images]
    assert len(held.images) == 1
    assert data.split(0.25, seed=3)[1].images[0].name == held.images[0].name


def test_one_image_cannot_be_split(tmp_path):
    data = read_dataset(write(tmp_path, {"a.tif": FRAME}, {"a.tif": LABELS}))
    with pytest.raises(DatasetError, match="give --val FOLDER"):
        data.split(0.2, seed=0)

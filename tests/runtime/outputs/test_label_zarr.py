"""Labels as OME-Zarr: what ome-zarr-py reads, and that another folder is not replaced."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr

from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.images import read_label_stack, read_stack
from unetrt.runtime.files.outputs.label_zarr import write_zarr
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.zarr_pyramid import halved
from unetrt.runtime.files.pixel_size import PixelSize

RNG = np.random.default_rng(0)


def attributes(path):
    return json.loads((path / ".zattrs").read_text())


def labelled(shape, axes=None, channels=1, **others):
    labels = RNG.integers(0, 300, shape).astype(np.int32)
    frames = RNG.integers(0, 9999, (labels[..., 0, 0].size, channels, *shape[-2:])).astype(np.uint16)
    return LabelledImage("day1/a", labels, frames=frames, axes=axes, **others)


@pytest.mark.filterwarnings("ignore")  # of the packages that ome-zarr uses
def test_ome_zarr_py_reads_image_and_labels(tmp_path):
    from ome_zarr.io import parse_url
    from ome_zarr.reader import Reader

    image = labelled((2, 3, 300, 320), "TZYX", channels=2, pixel_size=PixelSize(0.5, 0.25, 2))
    write_zarr(tmp_path / "a.ome.zarr", image)
    nodes = {node.zarr.path.rpartition("a.ome.zarr")[2]: node for node in Reader(parse_url(tmp_path / "a.ome.zarr"))()}
    whole, objects = nodes[""], nodes["/labels/objects"]
    assert [level.shape for level in whole.data] == [(2, 2, 3, 300, 320), (2, 2, 3, 150, 160)]
    assert [level.shape for level in objects.data] == [(2, 3, 300, 320), (2, 3, 150, 160)]
    np.testing.assert_array_equal(np.asarray(objects.data[0]), image.labels)
    expected = image.frames.reshape(2, 3, 2, 300, 320).swapaxes(1, 2)
    np.testing.assert_array_equal(np.asarray(whole.data[0]), expected)
    assert objects.metadata["coordinateTransformations"] == [
        [{"type": "scale", "scale": [1, 2, 0.5, 0.25]}],
        [{"type": "scale", "scale": [1, 2, 1, 0.5]}, {"type": "translation", "translation": [0, 0, 0.25, 0.125]}],
    ]


def test_levels_are_modes_of_labels_and_means_of_the_image(tmp_path):
    labels = np.kron(RNG.integers(0, 300, (175, 125)), np.ones((4, 4), np.int64))  # every 2 x 2 pixels agree
    frames = RNG.integers(0, 9999, (1, 2, 700, 500)).astype(np.uint16)
    write_zarr(tmp_path / "a.ome.zarr", LabelledImage("a", labels, frames=frames))
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    for level, means in enumerate((frames[0], np.floor(frames[0].reshape(2, 350, 2, 250, 2).mean((2, 4)) + 0.5))):
        np.testing.assert_array_equal(group[f"labels/objects/{level}"][:], labels[:: 2**level, :: 2**level])
        np.testing.assert_array_equal(group[str(level)][:], means)
    assert group["2"].shape[-2:] == group["labels/objects/2"].shape == (175, 125)
    assert "3" not in group


def most_frequent(pixels):
    """The most frequent of 2 x 2 pixels, by counting those that there are in the order of reading."""
    height, width = pixels.shape
    found = np.empty((-(-height // 2), -(-width // 2)), pixels.dtype)
    for row, column in np.ndindex(found.shape):
        around = pixels[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(-1).tolist()
        found[row, column] = max(around, key=around.count)  # the first of several
    return found


def test_no_chunk_of_the_image_is_missing(tmp_path):
    image = labelled((8, 9))
    image = replace(image, frames=np.zeros_like(image.frames), labels=np.zeros_like(image.labels))
    for version in ("0.4", "0.5"):
        path = tmp_path / f"{version}.ome.zarr"
        write_zarr(path, image, version)
        assert not read_stack(path).any()
        assert not read_label_stack(path).any()
        write_zarr(path, replace(image, frames=None), version)  # an image that refers to the labels
        assert not read_stack(path).any()


@pytest.mark.parametrize("shape", [(40, 60), (41, 60), (40, 61), (1, 61), (41, 1), (1, 1)])
@pytest.mark.parametrize("highest", [2, 3, 5])
def test_a_coarser_label_is_the_most_frequent_and_of_several_the_first(shape, highest):
    pixels = RNG.integers(0, highest, shape) + np.array(2**40)
    np.testing.assert_array_equal(halved(pixels, "mode"), most_frequent(pixels))


def test_all_orders_of_four_labels_are_decided():
    for values in np.ndindex(4, 4, 4, 4):
        pixels = np.array(values).reshape(2, 2)
        assert halved(pixels, "mode") == most_frequent(pixels), values


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int64", "uint64", "float16", "float32"])
def test_a_coarser_grey_value_is_the_mean_without_overflow(dtype):
    limits = np.iinfo(dtype) if np.dtype(dtype).kind in "ui" else np.finfo(dtype)
    least, most = limits.min, limits.max
    pixels = np.array([[most, most, 1, 2], [most, most, 2, 2], [least, least, 1, 2]], dtype)
    seven_quarters = 1.75 if np.dtype(dtype).kind == "f" else 2
    expected = np.array([[most, seven_quarters], [least, 1.5 if np.dtype(dtype).kind == "f" else 2]], dtype)
    found = halved(pixels, "mean")
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == dtype


def test_infinities_and_nan_have_a_mean():
    pixels = np.array([[np.inf, -np.inf, np.nan, 1], [1, 1, 1, 1]], np.float32)
    np.testing.assert_array_equal(halved(pixels, "mean"), [[np.nan, np.nan]])


def test_axes_are_in_the_order_that_ome_zarr_wants(tmp_path):
    image = labelled((4, 3, 20, 30), "ZTYX")
    write_zarr(tmp_path / "a.ome.zarr", image)
    objects = tmp_path / "a.ome.zarr" / "labels" / "objects"
    (scales,) = attributes(objects)["multiscales"]
    assert [axis["name"] for axis in scales["axes"]] == ["t", "z", "y", "x"]
    assert [axis["type"] for axis in scales["axes"]] == ["time", "space", "space", "space"]
    np.testing.assert_array_equal(zarr.open_array(objects / "0", mode="r")[:], image.labels.swapaxes(0, 1))


@pytest.mark.parametrize(
    ("size", "scale", "units"),
    [
        (PixelSize(0.5, 0.25, 2), [2, 0.5, 0.25], ["micrometer"] * 3),
        (PixelSize(500, 250, unit="nm"), [1, 0.5, 0.25], [None, "micrometer", "micrometer"]),
        (PixelSize(5, 5, unit="reference frame"), [1, 1, 1], [None] * 3),
        (None, [1, 1, 1], [None] * 3),
    ],
)
def test_scales_are_in_micrometres(tmp_path, size, scale, units):
    write_zarr(tmp_path / "a.ome.zarr", labelled((2, 20, 30), "ZYX", pixel_size=size))
    (scales,) = attributes(tmp_path / "a.ome.zarr" / "labels" / "objects")["multiscales"]
    assert scales["datasets"][0]["coordinateTransformations"] == [{"type": "scale", "scale": scale}]
    assert [axis.get("unit") for axis in scales["axes"]] == units


def test_without_an_image_the_labels_take_its_place(tmp_path):
    labels = RNG.integers(0, 9, (20, 30)).astype(np.int32)
    write_zarr(tmp_path / "a.ome.zarr", LabelledImage("a", labels))
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    assert list(group.array_keys()) == []  # no copy
    (scales,) = attributes(tmp_path / "a.ome.zarr")["multiscales"]
    assert [dataset["path"] for dataset in scales["datasets"]] == ["labels/objects/0"]
    assert group["labels/objects/0"].dtype == np.uint8
    np.testing.assert_array_equal(read_stack(tmp_path / "a.ome.zarr"), labels[None, None])
    np.testing.assert_array_equal(read_label_stack(tmp_path / "a.ome.zarr"), labels[None])
    assert attributes(tmp_path / "a.ome.zarr" / "labels") == {"labels": ["objects"]}
    assert attributes(tmp_path / "a.ome.zarr" / "labels" / "objects")["image-label"] == {
        "version": "0.4", "source": {"image": "../../"},
    }  # fmt: skip


def test_classes_have_colours(tmp_path):
    labels = np.array([[0, 1], [3, 3]], np.uint8)
    write_zarr(tmp_path / "a.ome.zarr", LabelledImage("a", labels, "classes"))
    found = attributes(tmp_path / "a.ome.zarr" / "labels" / "objects")["image-label"]
    assert [one["label-value"] for one in found["colors"]] == [1, 3]
    assert all(len(one["rgba"]) == 4 for one in found["colors"])
    assert found["properties"][1] == {"label-value": 3, "class": "class 3"}


def test_an_earlier_one_is_replaced_and_another_folder_is_not(tmp_path):
    for value in (1, 2):
        write_zarr(tmp_path / "a.ome.zarr", LabelledImage("a", np.full((600, 4), value, np.uint8)))
    write_zarr(tmp_path / "a.ome.zarr", LabelledImage("a", np.full((5, 4), 3, np.uint8)))
    group = zarr.open_group(tmp_path / "a.ome.zarr" / "labels" / "objects", mode="r")
    assert (group["0"][0, 0], "1" in group) == (3, False)
    (tmp_path / "b.ome.zarr").mkdir()
    (tmp_path / "b.ome.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="b.ome.zarr exists: give another name, or remove it first"):
        write_zarr(tmp_path / "b.ome.zarr", LabelledImage("a", np.ones((5, 4), np.uint8)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ome.zarr", "b.ome.zarr"]

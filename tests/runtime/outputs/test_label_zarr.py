"""Labels as OME-Zarr: what ome-zarr-py reads, and that another folder is not replaced."""

import json
from dataclasses import replace

import numpy as np
import pytest
import zarr

from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.images import read_image, read_labels
from unetrt.runtime.files.outputs.label_zarr import write_zarr
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
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
    scales = [[one["scale"] for one in level] for level in objects.metadata["coordinateTransformations"]]
    assert scales == [[[1, 2, 0.5, 0.25]], [[1, 2, 1, 0.5]]]


def test_levels_are_every_second_pixel_of_labels_and_image(tmp_path):
    image = labelled((700, 500))
    write_zarr(tmp_path / "a.ome.zarr", image)
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    for level in range(3):
        step = 2**level
        np.testing.assert_array_equal(group[f"labels/objects/{level}"][:], image.labels[::step, ::step])
        np.testing.assert_array_equal(group[str(level)][:], image.frames[0, :, ::step, ::step])
    assert "3" not in group


def test_no_chunk_of_the_image_is_missing(tmp_path):
    image = labelled((8, 9))
    image = replace(image, frames=np.zeros_like(image.frames), labels=np.zeros_like(image.labels))
    write_zarr(tmp_path / "a.ome.zarr", image)
    assert not read_image(tmp_path / "a.ome.zarr").pixels.any()
    assert not read_labels(tmp_path / "a.ome.zarr").any()


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
    for path in ("0", "labels/objects/0"):
        np.testing.assert_array_equal(group[path][:], labels)
    assert group["0"].dtype == np.uint8
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
    group = zarr.open_group(tmp_path / "a.ome.zarr", mode="r")
    assert (group["0"][0, 0], "1" in group) == (3, False)
    (tmp_path / "b.ome.zarr").mkdir()
    (tmp_path / "b.ome.zarr" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="b.ome.zarr exists: give another name, or remove it first"):
        write_zarr(tmp_path / "b.ome.zarr", LabelledImage("a", np.ones((5, 4), np.uint8)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.ome.zarr", "b.ome.zarr"]

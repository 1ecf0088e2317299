"""OME-Zarr: images, plates, converted files, labels, and arrays and groups without its metadata."""

import json
import os
import struct
from itertools import product

import numpy as np
import pytest

from tests import requirements
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import read_frames, read_image, read_labels, read_stack, stack_shape
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.sources import ImageSource, list_images

zarr = pytest.importorskip("zarr", reason=requirements.ZARR)

AXES = [
    {"name": "t", "type": "time", "unit": "second"},
    {"name": "c", "type": "channel"},
    {"name": "z", "type": "space", "unit": "micrometer"},
    {"name": "y", "type": "space", "unit": "micrometer"},
    {"name": "x", "type": "space", "unit": "micrometer"},
]
# Each pixel holds its time, channel, plane, row and column.
PIXELS = np.indices((2, 3, 4, 8, 9)).transpose(1, 2, 3, 4, 5, 0) @ np.array([10000, 3000, 500, 20, 1])
STACK = PIXELS.transpose(0, 2, 1, 3, 4).reshape(8, 3, 8, 9)
# OME-Zarr 0.4 is Zarr 2 and has its metadata at the top, 0.5 is Zarr 3 and has them below `ome`.
VERSIONS = {"0.4": 2, "0.5": 3}


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


def group(path, version, **about):
    attributes = about if version == "0.4" else {"ome": {"version": version, **about}}
    return zarr.open_group(path, mode="a", zarr_format=VERSIONS[version], attributes=attributes)


def scaled(*scale):
    return [{"type": "scale", "scale": list(scale)}]


def image(path, version, pixels=None, axes=AXES, scale=None, **about):
    """Write an image of two resolutions; `about` are more metadata."""
    pixels = PIXELS.astype(np.uint16) if pixels is None else pixels
    scale = scale or [1.0] * len(axes)
    datasets = [
        {"path": "0", "coordinateTransformations": scaled(*scale)},
        {"path": "1", "coordinateTransformations": scaled(*scale[:-2], 2 * scale[-2], 2 * scale[-1])},
    ]
    made = group(path, version, multiscales=[{"axes": list(axes), "datasets": datasets}], **about)
    made.create_array("0", data=pixels)
    made.create_array("1", data=np.ascontiguousarray(pixels[..., ::2, ::2]))
    return path


def plane(path, version, value, **about):
    """Write an image (8, 9) of one value."""
    return image(path, version, np.full((8, 9), value, np.uint8), AXES[-2:], **about)


def plate(path, version, wells=("A/1", "B/2"), fields=2):
    group(path, version, plate={"wells": [{"path": well} for well in wells]})
    for number, (well, field) in enumerate(product(wells, range(fields))):
        images = [{"path": str(one)} for one in range(fields)]
        group(path / well, version, well={"images": images})
        plane(path / well / str(field), version, 10 + number)
    return path


def test_an_image_has_axes_pixel_size_and_channel_names(tmp_path, version):
    names = [{"label": name} for name in ("DAPI", "GFP", "Cy5")]
    path = image(tmp_path / "a.zarr", version, scale=[1, 1, 2.5, 0.65, 0.65], omero={"channels": names})
    found = read_image(path)
    np.testing.assert_array_equal(found.pixels, STACK)
    assert found.layout.axes == "TCZYX"
    assert found.layout.pixel_size == PixelSize(0.65, 0.65, 2.5, "µm")
    assert found.layout.channels == ("DAPI", "GFP", "Cy5")
    assert stack_shape(path) == STACK.shape


SIZES = {
    "scales of image and resolution": (scaled(10, 1, 1, 2, 2), [1, 1, 2.5, 0.5, 0.25], PixelSize(1.0, 0.5, 2.5)),
    "a translation": ([{"type": "translation", "translation": [9] * 5}], [1, 1, 2, 3, 3], PixelSize(3, 3, 2)),
    "units": (
        [], [1, 1, 2, 500, 0.5],
        {"y": "nanometer", "z": "millimeter", "expected": PixelSize(500, 500, 2e6, "nm")},
    ),
    "no unit": ([], [1, 1, 1, 1, 1], {"y": None, "expected": None}),
    "pixels": ([], [1, 1, 1, 1, 1], {"y": "pixel", "x": "pixel", "expected": None}),
    "an unknown depth": ([], [1, 1, 3, 1, 1], {"z": None, "expected": PixelSize(1, 1)}),
    "no size": ([], [1, 1, 1, 0, 0], None),
}  # fmt: skip


@pytest.mark.parametrize(("whole", "scale", "expected"), SIZES.values(), ids=SIZES)
def test_the_pixel_size_is_in_the_unit_of_the_rows(tmp_path, version, whole, scale, expected):
    axes = [dict(axis) for axis in AXES]
    if isinstance(expected, dict):
        units = dict(expected)
        expected = units.pop("expected")
        for axis in axes:
            if axis["name"] in units:
                axis["unit"] = units[axis["name"]]
        axes = [{key: value for key, value in axis.items() if value is not None} for axis in axes]
    path = image(tmp_path / "a.zarr", version, axes=axes, scale=scale)
    file, key = (path / ".zattrs", None) if version == "0.4" else (path / "zarr.json", "attributes")
    about = json.loads(file.read_text())
    (about[key]["ome"] if key else about)["multiscales"][0]["coordinateTransformations"] = whole
    file.write_text(json.dumps(about))
    assert read_image(path).layout.pixel_size == expected


def test_a_resolution_has_the_axes_and_the_pixel_size_of_its_image(tmp_path, version, monkeypatch):
    path = image(tmp_path / "a.zarr", version, scale=[1, 1, 2.5, 0.65, 0.65])
    np.testing.assert_array_equal(read_stack(path / "0"), STACK)
    half = read_image(path / "1")
    np.testing.assert_array_equal(half.pixels, STACK[..., ::2, ::2])
    assert half.layout.pixel_size == PixelSize(1.3, 1.3, 2.5)
    assert list_images(path / "0") == [ImageSource(path / "0", "a/0")]
    monkeypatch.chdir(path)
    np.testing.assert_array_equal(read_stack("0"), STACK)


@pytest.mark.parametrize("axes", [None, list("tczyx")])
def test_early_versions_name_no_axes_or_only_letters(tmp_path, axes):
    path = image(tmp_path / "a.zarr", "0.4")
    about = json.loads((path / ".zattrs").read_text())
    about["multiscales"][0]["axes"] = axes
    (path / ".zattrs").write_text(json.dumps(about))
    np.testing.assert_array_equal(read_stack(path), STACK)


def test_a_plate_is_its_fields(tmp_path, version):
    path = plate(tmp_path / "screen.ome.zarr", version)
    for found in (list_images(path), list_images(tmp_path)):
        assert [source.name for source in found] == [
            f"screen/{field}" for field in ("A/1/0", "A/1/1", "B/2/0", "B/2/1")
        ]
        assert [source.path for source in found] == [path / field for field in ("A/1/0", "A/1/1", "B/2/0", "B/2/1")]
        assert [read_stack(source).mean() for source in found] == [10, 11, 12, 13]
        assert stack_shape(found[0]) == (1, 1, 8, 9)
    assert [source.acquisition for source in found] == ["screen/A/1", "screen/A/1", "screen/B/2", "screen/B/2"]
    for series in (2, "B/2/0"):
        assert list_images(path, Reading(series=series)) == [found[2]]
        assert read_stack(path, Reading(series=series)).mean() == 12
    with pytest.raises(OptionError, match=r"'C/1' is no image of .*screen.ome.zarr, which holds 0 A/1/0, 1 A/1/1, 2 B"):
        list_images(path, Reading(series="C/1"))
    assert [source.name for source in list_images(path / "B" / "2")] == ["screen/B/2/0", "screen/B/2/1"]
    assert list_images(path / "A/1/1") == [ImageSource(path / "A/1/1", "screen/A/1/1")]
    with pytest.raises(FrameError, match=r"screen.ome.zarr holds 4 images: give one, such as .*screen.ome.zarr/A/1/0"):
        read_stack(path)


def test_a_field_that_is_missing_is_not_left_out(tmp_path, version):
    path = plate(tmp_path / "a.zarr", version, fields=1)
    (path / "B").rename(tmp_path / "elsewhere")
    found = list_images(path)
    assert [source.name for source in found] == ["a/A/1/0", "a/B/2"]
    with pytest.raises(FrameError, match=r"a.zarr/B/2 cannot be read: No such file"):
        read_stack(found[1])


@pytest.mark.parametrize("listed", [True, False])
def test_a_converted_file_is_its_images(tmp_path, version, listed):
    path = tmp_path / "a.zarr"
    group(path, version, **{"bioformats2raw.layout": 3})
    if listed:
        group(path / "OME", version, series=["0", "1"])
    for number in range(2):
        plane(path / str(number), version, number + 5)
    found = list_images(path)
    assert [source.name for source in found] == ["a/0", "a/1"]
    assert [read_stack(source).mean() for source in found] == [5, 6]


def test_a_converted_file_of_one_image_is_that_image(tmp_path, version):
    group(tmp_path / "a.zarr", version, **{"bioformats2raw.layout": 3})
    plane(tmp_path / "a.zarr" / "0", version, 5)
    assert list_images(tmp_path / "a.zarr") == [ImageSource(tmp_path / "a.zarr" / "0", "a")]
    assert read_stack(tmp_path / "a.zarr").mean() == 5


def with_labels(path, version, names=("cells",), holds_image=True):
    if holds_image:
        plane(path, version, 100)
    else:
        group(path, version)
    group(path / "labels", version, labels=list(names))
    for number, name in enumerate(names):
        plane(path / "labels" / name, version, number + 1, **{"image-label": {"version": version}})
    return path


def test_labels_of_an_image(tmp_path, version, caplog):
    path = with_labels(tmp_path / "a.zarr", version)
    assert (read_stack(path) == 100).all()
    with caplog.at_level("INFO", "unetrt"):
        assert (read_labels(path) == 1).all()
    assert caplog.messages == [f"{path}: its labels are {path / 'labels' / 'cells'}"]
    assert (read_labels(path / "labels" / "cells") == 1).all()
    assert (read_labels(path / "labels") == 1).all()
    assert (read_labels(path / "labels" / "cells" / "0") == 1).all()
    assert list_images(path / "labels" / "cells") == [ImageSource(path / "labels" / "cells", "a/labels/cells")]


def test_an_image_of_several_labels_names_them(tmp_path, version):
    path = with_labels(tmp_path / "a.zarr", version, ("cells", "nuclei"))
    with pytest.raises(FrameError, match=r"a.zarr holds 2 label images: give one, .*a.zarr/labels/cells, .*/nuclei$"):
        read_labels(path)
    assert [source.name for source in list_images(path / "labels")] == ["a/labels/cells", "a/labels/nuclei"]


def test_labels_without_an_image(tmp_path, version):
    path = with_labels(tmp_path / "a.zarr", version, holds_image=False)
    assert (read_labels(path) == 1).all()


def test_an_image_without_labels_is_read_as_labels(tmp_path, version):
    assert (read_labels(plane(tmp_path / "a.zarr", version, 3)) == 3).all()


def test_folders_without_the_suffix(tmp_path, version):
    plate(tmp_path / "screen", version, ["A/1"], 1)
    image(tmp_path / "cells", version)
    zarr.create_array(tmp_path / "plain", data=np.ones((8, 9), np.uint8), zarr_format=VERSIONS[version])
    (tmp_path / "empty").mkdir()
    assert [source.name for source in list_images(tmp_path)] == ["cells", "plain", "screen"]
    assert [len(read_stack(source)) for source in list_images(tmp_path)] == [8, 1, 1]
    assert list_images(tmp_path / "plain") == [ImageSource(tmp_path / "plain", "plain")]


@pytest.mark.parametrize(("axes", "shape"), [(("z", "y", "x"), (4, 1, 8, 9)), (("c", "y", "x"), (1, 4, 8, 9))])
def test_axes_that_an_array_names(tmp_path, axes, shape):
    pixels = np.arange(288, dtype=np.uint16).reshape(4, 8, 9)
    zarr.create_array(tmp_path / "a.zarr", data=pixels, dimension_names=axes)
    array = zarr.create_array(tmp_path / "b.zarr", data=pixels, zarr_format=2)
    array.attrs["_ARRAY_DIMENSIONS"] = list(axes)
    for name in ("a.zarr", "b.zarr"):
        assert read_stack(tmp_path / name).shape == shape
    zarr.create_array(tmp_path / "c.zarr", data=pixels, dimension_names=["a", "b", None])
    assert read_stack(tmp_path / "c.zarr").shape == (4, 1, 8, 9)


def test_a_group_without_images_names_its_arrays(tmp_path, version):
    made = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=VERSIONS[version])
    with pytest.raises(FrameError, match=r"a.zarr is a Zarr group without an OME-Zarr image and without arrays"):
        read_stack(tmp_path / "a.zarr")
    made.create_array("first/raw", data=np.ones((8, 9)))
    image(tmp_path / "a.zarr" / "second", version)
    with pytest.raises(FrameError, match=r"without an OME-Zarr image: give .*, .*a.zarr/second, .*a.zarr/first/raw$"):
        read_stack(tmp_path / "a.zarr")
    for number in range(20):
        made.create_array(str(number), data=np.ones((8, 9)))
    with pytest.raises(FrameError, match=r" and more$") as error:
        read_stack(tmp_path / "a.zarr")
    assert len(str(error.value)) < 1500
    assert (read_stack(tmp_path / "a.zarr" / "first" / "raw") == 1).all()


OUTSIDE = ["../b.zarr", "/etc", "A/../../b.zarr", 5, "A\\..\\b"]


@pytest.mark.parametrize("place", OUTSIDE)
def test_paths_in_metadata_stay_in_the_folder(tmp_path, version, place):
    plane(tmp_path / "b.zarr", version, 1)
    group(tmp_path / "plate.zarr", version, plate={"wells": [{"path": place}, {"path": "A/1"}]})
    group(tmp_path / "well.zarr", version, well={"images": [{"path": place}]})
    group(tmp_path / "series.zarr", version, **{"bioformats2raw.layout": 3})
    group(tmp_path / "series.zarr" / "OME", version, series=[place])
    group(tmp_path / "labels.zarr" / "labels", version, labels=[place])
    group(tmp_path / "labels.zarr", version)
    group(tmp_path / "image.zarr", version, multiscales=[{"axes": ["y", "x"], "datasets": [{"path": place}]}])
    for name in ("plate", "well", "series", "labels", "image"):
        (source,) = list_images(tmp_path / f"{name}.zarr")
        with pytest.raises(FrameError, match=f"{name}.zarr names .* as a part of it, which is not in the folder"):
            read_stack(source)


def test_a_group_that_contains_itself_ends(tmp_path, version):
    group(tmp_path / "a.zarr", version, **{"bioformats2raw.layout": 3})
    (tmp_path / "a.zarr" / "0").symlink_to(tmp_path / "a.zarr")
    with pytest.raises(FrameError, match=r"a.zarr (cannot be read|is a Zarr group without)"):
        read_stack(tmp_path / "a.zarr")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
@pytest.mark.parametrize("file", ["zarr.json", "A/zarr.json", "A/1/zarr.json", "A/1/0/zarr.json", "A/1/0/0/c/0/0"])
def test_only_regular_files_are_opened_in_a_plate(tmp_path, file):
    path = plate(tmp_path / "a.zarr", "0.5", ["A/1"], 1)
    (path / file).unlink(missing_ok=True)
    os.mkfifo(path / file)
    found = list_images(path)
    if file == "A/zarr.json":  # says nothing that is needed
        assert read_stack(found[0]).mean() == 10
        return
    with pytest.raises(FrameError, match="which is a named pipe: give a regular file"):
        read_stack(found[0])


@pytest.mark.filterwarnings("ignore")  # of zarr about codecs outside the specification
def test_chunks_of_labels_and_fields_are_bounded(tmp_path):
    blosc = {"compressors": {"name": "blosc", "configuration": {}}}
    chunk = b"\2\1\x21\1" + struct.pack("<III", 2**31 - 1, 2**20, 30) + bytes(30)
    path = with_labels(tmp_path / "a.zarr", "0.5")
    for where in (path, path / "labels" / "cells"):
        zarr.create_array(where / "0", shape=(8, 9), dtype="uint8", overwrite=True, **blosc)
        (where / "0" / "c" / "0").mkdir(parents=True)
        (where / "0" / "c" / "0" / "0").write_bytes(chunk)
    for read in (
        read_stack,
        read_labels,
        lambda path: read_stack(path / "labels"),
        lambda path: read_stack(path / "0"),
    ):
        with pytest.raises(FrameError, match="blosc chunk that decompresses to more than the"):
            read(path)


def test_large_chunks_of_one_resolution_do_not_limit_another(tmp_path):
    """Each array has a limit of its own for the files of its chunks."""
    path, rng = tmp_path / "a.zarr", np.random.default_rng(0)
    pixels = rng.integers(0, 60000, (1500, 1500)).astype(np.uint16)
    scales = [{"axes": ["y", "x"], "datasets": [{"path": "0"}]}]
    made = group(path, "0.5", multiscales=scales)
    made.create_array("0", data=pixels, chunks=pixels.shape)
    group(path / "labels", "0.5", labels=["cells"])
    cells = group(path / "labels" / "cells", "0.5", multiscales=scales)
    cells.create_array("0", data=np.ones((8, 9), np.uint8), chunks=(4, 4))
    np.testing.assert_array_equal(read_frames(path, 1), pixels)
    assert read_labels(path).shape == (8, 9)


def test_what_other_writers_write(tmp_path):
    """Plates, images with labels, and series, written by yaozarrs."""
    v05 = pytest.importorskip("yaozarrs.write.v05", reason=requirements.OME_ZARR_WRITER)
    about = pytest.importorskip("yaozarrs.v05", reason=requirements.OME_ZARR_WRITER)
    axes = [about.SpaceAxis(name=name, unit="micrometer") for name in "yx"]
    scale = about.Dataset(path="0", coordinateTransformations=[about.ScaleTransformation(scale=[0.5, 0.5])])
    made = about.Image(multiscales=[about.Multiscale(axes=axes, datasets=[scale])])
    label = about.LabelImage(multiscales=made.multiscales, image_label=about.ImageLabel())
    pixels = np.arange(72, dtype=np.uint8).reshape(8, 9)
    v05.write_plate(tmp_path / "plate.zarr", {("A", "1", "0"): (made, pixels), ("A", "1", "1"): (made, pixels + 1)})
    v05.write_bioformats2raw(tmp_path / "series.zarr", {"0": (made, pixels), "1": (made, pixels + 1)})
    v05.write_image(tmp_path / "x.zarr", made, pixels, labels={"cells": (label, [pixels + 2])})
    found = list_images(tmp_path)
    assert [source.name for source in found] == ["plate/A/1/0", "plate/A/1/1", "series/0", "series/1", "x"]
    assert [read_stack(source)[0, 0, 0, 0] for source in found] == [0, 1, 0, 1, 0]
    assert {read_image(source).layout.pixel_size for source in found} == {PixelSize(0.5, 0.5)}
    np.testing.assert_array_equal(read_labels(tmp_path / "x.zarr"), pixels + 2)

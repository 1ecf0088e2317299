"""Labels as OME-TIFF: axes, pixel size and dtype as tifffile, Bio-Formats-like readers, napari and ImageJ read them."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
import tifffile

from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.images import read_label_stack
from unetrt.runtime.files.outputs import label_tiff
from unetrt.runtime.files.outputs.label_tiff import write_labels
from unetrt.runtime.files.pixel_size import PixelSize

OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"
AXES = {
    "a frame": ((5, 7), None, "YX"),
    "a stack": ((3, 5, 7), None, "TYX"),
    "planes": ((3, 5, 7), "ZYX", "ZYX"),
    "time and planes": ((2, 3, 5, 7), "TZYX", "TZYX"),
    "planes and time": ((2, 3, 5, 7), "ZTYX", "ZTYX"),
    "two unnamed axes": ((2, 3, 5, 7), None, "TZYX"),
    "pages": ((3, 5, 7), "QYX", "TYX"),
    "positions and planes": ((2, 3, 5, 7), "PZYX", "TZYX"),
    "positions, time and planes": ((2, 3, 4, 5, 7), "PTZYX", "TYX"),
    "the same axis twice": ((2, 3, 5, 7), "TTYX", "TZYX"),
}


@pytest.mark.parametrize("case", AXES)
def test_axes_have_the_names_of_ome(tmp_path, case):
    shape, axes, written = AXES[case]
    labels = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
    write_labels(tmp_path / "a.tif", labels, axes=axes)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == written
        found = tiff.series[0].asarray()
    np.testing.assert_array_equal(found.reshape(shape), labels)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the packages that bioio uses
def test_bio_formats_like_readers_find_axes_and_pixel_size(tmp_path):
    from bioio_ome_tiff import Reader

    labels = np.arange(2 * 3 * 5 * 7, dtype=np.uint16).reshape(2, 3, 5, 7)
    write_labels(tmp_path / "a.tif", labels, axes="TZYX", pixel_size=PixelSize(0.65, 0.325, 2.5))
    image = Reader(tmp_path / "a.tif")
    assert tuple(image.physical_pixel_sizes) == (2.5, 0.65, 0.325)
    assert (image.dims.T, image.dims.Z, image.dims.C) == (2, 3, 1)
    np.testing.assert_array_equal(image.get_image_data("TZYX"), labels)


@pytest.mark.parametrize(("unit", "factor"), [("µm", 1), ("nm", 1e-3), ("mm", 1e3), ("micron", 1)])
def test_both_kinds_of_imagej_find_the_pixel_size(tmp_path, unit, factor):
    """Bio-Formats reads OME attributes; ImageJ alone reads resolution tags, in pixels per centimetre."""
    write_labels(tmp_path / "a.tif", np.ones((5, 7), np.uint8), pixel_size=PixelSize(0.5, 0.25, unit=unit))
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        pixels = ET.fromstring(tiff.ome_metadata).find(f"{OME}Image/{OME}Pixels")
        tags = tiff.pages[0].tags
        across, down = (np.divide(*tags[name].value) for name in ("XResolution", "YResolution"))
        assert tags["ResolutionUnit"].value == 3  # centimetre
        assert tags["Compression"].value == 8  # Deflate, which ImageJ reads
        assert not tiff.pages[0].is_tiled  # ImageJ alone reads no tiles
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeY"), pixels.get("PhysicalSizeZ")) == (
        "0.25",
        "0.5",
        None,
    )
    assert pixels.get("PhysicalSizeXUnit") == {"micron": "µm"}.get(unit, unit)
    assert (1e4 / across, 1e4 / down) == pytest.approx((0.25 * factor, 0.5 * factor), rel=1e-6)


@pytest.mark.parametrize("size", [None, PixelSize(1, 1, unit="reference frame"), PixelSize(1e-12, 1e-12, unit="pm")])
def test_what_no_tag_can_hold_is_left_out_of_the_tags(tmp_path, size):
    write_labels(tmp_path / "a.tif", np.ones((5, 7), np.uint8), pixel_size=size)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].tags["ResolutionUnit"].value == 1  # none
        assert ("PhysicalSizeX" in tiff.ome_metadata) == (size is not None)


@pytest.mark.parametrize(("highest", "dtype"), [(0, "uint8"), (255, "uint8"), (256, "uint16"), (70000, "uint32")])
def test_labels_are_written_in_the_smallest_dtype(tmp_path, highest, dtype):
    labels = np.zeros((2, 6, 5), np.int64)
    labels[1, 2, 3] = highest
    write_labels(tmp_path / "deep" / "a.tif", labels)
    assert tifffile.imread(tmp_path / "deep" / "a.tif").dtype == dtype
    np.testing.assert_array_equal(read_label_stack(tmp_path / "deep" / "a.tif"), labels)


def test_large_labels_are_a_bigtiff(tmp_path, monkeypatch):
    labels = np.arange(4 * 50 * 60, dtype=np.uint16).reshape(4, 50, 60)
    for most, is_big in ((labels.nbytes + 1, False), (labels.nbytes, True)):
        monkeypatch.setattr(label_tiff, "LARGE", most)
        write_labels(tmp_path / "a.tif", labels, pixel_size=PixelSize(1, 1))
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            assert (tiff.is_bigtiff, tiff.is_ome, tiff.series[0].axes) == (is_big, True, "TYX")
            np.testing.assert_array_equal(tiff.asarray(), labels)


def test_the_same_labels_give_the_same_file(tmp_path):
    """The identifier that tifffile makes holds the address of the network card, and differs each time."""
    labels = np.eye(9, dtype=np.uint8)
    for name in ("a.tif", "b.tif"):
        write_labels(tmp_path / name, labels)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    write_labels(tmp_path / "b.tif", 2 * labels)
    first, second = (tifffile.tiffcomment(tmp_path / name) for name in ("a.tif", "b.tif"))
    assert ET.fromstring(first).get("UUID") != ET.fromstring(second).get("UUID")


@pytest.mark.parametrize("axes", ["XY", "YXT", "TY", "ZTYX", "YYX", "", 3])
def test_axes_that_do_not_fit_are_refused(tmp_path, axes):
    with pytest.raises(FrameError, match=r"axes must be 3 letters that end in YX, such as TYX \(got "):
        write_labels(tmp_path / "a.tif", np.ones((2, 5, 7), np.uint8), axes=axes)
    assert list(tmp_path.iterdir()) == []


def test_a_pixel_size_is_a_pixel_size(tmp_path):
    with pytest.raises(OptionError, match=r"pixel_size must be a PixelSize, .*got 0.65"):
        write_labels(tmp_path / "a.tif", np.ones((5, 7), np.uint8), pixel_size=0.65)

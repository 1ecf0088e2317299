"""What TIFFs say about their pixels: physical size, names of channels, axes of frames."""

import numpy as np
import pytest
import tifffile

from tests.runtime.acquisitions import (
    SIZE,
    ome_xml,
    plane,
    write_frames,
    write_ndtiff,
    write_pages,
    write_series,
    write_stack,
)
from unetrt.runtime.files.images import read_image
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.sources import list_images

UM = PixelSize(0.5, 0.65)


def size_of(path):
    return read_image(path).layout.pixel_size


def tiff(folder, shape=SIZE, **options):
    """Write a TIFF of zeros, uint16."""
    options = {"photometric": "minisblack", "metadata": None} | options
    tifffile.imwrite(folder / "a.tif", np.zeros(shape, np.uint16), **options)
    return folder / "a.tif"


OME = [
    ('PhysicalSizeX="0.65" PhysicalSizeY="0.5"', UM),
    (
        'PhysicalSizeX="650" PhysicalSizeY="500" PhysicalSizeXUnit="nm" PhysicalSizeYUnit="nm"',
        PixelSize(500, 650, unit="nm"),
    ),
    ('PhysicalSizeX="650" PhysicalSizeY="0.5" PhysicalSizeXUnit="nm"', UM),
    ('PhysicalSizeX="0.65" PhysicalSizeY="0.5" PhysicalSizeZ="2"', PixelSize(0.5, 0.65, 2)),
    ('PhysicalSizeX="0.65" PhysicalSizeY="0.5" PhysicalSizeZ="2000" PhysicalSizeZUnit="nm"', PixelSize(0.5, 0.65, 2)),
    ('PhysicalSizeX="0.65" PhysicalSizeY="0.5" PhysicalSizeZ="0"', UM),
    ('PhysicalSizeX="0.65"', None),
    ('PhysicalSizeX="0" PhysicalSizeY="0"', None),
    ('PhysicalSizeX="1e30" PhysicalSizeY="1e30"', None),
    ('PhysicalSizeX="NaN" PhysicalSizeY="NaN"', None),
    ('PhysicalSizeX="-1" PhysicalSizeY="-1"', None),
    ('PhysicalSizeX="wide" PhysicalSizeY="high"', None),
    ('PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="pixel" PhysicalSizeYUnit="pixel"', None),
    ('PhysicalSizeX="1" PhysicalSizeY="1" PhysicalSizeXUnit="reference frame"', None),
]


@pytest.mark.parametrize(("about", "expected"), OME)
def test_physical_size_of_ome(tmp_path, about, expected):
    text = ome_xml([("x", {}, [('IFD="0"', None, "")])], about=" " + about)
    write_pages(tmp_path / "a.ome.tif", [plane()], text)
    assert size_of(tmp_path / "a.ome.tif") == expected


def test_each_image_of_an_acquisition_has_its_size(tmp_path):
    write_series(tmp_path / "a.ome.tif", ["x", "y"], 1)
    with tifffile.TiffFile(tmp_path / "a.ome.tif") as opened:
        text = opened.pages.first.description
    first, second = (f' PhysicalSizeX="{size}" PhysicalSizeY="{size}" SizeX' for size in (1, 2))
    text = text.replace(" SizeX", first, 1)
    text = second.join(text.rsplit(" SizeX", 1))
    write_pages(tmp_path / "a.ome.tif", [plane(), plane(1)], text)
    assert [size_of(source) for source in list_images(tmp_path)] == [PixelSize(1, 1), PixelSize(2, 2)]


@pytest.mark.parametrize(
    ("resolution", "metadata", "expected"),
    [
        ((1 / 0.65, 2), {"unit": "micron"}, UM),
        ((1 / 0.65, 2), {"unit": "um", "spacing": 3.0}, PixelSize(0.5, 0.65, 3)),
        ((1 / 0.65, 2), {"unit": "\\u00B5m"}, UM),
        ((1e4 / 0.65, 2e4), {"unit": "cm"}, None),  # without the tag of the unit
        ((1 / 0.65, 2), {"unit": "pixel"}, None),
        ((1 / 0.65, 2), {}, None),
        ((1, 1), {"unit": "nm", "spacing": 0}, PixelSize(1, 1, unit="nm")),
    ],
)
def test_calibration_of_imagej(tmp_path, resolution, metadata, expected):
    found = size_of(tiff(tmp_path, (3, *SIZE), imagej=True, resolution=resolution, metadata={"axes": "ZYX"} | metadata))
    if expected is None:
        assert found is None
    else:
        assert found.unit == expected.unit
        assert (found.y, found.x, found.z) == pytest.approx((expected.y, expected.x, expected.z))


@pytest.mark.parametrize(
    ("resolution", "unit", "expected"),
    [
        ((1e4 / 0.65, 2e4), "CENTIMETER", UM),
        ((25400 / 0.65, 50800), "INCH", UM),
        ((1e4 / 0.65, 2e4), "NONE", None),
        *(((dots, dots), "INCH", None) for dots in (1, 72, 96, 150, 300, 600)),
        *(((dots / 2.54, dots / 2.54), "CENTIMETER", None) for dots in (72, 96, 300, 600)),
        ((28, 28), "CENTIMETER", None),
        ((1200, 1200), "INCH", PixelSize(25400 / 1200, 25400 / 1200)),
        ((0, 0), "INCH", None),
    ],
)
def test_resolution_tags(tmp_path, resolution, unit, expected):
    found = size_of(tiff(tmp_path, resolution=resolution, resolutionunit=unit))
    if expected is None:
        assert found is None
    else:
        assert (found.y, found.x) == pytest.approx((expected.y, expected.x))
        assert found.unit == "µm"


def test_pixel_size_of_micro_manager(tmp_path):
    summary = {"MicroManagerVersion": "2", "Frames": 1, "z-step_um": -2.5, "ChNames": ["DAPI", "GFP", "unused"]}
    write_stack(tmp_path / "a_MMStack.tif", [(0, 0, 0, c) for c in range(2)], summary)
    layout = read_image(tmp_path / "a_MMStack.tif").layout
    assert (layout.pixel_size, layout.channels) == (PixelSize(0.65, 0.65, 2.5), ("DAPI", "GFP"))
    write_ndtiff(tmp_path / "b")
    for source in list_images(tmp_path / "b"):
        layout = read_image(source).layout
        assert (layout.pixel_size, layout.channels) == (PixelSize(0.65, 0.65), ("DAPI", "GFP"))


def test_pixel_size_of_other_programs(tmp_path):
    about = "Aperio Image Library\r\n256x256|AppMag = 20|MPP = 0.4990"
    path = tiff(tmp_path, (256, 256), tile=(64, 64), description=about)
    assert size_of(path) == PixelSize(0.499, 0.499)
    items = {"spatial-calibration-state": ("bool", "on"), "spatial-calibration-units": ("string", "um")}
    items |= {f"spatial-calibration-{axis}": ("float", size) for axis, size in (("x", "0.65"), ("y", "0.5"))}
    properties = "".join(f'<prop id="{key}" type="{kind}" value="{value}"/>' for key, (kind, value) in items.items())
    about = f"<MetaData><PlaneInfo>{properties}</PlaneInfo></MetaData>"
    assert size_of(tiff(tmp_path, description=about, software="MetaSeries")) == UM
    for other in (about.replace('"on"', '"off"'), "<MetaData><PlaneInfo></PlaneInfo></MetaData>"):
        assert size_of(tiff(tmp_path, description=other, software="MetaSeries")) is None
    sem = b"AP_IMAGE_PIXEL_SIZE\r\nImage Pixel Size = 2.5 nm\r\n"
    path = tiff(tmp_path, extratags=[(34118, 7, len(sem), sem, True)])
    assert size_of(path) == PixelSize(2.5, 2.5, unit="nm")


def test_names_of_channels(tmp_path):
    channel = '<Channel ID="Channel:0:{0}" Name="{1}"/>'
    named = "".join(channel.format(*names) for names in enumerate(["DAPI", "", "GFP"]))
    text = ome_xml([("x", {"C": 3}, [("", None, "")])]).replace("<TiffData", named + "<TiffData", 1)
    write_pages(tmp_path / "a.ome.tif", [plane(c=c) for c in range(3)], text)
    assert read_image(tmp_path / "a.ome.tif").layout.channels == ("DAPI", "", "GFP")
    files = write_frames(tmp_path / "set", 2, 2)
    for file in files:
        with tifffile.TiffFile(file) as opened:
            text, pages = opened.pages.first.description, opened.asarray()
        named = "".join(channel.format(*names) for names in enumerate(["DAPI", "GFP"]))
        write_pages(file, pages.reshape(-1, *SIZE), text.replace("<TiffData", named + "<TiffData", 1))
    for source in (files[1], *list_images(tmp_path / "set")):
        assert read_image(source).layout.channels == ("DAPI", "GFP")
    labels = {"axes": "ZCYX", "Labels": ["DAPI", "GFP"] * 3}
    path = tiff(tmp_path, (3, 2, *SIZE), imagej=True, metadata=labels)
    assert read_image(path).layout.channels == ("DAPI", "GFP")
    path = tiff(tmp_path, (3, 2, *SIZE), imagej=True, metadata=labels | {"Labels": ["same"] * 6})
    assert read_image(path).layout.channels == ()


@pytest.mark.parametrize("code", [34118, 33560, 34361, 51123, 50839, 282, 296])
def test_damaged_metadata_are_no_size(tmp_path, caplog, code):
    caplog.set_level("CRITICAL")
    path = tiff(tmp_path)
    tifffile.imwrite(path, plane(), metadata=None, extratags=[(code, 7, 9, b"1/0 \xff.., ", True)])
    assert size_of(path) is None

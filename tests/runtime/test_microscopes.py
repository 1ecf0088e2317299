"""CZI, ND2 and LIF: scenes and positions, axes, pixel sizes, channel names, missing planes, damaged files.

CZI files are written by ZEISS' own package. No package writes ND2 and LIF: `nd2` and `lif` write the parts of these
formats that hold pixels and what describes them.
"""

import struct
import sys
from itertools import product

import numpy as np
import pytest

from tests import requirements
from tests.runtime.damage import refusals
from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.formats import Reading, opened
from unetrt.runtime.files.images import read_image, read_stack, stack_shape
from unetrt.runtime.files.pixel_size import PixelSize
from unetrt.runtime.files.sources import ImageSource, list_images


def czi(path, planes, names=("DAPI", "GFP"), **scales):
    """Write planes by (scene, time, channel, plane), 100 px apart, at rows from 5; None for a file without scenes."""
    writer = pytest.importorskip("pylibCZIrw.czi", reason=requirements.FORMATS)
    with writer.create_czi(str(path)) as file:
        for (scene, time, channel, plane), pixels in planes.items():
            where = {"location": (100 * (scene or 0), 5)} | ({} if scene is None else {"scene": scene})
            file.write(pixels, plane={"T": time, "C": channel, "Z": plane}, **where)
        file.write_metadata("a document", channel_names=dict(enumerate(names)), **scales)
    return path


def lite(name, value):
    """Return a value of an ND2 file's metadata, CLX Lite."""

    def head(kind):
        return bytes([kind, len(name) + 1]) + name.encode("utf-16-le") + b"\0\0"

    match value:
        case bool():
            return head(1) + struct.pack("<B", value)
        case int():
            return head(3) + struct.pack("<I", value)
        case float():
            return head(6) + struct.pack("<d", value)
        case str():
            return head(8) + value.encode("utf-16-le") + b"\0\0"
    content = b"".join(lite(*item) for item in value.items())
    length = len(head(11)) + 12 + len(content)
    return head(11) + struct.pack("<IQ", len(value), length) + content + bytes(8 * len(value))


def nd2(path, frames, loops=(), calibration=0.325, names=("DAPI", "GFP"), held=None):
    """Write frames (N, H, W, C), uint16; `loops` are the parameters of experiment loops by type, outermost first."""
    count, height, width, channels = frames.shape
    attributes = {
        "uiWidth": width, "uiWidthBytes": 2 * width * channels, "uiHeight": height, "uiComp": channels,
        "uiBpcInMemory": 16, "uiBpcSignificant": 16, "uiSequenceCount": count if held is None else held,
        "eCompression": 2,
    }  # fmt: skip
    planes = {f"a{index}": {"sDescription": name, "pFluorescentProbe": {"a": 1}} for index, name in enumerate(names)}
    metadata = {
        "bCalibrated": calibration is not None, "dCalibration": calibration or 1.0,
        "sPicturePlanes": {"uiCount": channels, "sPlaneNew": planes},
    }  # fmt: skip
    chunks = {
        b"ImageAttributesLV!": lite("SLxImageAttributes", attributes),
        b"ImageMetadataSeqLV|0!": lite("SLxPictureMetadata", metadata),
    }
    experiment = {}
    for kind, parameters in reversed(loops):
        inner = {"ppNextLevelEx": {"i0": experiment}} if experiment else {}
        experiment = {"eType": kind, "uLoopPars": parameters, **inner}
    if experiment:
        chunks[b"ImageMetadataLV!"] = lite("SLxExperiment", experiment)
    chunks |= {f"ImageDataSeq|{index}!".encode(): bytes(8) + frame.tobytes() for index, frame in enumerate(frames)}
    magic, place = 0x0ABECEDA, {}
    written = struct.pack("<IIQ", magic, 32, 64) + b"ND2 FILE SIGNATURE CHUNK NAME01!" + b"Ver3.0".ljust(64, b"\0")
    for name, content in chunks.items():
        place[name] = len(written), len(content)
        written += struct.pack("<IIQ", magic, 4072, len(content)) + name.ljust(4072, b"\0") + content
    table = b"".join(name + struct.pack("<QQ", *where) for name, where in place.items())
    table += b"ND2 CHUNK MAP SIGNATURE 0000001!" + struct.pack("<Q", len(written))
    written += struct.pack("<IIQ", magic, 32, len(table)) + b"ND2 FILEMAP SIGNATURE NAME 0001!" + table
    path.write_bytes(written)
    return path


TIMES, POINTS, DEPTHS = (
    (1, {"uiCount": 2, "dStart": 0.0, "dPeriod": 1.0, "dDuration": 2.0}),
    (2, {"Points": {"i0": {"dPosX": 1.0, "dPosName": "first"}, "i1": {"dPosX": 2.0, "dPosName": "second"}}}),
    (4, {"uiCount": 3, "dZStep": 2.5}),
)  # fmt: skip


def lif(path, images, cut=0):
    """Write images of a project; each is (name, pixels, dimensions from the slowest, LUT names) with two channels.

    A dimension is (DimID, number of elements, length in metres, bytes between elements).
    """
    elements, blocks = "", b""
    for index, (name, pixels, dimensions, names) in enumerate(images):
        described = "".join(
            f'<DimensionDescription DimID="{number}" NumberOfElements="{count}" Origin="0" Length="{length}" Unit="m" '
            f'BitInc="0" BytesInc="{step}"/>'
            for number, count, length, step in dimensions
        )
        step = pixels.nbytes // len(names)
        channels = "".join(
            f'<ChannelDescription DataType="0" ChannelTag="0" Resolution="16" NameOfMeasuredQuantity="" Min="0" '
            f'Max="1" Unit="" LUTName="{lut}" IsLUTInverted="0" BytesInc="{number * step}" BitInc="0"/>'
            for number, lut in enumerate(names)
        )
        elements += (
            f'<Element Name="{name}"><Data><Image><ImageDescription><Channels>{channels}</Channels>'
            f"<Dimensions>{described}</Dimensions></ImageDescription></Image></Data>"
            f'<Memory Size="{pixels.nbytes}" MemoryBlockID="MemBlock_{index}"/></Element>'
        )
        block = f"MemBlock_{index}"
        blocks += struct.pack("<IIBQBI", 0x70, 2 * len(block) + 5, 0x2A, pixels.nbytes, 0x2A, len(block))
        blocks += block.encode("utf-16-le") + pixels.tobytes()
    text = f'<LMSDataContainerHeader Version="2"><Element Name="project"><Children>{elements}</Children></Element>'
    text += "</LMSDataContainerHeader>"
    head = struct.pack("<IIBI", 0x70, 2 * len(text) + 5, 0x2A, len(text)) + text.encode("utf-16-le")
    path.write_bytes((head + blocks)[: len(head + blocks) - cut])
    return path


def two_channels(name, seed=0):
    """Return an image for `lif`: channels outside, 16 bits, 8 x 9 px, 0.5 um apart, 3 planes, 2 um apart."""
    pixels = np.random.default_rng(seed).integers(0, 60000, (2, 3, 8, 9)).astype("<u2")
    sizes = [(3, 3, 4e-6, 144), (2, 8, 3.5e-6, 18), (1, 9, 4e-6, 2)]
    return name, pixels, sizes, ("Green", "Red")


def plane(*at):
    """Return a plane (20, 30) of one value, which tells where it is."""
    return np.full((20, 30), np.dot(at, [1000, 100, 10, 1]), np.uint16)


def names_of(path):
    with opened(path) as images:
        return [image.name for image in images]


def test_a_czi_has_scenes_axes_pixel_size_and_channel_names(tmp_path):
    planes = {at: plane(*at) for at in product(range(2), range(2), range(2), range(3))}
    path = czi(tmp_path / "a.czi", planes, scale_x=0.65e-6, scale_y=0.65e-6, scale_z=2e-6)
    assert names_of(path) == ["scene0", "scene1"]
    for scene in range(2):
        found = read_image(ImageSource(path, "a", scene))
        expected = [[planes[scene, time, channel, z] for channel in range(2)] for time in range(2) for z in range(3)]
        np.testing.assert_array_equal(found.pixels, expected)
        assert found.layout.axes == "TZCYX"
        assert found.layout.pixel_size == PixelSize(0.65, 0.65, 2)
        assert found.layout.channels == ("DAPI", "GFP")
        assert stack_shape(ImageSource(path, "a", scene)) == (6, 2, 20, 30)
    assert [source.name for source in list_images(path)] == ["a_scene0", "a_scene1"]
    assert (read_stack(path, Reading(series="scene1")) == found.pixels).all()
    with pytest.raises(FrameError, match=r"a.czi holds 2 images"):
        read_stack(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_czi_of_one_plane(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, 255, (20, 30)).astype(dtype)
    path = czi(tmp_path / "a.czi", {(None, 0, 0, 0): pixels}, ("DAPI",))
    found = read_image(path)
    np.testing.assert_array_equal(found.pixels, pixels[None, None])
    assert (found.pixels.dtype, found.layout.axes, found.layout.pixel_size) == (dtype, "YX", None)
    assert [source.path for source in list_images(tmp_path)] == [path]
    assert names_of(path) == [""]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_of_a_czi_are_red_green_blue(tmp_path, dtype):
    rgb = np.random.default_rng(0).integers(0, 255, (20, 30, 3)).astype(dtype)
    path = czi(tmp_path / "a.czi", {(None, 0, 0, 0): np.ascontiguousarray(rgb[..., ::-1])}, ("colours",))
    np.testing.assert_array_equal(read_stack(path)[0], np.moveaxis(rgb, -1, 0))


def test_tiles_of_a_czi_are_one_image(tmp_path):
    writer = pytest.importorskip("pylibCZIrw.czi", reason=requirements.FORMATS)
    whole = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
    with writer.create_czi(str(tmp_path / "a.czi")) as file:
        for row, column in product(range(2), range(2)):
            tile = whole[20 * row : 20 * row + 20, 30 * column : 30 * column + 30]
            where = (30 * column - 7, 20 * row - 9)  # the stage has negative positions too
            file.write(np.ascontiguousarray(tile), location=where)
    np.testing.assert_array_equal(read_stack(tmp_path / "a.czi")[0, 0], whole)


def test_planes_that_a_czi_lacks_are_named(tmp_path):
    planes = {at: plane(*at) for at in product(range(1), range(3), range(2), range(3))}
    for at in ((0, 2, 1, 2), (0, 2, 1, 1), (0, 1, 0, 0)):
        del planes[at]
    path = czi(tmp_path / "a.czi", planes)
    with pytest.raises(FrameError, match=r"a.czi lacks the planes T1 Z0 C0, T2 Z1 C1, T2 Z2 C1: export the complete"):
        read_stack(path)
    kept = {at: pixels for at, pixels in planes.items() if at[1] == 0 and at[2] == 1}  # numbered from 1
    path = czi(tmp_path / "b.czi", kept)
    np.testing.assert_array_equal(read_stack(path)[:, 0], [planes[0, 0, 1, z] for z in range(3)])
    assert read_image(path).layout.channels == ("GFP",)


def test_an_nd2_has_positions_axes_pixel_size_and_channel_names(tmp_path):
    pytest.importorskip("nd2", reason=requirements.FORMATS)
    frames = np.random.default_rng(0).integers(0, 60000, (12, 8, 9, 2)).astype("<u2")
    path = nd2(tmp_path / "a.nd2", frames, [TIMES, POINTS, DEPTHS])
    assert names_of(path) == ["first", "second"]
    assert [source.name for source in list_images(tmp_path)] == ["a_first", "a_second"]
    for position in range(2):
        found = read_image(ImageSource(path, "a", position))
        expected = frames.reshape(2, 2, 3, 8, 9, 2)[:, position].reshape(6, 8, 9, 2)
        np.testing.assert_array_equal(found.pixels, np.moveaxis(expected, -1, 1))
        assert found.layout.axes == "TZCYX"
        assert found.layout.pixel_size == PixelSize(0.325, 0.325, 2.5)
        assert found.layout.channels == ("DAPI", "GFP")


def test_an_nd2_of_one_frame_without_calibration(tmp_path):
    pytest.importorskip("nd2", reason=requirements.FORMATS)
    frames = np.random.default_rng(0).integers(0, 60000, (1, 8, 9, 1)).astype("<u2")
    found = read_image(nd2(tmp_path / "a.nd2", frames, calibration=None, names=("DAPI",)))
    np.testing.assert_array_equal(found.pixels[0, 0], frames[0, :, :, 0])
    assert (found.layout.axes, found.layout.pixel_size) == ("YX", None)


def test_frames_that_an_nd2_lacks_are_no_zeros(tmp_path):
    pytest.importorskip("nd2", reason=requirements.FORMATS)
    frames = np.ones((5, 8, 9, 2), "<u2")
    path = nd2(tmp_path / "a.nd2", frames, [TIMES, DEPTHS])
    with pytest.raises(FrameError, match=r"a.nd2 declares 6 frames and holds 5: export the complete part of it"):
        read_stack(path)


def test_a_lif_has_images_axes_pixel_size_and_channel_names(tmp_path):
    pytest.importorskip("liffile", reason=requirements.FORMATS)
    images = [two_channels("first"), two_channels("second", 1)]
    path = lif(tmp_path / "a.lif", images)
    assert names_of(path) == ["first", "second"]
    for index, (_, pixels, _, _) in enumerate(images):
        found = read_image(ImageSource(path, "a", index))
        np.testing.assert_array_equal(found.pixels, pixels.transpose(1, 0, 2, 3))
        assert found.layout.axes == "CZYX"
        assert found.layout.pixel_size == PixelSize(0.5, 0.5, 2)
        assert found.layout.channels == ("Green", "Red")


def test_a_lif_that_is_cut_off(tmp_path):
    pytest.importorskip("liffile", reason=requirements.FORMATS)
    with pytest.raises(FrameError, match=r"a.lif cannot be read"):
        read_stack(lif(tmp_path / "a.lif", [two_channels("first")], cut=10))


def test_a_lif_reads_no_other_file(tmp_path):
    """liffile also reads XML that names files."""
    pytest.importorskip("liffile", reason=requirements.FORMATS)
    (tmp_path / "a.lif").write_text('<?xml version="1.0"?><Data/>', encoding="utf-16")
    with pytest.raises(FrameError, match=r"a.lif is not an image"):
        read_stack(tmp_path / "a.lif")


def written(path):
    match path.suffix:
        case ".czi":
            return czi(path, {(None, 0, channel, 0): plane(0, 0, channel, 0) for channel in range(2)})
        case ".nd2":
            pytest.importorskip("nd2", reason=requirements.FORMATS)
            return nd2(path, np.ones((6, 8, 9, 2), "<u2"), [TIMES, DEPTHS])
    pytest.importorskip("liffile", reason=requirements.FORMATS)
    return lif(path, [two_channels("first")])


@pytest.mark.filterwarnings("ignore")  # the packages' remarks about damaged files
@pytest.mark.parametrize("kind", ["czi", "nd2", "lif"])
def test_a_damaged_file_is_read_or_refused_in_one_way(tmp_path, kind):
    assert refusals(written(tmp_path / f"a.{kind}"), 60, 20) > 25


@pytest.mark.parametrize(("kind", "package"), [("czi", "pylibCZIrw"), ("nd2", "nd2"), ("lif", "liffile")])
def test_the_extra_of_a_package_that_is_missing_is_named(tmp_path, monkeypatch, kind, package):
    path = written(tmp_path / f"a.{kind}")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(FrameError, match=rf"a.{kind} needs {package}: pip install 'unetrt\[formats\]'"):
        read_stack(path)
    assert [source.path for source in list_images(tmp_path)] == [path]


@pytest.mark.parametrize("kind", ["czi", "nd2", "lif"])
def test_a_file_of_another_format_is_refused(tmp_path, kind):
    (tmp_path / f"a.{kind}").write_bytes(b"II*\0" + bytes(100))
    with pytest.raises(FrameError, match=f"a.{kind} is not an image"):
        read_stack(tmp_path / f"a.{kind}")

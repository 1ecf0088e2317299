"""PNG, JPEG, BMP and GIF: grey values, colours, palettes, opacity, labels and limits."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import requirements
from tests.runtime.damage import refusals
from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import (
    read_frames,
    read_image,
    read_label_stack,
    read_labels,
    read_stack,
    stack_shape,
    without_opacity,
)
from unetrt.runtime.files.sources import list_images

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (20, 30), np.uint8)
COLOURS = RNG.integers(0, 255, (20, 30, 3), np.uint8)
OPAQUE = np.full_like(GREY, 255)
GREY_COLOURS = np.stack([GREY] * 3, axis=-1)


def saved(path, pixels, mode=None, **options):
    image = Image.fromarray(pixels)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def loaded(path, mode=None):
    with Image.open(path) as image:
        return np.array(image if mode is None else image.convert(mode))


def with_palette(path, indices, palette):
    image = Image.fromarray(indices)
    image.putpalette(palette)
    image.save(path)
    return path


@pytest.mark.parametrize("kind", ["png", "bmp", "gif"])
@pytest.mark.parametrize(("pixels", "read"), [(GREY, (1, 1, 20, 30)), (COLOURS, (1, 3, 20, 30))])
def test_pictures_without_loss(tmp_path, kind, pixels, read):
    if kind == "gif" and pixels.ndim == 3:
        pixels = (pixels // 64) * np.uint8(60)
    path = saved(tmp_path / f"a.{kind}", pixels)
    if kind == "gif" and pixels.ndim == 3:
        pixels = loaded(path, "RGB")
    stack = read_stack(path)
    assert (stack.shape, stack.dtype) == (read, np.uint8)
    assert stack_shape(path) == read
    np.testing.assert_array_equal(np.squeeze(stack), pixels if pixels.ndim == 2 else np.moveaxis(pixels, -1, 0))
    assert [source.path for source in list_images(tmp_path)] == [path]


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".JPG"])
def test_jpegs_are_images_but_no_labels(tmp_path, suffix):
    smooth = np.add.outer(np.arange(0, 80, 2), np.arange(0, 120, 2)).astype(np.uint8)
    path = saved(tmp_path / f"a{suffix}", smooth, quality=95)
    stack = read_stack(path)
    assert stack.shape == stack_shape(path) == (1, 1, 40, 60)
    assert np.abs(stack[0, 0].astype(int) - smooth).max() < 10
    assert [source.path for source in list_images(tmp_path)] == [path]
    for read in (read_labels, read_label_stack):
        with pytest.raises(FrameError, match=f"a{suffix} is a JPEG, whose compression changes .*: save labels as PNG"):
            read(path)


def test_what_is_not_grey_or_rgb_is_refused(tmp_path):
    saved(tmp_path / "a.jpg", COLOURS, "CMYK")
    with pytest.raises(FrameError, match=r"a.jpg has colours of the kind CMYK: save it as grey or RGB"):
        read_stack(tmp_path / "a.jpg")


@pytest.mark.parametrize("kind", ["png", "bmp", "gif"])
def test_a_palette_is_colours_in_images_and_indices_in_labels(tmp_path, kind):
    indices = RNG.integers(0, 3, (5, 7), np.uint8)
    colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 9]], np.uint8)
    path = with_palette(tmp_path / f"a.{kind}", indices, colours.ravel().tolist())
    stored = loaded(path)  # a GIF's palette may be in another order
    np.testing.assert_array_equal(read_labels(path), stored)
    np.testing.assert_array_equal(read_stack(path)[0], np.moveaxis(colours[indices], -1, 0))
    assert stack_shape(path) == (1, 3, 5, 7)


@pytest.mark.parametrize("kind", ["png", "bmp", "gif"])
def test_a_palette_of_grey_is_grey(tmp_path, kind):
    indices = RNG.integers(0, 3, (5, 7), np.uint8)
    path = with_palette(tmp_path / f"a.{kind}", indices, [200, 200, 200, 100, 100, 100, 0, 0, 0])
    np.testing.assert_array_equal(read_stack(path)[0, 0], np.array([200, 100, 0], np.uint8)[indices])


SAVED_AS = {
    "grey": GREY,
    "grey with opacity": np.stack([GREY, OPAQUE], axis=-1),
    "RGB": GREY_COLOURS,
    "RGBA": np.dstack([GREY_COLOURS, OPAQUE]),
}


@pytest.mark.parametrize("kind", ["png", "tif"])
@pytest.mark.parametrize("pixels", SAVED_AS.values(), ids=SAVED_AS)
def test_grey_saved_as_colours_is_grey(tmp_path, kind, pixels):
    path = tmp_path / f"a.{kind}"
    if kind == "png":
        saved(path, pixels)
    else:
        colours = pixels.ndim == 3
        extra = {"photometric": "rgb" if colours and pixels.shape[-1] > 2 else "minisblack"}
        if colours and pixels.shape[-1] in (2, 4):
            extra |= {"extrasamples": ["unassalpha"], "planarconfig": "contig"}
        tifffile.imwrite(path, pixels, **extra)
    np.testing.assert_array_equal(read_frames(path, 1), GREY)
    np.testing.assert_array_equal(read_labels(path), GREY)


def test_a_model_of_colours_gets_them_without_full_opacity(tmp_path):
    path = saved(tmp_path / "a.png", np.dstack([COLOURS, OPAQUE]))
    np.testing.assert_array_equal(read_frames(path, 3), np.moveaxis(COLOURS, -1, 0))
    assert read_frames(path, 4).shape == (4, 20, 30)  # as a model of four channels was trained
    for channels in (1, 2):
        with pytest.raises(FrameError, match=f"a.png has 3 channels: this model takes {channels}"):
            read_frames(path, channels)


@pytest.mark.parametrize("opacity", [GREY, 0 * OPAQUE], ids=["varies", "none"])
def test_opacity_that_is_not_full_is_kept(tmp_path, opacity):
    path = saved(tmp_path / "a.png", np.dstack([COLOURS, opacity]))
    with pytest.raises(FrameError, match=r"a.png has 4 channels: this model takes 3"):
        read_frames(path, 3)


def test_channels_of_a_microscope_are_not_opacity(tmp_path):
    """Only the last sample of a pixel can be opacity, not a plane of its own."""
    planes = np.stack([GREY, GREY, GREY, OPAQUE])
    tifffile.imwrite(tmp_path / "a.tif", planes, imagej=True, metadata={"axes": "CYX"})
    for channels in (1, 3):
        with pytest.raises(FrameError, match=f"a.tif has 4 channels: this model takes {channels}"):
            read_frames(tmp_path / "a.tif", channels)


@pytest.mark.parametrize("channels", [2, 4])
def test_an_empty_channel_is_not_opacity(tmp_path, channels):
    pixels = np.dstack([*[GREY] * (channels - 1), 0 * GREY])
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig="contig")
    np.save(tmp_path / "a.npy", pixels)
    for name in ("a.tif", "a.npy"):
        assert without_opacity(read_image(tmp_path / name)).shape == (1, channels, 20, 30)
        with pytest.raises(FrameError, match=f"has {channels} channels: this model takes 1"):
            read_frames(tmp_path / name, 1)


def test_channels_that_are_picked_are_not_opacity(tmp_path):
    path = saved(tmp_path / "a.png", np.dstack([GREY, OPAQUE, GREY]))
    assert without_opacity(read_image(path, Reading(channel=(0, 1)))).shape == (1, 2, 20, 30)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)])
def test_colours_of_16_bits_are_read_whole(tmp_path, colour_type, channels):
    pytest.importorskip("imagecodecs", reason=requirements.CODECS)
    pixels = RNG.integers(0, 65535, (9, 11, channels)).astype(np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", 11, 9, 16, colour_type, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert stack_shape(tmp_path / "a.png") == (1, channels, 9, 11)
    np.testing.assert_array_equal(read_stack(tmp_path / "a.png")[0], np.moveaxis(pixels, -1, 0))


def test_colours_of_16_bits_name_the_package_that_reads_them(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    header = struct.pack(">IIBBBBB", 11, 9, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header))
    with pytest.raises(FrameError, match=r"a.png is a PNG of 16-bit colours, which needs: pip install 'unetrt\[codecs"):
        read_stack(tmp_path / "a.png")


def animation(path, **options):
    frames = [Image.fromarray(np.full((20, 30), value, np.uint8)) for value in (10, 90, 200)]
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)
    return path


def test_an_animated_gif_is_a_stack(tmp_path):
    path = animation(tmp_path / "a.gif")
    frames = read_frames(path, 1)
    assert frames.shape == (3, 20, 30)
    assert stack_shape(path) == (3, 3, 20, 30)
    assert [frame.mean() for frame in frames] == [10, 90, 200]


def test_an_animated_png_is_not_read_as_one_frame(tmp_path):
    with pytest.raises(FrameError, match=r"a.png is an animation of 3 frames: save them as a TIFF stack"):
        read_stack(animation(tmp_path / "a.png"))


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "gif"])
@pytest.mark.parametrize("read", [read_stack, lambda path: read_labels(path)[None, None]])
def test_the_limit_on_pixels_is_memory_and_not_that_of_pillow(tmp_path, monkeypatch, recwarn, kind, read):
    path = saved(tmp_path / f"a.{kind}", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused = {"gif": "is a GIF of 20 x 30 pixels: at most 10 are read", "jpg": "is a JPEG"}
    if kind == "gif" or (kind == "jpg" and read is not read_stack):
        with pytest.raises(FrameError, match=refused[kind]):
            read(path)
    else:
        assert read(path).shape == (1, 1, 20, 30)
    if kind != "gif":
        with pytest.raises(FrameError, match=r"declares 20 x 30 values of uint8, 1 KiB .* at most 1 KiB are read"):
            read_image(path, Reading(599))
    assert not recwarn


def test_a_gif_above_pillows_limit_is_refused_before_pillow_warns(tmp_path, monkeypatch, recwarn):
    """Also where a frame is larger than the whole, or takes the pixels of the one before it away."""
    path = animation(tmp_path / "a.gif", disposal=2)
    content = bytearray(path.read_bytes())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    with pytest.raises(FrameError, match=r"a.gif is a GIF of 20 x 30 pixels: at most 599 are read, save it as TIFF"):
        read_stack(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    assert read_stack(path).shape == (3, 3, 20, 30)
    frame = content.index(b",\0\0\0\0" + struct.pack("<HH", 30, 20))
    content[frame + 5 : frame + 9] = struct.pack("<HH", 3000, 2000)
    path.write_bytes(content)
    with pytest.raises(FrameError, match=r"a.gif is a GIF of 2000 x 3000 pixels"):
        read_stack(path)
    assert not recwarn


@pytest.mark.parametrize("kind", ["jpg", "bmp"])
def test_declared_pixels_are_not_believed(tmp_path, kind):
    path = saved(tmp_path / f"a.{kind}", GREY)
    content = bytearray(path.read_bytes())
    if kind == "jpg":
        content[(at := content.index(b"\xff\xc0")) + 5 : at + 9] = struct.pack(">HH", 60000, 60000)
    else:
        content[18:26] = struct.pack("<ii", 60000, 60000)
    path.write_bytes(content)
    with pytest.raises(FrameError, match=r"declares 60000 x 60000 values of uint8, 3.4 GiB .* --max-image-memory"):
        read_stack(path)


@pytest.mark.filterwarnings("ignore")  # the decoder's remarks about damaged files
@pytest.mark.parametrize("kind", ["jpg", "bmp", "gif"])
def test_a_damaged_picture_is_read_or_refused_in_one_way(tmp_path, kind):
    assert refusals(saved(tmp_path / f"a.{kind}", GREY if kind == "jpg" else GREY_COLOURS)) > 50


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp"])
def test_dots_per_inch_are_no_pixel_size(tmp_path, kind):
    path = saved(tmp_path / f"a.{kind}", GREY, dpi=(300, 300))
    with Image.open(path) as image:
        assert "dpi" in image.info
    assert read_image(path).layout.pixel_size is None


def test_a_picture_of_another_format_is_refused(tmp_path):
    content = io.BytesIO()
    Image.fromarray(GREY).save(content, "PNG")
    for kind in ("jpg", "bmp", "gif"):
        (tmp_path / f"a.{kind}").write_bytes(content.getvalue())
        with pytest.raises(FrameError, match=f"a.{kind} is not an image"):
            read_stack(tmp_path / f"a.{kind}")

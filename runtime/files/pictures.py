"""Pictures: PNG, JPEG, BMP and GIF, as Pillow decodes them.

A file is opened as what its suffix says, by the class of that format, and as nothing else: for PostScript, Image.open
would start Ghostscript. Pillow's limit on the number of pixels does not apply; `OpenedImage.require_room` has one.

The index of a palette is the label in a label file, and stands for a colour in any other. The resolution that pictures
state, in dots per inch, is that of screens and printers: no pixel size is taken from it.
"""

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.formats import Images, Layout, OpenedImage, stored_bytes

Array = NDArray[Any]


class Picture(NamedTuple):
    """A format: the class of Pillow that reads it, and the bytes that its files begin with."""

    plugin: type[ImageFile]
    signatures: tuple[bytes, ...]


JPEG = Picture(JpegImageFile, (b"\xff\xd8\xff",))
PICTURES = {
    ".png": Picture(PngImageFile, (b"\x89PNG\r\n\x1a\n",)),
    ".jpg": JPEG,
    ".jpeg": JPEG,
    ".bmp": Picture(BmpImageFile, (b"BM",)),
    ".gif": Picture(GifImageFile, (b"GIF87a", b"GIF89a")),
}
# Channels of the colour types of PNG that can have 16 bits (PNG specification, 11.2.1).
DEEP_COLOURS = {2: 3, 4: 2, 6: 4}
# Channels of the modes of Pillow in which the formats above are read, but palettes.
CHANNELS = {"1": 1, "L": 1, "I": 1, "I;16": 1, "I;16B": 1, "LA": 2, "RGB": 3, "RGBA": 4}


@contextmanager
def opened(path: Path) -> Iterator[Images]:
    """Open a picture; a suffix without a format is opened as PNG."""
    picture = PICTURES.get(path.suffix.lower(), PICTURES[".png"])
    with path.open("rb") as file:
        header = file.read(26)
        if not header.startswith(picture.signatures):
            raise UnidentifiedImageError
        file.seek(0)
        # Bit depth and colour type of the IHDR chunk of PNG; Pillow would cut such colours to 8 bits.
        if picture.plugin is PngImageFile and header[24:25] == b"\x10" and header[25] in DEEP_COLOURS:
            yield [_deep_png(path, file, header)]
            return
        if picture.plugin is GifImageFile:
            _require_limit_of_gif(file)
        with picture.plugin(file) as image:
            yield [_gif(path, image) if isinstance(image, GifImageFile) else _picture(path, image)]


def _deep_png(path: Path, file: BufferedReader, header: bytes) -> OpenedImage:
    """Return a PNG of colours, or of grey with opacity, of 16 bits, which imagecodecs decodes."""
    width, height = (int.from_bytes(header[at : at + 4]) for at in (16, 20))

    def read() -> Array:
        try:
            from imagecodecs import png_decode
        except ImportError as error:
            raise FrameError("is a PNG of 16-bit colours, which needs: pip install 'unetrt[codecs]'") from error
        pixels: Array = png_decode(file.read())
        return pixels

    layout = Layout((height, width, DEEP_COLOURS[header[25]]), "YXC", np.dtype(np.uint16))
    return OpenedImage(layout, (), lambda: stored_bytes(path), read)


def _picture(path: Path, image: ImageFile) -> OpenedImage:
    """Return a picture of one frame; it knows its labels if it has a palette, or if it is a JPEG."""
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise FrameError(f"is an animation of {frames} frames: save them as a TIFF stack")
    if image.mode == "P":
        return _with_palette(path, image)
    if image.mode not in CHANNELS:
        raise FrameError(f"has colours of the kind {image.mode}: save it as grey or RGB")
    dtype = np.dtype(np.uint16 if image.mode.startswith("I") else np.uint8)
    labels = _refuse_labels if isinstance(image, JpegImageFile) else None
    return _as_decoded(path, image, CHANNELS[image.mode], dtype)._replace(as_labels=labels)


def _as_decoded(path: Path, image: ImageFile, channels: int, dtype: np.dtype[Any]) -> OpenedImage:
    """Return a picture whose pixels are those that Pillow decodes: (H, W), or (H, W, C) for several channels."""
    size = (image.height, image.width)
    layout = Layout(size, "YX", dtype) if channels == 1 else Layout((*size, channels), "YXC", dtype)
    return OpenedImage(layout, (), lambda: stored_bytes(path), lambda: np.asarray(image))


def _refuse_labels() -> OpenedImage:
    raise FrameError("is a JPEG, whose compression changes the values of labels: save labels as PNG or TIFF")


def _with_palette(path: Path, image: ImageFile) -> OpenedImage:
    """Return a picture with a palette: its colours, or grey values; its labels are the indices."""
    assert image.palette is not None
    kind, content = image.palette.getdata()
    order = [kind.index(colour) for colour in "RGB"]
    palette = np.zeros((256, 3), np.uint8)
    found = np.frombuffer(bytes(content), np.uint8)
    found = found[: 256 * len(kind)][: found.size // len(kind) * len(kind)].reshape(-1, len(kind))
    palette[: len(found)] = found[:, order]
    indices = _as_decoded(path, image, 1, np.dtype(np.uint8))
    if (palette == palette[:, :1]).all():
        return indices._replace(read=lambda: palette[:, 0][np.asarray(image)], as_labels=lambda: indices)
    colours = _as_decoded(path, image, 3, np.dtype(np.uint8))
    return colours._replace(read=lambda: palette[np.asarray(image)], as_labels=lambda: indices)


def _gif(path: Path, image: GifImageFile) -> OpenedImage:
    """Return a GIF: grey or colours, or a stack of colours; the labels of a single frame are the indices."""
    frames = image.n_frames
    if frames == 1:
        return _with_palette(path, image) if image.mode == "P" else _as_decoded(path, image, 1, np.dtype(np.uint8))
    layout = Layout((frames, image.height, image.width, 3), "TYXC", np.dtype(np.uint8))

    def read() -> Array:
        pixels = np.empty(layout.shape, np.uint8)
        for index in range(frames):
            image.seek(index)
            pixels[index] = np.asarray(image.convert("RGB"))
        return pixels

    return OpenedImage(layout, (), lambda: stored_bytes(path), read)


def _require_limit_of_gif(file: BufferedReader) -> None:
    """Raise FrameError for a GIF above Pillow's limit on the number of pixels: its class warns of that, or fails."""
    file.seek(6)
    width, height, flags = struct.unpack("<HHB", file.read(5))
    file.seek(2 + _colours(flags), io.SEEK_CUR)
    while (block := file.read(1)) in (b"!", b","):  # an extension, or a frame, which may be larger than the whole
        if block == b"!":
            file.seek(1, io.SEEK_CUR)
        else:
            left, top, columns, rows, flags = struct.unpack("<HHHHB", file.read(9))
            width, height = max(width, left + columns), max(height, top + rows)
            file.seek(_colours(flags) + 1, io.SEEK_CUR)
        while length := file.read(1):
            if length == b"\0":
                break
            file.seek(length[0], io.SEEK_CUR)
    file.seek(0)
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > most:
        raise FrameError(f"is a GIF of {height} x {width} pixels: at most {most} are read, save it as TIFF")


def _colours(flags: int) -> int:
    """Return the length of a table of colours in bytes (GIF 89a, section 18)."""
    return 3 << (flags & 7) + 1 if flags & 128 else 0

"""Labels as PNGs to look at: overlays, outlines, and a sheet of all overlays of a run."""

from collections.abc import Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from unetrt.runtime.errors import printable
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.pixels.drawing import overlay

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import Annotation

Array = NDArray[Any]

# Side of a sheet in pixels that is aimed at, and the smallest and largest side of an image on it.
SHEET, SMALLEST, LARGEST = 2048, 64, 512
# Largest side of an overview in pixels.
OVERVIEW = 2048
# Most images on a sheet, whose side is then 4096 pixels at most, without the captions.
MOST = 4096
# Height and least width of a caption, and gap between images, in pixels.
CAPTION, CAPTION_WIDTH, GAP = 14, 64, 4


def write_png(path: str | Path, picture: NDArray[np.uint8]) -> None:
    """Write a picture (H, W) or (H, W, 3), uint8, atomically as a PNG."""
    with whole_file(path) as temporary:
        # Level 1: a third of the time of the default level for a few percent more bytes.
        Image.fromarray(picture).save(temporary, compress_level=1)


def write_overlay(path: str | Path, image: LabelledImage) -> None:
    """Write the first frame in grey with its objects tinted and outlined, as a PNG."""
    write_png(path, overlay(_grey(image, 0), image.planes[0]))


def overview_step(shape: tuple[int, ...]) -> int:
    """Return the step in pixels at which rows and columns of a frame (..., H, W) are read for its `overview`.

    >>> overview_step((2048, 2048)), overview_step((2049, 40000))
    (1, 20)
    """
    return ceil(max(shape[-2:]) / OVERVIEW)


def overview(labels: Array, frame: Array | None = None) -> NDArray[np.uint8]:
    """Return a coarse copy of a large frame in grey with its objects tinted and outlined, (H, W, 3) uint8.

    Parameters
    ----------
    labels
        (H, W), integers: rows and columns 0, k, 2 k, ... of the labels, with k from `overview_step`.
    frame
        (C, H, W), the same pixels of the frame; None: black.
    """
    return overlay(_black(labels) if frame is None else frame, labels)


def write_outlines(path: str | Path, image: LabelledImage) -> None:
    """Write each frame in grey with the outlines of its objects: a PNG, or a folder of PNGs for a stack.

    Outlines are the pixels of an object next to another label. The frames of a stack are `0000.png` and so on in a
    folder of the name that the file of a single frame has, without its suffix.
    """
    path = Path(path)
    for number, plane in enumerate(image.planes):
        picture = overlay(_grey(image, number), plane, inside=1)
        write_png(path if image.labels.ndim == 2 else path.with_suffix("") / f"{number:04d}.png", picture)


def _grey(image: LabelledImage, number: int) -> Array:
    """Return a frame, (C, H, W); black where there is no image."""
    if image.frames is not None:
        frame: Array = image.frames[number]
        return frame
    return _black(image.labels)


def _black(labels: Array) -> Array:
    return np.zeros((1, *labels.shape[-2:]), np.uint8)


class OverlaySheet:
    """The overlays of a run, scaled down to fit on one picture, with the number of objects of each.

    Parameters
    ----------
    images
        Number of images of the run; beyond `MOST`, the rest is only counted.

    Attributes
    ----------
    captions
        Name and number of objects of each image on the sheet.
    left_out
        Number of images that are not on the sheet.
    """

    def __init__(self, images: int) -> None:
        self._columns = max(1, ceil(sqrt(min(images, MOST))))
        self._side = min(max(SHEET // self._columns, SMALLEST), LARGEST)
        self._pictures: list[Image.Image] = []
        self.captions: list[str] = []
        self.left_out = 0

    def add(self, image: LabelledImage) -> None:
        """Add an image; only a coarse copy of a large one is drawn."""
        if len(self._pictures) == MOST:
            self.left_out += 1
            return
        step = overview_step(image.labels.shape)
        frame = None if image.frames is None else image.frames[0, :, ::step, ::step]
        counts = [len(np.unique(plane[plane > 0])) for plane in image.planes]
        self.add_overview(image.name, counted(image.kind, counts), overview(image.planes[0, ::step, ::step], frame))

    def add_overview(self, name: str, content: str, picture: NDArray[np.uint8]) -> None:
        """Add the `overview` of an image that is not in memory, with what it contains in words, as ``"3 objects"``."""
        if len(self._pictures) == MOST:
            self.left_out += 1
            return
        thumbnail = Image.fromarray(picture)
        thumbnail.thumbnail((self._side, self._side), Image.Resampling.BOX)
        self._pictures.append(thumbnail)
        self.captions.append(f"{printable(name, 200)}: {content}")

    def write(self, path: str | Path) -> None:
        """Write the sheet as a PNG; writes nothing if no image was added."""
        if self._pictures:
            write_png(path, np.asarray(self._drawn()))

    def _drawn(self) -> Image.Image:
        columns = min(self._columns, len(self._pictures))
        rows = ceil(len(self._pictures) / columns)
        room = max(CAPTION_WIDTH, *(picture.width for picture in self._pictures))
        width, height = room + GAP, max(picture.height for picture in self._pictures) + CAPTION + GAP
        sheet = Image.new("RGB", (columns * width + GAP, rows * height + GAP + (CAPTION if self.left_out else 0)))
        draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(10)
        for number, (picture, caption) in enumerate(zip(self._pictures, self.captions, strict=True)):
            row, column = divmod(number, columns)
            left, top = GAP + column * width, GAP + row * height
            draw.text((left, top), _shortened(caption, room, font), "white", font)
            sheet.paste(picture, (left, top + CAPTION))
        if self.left_out:
            draw.text((GAP, rows * height + GAP), f"and {self.left_out} more images", "white", font)
        return sheet


def counted(kind: "Annotation", counts: Sequence[int]) -> str:
    """Return the number of labels in each frame, objects or classes, in words; of classes, that in the first frame.

    >>> counted("instances", [3, 4]), counted("classes", [1])
    ('7 objects in 2 frames', '1 class')
    """
    if kind == "classes":
        return f"{counts[0]} class{'es' * (counts[0] != 1)}"
    objects = f"{sum(counts)} object{'s' * (sum(counts) != 1)}"
    return objects if len(counts) == 1 else f"{objects} in {len(counts)} frames"


def _shortened(text: str, width: float, font: Any) -> str:
    """Return text that is at most `width` pixels wide; the number at its end is kept."""
    if font.getlength(text) <= width:
        return text
    name, _, count = text.rpartition(": ")
    while name and font.getlength(f"{name}..: {count}") > width:
        name = name[:-1]
    return f"{name}..: {count}" if name else count

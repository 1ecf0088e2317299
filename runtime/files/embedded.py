"""Strips and tiles of TIFF files that are image files themselves, with a header of their own.

Decoders of JPEG, JPEG 2000 and PNG allocate what that header declares, whatever the size of the tile: a kilobyte can
take gigabytes. `require_sizes` compares both before anything is decoded. JPEG XL and JPEG XR are not checked.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import tifffile

from unetrt.runtime.errors import FrameError

# Encoders round a tile up to whole blocks, and may store a strip with more rows than it shows.
SLACK, BLOCK = 4, 2**16
# Bytes at the beginning of a strip that hold its header, with colour profiles and thumbnails before it.
HEADER = 2**17


def require_sizes(series: tifffile.TiffPageSeries) -> None:
    """Raise FrameError if the header of a strip or tile declares far more pixels than the TIFF file says.

    The compression of the series is one of `SIZES`.
    """
    for content in _headers(series):
        require_size(series.keyframe, content)


def require_size(keyframe: tifffile.TiffPage, content: bytes) -> None:
    """Raise FrameError if the header of a strip or tile of a page declares far more pixels than the page.

    Parameters
    ----------
    keyframe
        The page, whose compression is one of `SIZES`.
    content
        The strip or tile, or its beginning.
    """
    height, width = SIZES[int(keyframe.compression)](content)
    if height * width > SLACK * prod(keyframe.chunks) + BLOCK:
        raise FrameError(f"has a tile of {height} x {width} pixels in place of {keyframe.chunks}: save it again")


def _headers(series: tifffile.TiffPageSeries) -> Iterator[bytes]:
    """Read the beginning of each strip and tile."""
    pages: list[Any] = [page for page in series.pages if page is not None]
    for page in pages:
        file = page.parent.filehandle
        closed = file.closed
        if closed:  # another file of the series
            file.open()
        try:
            for offset, length in zip(page.dataoffsets, page.databytecounts, strict=False):
                if length:
                    file.seek(offset)
                    yield file.read(min(length, HEADER))
        finally:
            if closed:
                file.close()


def _jpeg(content: bytes) -> tuple[int, int]:
    """Return (H, W) of the start of frame of a JPEG file (ITU-T T.81, B.2.2)."""
    at = 2
    while at + 9 <= len(content):
        marker = content[at + 1]
        if content[at] != 0xFF or marker == 0xFF:
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _integer(content, at + 5, 2), _integer(content, at + 7, 2)
        else:
            at += 2 if marker in (0, 1) or 0xD0 <= marker <= 0xD9 else 2 + _integer(content, at + 2, 2)
    return 0, 0


def _jpeg2000(content: bytes) -> tuple[int, int]:
    """Return (H, W) of the reference grid of a JPEG 2000 codestream (ITU-T T.800, A.5.1)."""
    at = content.find(b"\xff\x4f\xff\x51")
    if at < 0:
        return 0, 0
    width, height = (_integer(content, at + where, 4) for where in (8, 12))
    return height, width


def _png(content: bytes) -> tuple[int, int]:
    """Return (H, W) of the header of a PNG file (PNG specification, 11.2.1)."""
    return _integer(content, 20, 4), _integer(content, 16, 4)


def _integer(content: bytes, at: int, width: int) -> int:
    return int.from_bytes(content[at : at + width], "big")


# Compression of a TIFF file -> function that returns the size in a header; (0, 0) where it has none.
SIZES: Mapping[int, Callable[[bytes], tuple[int, int]]] = {
    **dict.fromkeys((6, 7, 33007, 34892), _jpeg),
    **dict.fromkeys((33003, 33004, 33005, 34712), _jpeg2000),
    34933: _png,
}

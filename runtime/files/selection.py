"""What is processed of an image or of several: the option `--select`.

A selection is a Python slice or an index of an axis before rows and columns, by its letter, or a pattern for the names
of images:

>>> frame_slices(["T=0:10", "plate/B/*", "Z=3"]), name_patterns(["T=0:10", "plate/B/*"])
({'T': slice(0, 10, None), 'Z': slice(3, 4, None)}, ['plate/B/*'])
"""

import re
import threading
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, OptionError, few, shown

if TYPE_CHECKING:
    from unetrt.runtime.files.formats import Layout
    from unetrt.runtime.files.sources import ImageSource

Array = NDArray[Any]
Index = tuple[int | slice, ...]

AXIS = re.compile(r"\s*([A-Za-z])\s*=(.*)")
SLICE = re.compile(r"\s*(-?\d+)?\s*(?:(:)\s*(-?\d+)?\s*(?::\s*(\d+)?\s*)?)?")
HINT = "use an index or a slice of an axis of frames, such as T=0:10, T=::2 or Z=3, or a pattern of names: plate/B/*"
# Names that a message lists.
SHOWN = 8


class Parts(Protocol):
    """Pixels that are read by parts; several threads may read at once."""

    def __getitem__(self, index: Index, /) -> Any:
        """Return the part at an index: for each axis an int from 0, or a slice with a step of at least 1."""


def frame_slices(select: Sequence[str]) -> dict[str, slice]:
    """Return the slice of each axis that is selected, by its upper-case letter.

    Raises
    ------
    OptionError
        A selection is no text, no slice or index, not of an axis of frames, or the second of its axis.
    """
    found: dict[str, slice] = {}
    for one in select:
        if not isinstance(one, str) or not one.strip():
            raise OptionError(f"select {shown(one)} is not known: {HINT}")
        if not (named := AXIS.fullmatch(one)):
            continue
        axis = named[1].upper()
        if axis in "CSYX":
            other = "--channel (channel) chooses channels" if axis in "CS" else "frames are processed as a whole"
            raise OptionError(f"select {one!r:.60} is not an axis of frames: {other}; {HINT}")
        if axis in found:
            raise OptionError(f"select {one!r:.60} is the second of axis {axis}: give one slice for each axis")
        found[axis] = _slice(named[2], one)
    return found


def _slice(text: str, whole: str) -> slice:
    """Return the slice of a text; an index gives a slice of length 1."""
    parts = SLICE.fullmatch(text)
    if not parts or not text.strip() or parts[4] == "0":
        raise OptionError(f"select {whole!r:.60} is no index and no slice with a step of at least 1: {HINT}")
    start, stop, step = (None if number is None else int(number) for number in (parts[1], parts[3], parts[4]))
    if parts[2]:
        return slice(start, stop, step)
    assert start is not None
    return slice(start, start + 1 if start != -1 else None)


def name_patterns(select: Sequence[str]) -> list[str]:
    """Return the selections that are patterns for names."""
    return [one for one in select if not AXIS.fullmatch(one)]


def selected_images(sources: Sequence["ImageSource"], select: Sequence[str]) -> list["ImageSource"]:
    """Return the images whose names match one of the patterns in `select`, or all if it has none.

    Raises
    ------
    OptionError
        No name matches; the message lists those that there are.
    """
    patterns = name_patterns(select)
    found = [source for source in sources if any(fnmatchcase(source.name, one) for one in patterns)]
    if patterns and not found:
        names = few([source.name for source in sources], most=SHOWN)
        raise OptionError(f"--select (select) {', '.join(patterns)} matches no image; there are {names}")
    return found if patterns else list(sources)


def selected_ranges(layout: "Layout", select: Sequence[str]) -> list[range]:
    """Return the indices along each axis of an image that are selected.

    An image whose axes have names lacks those of length 1 in some formats: index 0 can be selected there.

    Raises
    ------
    FrameError
        The image has no such axis, or a selection is outside of it.
    """
    ranges = [range(length) for length in layout.shape]
    there = ", ".join(f"{axis} (0 ... {length - 1})" for axis, length in layout.frames) or "a single frame"
    for axis, part in frame_slices(select).items():
        at = layout.axes.find(axis)
        is_left_out = at < 0 and "N" not in layout.axes
        kept = (ranges[at] if at >= 0 else range(int(is_left_out)))[part]
        if layout.axes.count(axis) > 1 or not (at >= 0 or is_left_out):
            raise FrameError(f"has no axis {axis} to select from: it has {there}; --axes names the axes")
        if not kept:
            raise FrameError(f"has nothing at {axis}={_text(part)}: it has {there}")
        if at >= 0:
            ranges[at] = kept
    return ranges


def _text(part: slice) -> str:
    """Return a slice as it is written."""
    start, stop, step = ("" if number is None else str(number) for number in (part.start, part.stop, part.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")


def as_slice(part: range) -> slice:
    """Return the slice of a range of indices with a positive step."""
    return slice(part.start, part.stop, part.step)


def ranges_at(shape: Sequence[int], index: Index) -> list[range]:
    """Return the indices along each axis that an index of `Parts` means; an int gives a range of length 1."""
    return [
        range(length)[one] if isinstance(one, slice) else range(one, one + 1)
        for length, one in zip(shape, index, strict=True)
    ]


class LockedParts:
    """Pixels of a reader that one thread at a time can call.

    Parameters
    ----------
    read
        Returns the part at an index.
    """

    def __init__(self, read: Callable[[Index], Array]) -> None:
        self._read, self._lock = read, threading.Lock()

    def __getitem__(self, index: Index, /) -> Array:
        """Return a part of the pixels."""
        with self._lock:
            return self._read(index)


class SelectedParts:
    """The selected part of an array.

    Parameters
    ----------
    pixels
        The array.
    kept
        Indices along each of its axes.
    """

    def __init__(self, pixels: Parts, kept: Sequence[range]) -> None:
        self._pixels, self._kept = pixels, list(kept)

    def __getitem__(self, index: Index, /) -> Any:
        """Return a part of what is selected."""
        places = (
            as_slice(kept[one]) if isinstance(one, slice) else kept[one]
            for kept, one in zip(self._kept, index, strict=True)
        )
        return self._pixels[tuple(places)]

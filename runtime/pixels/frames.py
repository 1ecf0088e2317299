"""Frames: the arrays that a caller passes, checked before anything is computed.

A frame is (H, W) for a model of one channel and (C, H, W) for one of C channels (`frame_axes`); all axes before these
are a stack. `array_of` and `labels_for` take images and label arrays on the host or on a GPU, `split_axes` checks the
shape, and `as_frame` checks dtype and pixels of one frame that was read. `is_narrow` recognises shapes whose last axis
may be channels. `FrameLayout` arranges single frames as cameras deliver them: with axes of length one in front, or with
colours last.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.arrays import DeviceArray, device_array
from unetrt.runtime.errors import FrameError, OptionError, one_line, shown

Array = NDArray[Any]
Size = tuple[int, int]

# The largest float32.
LARGEST = float(np.finfo(np.float32).max)
# A last axis that is shorter than the two before it is hardly the width of an image if it has at most `CHANNELS`
# elements, or is at least `NARROW` times shorter.
CHANNELS = 8
NARROW = 4


def is_narrow(shape: tuple[int, ...]) -> bool:
    """Return whether the last axis is much shorter than the two before it, as if it were channels: (..., H, W, C).

    Frames that are much narrower than they are high, and fewer than their width, are not mistaken: (2, 512, 32).
    """
    if len(shape) < 3:
        return False
    others, last = min(shape[-3:-1]), shape[-1]
    return 0 < last < others and (last <= CHANNELS or last * NARROW <= others)


def both_readings(shape: tuple[int, ...]) -> str:
    """Return the two meanings of a narrow shape, as frames and as channels last."""
    *_, first, second, last = shape
    return f"{first} frames of {second} x {last} px, or {first} x {second} px with the channels last, {last}"


def require_rows_and_columns(shape: tuple[int, ...], what: str, wanted: str) -> None:
    """Raise FrameError for `what`, an array of planes (..., H, W), if its shape is narrow; `wanted` is the rule."""
    if is_narrow(shape):
        raise FrameError(
            f"{what} has shape {tuple(shape)}: {both_readings(shape)}; {wanted}: give array[..., 0] for a channel, or "
            "array[..., None, :, :] where they are frames"
        )


def frame_axes(channels: int) -> int:
    """Return the number of axes of one frame: 2, (H, W), for one channel, else 3, (C, H, W)."""
    return 2 if channels == 1 else 3


def stack_of(frames: Array, channels: int) -> Array:
    """Return a frame or a stack as a stack: (N, H, W) for one channel, else (N, C, H, W)."""
    return frames if frames.ndim > frame_axes(channels) else frames[None]


def as_image(planes: Array) -> Array:
    """Return frames (..., C, H, W) as a segmenter takes them: (..., H, W) for one channel."""
    return planes[..., 0, :, :] if planes.shape[-3] == 1 else planes


def split_axes(shape: tuple[int, ...], channels: int) -> tuple[tuple[int, ...], Size]:
    """Split an image's shape into the axes of a stack and the frame's height and width.

    Raises
    ------
    FrameError
        There are too few axes, the channel count differs, the last axis seems to be channels, or an axis is empty.
    """
    axes = frame_axes(channels)
    wanted = "(H, W)" if channels == 1 else f"({channels}, H, W)"
    if len(shape) < axes:
        raise FrameError(f"the image has shape {tuple(shape)}: this model takes {wanted}, or a stack of them")
    if channels > 1 and shape[-3] != channels:
        last = "; if they come last, give numpy.moveaxis(array, -1, -3)" if shape[-1] == channels else ""
        raise FrameError(f"the image has shape {tuple(shape)}, {shape[-3]} channels: this model takes {wanted}{last}")
    if channels == 1:
        require_rows_and_columns(shape, "the image", f"this model takes {wanted}")
    if 0 in shape:
        raise FrameError(f"the image has shape {tuple(shape)}: it holds no pixels")
    return tuple(shape[:-axes]), (shape[-2], shape[-1])


def as_frame(read: Any, channels: int, place: tuple[int, int] = (0, 0)) -> Array:
    """Return one frame as an array (C, H, W), bool as uint8; raises FrameError for other dtypes and unusable pixels.

    For a part of a frame, `place` is the row and the column of the frame at which it begins, for the error.
    """
    frame = as_planes(read, channels)
    if frame.dtype.kind == "f":
        require_finite(frame, place)
    return frame


def as_planes(read: Any, channels: int) -> Array:
    """Return one frame as `as_frame` does, without a look at its pixels."""
    frame = as_array(read)
    if frame.dtype == bool:
        frame = frame.view(np.uint8)
    require_numbers(frame.dtype)
    return frame.reshape(channels, *frame.shape[-2:])


def require_numbers(dtype: np.dtype[Any]) -> None:
    """Raise FrameError unless pixels are integers or floats."""
    if dtype.kind not in "uif":
        raise FrameError(f"the image is {dtype}: use an integer or float dtype, such as uint8, uint16, float32")


def as_array(given: Any) -> Array:
    """Convert to a numpy array; raises FrameError where numpy cannot."""
    try:
        array = np.asarray(given)
        if array.dtype == object and not isinstance(given, np.ndarray):
            raise TypeError("it would hold Python objects")
        return array
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise FrameError(
            f"a {type(given).__name__} cannot be converted to an array ({one_line(error)}): give a numpy array, "
            "such as tensor.detach().cpu().numpy()"
        ) from error


def require_raw(given: np.dtype[Any], dtype: str) -> None:
    """Raise FrameError unless a frame's dtype converts without loss to `dtype`, the graph's raw input."""
    if not np.can_cast(given, dtype, "safe"):
        raise FrameError(
            f"the image is {given}: this model takes raw {dtype} pixels; give those, or export it with --input float32"
        )


def require_finite(frame: Array, place: tuple[int, int] = (0, 0)) -> None:
    """Raise FrameError if a float frame (..., H, W) holds NaN, infinity or values beyond float32.

    The message says which of them, how many pixels, and where the first is; `place` is the row and the column at which
    the array begins.
    """
    if (found := find_unusable(frame)) is not None:
        raise found.moved(place).error()


class Unusable(NamedTuple):
    """Pixels of a frame that a network cannot compute with.

    Attributes
    ----------
    number
        Number of pixels.
    first
        Index of the first in C order, of which the last two numbers are row and column.
    not_finite, large
        Whether some are NaN or infinite, and whether some are finite and beyond float32.
    """

    number: int
    first: tuple[int, ...]
    not_finite: bool
    large: bool

    def moved(self, place: tuple[int, int]) -> "Unusable":
        """Return the same for a frame of which the array, from that row and column on, is a part."""
        *plane, row, column = self.first
        return self._replace(first=(*plane, row + place[0], column + place[1]))

    def merged(self, other: "Unusable | None") -> "Unusable":
        """Return the sum of two parts of a frame."""
        if other is None:
            return self
        first, kinds = min(self.first, other.first), (self.not_finite or other.not_finite, self.large or other.large)
        return Unusable(self.number + other.number, first, *kinds)

    def error(self) -> FrameError:
        """Return the error to raise."""
        row, column = self.first[-2:]
        return unusable(self.number, row, column, not_finite=self.not_finite, large=self.large)


def find_unusable(frame: Array) -> Unusable | None:
    """Return the pixels of a float frame (..., H, W) that are NaN, infinite or beyond float32; None without any."""
    # The network computes in float32, where a larger float64 is infinite.
    usable = np.isfinite(frame) if frame.itemsize <= 4 else np.abs(frame) <= LARGEST
    if usable.all():
        return None
    bad = np.argwhere(~usable)
    finite = np.isfinite(frame[~usable])
    return Unusable(len(bad), tuple(bad[0].tolist()), not finite.all(), bool(finite.any()))


def unusable(count: int, row: int, column: int, *, not_finite: bool = True, large: bool = False) -> FrameError:
    """Return the error for pixels that a network cannot compute with.

    Parameters
    ----------
    count
        Number of them.
    row, column
        Place of the first in C order.
    not_finite, large
        Whether some may be NaN or infinite, and whether some may be finite and beyond float32.
    """
    kinds = ["NaN or infinite"] * not_finite + [f"beyond {LARGEST:.2g}, the largest float32"] * large
    remedies = ["replace them, for example with numpy.nan_to_num(image, posinf=0, neginf=0)"] * not_finite
    remedies += ["divide the image by a constant, as networks compute in float32"] * large
    return FrameError(
        f"{count} pixels are {' or '.join(kinds)}, the first at row {row}, column {column}: {', or '.join(remedies)}"
    )


class ArrayLike(Protocol):
    """The interface of an image; numpy arrays, memmaps, Zarr and HDF5 arrays have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes."""

    def __getitem__(self, index: Any, /) -> Any:
        """Return the part of the image at `index` as an array; () returns the whole image."""


def array_of(given: Any) -> Any:
    """Return a DeviceArray for an array on a GPU, other objects with a shape as they are, and the rest converted.

    Raises FrameError for an array on a GPU that cannot be read, and for what numpy cannot convert.
    """
    if not isinstance(given, np.ndarray) and (found := device_array(given)) is not None:
        return found
    # A memoryview of several axes cannot be indexed by part.
    indexed = hasattr(given, "__getitem__") and not isinstance(given, memoryview | type)
    return given if indexed and isinstance(getattr(given, "shape", None), tuple) else as_array(given)


class LabelStore(Protocol):
    """The interface of labels that are not in memory; Zarr and HDF5 arrays have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes of all axes, (..., H, W)."""

    @property
    def dtype(self) -> Any:
        """uint8."""

    def __setitem__(self, index: Any, labels: Any, /) -> None:
        """Write a part of the labels; `index` has an integer for each axis of the stack, then two slices."""


def labels_for(image: Any, out: Any, shape: tuple[int, ...]) -> NDArray[np.uint8] | DeviceArray | LabelStore:
    """Return the array that the labels of an image are written to: `out`, or a new array on the host if that is None.

    Parameters
    ----------
    image, out
        Results of `array_of`.
    shape
        Shape of the labels, (..., H, W).

    Raises
    ------
    FrameError
        `out` is not uint8 of that shape, cannot be written to, or shares memory with the image.
    """
    if out is None:
        return np.empty(shape, np.uint8)
    if isinstance(out, DeviceArray):
        _require_on_device(out, image, shape)
        return out
    if not isinstance(out, np.ndarray) and hasattr(out, "__dlpack__"):
        out = np.from_dlpack(out)  # the same memory
    if not isinstance(out, np.ndarray):
        return _label_store(out, image, shape)
    _require(out.shape == shape and out.dtype == np.uint8 and out.flags.writeable, out, shape)
    if isinstance(image, np.ndarray) and np.may_share_memory(out, image):
        raise _shared()
    labels: NDArray[np.uint8] = out
    return labels


def _label_store(out: Any, image: Any, shape: tuple[int, ...]) -> LabelStore:
    if isinstance(image, DeviceArray) or not all(hasattr(out, name) for name in ("shape", "dtype", "__setitem__")):
        stored = "" if isinstance(image, DeviceArray) else "a Zarr or HDF5 array, "
        raise FrameError(
            f"out is a {type(out).__name__}: give a numpy array, {stored}or an array on the segmenter's GPU"
        )
    fits = tuple(out.shape) == shape and str(out.dtype) == "uint8" and not getattr(out, "read_only", False)
    _require(fits, out, shape)
    if out is image:
        raise _shared()
    store: LabelStore = out
    return store


def _require_on_device(out: DeviceArray, image: Any, shape: tuple[int, ...]) -> None:
    _require(out.shape == shape and out.dtype == np.uint8 and not out.read_only, out, shape)
    if (out.strides[-1] != 1 and shape[-1] > 1) or min(out.strides) < 0:
        raise FrameError("the rows of out are reversed or have gaps between pixels: give an array in C order")
    if isinstance(image, DeviceArray):
        (low, high), (begin, end) = out.bounds, image.bounds
        if low < end and begin < high:
            raise _shared()


def _require(fits: bool, out: Any, shape: tuple[int, ...]) -> None:
    if fits:
        return
    given = f"{out.dtype} {tuple(out.shape)}"
    how = "read-only" if given == f"uint8 {shape}" else given
    raise FrameError(f"out is {how}: give uint8 {shape} that can be written to")


def _shared() -> FrameError:
    return FrameError("out shares memory with the image, which is read while labels are written: give another array")


# Weights of red, green and blue in grey, in units of 2^-16: 0.299, 0.587 and 0.114 of ITU-R BT.601, rounded as in
# Pillow's conversion to "L". Their sum is 2^16, so that equal colours keep their value.
GREY = (19595, 38470, 7471)
# Lengths of the last axis of a frame with colours: red, green, blue, and perhaps opacity.
COLOURS = (3, 4)


class FrameLayout:
    """Converts the frames of a camera to the channels of a model.

    Parameters
    ----------
    count
        Number of channels of the model.
    channels
        Channels to take from frames that have several, in order, by their index from 0: of colours red is 0, green 1,
        blue 2. Empty: all, and grey of colours for a model of one channel.

    Raises
    ------
    OptionError
        `channels` are not `count` indices.
    """

    def __init__(self, count: int, channels: Sequence[int] = ()) -> None:
        if not isinstance(channels, Sequence) or not all(type(one) is int and one >= 0 for one in channels):
            raise OptionError(f"channels={shown(channels)} are not indices from 0: give a list, such as [1] for green")
        if channels and len(channels) != count:
            plural = "" if count == 1 else "s"
            raise OptionError(f"channels={shown(channels)}: the model takes {count} channel{plural}, name as many")
        self._count, self._channels = count, list(channels)

    def arrange(self, frame: Any) -> Any:
        """Return a frame as (H, W) or (C, H, W), a view where possible; frames of other shapes are returned unchanged.

        Parameters
        ----------
        frame
            (H, W), (C, H, W), (H, W, 3) or (H, W, 4), with any number of axes of length one in front.

        Raises
        ------
        FrameError
            The frame does not have the channels that were chosen, or its colours are not what the model takes.
        """
        if not isinstance(frame, np.ndarray):
            return frame
        axes = 2 if self._count == 1 and not self._channels else 3
        while frame.ndim > axes and frame.shape[0] == 1:
            frame = frame[0]
        if frame.ndim != 3:
            if self._channels:
                raise FrameError(f"a frame of shape {frame.shape} has no channels to choose from: leave out channels=")
            return frame
        has_colours = self._has_colours(frame.shape)
        planes = np.moveaxis(frame, -1, 0) if has_colours else frame
        if self._channels:
            if not has_colours and is_narrow(frame.shape):
                raise FrameError(
                    f"channels cannot be chosen from a frame of shape {frame.shape}: {both_readings(frame.shape)}; "
                    "submit frames (C, H, W)"
                )
            return self._chosen(planes)
        return self._of_colours(planes) if has_colours else frame

    def _has_colours(self, shape: tuple[int, ...]) -> bool:
        """Return whether the last of three axes holds colours; not if the first one holds the channels of the model."""
        return shape[-1] in COLOURS and min(shape[:2]) > max(COLOURS) and (self._count == 1 or shape[0] != self._count)

    def _chosen(self, planes: NDArray[Any]) -> NDArray[Any]:
        if (highest := max(self._channels)) >= len(planes):
            raise FrameError(f"channel {highest} was chosen, and the frame has {len(planes)}: 0 to {len(planes) - 1}")
        return planes[self._channels[0]] if self._count == 1 else planes[self._channels]

    def _of_colours(self, planes: NDArray[Any]) -> NDArray[Any]:
        """Return grey, or the colours, of (3, H, W) or (4, H, W); opacity is left out unless the model takes it."""
        if self._count == 1:
            return grey(planes[:3])
        if self._count not in (3, len(planes)):
            raise FrameError(
                f"the frame has {len(planes)} colours last, and the model takes {self._count} channels: choose them "
                f"with channels={list(range(self._count))}"
            )
        return planes[: self._count]


def grey(planes: NDArray[Any]) -> NDArray[Any]:
    """Return the grey values (H, W) of red, green and blue (3, H, W): luma of ITU-R BT.601, as Pillow's mode "L".

    uint8 and uint16 keep their dtype and are rounded; others become float32.
    """
    if planes.dtype in (np.uint8, np.uint16):
        summed = np.full(planes.shape[1:], 1 << 15, np.uint32)  # half, to round; 65535 * 2^16 + 2^15 fits
        for plane, weight in zip(planes, GREY, strict=True):
            summed += plane * np.array(weight, np.uint32, ndmin=1)
        return (summed >> 16).astype(planes.dtype)
    weights = np.array(GREY, np.float32) / (1 << 16)
    mixed: NDArray[Any] = np.einsum("chw,c->hw", planes, weights, dtype=np.float32, casting="same_kind")
    return mixed

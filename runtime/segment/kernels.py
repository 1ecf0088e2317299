"""CUDA kernels that cut, measure, check and stitch frames in device memory: bit for bit what numpy does on the host.

`Kernels` loads `kernels.ptx` on a device and launches it; the structs below are the kernels' arguments, field by field
as in `kernels.cu`. What a frame needs to be measured (a histogram, a count of non-finite pixels) is reduced on the
device; the host reads the counts, never the frame.
"""

from ctypes import Structure, c_float, c_int64, c_uint64
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.cuda.arrays import DeviceArray
from unetrt.runtime.cuda.device import CudaDevice, Owned
from unetrt.runtime.cuda.driver import Extent
from unetrt.runtime.errors import FrameError
from unetrt.runtime.geometry.plan import Tile
from unetrt.runtime.pixels.frames import unusable
from unetrt.runtime.pixels.normalisation import Affine, Normalisation, from_sums, interpolated

NAMES = ("cut", "histogram", "stitch_labels", "not_finite")
# A warp along a row, for coalesced access; 256 threads fill every GPU since compute capability 7.5.
BLOCK: Extent = (32, 8, 1)
# Largest grid along y (CUDA programming guide, technical specifications); threads stride over the rest.
MAX_BLOCKS_Y = 65535
# Copies of the bins by dtype, as blocks that count the same grey value contend for it: 32 KiB, and 1 MiB.
COPIES = {np.dtype(np.uint8): 32, np.dtype(np.uint16): 4}
# Result of `Kernels.not_finite`: number of pixels, and C-order index of the first.
FOUND = np.dtype([("count", np.uint64), ("first", np.uint64)])


class Kernels:
    """The kernels on one device. Their arguments lie in its memory, and all launches are asynchronous.

    The device must be current at each launch. Thread-safe.

    Parameters
    ----------
    device
        Where they are loaded.

    Raises
    ------
    CudaError
        The device cannot load them.
    """

    def __init__(self, device: CudaDevice) -> None:
        driver = self._driver = device.driver
        self._module = Owned(device, lambda: driver.load_module(ptx()), driver.unload_module)
        with device.current():
            self._functions = {name: driver.function(self._module.handle, name) for name in NAMES}

    def close(self) -> None:
        """Unload the kernels, which must not be running; idempotent."""
        self._module.close()

    def cut(self, frame: DeviceArray, tile: Tile, affine: Affine | None, slot: DeviceArray, stream: int) -> None:
        """Fill one slot of a lane's input from a frame, mirrored at its borders.

        Parameters
        ----------
        frame
            (C, H, W), of the size that the tile was planned for; for a raw slot, of a dtype that it can hold
            (`frames.require_raw`).
        tile
            The window.
        affine
            The normalisation; None where the graph normalises.
        slot
            (C, h, w): float32, or raw uint8 or uint16.
        stream
            Handle of the CUDA stream.
        """
        symmetric = tile.rows.border == "symmetric"
        for channel in range(slot.shape[0]):
            offset, scale = (0.0, 1.0) if affine is None else (affine.offset[channel], affine.scale[channel])
            source, target = plane(frame[channel]), plane(slot[channel])
            argument = Cut(source, target, tile.rows.start, tile.columns.start, symmetric, offset, scale)
            self._launch("cut", argument, slot[channel], stream)

    def histogram(self, frame: DeviceArray, bins: DeviceArray, stream: int) -> None:
        """Count the grey values of a frame (C, H, W), uint8 or uint16, into packed uint32 `bins`.

        Their shape is `bins_shape(frame)`; they are zeroed first. Raises FrameError where a channel has more pixels
        than a bin can count.
        """
        channels, copies, values = bins.shape
        if frame[0].nbytes >= frame.dtype.itemsize << 32:
            raise FrameError(
                f"the frame has shape {frame.shape}: on the GPU a channel must have fewer than 2^32 pixels; give it on "
                "the host"
            )
        self._driver.fill(bins.address, 0, bins.nbytes, stream)
        for channel in range(channels):
            argument = Histogram(plane(frame[channel]), bins[channel].address, copies, values)
            self._launch("histogram", argument, frame[channel], stream)

    def stitch_labels(
        self, scores: DeviceArray, tile: Tile, labels: DeviceArray, spoilt: int | None, stream: int
    ) -> None:
        """Write the class of the largest score of each pixel of a slot into the tile's core.

        Parameters
        ----------
        scores
            (classes, h', w') float32, of at most 256 classes.
        tile
            The window.
        labels
            (H, W) uint8, of the whole frame.
        spoilt
            Address of an int32 in device memory that is set to 1 where a score of the slot is NaN or infinite, and else
            not written; None to skip the check.
        stream
            Handle of the CUDA stream.
        """
        core = _core(tile, labels)
        first, target = plane(scores[0]), plane(core)
        argument = StitchLabels(first, scores.strides[0], scores.shape[0], target, spoilt or 0)
        self._launch("stitch_labels", argument, core if spoilt is None else scores[0], stream)

    def not_finite(self, frame: DeviceArray, found: int, stream: int) -> None:
        """Count the pixels of a float frame (C, H, W) that are NaN or infinite in float32.

        The result is a `FOUND` at the 8-byte aligned address `found`.
        """
        count, first = found, found + 8
        self._driver.fill(count, 0, 8, stream)
        self._driver.fill(first, 0xFF, 8, stream)  # larger than every index
        for channel in range(frame.shape[0]):
            start = channel * frame.shape[1] * frame.shape[2]
            self._launch("not_finite", NotFinite(plane(frame[channel]), found, start), frame[channel], stream)

    def _launch(self, name: str, argument: Structure, over: DeviceArray, stream: int) -> None:
        self._driver.launch(self._functions[name], _grid(*over.shape), BLOCK, bytes(argument), stream)


def ptx() -> bytes:
    """Return the kernels as PTX."""
    return files("unetrt.runtime.segment").joinpath("kernels.ptx").read_bytes()


def _core(tile: Tile, labels: DeviceArray) -> DeviceArray:
    rows, columns = tile.rows.core, tile.columns.core
    begin = labels.address + rows.start * labels.strides[0] + columns.start * labels.strides[1]
    return replace(labels, address=begin, shape=(rows.stop - rows.start, columns.stop - columns.start))


def _grid(height: int, width: int) -> Extent:
    return -(-width // BLOCK[0]), min(-(-height // BLOCK[1]), MAX_BLOCKS_Y), 1


def bins_shape(frame: DeviceArray) -> tuple[int, int, int]:
    """Return the shape of the bins (C, copies, grey values) for a frame (C, H, W), uint8 or uint16."""
    return frame.shape[0], COPIES[frame.dtype], 256**frame.dtype.itemsize


def require_none(found: NDArray[Any], frame: DeviceArray) -> None:
    """Raise FrameError, as `frames.require_finite` does, where the FOUND of a frame (C, H, W) counts any pixels."""
    if found["count"]:
        height, width = frame.shape[1:]
        row, column = divmod(int(found["first"]) % (height * width), width)
        # The kernel does not distinguish a float64 that is too large for float32 from one that is not finite.
        raise unusable(int(found["count"]), row, column, large=frame.dtype.itemsize > 4)


def measure_counts(normalisation: Normalisation, counts: NDArray[np.integer[Any]]) -> Affine:
    """Return the result of `normalisation.measure` for a uint8 or uint16 frame, bit for bit, from its histograms.

    Parameters
    ----------
    normalisation
        Normalisation of any mode; `fixed` does not use the counts.
    counts
        (C, ..., 256) or (C, ..., 65536) integers: histograms as `Kernels.histogram` writes them, summed over the axes
        in between.
    """
    if normalisation.mode == "fixed":
        return normalisation.measure(np.empty((0, 0, 0)))  # which reads no pixels
    totals = counts.reshape(len(counts), -1, counts.shape[-1]).sum(axis=1, dtype=np.int64)
    return Affine.between([_limits(normalisation, total) for total in totals])


def _limits(normalisation: Normalisation, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return the grey value that becomes 0, and its distance to the one that becomes 1."""
    if normalisation.mode == "zscore":
        return _mean_and_deviation(counts)
    upto = np.cumsum(counts)

    def values_at(ranks: list[int]) -> dict[int, float]:
        return dict(zip(ranks, np.searchsorted(upto, ranks, side="right").astype(float).tolist(), strict=True))

    low, high = interpolated((normalisation.low, normalisation.high), int(upto[-1]), values_at)
    return low, high - low


def _mean_and_deviation(counts: NDArray[np.int64]) -> tuple[float, float]:
    # No overflow: fewer than 2^32 pixels of less than 2^16 sum up to less than 2^64.
    values, counted = np.arange(len(counts), dtype=np.uint64), counts.astype(np.uint64)
    return from_sums(int((counted * values).sum()), int((counted * values**2).sum()), int(counts.sum()))


# `enum Dtype` of kernels.cu.
CODES = {
    np.dtype(name): code
    for code, name in enumerate(
        ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16", "float32", "float64")
    )
} | {np.dtype(bool): 0}


class Plane(Structure):
    """One channel of an array: height and width in pixels, strides in bytes."""

    _fields_ = (
        ("address", c_uint64),
        ("height", c_int64),
        ("width", c_int64),
        ("row_stride", c_int64),
        ("column_stride", c_int64),
        ("dtype", c_int64),
    )


class Cut(Structure):
    """Argument of `cut`."""

    _fields_ = (
        ("frame", Plane),
        ("slot", Plane),
        ("top", c_int64),
        ("left", c_int64),
        ("symmetric", c_int64),
        ("offset", c_float),
        ("scale", c_float),
    )


class Histogram(Structure):
    """Argument of `histogram`."""

    _fields_ = (("channel", Plane), ("bins", c_uint64), ("copies", c_int64), ("values", c_int64))


class StitchLabels(Structure):
    """Argument of `stitch_labels`."""

    _fields_ = (
        ("scores", Plane),
        ("class_stride", c_int64),
        ("classes", c_int64),
        ("labels", Plane),
        ("spoilt", c_uint64),
    )


class NotFinite(Structure):
    """Argument of `not_finite`."""

    _fields_ = (("channel", Plane), ("found", c_uint64), ("start", c_uint64))


def plane(array: DeviceArray) -> Plane:
    """Return an array (H, W) as an argument of kernels."""
    return Plane(array.address, *array.shape, *array.strides, CODES[array.dtype])

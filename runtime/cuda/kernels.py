"""Cutting, measuring, checking and stitching in GPU memory: what numpy does on the host, bit for bit.

The structs that the kernels of kernels.cu take, field by field as there.

What is measured and checked of a frame in GPU memory: the host reads some counts, never the frame.
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
from unetrt.runtime.pixels.frames import not_finite
from unetrt.runtime.pixels.normalisation import Affine, Normalisation, from_sums

NAMES = ("cut", "histogram", "stitch_labels", "not_finite")
# A warp along a row, so that its accesses are neighbours; 256 threads fill every GPU since compute capability 7.5.
BLOCK: Extent = (32, 8, 1)
# Blocks along y that a grid can have (CUDA programming guide, technical specifications); threads stride over the rest.
MAX_BLOCKS_Y = 65535


class Kernels:
    """The kernels on one device. All that they touch lies in its memory, and all calls are asynchronous.

    The device must be current wherever one of them is launched. Calls may come from several threads.

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
        """Unload the kernels, once nothing runs them; calling it again does nothing."""
        self._module.close()

    def cut(self, frame: DeviceArray, tile: Tile, affine: Affine | None, slot: DeviceArray, stream: int) -> None:
        """Fill one slot of a lane's input from a frame, mirrored at its borders.

        Parameters
        ----------
        frame
            (C, H, W), of the size that the tile was planned for; for a raw slot of a dtype that the slot holds
            (`frames.require_raw`).
        tile
            Which window.
        affine
            How to normalise it; None where the graph does.
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

        Their shape is `measure.bins_shape(frame)`; what they held is overwritten. Raises FrameError where a channel has
        more pixels than a bin can count.
        """
        channels, copies, values = bins.shape
        if frame[0].nbytes >= frame.dtype.itemsize << 32:
            raise FrameError(
                f"the frame has shape {frame.shape}: on the GPU fewer than 2^32 pixels a channel are counted"
            )
        self._driver.fill(bins.address, 0, bins.nbytes, stream)
        for channel in range(channels):
            argument = Histogram(plane(frame[channel]), bins[channel].address, copies, values)
            self._launch("histogram", argument, frame[channel], stream)

    def stitch_labels(
        self, scores: DeviceArray, tile: Tile, labels: DeviceArray, spoilt: int | None, stream: int
    ) -> None:
        """Write the best class of each pixel of a slot of a lane's output to the tile's place.

        Parameters
        ----------
        scores
            (classes, h', w') float32, of at most 256 classes.
        tile
            Which window.
        labels
            (H, W) uint8, of the whole frame.
        spoilt
            Address of an int32 in device memory, set to 1 where a score of the slot is NaN or infinite and else left
            alone; None where it need not be looked for.
        stream
            Handle of the CUDA stream.
        """
        core = _core(tile, labels)
        first, target = plane(scores[0]), plane(core)
        argument = StitchLabels(first, scores.strides[0], scores.shape[0], target, spoilt or 0)
        self._launch("stitch_labels", argument, core if spoilt is None else scores[0], stream)

    def not_finite(self, frame: DeviceArray, found: int, stream: int) -> None:
        """Count the pixels of a float frame (C, H, W) that are NaN or infinite, in float32.

        The result is a `measure.FOUND` at address `found`, of 8-byte alignment.
        """
        count, first = found, found + 8
        self._driver.fill(count, 0, 8, stream)
        self._driver.fill(first, 0xFF, 8, stream)  # above every index
        for channel in range(frame.shape[0]):
            start = channel * frame.shape[1] * frame.shape[2]
            self._launch("not_finite", NotFinite(plane(frame[channel]), found, start), frame[channel], stream)

    def _launch(self, name: str, argument: Structure, over: DeviceArray, stream: int) -> None:
        self._driver.launch(self._functions[name], _grid(*over.shape), BLOCK, bytes(argument), stream)


def ptx() -> bytes:
    """Return the kernels as PTX text."""
    return files("unetrt.runtime.cuda").joinpath("kernels.ptx").read_bytes()


def _core(tile: Tile, labels: DeviceArray) -> DeviceArray:
    rows, columns = tile.rows.core, tile.columns.core
    begin = labels.address + rows.start * labels.strides[0] + columns.start * labels.strides[1]
    return replace(labels, address=begin, shape=(rows.stop - rows.start, columns.stop - columns.start))


def _grid(height: int, width: int) -> Extent:
    return -(-width // BLOCK[0]), min(-(-height // BLOCK[1]), MAX_BLOCKS_Y), 1


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
    """Return an array (H, W) as kernels take it."""
    return Plane(array.address, *array.shape, *array.strides, CODES[array.dtype])


# How often bins are kept, by dtype: blocks that count the same grey value wait for each other. 32 KiB, and 1 MiB.
COPIES = {np.dtype(np.uint8): 32, np.dtype(np.uint16): 4}
# What `Kernels.not_finite` leaves: how many pixels, and the index of the first in C order.
FOUND = np.dtype([("count", np.uint64), ("first", np.uint64)])


def bins_shape(frame: DeviceArray) -> tuple[int, int, int]:
    """Return the shape of the bins (C, copies, grey values) for a frame (C, H, W), uint8 or uint16."""
    return frame.shape[0], COPIES[frame.dtype], 256**frame.dtype.itemsize


def require_none(found: NDArray[Any], frame: DeviceArray) -> None:
    """Raise FrameError, as `frames.require_finite` does, for the FOUND that a frame (C, H, W) has left."""
    if found["count"]:
        height, width = frame.shape[1:]
        row, column = divmod(int(found["first"]) % (height * width), width)
        raise not_finite(int(found["count"]), row, column)


def measure_counts(normalisation: Normalisation, counts: NDArray[np.integer[Any]]) -> Affine:
    """Return, bit for bit, what `normalisation.measure` gives for a uint8 or uint16 frame.

    Parameters
    ----------
    normalisation
        Of whatever mode; `fixed` needs no counts.
    counts
        (C, ..., 256) or (C, ..., 65536), integers: how often each grey value occurs, to be summed over the axes
        between, as `Kernels.histogram` leaves them.
    """
    if normalisation.mode == "fixed":
        return normalisation.measure(np.empty((0, 0, 0)))  # which reads no pixels
    totals = counts.reshape(len(counts), -1, counts.shape[-1]).sum(axis=1, dtype=np.int64)
    return Affine.between([_limits(normalisation, total) for total in totals])


def _limits(normalisation: Normalisation, counts: NDArray[np.int64]) -> tuple[float, float]:
    """Return what becomes 0, and how much above it becomes 1."""
    if normalisation.mode == "zscore":
        return _mean_and_deviation(counts)
    low, high = (_percentile(counts, rank) for rank in (normalisation.low, normalisation.high))
    return low, high - low


def _percentile(counts: NDArray[np.int64], rank: float) -> float:
    upto = np.cumsum(counts)
    last = int(upto[-1]) - 1
    position = rank / 100 * last
    below = int(position)
    lower, upper = (float(np.searchsorted(upto, at, side="right")) for at in (below, min(below + 1, last)))
    return lower + (upper - lower) * (position - below)


def _mean_and_deviation(counts: NDArray[np.int64]) -> tuple[float, float]:
    # Less than 2^64: there are fewer than 2^32 pixels, of less than 2^16.
    values, counted = np.arange(len(counts), dtype=np.uint64), counts.astype(np.uint64)
    return from_sums(int((counted * values).sum()), int((counted * values**2).sum()), int(counts.sum()))

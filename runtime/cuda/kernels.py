"""Cutting, measuring, checking and stitching in GPU memory: what numpy does on the host, bit for bit."""

from ctypes import Structure
from dataclasses import replace
from importlib.resources import files

from unetrt.runtime.cuda.contract import Extent
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.device_array import DeviceArray
from unetrt.runtime.cuda.kernel_arguments import Cut, Histogram, NotFinite, StitchLabels, plane
from unetrt.runtime.cuda.resources import Owned
from unetrt.runtime.errors import FrameError
from unetrt.runtime.normalisation import Affine
from unetrt.runtime.plan import Tile

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

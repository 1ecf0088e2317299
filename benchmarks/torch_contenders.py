"""torch as a contender: the usual loop, unetrt's tiles in torch, and MONAI's sliding window.

The usual loop is the reference of all speed-ups. unetrt's tiles, eager or compiled, separate the speed of the engine
from that of the tile plan. MONAI's window runs the padded twin of the network: the same weights, and convolutions that
keep the size by padding with zeros, as MONAI's networks have. A window's scores reach up to its border, where they are
wrong; overlap and averaging hide that.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unetrt.benchmarks.contenders import USUAL_TILE, About, BenchJob, Contender, Ready, planned
from unetrt.benchmarks.decoding import usual_decoding, with_objects
from unetrt.benchmarks.limits import timed
from unetrt.runtime.errors import ParityError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import as_frame
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.checkpoint import load
from unetrt.trainer.learner import compile_privately
from unetrt.trainer.unet import UNet

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Side of MONAI's window in pixels, on the pooling lattice at any depth up to 6; one window a pass. On 2 cores that took
# 12 to 13 s for 2048 x 2048, base 16; 2 or 4 windows a pass 18 to 19 s, windows of 256 px 12 to 14 s.
WINDOW, OVERLAP = 512, 0.5
# The twin pools on another lattice: its window begins this many pixels before the network's tile.
SHIFT = 2
# Largest difference between the scores of the twin and of the network, in units of their standard deviation.
CLOSE = 1e-2


def usual_loop(job: BenchJob, contender: Contender) -> Ready:
    """Load the usual loop with the contender's options of torch."""
    checkpoint, frame = load(job.checkpoint), job.read_frame()
    net = checkpoint.network().to(job.torch_device)
    if contender.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = DTYPES[contender.precision_on(job.device)] if contender.autocast else None
    loop, shape = UsualLoop(net, checkpoint.normalisation, dtype), checkpoint.shape
    core = USUAL_TILE - 2 * shape.geometry.halo
    tiles = -(-frame.shape[-2] // core) * -(-frame.shape[-1] // core)
    flops = 2 * tiles * shape.macs(USUAL_TILE, USUAL_TILE)
    # All tiles but the first lie off the pooling lattice of one pass over the whole frame.
    about = About((USUAL_TILE, USUAL_TILE), tiles, flops, (core, core), "the labels of its first tile")
    return Ready(about, with_objects(job, lambda: loop(frame), usual_decoding()))


class UsualLoop:
    """The loop that most labs write: the paper's 572-tiles with a stride of their core's width.

    The stride is 388 px at depth 4, no multiple of the pooling lattice's 16, so that the labels depend on where the
    tiles lie. It is as efficient as such a loop can be: one padded copy, no gradients, one pass a tile.

    Parameters
    ----------
    net
        The network, on the CPU or a GPU.
    normalisation
        That of training.
    autocast
        Data type of torch's autocast; None leaves it off.
    """

    def __init__(self, net: UNet, normalisation: Normalisation, autocast: torch.dtype | None = None) -> None:
        self._net, self._normalisation, self._dtype = net.eval(), normalisation, autocast
        self._halo = net.shape.geometry.halo
        self._device = next(net.parameters()).device

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel of a raw frame (H, W) or (C, H, W), as (H, W) uint8."""
        frame = as_frame(image, self._net.shape.channels)
        height, width = frame.shape[-2:]
        core = USUAL_TILE - 2 * self._halo
        rows, columns = -(-height // core), -(-width // core)
        border = [(self._halo, self._halo + count * core - side) for count, side in ((rows, height), (columns, width))]
        padded = np.pad(self._normalisation(frame), [(0, 0), *border], mode="reflect")
        labels = np.empty((rows * core, columns * core), np.uint8)
        with torch.autocast(self._device.type, self._dtype) if self._dtype else nullcontext():
            for top in range(0, rows * core, core):
                for left in range(0, columns * core, core):
                    cut = padded[None, :, top : top + USUAL_TILE, left : left + USUAL_TILE]
                    best = self._net(torch.from_numpy(cut).to(self._device))[0].argmax(dim=0)
                    labels[top : top + core, left : left + core] = best.cpu().numpy()
        return labels[:height, :width]


def planned_tiles(job: BenchJob, contender: Contender) -> Ready:
    """Load the network, and the tiles of the exported file."""
    checkpoint, frame, precision = load(job.checkpoint), job.read_frame(), contender.precision_on(job.device)
    spec, net = read_spec(job.model(precision)), checkpoint.network().to(job.torch_device)
    how = {"channels_last": contender.channels_last, "compiled": contender.compiled}
    tiles = PlannedTiles(net, spec, DTYPES[precision], **how)
    ways = with_objects(job, lambda: tiles(frame), usual_decoding())
    return Ready(planned(checkpoint.shape, spec, (frame.shape[-2], frame.shape[-1])), ways)


class PlannedTiles:
    """Segments frames with a torch network and the tiles of a model file.

    The fastest way without CUDA streams: pinned staging, one input shape, normalisation on the host, argmax on the
    device.

    Parameters
    ----------
    net
        The network, on its device; converted in place.
    spec
        Normalisation, tile and border.
    dtype
        Data type of the network's arithmetic.
    channels_last
        Whether to use torch's channels_last memory format.
    compiled
        Whether to use torch.compile; otherwise the network runs eagerly.
    """

    def __init__(
        self, net: UNet, spec: ModelSpec, dtype: torch.dtype, *, channels_last: bool = True, compiled: bool = True
    ) -> None:
        self._device, self._spec, self._dtype = next(net.parameters()).device, spec, dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        net = net.eval().to(dtype).to(memory_format=self._format)  # type: ignore[call-overload]
        self._net: Callable[[Tensor], Tensor] = (
            compile_privately(_labels_of(net), dynamic=False) if compiled else _labels_of(net)
        )
        staged = torch.empty(1, spec.channels, *spec.tile)
        self._staged = staged.pin_memory() if self._device.type == "cuda" else staged

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel of a raw frame (H, W) or (C, H, W), as (H, W) uint8."""
        spec, frame = self._spec, as_frame(image, self._spec.channels)
        height, width = frame.shape[-2:]
        labels = np.empty((height, width), np.uint8)
        affine = spec.normalisation.measure(frame)
        for tile in spec.plan((height, width)):
            cut = self._staged.numpy()
            tile.cut(frame, cut[0])
            affine.apply(cut[0])
            tile.stitch(self._net(self._uploaded())[0].cpu().numpy(), labels)
        return labels

    @torch.inference_mode()
    def alone(self) -> float:
        """Return the seconds of one pass, with its input on the device already."""
        uploaded = self._uploaded()
        return timed(lambda: self._net(uploaded), self._device)

    def _uploaded(self) -> Tensor:
        there = self._staged.to(self._device, non_blocking=True)
        return there.to(self._dtype).contiguous(memory_format=self._format)


def _labels_of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function from (1, C, h, w) to the class of each pixel, (1, h', w') uint8."""

    def labels(tile: Tensor) -> Tensor:
        best: Tensor = net(tile).argmax(dim=1)
        return best.to(torch.uint8)

    return labels


def sliding_window(job: BenchJob, _: Contender) -> Ready:
    """Load MONAI's sliding window around the twin, which is compared with the network where borders do not reach."""
    from monai.inferers.utils import sliding_window_inference

    checkpoint, frame = load(job.checkpoint), job.read_frame()
    planes = as_frame(frame, checkpoint.shape.channels)
    twin = padded(checkpoint.network().to(job.torch_device))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        require_twin(checkpoint.network().to(job.torch_device), twin)

    @torch.inference_mode()
    def segment() -> NDArray[np.uint8]:
        normalised = torch.from_numpy(checkpoint.normalisation(planes)[None]).to(job.torch_device)
        scores = sliding_window_inference(normalised, (WINDOW, WINDOW), 1, twin, overlap=OVERLAP)
        assert isinstance(scores, torch.Tensor)
        return scores[0].argmax(dim=0).to(torch.uint8).cpu().numpy()

    ways = with_objects(job, segment, usual_decoding())
    return Ready(window_about(checkpoint.shape, (planes.shape[-2], planes.shape[-1])), ways)


def window_about(shape: UNetShape, frame: tuple[int, int]) -> About:
    """Return the description of MONAI's windows for a frame (H, W)."""
    stride = int(WINDOW * (1 - OVERLAP))
    rows, columns = (1 + max(0, -(-(side - WINDOW) // stride)) for side in frame)
    flops = round(2 * rows * columns * shape.macs_per_pixel() * WINDOW**2)
    checked = "the padded twin against the network, where borders do not reach"
    return About((WINDOW, WINDOW), rows * columns, flops, None, checked)


def padded(net: UNet) -> UNet:
    """Return the network with zero padding in its 3x3 convolutions; changed in place."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.padding = (1, 1)
    return net.eval()


@torch.inference_mode()
def require_twin(net: UNet, twin: UNet) -> None:
    """Raise ParityError unless both give the same scores for random pixels where the twin's borders do not reach."""
    geometry = net.shape.geometry
    side = next(side for side in range(WINDOW - SHIFT, 0, -1) if geometry.is_legal(side))
    device = next(net.parameters()).device
    window = torch.rand(1, net.shape.channels, WINDOW, WINDOW, generator=torch.Generator().manual_seed(0)).to(device)
    expected = net.eval()(window[..., SHIFT : SHIFT + side, SHIFT : SHIFT + side])
    first, last = SHIFT + geometry.halo, SHIFT + side - geometry.halo
    off = (twin(window)[..., first:last, first:last] - expected).abs().max()
    if off > CLOSE * expected.std():
        raise ParityError(f"the padded twin's scores differ from the network's by up to {off:.2g}")

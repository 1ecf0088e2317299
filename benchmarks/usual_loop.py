"""The loop that most labs write: eager torch, the paper's 572-tiles, laid as far apart as their core is wide.

That is 388 px at depth 4: no multiple of the pooling lattice's 16, so that the result depends on where the tiles lie.
It is what unetrt is measured against, and is written as carefully as it can be: one padded copy, no gradients, one pass
a tile.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import USUAL_TILE, Contender
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.ready import About, Ready
from unetrt.benchmarks.result import SEGMENT
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.checkpoint import load
from unetrt.trainer.unet import UNet


def ready(job: Job, contender: Contender) -> Ready:
    """Load the loop in the contender's way."""
    checkpoint, frame = load(job.checkpoint), job.read_frame()
    net = checkpoint.network().to(job.torch_device)
    if contender.channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(contender.precision_on(job.device))
    loop = UsualLoop(net, checkpoint.normalisation, dtype if contender.autocast else None)
    return Ready(_about(checkpoint.shape, (frame.shape[-2], frame.shape[-1])), {SEGMENT: lambda: loop(frame)})


def _about(shape: UNetShape, frame: tuple[int, int]) -> About:
    core = USUAL_TILE - 2 * shape.geometry.halo
    tiles = -(-frame[0] // core) * -(-frame[1] // core)
    flops = 2 * tiles * shape.macs(USUAL_TILE, USUAL_TILE)
    # The others lie on other lattices than one pass over the whole frame does.
    return About((USUAL_TILE, USUAL_TILE), tiles, flops, (core, core), "the labels of its first tile")


class UsualLoop:
    """Segments frames (H, W) or (C, H, W) with eager torch.

    Parameters
    ----------
    net
        The network, on the CPU or a GPU.
    normalisation
        As in training.
    autocast
        What torch's autocast computes in; None leaves it off.
    """

    def __init__(self, net: UNet, normalisation: Normalisation, autocast: torch.dtype | None = None) -> None:
        self._net, self._normalisation, self._dtype = net.eval(), normalisation, autocast
        self._halo = net.shape.geometry.halo
        self._device = next(net.parameters()).device

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel, (H, W) uint8."""
        frame = image if image.ndim == 3 else image[None]
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

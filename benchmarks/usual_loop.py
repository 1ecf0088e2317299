"""The loop that most labs write: eager torch and the paper's 572-tiles with a stride of their core's width.

The stride is 388 px at depth 4, no multiple of the pooling lattice's 16, so that the labels depend on where the tiles
lie. It is the reference of all speed-ups and as efficient as such a loop can be: one padded copy, no gradients, one
pass a tile.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import USUAL_TILE, About, BenchJob, Contender, Ready
from unetrt.benchmarks.result import SEGMENT
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.normalisation import Normalisation
from unetrt.trainer.checkpoint import load
from unetrt.trainer.unet import UNet


def ready(job: BenchJob, contender: Contender) -> Ready:
    """Load the loop with the contender's options of torch."""
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
    # All tiles but the first lie off the pooling lattice of one pass over the whole frame.
    return About((USUAL_TILE, USUAL_TILE), tiles, flops, (core, core), "the labels of its first tile")


class UsualLoop:
    """Segments frames (H, W) or (C, H, W) with eager torch.

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

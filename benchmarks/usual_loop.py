"""The loop that most labs write: eager torch, the paper's 572-tiles, laid as far apart as their core is wide.

That is 388 px at depth 4: no multiple of the pooling lattice's 16, so that the result depends on where the tiles lie.
It is what unetrt is measured against, and is written as carefully as it can be: one padded copy, no gradients, one pass
a tile.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.benchmarks.job import USUAL, Job
from unetrt.runtime.normalisation import Normalisation
from unetrt.trainer.checkpoint import load
from unetrt.trainer.unet import UNet

TILE = 572


def contenders(job: Job) -> dict[str, Callable[[], object]]:
    """Return the usual loop, ready to run on the job's frame."""
    checkpoint, frame = load(job.checkpoint), job.read_frame()
    loop = UsualLoop(checkpoint.network(), checkpoint.normalisation)
    return {USUAL: lambda: loop(frame)}


class UsualLoop:
    """Segments frames (H, W) or (C, H, W) with eager torch.

    Parameters
    ----------
    net
        The network, on the CPU or a GPU.
    normalisation
        As in training.
    """

    def __init__(self, net: UNet, normalisation: Normalisation) -> None:
        self._net, self._normalisation = net.eval(), normalisation
        self._halo = net.shape.geometry.halo
        self._device = next(net.parameters()).device

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel, (H, W) uint8."""
        frame = image if image.ndim == 3 else image[None]
        height, width = frame.shape[-2:]
        core = TILE - 2 * self._halo
        rows, columns = -(-height // core), -(-width // core)
        border = [(self._halo, self._halo + count * core - side) for count, side in ((rows, height), (columns, width))]
        padded = np.pad(self._normalisation(frame), [(0, 0), *border], mode="reflect")
        labels = np.empty((rows * core, columns * core), np.uint8)
        for top in range(0, rows * core, core):
            for left in range(0, columns * core, core):
                tile = torch.from_numpy(padded[None, :, top : top + TILE, left : left + TILE]).to(self._device)
                best = self._net(tile)[0].argmax(dim=0)
                labels[top : top + core, left : left + core] = best.cpu().numpy()
        return labels[:height, :width]

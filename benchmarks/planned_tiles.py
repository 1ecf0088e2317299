"""torch with unetrt's own tiles, eager or compiled: what is left of unetrt's lead where the tiles are the same."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unetrt.benchmarks.contenders import BenchJob, Contender, Ready, planned
from unetrt.benchmarks.limits import timed
from unetrt.benchmarks.result import SEGMENT
from unetrt.runtime.model_files.onnx_file import read_spec
from unetrt.runtime.plan import TilePlan
from unetrt.runtime.spec import ModelSpec
from unetrt.trainer.checkpoint import load
from unetrt.trainer.unet import UNet


def ready(job: BenchJob, contender: Contender) -> Ready:
    """Load the network and the tiles of the exported file."""
    checkpoint, frame, precision = load(job.checkpoint), job.read_frame(), contender.precision_on(job.device)
    spec = read_spec(job.model(precision))
    tiles = PlannedTiles(
        checkpoint.network().to(job.torch_device),
        spec,
        torch.float16 if precision == "fp16" else torch.float32,
        channels_last=contender.channels_last,
        compiled=contender.compiled,
    )
    return Ready(planned(checkpoint.shape, spec, (frame.shape[-2], frame.shape[-1])), {SEGMENT: lambda: tiles(frame)})


class PlannedTiles:
    """Frames to labels through a torch network by the same tiles as unetrt's.

    As well as it can be done without streams of one's own: pinned staging, one shape, normalised on the host, argmax on
    the device.

    Parameters
    ----------
    net
        On its device; converted in place.
    spec
        Says how frames are normalised and cut.
    dtype
        What the network computes in.
    channels_last
        Whether its arrays lie in torch's channels_last.
    compiled
        Whether torch.compile is to be used; without, the same runs eagerly.
    """

    def __init__(
        self, net: UNet, spec: ModelSpec, dtype: torch.dtype, *, channels_last: bool = True, compiled: bool = True
    ) -> None:
        self._device, self._spec, self._dtype = next(net.parameters()).device, spec, dtype
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        net = net.eval().to(dtype).to(memory_format=self._format)  # type: ignore[call-overload]
        self._net: Callable[[Tensor], Tensor] = (
            torch.compile(labels_of(net), dynamic=False) if compiled else labels_of(net)
        )
        staged = torch.empty(1, spec.channels, *spec.tile)
        self._staged = staged.pin_memory() if self._device.type == "cuda" else staged

    @torch.inference_mode()
    def __call__(self, image: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel of a raw frame (H, W) or (C, H, W), uint8."""
        spec, frame = self._spec, image if image.ndim == 3 else image[None]
        height, width = frame.shape[-2:]
        labels = np.empty((height, width), np.uint8)
        affine = spec.normalisation.measure(frame)
        for tile in TilePlan((height, width), spec.tile, spec.geometry, spec.border):
            cut = self._staged.numpy()
            tile.cut(frame, cut[0])
            affine.apply(cut[0])
            tile.stitch(self._net(self._uploaded())[0].cpu().numpy(), labels)
        return labels

    @torch.inference_mode()
    def alone(self) -> float:
        """Return the seconds of one pass whose input lies on the device."""
        uploaded = self._uploaded()
        return timed(lambda: self._net(uploaded), self._device)

    def _uploaded(self) -> Tensor:
        there = self._staged.to(self._device, non_blocking=True)
        return there.to(self._dtype).contiguous(memory_format=self._format)


def labels_of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function from (1, C, h, w) to the class of each pixel, (1, h', w') uint8."""

    def labels(tile: Tensor) -> Tensor:
        best: Tensor = net(tile).argmax(dim=1)
        return best.to(torch.uint8)

    return labels

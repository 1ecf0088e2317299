"""torch on a device as a contender: eager in FP32, compiled in FP16, and a plain matrix product as the yardstick."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unetrt.runtime.plan import TilePlan
from unetrt.runtime.spec import ModelSpec
from unetrt.trainer.unet import UNet

# Side of the square matrices: large enough that a GPU computes at its full rate.
SIDE = 8192
# Products that are timed together.
PRODUCTS = 10


class Matmul:
    """A dense product of random FP16 matrices, as fast as torch's library does it.

    Parameters
    ----------
    device
        Where.
    side
        Rows and columns.
    """

    def __init__(self, device: torch.device, side: int = SIDE) -> None:
        generator = torch.Generator(device).manual_seed(0)
        self._a, self._b = (
            torch.randn(side, side, generator=generator, device=device, dtype=torch.float16) for _ in range(2)
        )
        self.flops = 2 * side**3

    def __call__(self) -> float:
        """Return the seconds of one product."""

        def products() -> None:
            for _ in range(PRODUCTS):
                self._a @ self._b

        return timed(products, self._a.device) / PRODUCTS


class CompiledTiles:
    """Frames to labels through a torch network in FP16 and channels_last, by the same tiles as unetrt's.

    As well as it can be done without streams of one's own: pinned staging, one shape, normalised on the host, argmax
    on the device.

    Parameters
    ----------
    net
        On its device; converted in place.
    spec
        Says how frames are normalised and cut; one channel.
    compiled
        Whether torch.compile is to be used; without, the same runs eagerly.
    """

    def __init__(self, net: UNet, spec: ModelSpec, compiled: bool = True) -> None:
        self._device, self._spec = next(net.parameters()).device, spec
        net = net.eval().half().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._net: Callable[[Tensor], Tensor] = (
            torch.compile(labels_of(net), dynamic=False) if compiled else labels_of(net)
        )
        staged = torch.empty(1, spec.channels, *spec.tile)
        self._staged = staged.pin_memory() if self._device.type == "cuda" else staged

    @torch.inference_mode()
    def __call__(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the class of each pixel of a raw frame (H, W), uint8."""
        spec = self._spec
        labels = np.empty(frame.shape, np.uint8)
        affine = spec.normalisation.measure(frame[None])
        for tile in TilePlan((frame.shape[0], frame.shape[1]), spec.tile, spec.geometry, spec.border):
            cut = self._staged.numpy()
            tile.cut(frame[None], cut[0])
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
        return there.half().contiguous(memory_format=torch.channels_last)


def labels_of(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a function from (1, C, h, w) to the class of each pixel, (1, h', w') uint8."""

    def labels(tile: Tensor) -> Tensor:
        best: Tensor = net(tile).argmax(dim=1)
        return best.to(torch.uint8)

    return labels


def per_frame(segment: Callable[[NDArray[Any]], object], frames: NDArray[Any], device: torch.device) -> float:
    """Return the seconds that a contender takes for one of the frames (N, H, W)."""

    def all_of_them() -> None:
        for frame in frames:
            segment(frame)

    return timed(all_of_them, device) / len(frames)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a run, with the device idle before and after."""
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin


def synchronise(device: torch.device) -> None:
    """Wait until a device has nothing left to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

"""torch on a device: frames one after another, and a plain matrix product as the yardstick."""

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray

from unetrt.benchmarks.synchronised import timed

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


def per_frame(segment: Callable[[NDArray[Any]], object], frames: NDArray[Any], device: torch.device) -> float:
    """Return the seconds that a contender takes for one of the frames (N, H, W)."""

    def all_of_them() -> None:
        for frame in frames:
            segment(frame)

    return timed(all_of_them, device) / len(frames)

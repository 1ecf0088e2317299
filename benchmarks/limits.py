"""Peak rates of the machine: dense matrix products and copies, by the fastest library at hand.

They are the yardstick beside every contender's time. `timed` brackets work with synchronisation, so that asynchronous
launches count in full.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from unetrt.benchmarks.contenders import Device
from unetrt.runtime.model.spec import Precision

# Sides of the square matrices: the fastest size differs between libraries.

# Sides of the square matrices: libraries reach their peak at different ones.
SIDES: dict[Device, tuple[int, ...]] = {"cpu": (1024, 2048, 4096), "gpu": (4096, 8192)}
# Bytes copied at once: more than any cache holds.
COPIED = 1 << 28
# Seconds that each way runs for; the median counts, as for contenders.
# Seconds for which each product or copy is repeated; the median counts, as it does for contenders.
LONG = 0.5
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLOPS, BYTES = "FLOP/s", "B/s"
COPY = "copying memory"


def synchronise(device: torch.device) -> None:
    """Wait until a device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of a run, with the device idle before and after."""
    synchronise(device)
    begin = time.perf_counter()
    run()
    synchronise(device)
    return time.perf_counter() - begin


def product_of(precision: Precision) -> str:
    """Return the name of the limit of arithmetic in a precision."""
    return f"matrix product {precision}"


@dataclass(frozen=True)
class Limits:
    """Measures peak rates.

    Attributes
    ----------
    device
        Device to measure.
    sides
        Sides of the square matrices.
    precisions
        Data types of the products.
    """

    device: Device
    sides: tuple[int, ...]
    precisions: tuple[Precision, ...]

    def rates(self) -> dict[str, float]:
        """Return the rates by name, in FLOP/s, and for `COPY` in B/s with bytes read and written counted."""
        measured = {product_of(precision): self.product_rate(precision) for precision in self.precisions}
        return {**measured, COPY: self.copy_rate()}

    @torch.inference_mode()
    def product_rate(self, precision: Precision) -> float:
        """Return the rate of a dense product with the best library, size and layout."""
        # torch's defaults use TF32 in convolutions but not in products; here both use it or neither does.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        runs = ((2 * side**3, run) for side in self.sides for run in self._products(side, DTYPES[precision]))
        return max(flops / _seconds(run, self._place) for flops, run in runs)

    def copy_rate(self) -> float:
        """Return the rate at which the device's memory is copied."""
        source = torch.zeros(COPIED, dtype=torch.uint8, device=self._place)
        target = torch.empty_like(source)
        return 2 * COPIED / _seconds(lambda: target.copy_(source), self._place)

    @property
    def _place(self) -> torch.device:
        return torch.device("cuda" if self.device == "gpu" else "cpu")

    def _products(self, side: int, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
        """Yield products of two matrices: torch's, with the second one transposed too, and numpy's."""
        a, b = (_random(side, dtype, self._place, seed) for seed in (0, 1))
        yield lambda: a @ b
        yield lambda: a @ b.T
        if dtype == torch.float32 and self.device == "cpu":
            yield lambda: a.numpy() @ b.numpy()


class Matmul:
    """A dense product of random FP16 matrices by torch.

    Parameters
    ----------
    device
        Where.
    side
        Rows and columns.
    """

    # Products that are timed together.
    TOGETHER = 10

    def __init__(self, device: torch.device, side: int) -> None:
        self._a, self._b = (_random(side, torch.float16, device, seed) for seed in (0, 1))
        self.flops = 2 * side**3

    def __call__(self) -> float:
        """Return the seconds of one product."""

        def products() -> None:
            for _ in range(self.TOGETHER):
                self._a @ self._b

        return timed(products, self._a.device) / self.TOGETHER


def _random(side: int, dtype: torch.dtype, device: torch.device, seed: int) -> torch.Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(side, side, generator=generator, device=device).to(dtype)


def _seconds(run: Callable[[], object], place: torch.device) -> float:
    """Return the median seconds of a run, after an uncounted one."""
    run()
    seconds, end = [timed(run, place)], time.perf_counter() + LONG
    while time.perf_counter() < end:
        seconds.append(timed(run, place))
    return median(seconds)

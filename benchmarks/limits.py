"""Limits of the machine: rates of dense matrix products and memory copies with the fastest library at hand."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from unetrt.benchmarks.contenders import Device
from unetrt.benchmarks.synchronised import timed
from unetrt.runtime.model.spec import Precision

# Sides of the square matrices: the fastest size differs between libraries.
SIDES: dict[Device, tuple[int, ...]] = {"cpu": (1024, 2048, 4096), "gpu": (4096, 8192)}
# Bytes copied at once: more than any cache holds.
COPIED = 1 << 28
# Seconds that each way runs for; the median counts, as for contenders.
LONG = 0.5
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLOPS, BYTES = "FLOP/s", "B/s"
COPY = "copying memory"


def product_of(precision: Precision) -> str:
    """Return the name of the limit of arithmetic in a precision."""
    return f"matrix product {precision}"


@dataclass(frozen=True)
class Limits:
    """Measures rates.

    Attributes
    ----------
    device
        Device to measure.
    sides
        Sides of the square matrices.
    precisions
        Precisions of the products.
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
        """Return the highest rate of a dense product, in FLOP/s, over libraries, sizes and layouts."""
        # In TF32 if convolutions are: by default torch allows TF32 for convolutions, but not for products.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        ways = ((2 * side**3, way) for side in self.sides for way in self._products(side, DTYPES[precision]))
        return max(flops / _seconds(way, self._place) for flops, way in ways)

    def copy_rate(self) -> float:
        """Return the rate of copies within the device's memory, in B/s."""
        source = torch.zeros(COPIED, dtype=torch.uint8, device=self._place)
        target = torch.empty_like(source)
        return 2 * COPIED / _seconds(lambda: target.copy_(source), self._place)

    @property
    def _place(self) -> torch.device:
        return torch.device("cuda" if self.device == "gpu" else "cpu")

    def _products(self, side: int, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
        """Yield ways to multiply two matrices: torch, also with the second one transposed, and numpy."""
        generator = torch.Generator(self._place).manual_seed(0)
        a, b = (torch.randn(side, side, generator=generator, device=self._place).to(dtype) for _ in range(2))
        yield lambda: a @ b
        yield lambda: a @ b.T
        if dtype == torch.float32 and self.device == "cpu":
            yield lambda: a.numpy() @ b.numpy()


def _seconds(run: Callable[[], object], place: torch.device) -> float:
    """Return the median seconds of a run, after a warm-up run."""
    run()
    took, end = [timed(run, place)], time.perf_counter() + LONG
    while time.perf_counter() < end:
        took.append(timed(run, place))
    return median(took)

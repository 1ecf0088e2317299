"""What the machine can do at most: dense matrix products and copies, by the libraries that do them fastest here."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import torch

from unetrt.benchmarks.contenders import Device
from unetrt.benchmarks.synchronised import timed
from unetrt.runtime.model.spec import Precision

# Sides of the square matrices: which of them a library likes best differs.
SIDES: dict[Device, tuple[int, ...]] = {"cpu": (1024, 2048, 4096), "gpu": (4096, 8192)}
# Bytes that are copied at once: more than any cache holds.
COPIED = 1 << 28
# Each way runs for so many seconds; the median counts, as it does of contenders.
LONG = 0.5
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLOPS, BYTES = "FLOP/s", "B/s"
COPY = "copying memory"


def product_of(precision: Precision) -> str:
    """Return the name of the limit that arithmetic in a precision is held against."""
    return f"matrix product {precision}"


@dataclass(frozen=True)
class Limits:
    """Measures rates.

    Attributes
    ----------
    device
        Where.
    sides
        Of the square matrices.
    precisions
        Of the products.
    """

    device: Device
    sides: tuple[int, ...]
    precisions: tuple[Precision, ...]

    def rates(self) -> dict[str, float]:
        """Return the rates by name, in FLOP/s and for `COPY` in B/s, read and written bytes counted."""
        measured = {product_of(precision): self.product_rate(precision) for precision in self.precisions}
        return {**measured, COPY: self.copy_rate()}

    @torch.inference_mode()
    def product_rate(self, precision: Precision) -> float:
        """Return the rate of a dense product, of the best library, size and layout."""
        # In TF32 where convolutions are, which torch allows them, and not products, unless told otherwise.
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32
        ways = ((2 * side**3, way) for side in self.sides for way in self._products(side, DTYPES[precision]))
        return max(flops / _seconds(way, self._place) for flops, way in ways)

    def copy_rate(self) -> float:
        """Return the rate at which memory of the device is copied."""
        source = torch.zeros(COPIED, dtype=torch.uint8, device=self._place)
        target = torch.empty_like(source)
        return 2 * COPIED / _seconds(lambda: target.copy_(source), self._place)

    @property
    def _place(self) -> torch.device:
        return torch.device("cuda" if self.device == "gpu" else "cpu")

    def _products(self, side: int, dtype: torch.dtype) -> Iterator[Callable[[], object]]:
        """Yield ways to multiply two matrices: torch's, with the second one transposed too, and numpy's."""
        generator = torch.Generator(self._place).manual_seed(0)
        a, b = (torch.randn(side, side, generator=generator, device=self._place).to(dtype) for _ in range(2))
        yield lambda: a @ b
        yield lambda: a @ b.T
        if dtype == torch.float32 and self.device == "cpu":
            yield lambda: a.numpy() @ b.numpy()


def _seconds(run: Callable[[], object], place: torch.device) -> float:
    """Return the median seconds of a run, after one that does not count."""
    run()
    took, end = [timed(run, place)], time.perf_counter() + LONG
    while time.perf_counter() < end:
        took.append(timed(run, place))
    return median(took)

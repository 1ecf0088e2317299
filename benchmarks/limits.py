"""What the machine can do at most: dense matrix products and copies, by the libraries that do them fastest here."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from unetrt.benchmarks.contenders import Device
from unetrt.benchmarks.synchronised import timed
from unetrt.runtime.spec import Precision

# Sides of the square matrices, on which each device computes at its full rate.
SIDES: dict[Device, int] = {"cpu": 4096, "gpu": 8192}
# Bytes that are copied at once: more than any cache holds.
COPIED = 1 << 28
# Each rate is the best of so many runs: what disturbs one can only slow it down.
RUNS = 3
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FLOPS, BYTES = "FLOP/s", "B/s"
COPY = "copying memory"


def product(precision: str) -> str:
    """Return the name of the limit that arithmetic in a precision is held against."""
    return f"matrix product {precision}"


@dataclass(frozen=True)
class Limits:
    """Measures rates on a device, a side of `side` for matrices."""

    device: Device
    side: int
    precisions: tuple[Precision, ...]

    def rates(self) -> dict[str, float]:
        """Return the rates by name, in FLOP/s and for `COPY` in B/s, read and written bytes counted."""
        measured = {product(precision): self.product_rate(precision) for precision in self.precisions}
        return {**measured, COPY: self.copy_rate()}

    def product_rate(self, precision: Precision) -> float:
        """Return the rate of a dense product; on a CPU the better one of torch's and numpy's."""
        place = torch.device("cuda" if self.device == "gpu" else "cpu")
        generator = torch.Generator(place).manual_seed(0)
        a, b = (torch.randn(self.side, self.side, generator=generator, device=place) for _ in range(2))
        ways: list[Callable[[], object]] = []
        if place.type == "cpu" and precision == "fp32":
            ways.append(lambda: a.numpy() @ b.numpy())
        x, y = a.to(DTYPES[precision]), b.to(DTYPES[precision])
        ways.append(lambda: x @ y)
        return 2 * self.side**3 / min(_best(way, place) for way in ways)

    def copy_rate(self) -> float:
        """Return the rate at which memory of the device is copied."""
        place = torch.device("cuda" if self.device == "gpu" else "cpu")
        source = torch.zeros(COPIED, dtype=torch.uint8, device=place)
        target = torch.empty_like(source)
        return 2 * COPIED / _best(lambda: target.copy_(source), place)


def _best(run: Callable[[], object], place: torch.device) -> float:
    """Return the seconds of the fastest run, after one that does not count."""
    run()
    return min(timed(run, place) for _ in range(RUNS))

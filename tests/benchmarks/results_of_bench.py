"""A result of `unetrt bench`: two contenders, one of which is the reference."""

from dataclasses import replace

from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.result import SEGMENT, BenchResult, LeftOut, Limit, Measured

SECONDS = Figure.of([2.0, 1.0, 4.0])
USUAL = Measured(
    name="torch", title="the usual loop", device="cpu", precision="fp32", tile=(572, 572), tiles=36, flops=10**12,
    pixels_off=0.05, checked="its first tile", seconds={SEGMENT: SECONDS}, speedup=SECONDS / SECONDS,
    latencies=(1.0, 2.0), phases={"cut": 0.1}, limit="matmul fp32", share=0.5 / SECONDS,
)  # fmt: skip
HALF = Figure.of([1.0, 0.5, 2.0])
OTHER = replace(
    USUAL, name="other", title="another way", seconds={SEGMENT: HALF}, speedup=SECONDS / HALF, share=None,
    pixels_off=0.0,
)  # fmt: skip
RESULT = BenchResult(
    when="2026-01-01T00:00:00+00:00", frame=(2048, 2048), network={"depth": 4}, reference="torch",
    contenders=(USUAL, OTHER), left_out=(LeftOut("monai", "MONAI", "it is not installed"),),
    limits=(Limit("matmul fp32", "FLOP/s", SECONDS),), environment={"processor": "P", "threads": 2},
)  # fmt: skip

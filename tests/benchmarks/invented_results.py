"""Results for tests. Every number is invented: nothing here was measured."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.result import PREDICT, SEGMENT, SESSION, BenchResult, LeftOut, Limit, Measured

ROUNDS, RUNS_A_ROUND = 7, 4
FLOPS, MATMUL = 240 * 10**9, 1e11
HOSTILE = '<b>"x"</b> & </script><script>alert(1)</script> $\\frac$'


def around(median: float, spread: float = 0.02, rounds: int = ROUNDS) -> Figure:
    """Rounds spread evenly and symmetrically about a median, in an order that depends on it."""
    places = np.random.default_rng(int(median * 1e6)).permutation(np.linspace(-1, 1, rounds) if rounds > 1 else [0.0])
    return Figure.of([float(median * (1 + spread * at)) for at in places])


def runs(median: float, count: int) -> tuple[float, ...]:
    """Single runs with a tail of slow ones."""
    return tuple(median * (0.99 + 0.02 * np.random.default_rng(int(median * 1e6)).gamma(1.0, 1.0, count)))


def contender(
    name: str, title: str, median: float, *, off: float = 0.0, ours: bool = False, rounds: int = ROUNDS,
    precision: str = "fp32", reference: float = 6.0, limit_scale: float = 1.0, spread: float = 0.02,
    joules: Figure | None = None, limit: str = "matmul fp32",
) -> Measured:  # fmt: skip
    seconds = {SEGMENT: around(median, spread, rounds)}
    if ours:
        seconds |= {SESSION: around(median * 0.98, spread, rounds), PREDICT: around(median * 1.05, spread, rounds)}
    phases = {"normalise": 0.006, "cut": 0.011, "compute": median * 0.97, "stitch": 0.009} if ours else {}
    return Measured(
        name=name, title=title, device="cpu", precision=precision, tile=(2236, 2236) if ours else (572, 572),
        tiles=1 if ours else 36, flops=FLOPS, pixels_off=off,
        checked="every pixel equals one FP32 pass" if not off else "its first tile equals the network's",
        seconds=seconds, speedup=around(reference, spread, rounds) / seconds[SEGMENT] if name != "usual" else
        seconds[SEGMENT] / seconds[SEGMENT], latencies=runs(median, rounds * RUNS_A_ROUND), phases=phases,
        limit=limit, share=FLOPS / MATMUL * limit_scale / seconds[SEGMENT], host_memory=int(median * 2**29),
        joules=joules,
    )  # fmt: skip


def limits(scale: float = 1.0, rounds: int = ROUNDS) -> tuple[Limit, ...]:
    return (
        Limit("matmul fp32", "FLOP/s", around(MATMUL * scale, 0.02, rounds)),
        Limit("matmul bf16", "FLOP/s", around(2.6 * MATMUL * scale, 0.02, rounds)),
        Limit("copy", "B/s", around(9.1e9 * scale, 0.03, rounds)),
    )


def result(contenders: Sequence[Measured] = (), rounds: int = ROUNDS) -> BenchResult:
    """A run on a CPU; `contenders` in the place of the usual seven."""
    usual = (
        contender("usual", "the usual loop, 572 / 388", 6.0, off=0.0512, rounds=rounds),
        contender("eager", "torch, one tile, channels last", 4.1, rounds=rounds),
        contender("monai", "MONAI sliding window, overlap 0.5", 11.2, off=0.0003, rounds=rounds),
        contender("compiled", "torch.compile", 3.6, rounds=rounds),
        contender("onnxruntime", "ONNX Runtime by hand", 2.9, rounds=rounds),
        contender("unetrt-onnxruntime", "unetrt with ONNX Runtime", 2.55, ours=True, rounds=rounds),
        contender("unetrt-openvino", "unetrt with OpenVINO, bf16", 1.08, ours=True, rounds=rounds, off=0.0011,
                  precision="bf16", limit="matmul bf16", limit_scale=1 / 2.6),
    )  # fmt: skip
    return BenchResult(
        when="2001-01-01T00:00:00+00:00", frame=(2048, 2048),
        network={"depth": 4, "base": 16, "channels": 1, "classes": 2}, reference="usual",
        contenders=tuple(contenders) or usual,
        left_out=(
            LeftOut("tensorrt", "TensorRT FP16", "there is no NVIDIA driver here: nvidia-smi is not on the path"),
            LeftOut("amp", "torch with autocast", "this processor has no bfloat16 instructions"),
        ),
        limits=limits(rounds=rounds),
        environment={
            "processor": "Invented CPU 9000 @ 3.2 GHz", "threads": 2, "system": "Linux-0.0-x86_64", "python": "3.11.1",
            "versions": {"unetrt": "0.0.1", "torch": "2.0.0", "onnxruntime": "1.20.0"},
        },
    )  # fmt: skip


def on_gpu() -> BenchResult:
    """A run on a GPU, with device memory and energy."""
    ours = contender(
        "unetrt-tensorrt", "unetrt with TensorRT, FP16", 0.0031, ours=True, precision="fp16", reference=0.05
    )
    usual = contender("usual", "the usual loop, 572 / 388", 0.05, off=0.0512, reference=0.05)
    told = [
        replace(one, device="Invented GPU", device_memory=3 * 2**30, joules=around(watts * one.seconds[SEGMENT].median))
        for one, watts in ((usual, 300.0), (ours, 420.0))
    ]
    return result([replace(one, share=None) for one in told])


def one_slow_round(figure: Figure) -> Figure:
    """The same, with its last round ten times as slow."""
    return Figure.of([*figure.rounds[:-1], figure.rounds[-1] * 10])

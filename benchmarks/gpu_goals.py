"""The goals of a GPU's figures, how these follow from the measurements, and how they are shown.

Nothing here needs a GPU.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from unetrt.benchmarks.figures import Figure
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import ModelSpec

# Phases by the GPU's clock; they overlap with the others, which follow one another on the host's clock.
ON_GPU = ("upload", "compute", "download")
# Kernels that are shown where a goal is missed, and characters of their names.
LONGEST, NAME = 8, 60


@dataclass(frozen=True)
class Goal:
    """A value to reach.

    Attributes
    ----------
    name
        The measured quantity.
    least
        The least value that reaches it.
    unit
        `%` for shares, `x` for ratios.
    """

    name: str
    least: float
    unit: str

    def shown(self, value: float) -> str:
        """Return a value in the goal's unit."""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.2f} x"


BUSY = Goal("share of time in which kernels run", 0.97, "%")
MATMUL = Goal("share of the dense FP16 matmul rate", 0.60, "%")
EAGER = Goal("against eager torch FP32 in 572-tiles", 8.0, "x")
COMPILED = Goal("against torch.compile FP16 channels_last, same tile", 1.0, "x")
GOALS = (BUSY, MATMUL, EAGER, COMPILED)


@dataclass(frozen=True)
class GoalVerdict:
    """A goal, and the measured value.

    Attributes
    ----------
    goal
        The value to reach.
    value
        The value reached; None where it was not measured.
    """

    goal: Goal
    value: float | None

    @property
    def met(self) -> bool:
        """Whether the goal is reached; False where it was not measured."""
        return self.value is not None and self.value >= self.goal.least

    def __str__(self) -> str:
        goal = f"{self.goal.name}: "
        if self.value is None:
            return f"{goal}not measured (goal {self.goal.shown(self.goal.least)})"
        word = "met" if self.met else "MISSED"
        return f"{goal}{self.goal.shown(self.value)} (goal {self.goal.shown(self.goal.least)}): {word}"

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON stores."""
        return {"goal": self.goal.name, "least": self.goal.least, "value": self.value, "met": self.met}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "GoalVerdict":
        """Return what `to_dict` gave."""
        (goal,) = (goal for goal in GOALS if goal.name == stored["goal"])
        return cls(goal, stored["value"])


def verdicts(values: Mapping[Goal, float | None]) -> tuple[GoalVerdict, ...]:
    """Return one verdict a goal, in order; goals without a value are not measured."""
    return tuple(GoalVerdict(goal, values.get(goal)) for goal in GOALS)


def frame_flops(spec: ModelSpec, shape: UNetShape, frame: tuple[int, int]) -> int:
    """Return the floating-point operations of the tiles of a frame (H, W), borders included.

    A multiply-accumulate counts as two. Padding of the last batch does not count: batches span frames.
    """
    return 2 * shape.macs(*spec.tile) * len(spec.plan(frame))


def useful_flops(shape: UNetShape, frame: tuple[int, int]) -> float:
    """Return the floating-point operations of a frame (H, W) without tile borders."""
    return 2 * shape.macs_per_pixel() * frame[0] * frame[1]


def rates(seconds: Figure, flops: int, frame: tuple[int, int]) -> dict[str, float]:
    """Return frames, Mpixel and TFLOP per second from the median seconds of a frame (H, W) and its operations."""
    return {
        "frames": 1 / seconds.median,
        "megapixels": frame[0] * frame[1] / seconds.median / 1e6,
        "teraflops": flops / seconds.median / 1e12,
    }


def table(case: Mapping[str, Any]) -> Any:
    """Return a case's figures as a rich renderable."""
    from rich.table import Table

    columns = ("frames/s", "range", "Mpixel/s", "pass in flight", "of matmul", "p50", "p99")
    tile, matmul = "x".join(map(str, case["tile"])), case["matmul_teraflops"]["median"]
    title = f"{case['case']}, tile {tile}; dense FP16 matmul {matmul:.0f} TFLOP/s; {case['session']}"
    drawn = Table("contender", *columns, title=title)
    for name, figure in case["torch"].items():
        if "alone" not in name:
            drawn.add_row(f"torch, {name}", *_speed(figure, case["size"]))
    for name, one in case["unetrt"].items():
        shares = (f"{100 * one[share]:.1f} %" for share in ("in_flight", "matmul_share"))
        latency = (_milliseconds(one["latency"][rank]) for rank in ("p50", "p99"))
        drawn.add_row(name, *_speed(one["seconds"], case["size"]), *shares, *latency)
    return drawn


def lines(case: Mapping[str, Any]) -> Iterator[str]:
    """Yield each goal with its value, why something was not measured, and phases and kernels if a goal is missed."""
    goals = [GoalVerdict.from_dict(stored) for stored in case["verdicts"]]
    yield from map(str, goals)
    for name, reason in case["left_out"].items():
        yield f"{name}: not measured: {reason}"
    kernels = case["kernels"]
    if kernels["busy"] is None:
        yield f"{BUSY.name}: {kernels['reason']}"
    if not all(verdict.met for verdict in goals):
        yield from phase_lines(case["unetrt"][case["fastest"]])
        yield from kernel_lines(kernels)


def phase_lines(one: Mapping[str, Any]) -> Iterator[str]:
    """Yield the phases of a frame; those by the GPU's clock overlap with those by the host's."""
    yield f"where the {_milliseconds(one['seconds']['median'])} of a frame go:"
    for phase, seconds in one["phases"].items():
        clock = "GPU" if phase in ON_GPU else "host"
        share = seconds / one["seconds"]["median"]
        yield f"  {phase:10s} {_milliseconds(seconds):>10s}  {100 * share:5.1f} %  ({clock})"


def kernel_lines(kernels: Mapping[str, Any]) -> Iterator[str]:
    """Yield the kernels with the longest total time, as shares of the profiled run."""
    for one in kernels.get("by_kernel", ())[:LONGEST]:
        share = one["seconds"] / kernels["wall"]
        yield f"  {100 * share:5.1f} %  {one['launches']:5d} x  {one['name'][:NAME]}"


def _speed(figure: Mapping[str, Any], size: tuple[int, int]) -> tuple[str, str, str]:
    slow, fast = 1 / figure["high"], 1 / figure["low"]
    megapixels = size[0] * size[1] / figure["median"] / 1e6
    return f"{1 / figure['median']:.2f}", f"{slow:.2f} - {fast:.2f}", f"{megapixels:.1f}"


def _milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1000 * seconds:.2f} ms"

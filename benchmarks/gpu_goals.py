"""What a GPU's figures are held against, and how they follow from what was measured. Nothing here needs a GPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unetrt.benchmarks.figure import Figure
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.plan import TilePlan
from unetrt.runtime.spec import ModelSpec


@dataclass(frozen=True)
class Goal:
    """A figure that was set as a goal.

    Attributes
    ----------
    name
        What is measured.
    least
        What reaches it.
    unit
        `%` for shares, `x` for ratios.
    """

    name: str
    least: float
    unit: str

    def shown(self, value: float) -> str:
        """Return a value in the goal's unit."""
        return f"{100 * value:.1f} %" if self.unit == "%" else f"{value:.2f} x"


BUSY = Goal("share of time in which the GPU computes", 0.97, "%")
MATMUL = Goal("share of the dense FP16 matmul rate", 0.60, "%")
EAGER = Goal("against eager torch FP32 in 572-tiles", 8.0, "x")
COMPILED = Goal("against torch.compile FP16 channels_last, same tile", 1.0, "x")
GOALS = (BUSY, MATMUL, EAGER, COMPILED)


@dataclass(frozen=True)
class Verdict:
    """A goal, and what was reached.

    Attributes
    ----------
    goal
        What was to be reached.
    value
        What was; None where it was not measured.
    """

    goal: Goal
    value: float | None

    @property
    def met(self) -> bool:
        """Whether it was reached; not where it was not measured."""
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


def verdicts(values: Mapping[Goal, float]) -> tuple[Verdict, ...]:
    """Return one verdict a goal, in order; goals without a value are not measured."""
    return tuple(Verdict(goal, values.get(goal)) for goal in GOALS)


def frame_flops(spec: ModelSpec, shape: UNetShape, frame: tuple[int, int]) -> int:
    """Return the floating-point operations that the tiles of a frame (H, W) take, borders included.

    Two for each multiply-accumulate. Tiles that only fill a batch are left out: a batch holds tiles of several frames.
    """
    return 2 * shape.macs(*spec.tile) * len(TilePlan(frame, spec.tile, spec.geometry, spec.border))


def useful_flops(shape: UNetShape, frame: tuple[int, int]) -> float:
    """Return what a frame (H, W) would take if there were no borders."""
    return 2 * shape.macs_per_pixel() * frame[0] * frame[1]


def rates(seconds: Figure, flops: int, frame: tuple[int, int]) -> dict[str, float]:
    """Return what follows from the seconds of a frame (H, W) of so many operations: per second, of the median."""
    return {
        "frames": 1 / seconds.median,
        "megapixels": frame[0] * frame[1] / seconds.median / 1e6,
        "teraflops": flops / seconds.median / 1e12,
    }

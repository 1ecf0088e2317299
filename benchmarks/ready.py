"""A contender that has loaded what it needs, in a process of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from numpy.typing import NDArray

from unetrt.runtime.geometry.plan import TilePlan
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import ModelSpec


@dataclass(frozen=True)
class About:
    """What a contender says of itself.

    Attributes
    ----------
    tile, tiles, flops
        Its tile (H, W) in pixels, how many a frame takes, and the floating-point operations of them all, borders
        included, two for each multiply-accumulate.
    right_within
        The corner of the frame (H, W), in pixels from its top left, where its labels must be those of one pass over the
        whole frame; None where it has checked itself.
    checked
        What is checked, in a few words.
    engine
        What computes, where the contender chooses that by itself.
    """

    tile: tuple[int, int]
    tiles: int
    flops: int
    right_within: tuple[int, int] | None
    checked: str
    engine: str = ""

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> Self:
        """Return what `dataclasses.asdict` gave, read from JSON."""
        within = stored["right_within"]
        return cls(**{**stored, "tile": tuple(stored["tile"]), "right_within": within and tuple(within)})


@dataclass(frozen=True)
class Ready:
    """A loaded contender.

    Attributes
    ----------
    about
        What it says of itself.
    ways
        What can be timed, by name (`unetrt.benchmarks.result.WAYS`). Each call takes one frame all the way and returns
        when the device is done; the first returns the labels, (H, W) uint8.
    phases
        Seconds of the last frame's phases, by name.
    """

    about: About
    ways: Mapping[str, Callable[[], NDArray[Any] | None]]
    phases: Callable[[], Mapping[str, float]] = dict


def planned(shape: UNetShape, spec: ModelSpec, frame: tuple[int, int]) -> About:
    """Return what contenders with a model's tiles say of themselves for a frame (H, W)."""
    tiles = len(TilePlan(frame, spec.tile, spec.geometry, spec.border))
    return About(spec.tile, tiles, 2 * tiles * shape.macs(*spec.tile), frame, "all labels")

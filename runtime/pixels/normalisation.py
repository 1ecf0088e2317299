"""Grey values to network input: one implementation for trainer, exporter and runtime.

Every mode comes down to one affine map a channel, measured on the whole frame and applied pixel by pixel in float32.
So it does not matter whether a frame is normalised before or after it is cut into tiles: the result is bitwise equal.
Never measured on a tile: neighbouring tiles would then disagree.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError
from unetrt.runtime.pixels.statistics import mean_and_deviation, percentiles

Mode = Literal["fixed", "percentile", "zscore", "running"]
MODES: tuple[Mode, ...] = ("fixed", "percentile", "zscore", "running")


class Affine(NamedTuple):
    """x -> (x - offset) * scale, one number a channel.

    Attributes
    ----------
    offset, scale
        float32, shape (C,).
    """

    offset: NDArray[np.float32]
    scale: NDArray[np.float32]

    @classmethod
    def between(cls, limits: Sequence[tuple[float, float]]) -> "Affine":
        """Return the map that takes each channel's offset to 0, and what lies a width above it to 1.

        A channel without contrast, of width 0, maps to 0.
        """
        offset = np.array([low for low, _ in limits], np.float32)
        scale = np.array([1 / width if width > 0 else 0 for _, width in limits], np.float32)
        return cls(offset, scale)

    def apply(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map `pixels` (..., C, h, w), float32, in place, and return them."""
        pixels -= self.offset[:, None, None]
        pixels *= self.scale[:, None, None]
        return pixels


# How to normalise a whole raw frame (C, H, W).
Measure = Callable[[NDArray[Any]], Affine]


@dataclass(frozen=True)
class Normalisation:
    """How grey values become network input.

    Attributes
    ----------
    mode
        `percentile`: the frame's `low` and `high` percentiles become 0 and 1. `zscore`: its mean and standard deviation
        become 0 and 1. `fixed`: `offset` and `scale`, measured once on the training images. `running`: the percentiles
        of a frame alone as `percentile`; over a stream their running average (`unetrt.runtime.pixels.running`).
    low, high
        Percentiles, 0 to 100.
    offset, scale
        One number a channel, for `fixed`.
    """

    mode: Mode = "percentile"
    low: float = 1.0
    high: float = 99.8
    offset: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise OptionError(f"normalisation {self.mode!r} is unknown: use one of {', '.join(MODES)}")
        if not 0 <= self.low < self.high <= 100:
            raise OptionError(f"percentiles {self.low} and {self.high} do not fit: 0 <= low < high <= 100")
        if self.mode == "fixed" and not (self.offset and len(self.offset) == len(self.scale)):
            raise OptionError("normalisation fixed needs an offset and a scale for each channel")

    def measure(self, frame: NDArray[Any]) -> Affine:
        """Return the affine map for a whole raw frame (C, H, W) of integers or floats.

        A channel without contrast maps to 0.
        """
        if self.mode == "fixed":
            return Affine(np.float32(self.offset), np.float32(self.scale))  # type: ignore[arg-type]
        return Affine.between(self.limits(frame))

    def limits(self, frame: NDArray[Any]) -> list[tuple[float, float]]:
        """Return what becomes 0, and how far above it lies what becomes 1, in each channel of a raw frame (C, H, W).

        For all modes but `fixed`, which measures nothing.
        """
        return [self._limits(channel) for channel in frame]

    def contrast_of_noise(self) -> float:
        """Return the width that `limits` finds in noise of a normal distribution whose standard deviation is 1."""
        if self.mode == "zscore":
            return 1.0
        low, high = (NormalDist().inv_cdf(min(max(rank / 100, 1e-6), 1 - 1e-6)) for rank in (self.low, self.high))
        return high - low

    def frozen(self, frames: Iterable[NDArray[Any]]) -> "Normalisation":
        """Return `fixed` normalisation with the medians of what this one measures on raw frames (C, H, W).

        What is measured on each frame is made for frames that differ: frozen, it fits those that are lit alike.
        Raises OptionError where a channel has no contrast in half of them.
        """
        measured = [self.measure(frame) for frame in frames]
        offset, scale = (np.median(np.stack(side), axis=0).tolist() for side in zip(*measured, strict=True))
        if 0 in scale:
            raise OptionError(
                f"channel {scale.index(0)} of the frames has no contrast, so there are no constants to take from it: "
                "give other frames"
            )
        return Normalisation("fixed", offset=tuple(offset), scale=tuple(scale))

    def _limits(self, channel: NDArray[Any]) -> tuple[float, float]:
        if self.mode == "zscore":
            return mean_and_deviation(channel)
        low, high = percentiles(channel, (self.low, self.high))
        return low, high - low

    def __call__(self, frame: NDArray[Any]) -> NDArray[np.float32]:
        """Return a normalised float32 copy of a whole raw frame (C, H, W)."""
        return self.measure(frame).apply(frame.astype(np.float32))

    def to_dict(self) -> dict[str, Any]:
        """Return what a spec stores: the mode and the constants that it uses."""
        if self.mode == "fixed":
            return {"mode": self.mode, "offset": list(self.offset), "scale": list(self.scale)}
        if self.mode == "zscore":
            return {"mode": self.mode}
        return {"mode": self.mode, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Normalisation":
        """Return what `to_dict` stored."""
        constants: dict[str, Any] = {key: tuple(stored[key]) for key in ("offset", "scale") if key in stored}
        ranks: dict[str, Any] = {key: float(stored[key]) for key in ("low", "high") if key in stored}
        return cls(stored["mode"], **ranks, **constants)

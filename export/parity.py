"""The parity gate: an export must answer as the network it was made from, on real frames, or it does not exist."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.spec import Precision
from unetrt.runtime.pixels.scores import best_class, softmax
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Session

Array = NDArray[Any]


@dataclass(frozen=True)
class Thresholds:
    """What an export may differ by.

    Attributes
    ----------
    error
        Largest difference of a probability.
    flips
        Share of pixels that change class.
    iou
        Least intersection over union of the worst class.
    """

    error: float
    flips: float
    iou: float

    @classmethod
    def of(
        cls,
        precision: Precision,
        max_error: float | None = None,
        max_flips: float | None = None,
        min_iou: float | None = None,
    ) -> "Thresholds":
        """Return a precision's thresholds, or other ones where they are given."""
        given = {"max_error": max_error, "max_flips": max_flips, "min_iou": min_iou}
        for name, value in given.items():
            if value is not None and not 0 <= value <= 1:
                option = name.replace("_", "-")
                raise OptionError(f"--{option} {value} is no threshold: use a number from 0 to 1")
        chosen = {name.partition("_")[2]: value for name, value in given.items() if value is not None}
        return replace(DEFAULTS[precision], **chosen)


# FP32 differs by summation order alone. FP16 keeps 11 bits of each activation, bfloat16 8: twenty layers leave about
# 1 % and 10 %. INT8 has 255 steps for all the values of a layer: where two classes are about as likely, anything
# goes, so that flips and IoU decide.
DEFAULTS: dict[Precision, Thresholds] = {
    "fp32": Thresholds(error=1e-3, flips=1e-4, iou=0.999),
    "fp16": Thresholds(error=5e-2, flips=2e-3, iou=0.99),
    "bf16": Thresholds(error=0.3, flips=1e-2, iou=0.97),
    "int8": Thresholds(error=0.8, flips=2e-2, iou=0.95),
}


@dataclass(frozen=True)
class Parity:
    """How far an export is from its network.

    Attributes
    ----------
    frames, pixels
        What was compared.
    max_error, mean_error
        Of the probabilities; NaN where a value is not finite.
    flips
        Share of pixels that change class.
    iou
        Of the worst class present.
    not_finite
        Pixels at which the export gives NaN or infinity.
    worst
        Index of the frame with the largest error.
    classes
        How many classes the network finds.
    """

    frames: int
    pixels: int
    max_error: float
    mean_error: float
    flips: float
    iou: float
    not_finite: int = 0
    worst: int = 0
    classes: int = 2

    def __str__(self) -> str:
        errors = f"max error {self.max_error:.1e}, mean {self.mean_error:.1e}"
        return f"{errors}, {self.flips:.4%} of {self.pixels} pixels change class, IoU {self.iou:.5f}"

    def misses(self, thresholds: Thresholds) -> list[str]:
        """Return what is wrong, a phrase each: values that are not finite, or each threshold that is missed."""
        if self.not_finite:
            return [f"it gives NaN or infinity at {self.not_finite} of {self.pixels} pixels"]
        misses = []
        if not self.max_error <= thresholds.error:
            misses.append(f"a probability differs by {self.max_error:.2g} (at most {thresholds.error:g})")
        if not self.flips <= thresholds.flips:
            misses.append(f"{self.flips:.2%} of the pixels change class (at most {thresholds.flips:.2g})")
        if not self.iou >= thresholds.iou:
            misses.append(f"the worst class has IoU {self.iou:.4f} (at least {thresholds.iou:g})")
        return misses


def compare(reference: Session, exported: Session, frames: Sequence[Array]) -> Parity:
    """Run frames through both sessions.

    Parameters
    ----------
    reference
        The network in FP32, with a head of logits.
    exported
        The export, same tile and batch, with a head of logits or probabilities.
    frames
        Raw frames (C, H, W), at least one.
    """
    with Segmenter(reference) as truth, Segmenter(exported) as candidate:
        pairs = [_answers(truth, candidate, frame) for frame in frames]
    largest = [float(np.abs(expected - given).max()) for expected, given in pairs]
    total = sum(float(np.abs(expected - given).sum(dtype=np.float64)) for expected, given in pairs)
    labels = [(best_class(expected).ravel(), best_class(given).ravel()) for expected, given in pairs]
    truth_labels, given_labels = (np.concatenate(side) for side in zip(*labels, strict=True))
    return Parity(
        frames=len(frames),
        pixels=len(truth_labels),
        max_error=float(np.max(largest)),
        mean_error=total / sum(expected.size for expected, _ in pairs),
        flips=float((truth_labels != given_labels).mean()),
        iou=_worst_iou(truth_labels, given_labels),
        not_finite=sum(int(np.count_nonzero(np.isnan(given.sum(axis=0)))) for _, given in pairs),
        worst=int(np.argmax(np.nan_to_num(largest, nan=np.inf))),
        classes=len(np.unique(truth_labels)),
    )


def as_image(frame: Array) -> Array:
    """Return a frame (C, H, W) in the form that a segmenter takes: (H, W) where there is one channel."""
    return frame if len(frame) > 1 else frame[0]


def _answers(truth: Segmenter, candidate: Segmenter, frame: Array) -> tuple[Array, Array]:
    """Return the probabilities of both, (classes, H, W) float32; NaN where the candidate is not finite."""
    image = as_image(frame)
    expected, given = softmax(truth.scores(image)), candidate.scores(image)
    given[~np.isfinite(given)] = np.nan
    if candidate.spec.head == "logits":
        softmax(given)
    return expected, given


def _worst_iou(truth: Array, answer: Array) -> float:
    classes = np.unique(truth)
    return float(min(((truth == c) & (answer == c)).sum() / ((truth == c) | (answer == c)).sum() for c in classes))

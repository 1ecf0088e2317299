"""The parity gate: an export must answer as the network it was made from, on real frames, or it does not exist."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import ParityError
from unetrt.runtime.scores import best_class, softmax
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.sessions import Session
from unetrt.runtime.spec import Precision

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


# FP32 differs by summation order alone. FP16 keeps 11 bits of each activation; twenty layers leave about 1 %.
DEFAULTS: dict[Precision, Thresholds] = {
    "fp32": Thresholds(error=1e-3, flips=1e-4, iou=0.999),
    "fp16": Thresholds(error=5e-2, flips=2e-3, iou=0.99),
}


@dataclass(frozen=True)
class Parity:
    """How far an export is from its network.

    Attributes
    ----------
    frames, pixels
        What was compared.
    max_error, mean_error
        Of the probabilities; None for a labels head.
    flips
        Share of pixels that change class.
    iou
        Of the worst class present.
    """

    frames: int
    pixels: int
    max_error: float | None
    mean_error: float | None
    flips: float
    iou: float

    def __str__(self) -> str:
        errors = "" if self.max_error is None else f"max error {self.max_error:.1e}, mean {self.mean_error:.1e}, "
        return f"{errors}{self.flips:.4%} of {self.pixels} pixels change class, IoU {self.iou:.5f}"


def compare(reference: Session, exported: Session, frames: Sequence[Array]) -> Parity:
    """Run frames (C, H, W) through both sessions.

    Parameters
    ----------
    reference
        The network in FP32, with a head of logits.
    exported
        The export, same tile and batch.
    frames
        Raw frames, at least one.

    Raises
    ------
    ParityError
        The export gives NaN or infinity.
    """
    with Segmenter(reference) as truth, Segmenter(exported) as candidate:
        pairs = [_answers(truth, candidate, frame) for frame in frames]
    flips = np.concatenate([(expected != given).ravel() for (_, expected), (_, given) in pairs])
    errors = [
        np.abs(expected - given).ravel() for (expected, _), (given, _) in pairs if expected is not None is not given
    ]
    joined = np.concatenate(errors) if errors else None
    return Parity(
        frames=len(frames),
        pixels=len(flips),
        max_error=None if joined is None else float(joined.max()),
        mean_error=None if joined is None else float(joined.mean()),
        flips=float(flips.mean()),
        iou=_worst_iou([labels for (_, labels), _ in pairs], [labels for _, (_, labels) in pairs]),
    )


def require(parity: Parity, thresholds: Thresholds, what: str) -> None:
    """Raise ParityError where `parity` misses a threshold; the message names each."""
    misses = []
    if parity.max_error is not None and not parity.max_error <= thresholds.error:
        misses.append(f"a probability differs by {parity.max_error:.2g} (at most {thresholds.error:g})")
    if not parity.flips <= thresholds.flips:
        misses.append(f"{parity.flips:.3%} of the pixels change class (at most {thresholds.flips:.3%})")
    if not parity.iou >= thresholds.iou:
        misses.append(f"the worst class has IoU {parity.iou:.4f} (at least {thresholds.iou:g})")
    if misses:
        raise ParityError(f"{what} does not answer as the network it was made from: {'; '.join(misses)}")


def _answers(truth: Segmenter, candidate: Segmenter, frame: Array) -> tuple[tuple[Any, Array], tuple[Any, Array]]:
    """Return probabilities (None for a labels head) and labels of both."""
    image = frame if truth.spec.channels > 1 else frame[0]
    if candidate.spec.head == "labels":
        return (None, best_class(truth.scores(image))), (None, candidate.segment(image).labels)
    expected, given = softmax(truth.scores(image)), candidate.scores(image)
    if not np.isfinite(given).all():
        bad = np.count_nonzero(~np.isfinite(given))
        raise ParityError(
            f"the {candidate.spec.precision} export gives NaN or infinity in {bad} of {given.size} values: "
            "an activation leaves the range of its type; export with --precision fp32"
        )
    if candidate.spec.head == "logits":
        softmax(given)
    return (expected, best_class(expected)), (given, best_class(given))


def _worst_iou(expected: list[Array], given: list[Array]) -> float:
    truth, answer = (np.concatenate([labels.ravel() for labels in side]) for side in (expected, given))
    classes = np.unique(truth)
    return float(min(((truth == c) & (answer == c)).sum() / ((truth == c) | (answer == c)).sum() for c in classes))

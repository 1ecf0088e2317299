"""Agreement of two computations of one network: drawn input, tolerances, and how outputs differ.

Options of an engine, or another tile, must not change the answer. Both are compared on drawn images, so that no frame
of the user's is needed.
"""

from collections.abc import Iterator
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.model.spec import ModelSpec, Precision
from unetrt.runtime.pixels.scores import best_class, softmax

Array = NDArray[Any]


class Tolerance(NamedTuple):
    """How far an answer may differ from the reference.

    Attributes
    ----------
    error, mean
        Largest and mean difference of a probability.
    flips
        Fraction of pixels that change class.
    """

    error: float
    flips: float
    mean: float = inf


# Those of the export's parity gate: two 16-bit computations differ as much as each differs from FP32. In FP32 the mean
# reveals TF32: where cuDNN has no kernel without tensor cores, ONNX Runtime uses one with them (conv.cc, "Try
# fallback").
TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(1e-3, 1e-4, mean=1e-5),
    "fp16": Tolerance(5e-2, 2e-3),
    "bf16": Tolerance(0.3, 1e-2),
    "int8": Tolerance(0.8, 2e-2),
}


def difference(spec: ModelSpec, expected: Array, given: Array) -> str:
    """Return one phrase that says how an answer differs by more than the tolerance; empty where it does not.

    Parameters
    ----------
    spec
        Gives head and precision.
    expected, given
        Answers of two computations to the same images: (count, classes, H, W) float32 scores or (count, H, W) uint8
        labels. `expected` is finite.
    """
    limits = TOLERANCES[spec.precision]
    if spec.head == "labels":
        flips = float((expected != given).mean())
    else:
        if not np.isfinite(given.sum()):
            return "it gives NaN or infinity"
        pairs = [
            (_probabilities(spec, one), _probabilities(spec, other)) for one, other in zip(expected, given, strict=True)
        ]
        errors = [np.abs(one - other) for one, other in pairs]
        error, mean = float(np.max(errors)), float(np.mean(errors))
        if not error <= limits.error:
            return f"a probability differs by {error:.2g} (at most {limits.error:g})"
        if not mean <= limits.mean:
            return f"probabilities differ by {mean:.2g} on average (at most {limits.mean:g}), as with TF32"
        flips = float(np.mean([best_class(one) != best_class(other) for one, other in pairs]))
    return "" if flips <= limits.flips else f"{flips:.2%} of the pixels change class (at most {limits.flips:.2g})"


def _probabilities(spec: ModelSpec, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    return softmax(scores.copy()) if spec.head == "logits" else scores


def shows_classes(spec: ModelSpec, answer: Array) -> bool:
    """Return whether an answer can serve as the reference: finite scores that vary, or labels of at least two classes.

    NaN scores also result in labels of a single class.
    """
    varies = bool((answer != answer[..., :1, :1]).any())
    return varies and (spec.head == "labels" or bool(np.isfinite(answer.sum())))


def tiles_for(spec: ModelSpec) -> Iterator[Array]:
    """Yield structured batches (batch, C, h, w) of the input dtype, with different grey values; deterministic."""
    return drawn(spec, spec.batch, spec.tile)


def drawn(spec: ModelSpec, count: int, size: tuple[int, int]) -> Iterator[Array]:
    """Yield structured images (count, C, H, W) of the input dtype, as the graph takes them; deterministic.

    Discs of several sizes on a background with a gradient and noise, different for each image and channel. The images
    that are yielded one after the other differ in their grey values.
    """
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    pattern = np.empty((count, spec.channels, height, width), np.float32)
    for number in np.ndindex(pattern.shape[:2]):
        phase = 1 + sum(number)
        discs = np.cos(2 * np.pi * x / (17 + 4 * phase)) * np.cos(2 * np.pi * y / (23 + 2 * phase))
        grain = (x * 7919 + y * 104729 + 31 * phase) % 251 / 251
        pattern[number] = 0.7 * np.clip(4 * discs, 0, 1) + 0.2 * x / width + 0.1 * grain
    # Bright on dark and dark on bright; as percentiles and as deviations from a mean.
    for low, high in ((0, 1), (-1, 3), (1, 0), (3, -1)):
        normalised = low + (high - low) * pattern
        yield _raw(spec, normalised) if spec.takes_raw else normalised


def _raw(spec: ModelSpec, normalised: NDArray[np.float32]) -> Array:
    """Return the raw grey values that the graph normalises to these, clipped to the input dtype."""
    offset, scale = (np.array(side, np.float32) for side in (spec.normalisation.offset, spec.normalisation.scale))
    raw = normalised / scale[:, None, None] + offset[:, None, None]
    pixels: Array = np.clip(raw, 0, np.iinfo(spec.input_dtype).max).astype(spec.input_dtype)
    return pixels

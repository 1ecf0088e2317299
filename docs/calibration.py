"""Fit `unetrt.runtime.model.confidence.CALIBRATION`: how features of an object become its confidence.

Of each object that a model finds in annotated images, its features, and whether an annotated object has an IoU of at
least 0.5 with it. The constants minimise the cross-entropy. Prints them, and the expected calibration error of each
model: with all images, and with each image scored by constants that were fitted without it.

    python docs/calibration.py ../shared/data/nuclei/val nuclei run/model.onnx
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from unetrt.runtime.model.confidence import CALIBRATION, Calibration, ObjectFeatures, object_features
from unetrt.runtime.model.objects import instances
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer.dataset import AnnotatedImage, read_dataset
from unetrt.trainer.metrics import calibration_error, correct_objects

Array = NDArray[Any]
# Weight of the squared constants beside the mean cross-entropy: features that tell the same share their exponent.
PENALTY = 1e-3


class Found(NamedTuple):
    """Features of the objects of an image, and which of them are correct, (n,) bool."""

    features: ObjectFeatures
    correct: Array


def main(data: Path, models: list[str]) -> None:
    """Measure every model, fit on all of them together, and print."""
    images = read_dataset(data).images
    found = {model: measured(model, images) for model in models}
    fitted = fit(found.values())
    # Each image, by constants fitted to the other images.
    others = [fit(each[:left] + each[left + 1 :] for each in found.values()) for left in range(len(images))]
    click.echo(fitted)
    for model, each in found.items():
        correct = np.concatenate([one.correct for one in each])
        click.echo(f"{model}: {len(correct)} objects, {correct.mean():.3f} correct")
        for name, calibrations in (
            ("the constants of the package", [CALIBRATION] * len(each)),
            ("fitted", [fitted] * len(each)),
            ("fitted without the image itself", others),
        ):
            numbers = [how(one.features) for how, one in zip(calibrations, each, strict=True)]
            click.echo(f"  calibration error, {name}: {calibration_error(np.concatenate(numbers), correct):.4f}")


def measured(model: str, images: Sequence[AnnotatedImage]) -> list[Found]:
    """Return features and correctness of the objects that a model finds in each image."""
    found = []
    with Segmenter(model) as segmenter:
        decoding = segmenter.spec.decoding
        for image in images:
            result = segmenter.segment(image.frame[0], probabilities=True)
            objects = instances(result.labels, decoding)
            features = object_features(objects, result.probabilities, decoding)
            found.append(Found(features, correct_objects(objects, image.labels)))
    return found


def fit(models: Iterable[Sequence[Found]]) -> Calibration:
    """Return the constants with the least cross-entropy over the objects of several models, each of equal weight."""
    models = list(models)
    features = np.concatenate([np.stack(one.features) for each in models for one in each], axis=1)
    correct = np.concatenate([one.correct for each in models for one in each])
    weights = np.concatenate([np.full(n, 1 / n) for each in models for n in [sum(len(one.correct) for one in each)]])

    def cost(constants: Array) -> float:
        expected = Calibration(*constants)(ObjectFeatures(*features)).clip(1e-6, 1 - 1e-6)
        entropy = -np.log(np.where(correct, expected, 1 - expected))
        return float(weights @ entropy) / len(models) + PENALTY * float((constants**2).sum())

    bounds = [(0, 10), (0, 10), (0, 10), (0.1, 10), (-10, 10)]
    starts = (
        np.array([core, 1, outline, slope, 0.0]) for core in (0.5, 2) for outline in (0.5, 2) for slope in (0.5, 2)
    )
    best = min(
        (minimize(cost, start, bounds=bounds, method="L-BFGS-B") for start in starts), key=lambda result: result.fun
    )
    return Calibration(*(round(float(constant), 2) for constant in best.x))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

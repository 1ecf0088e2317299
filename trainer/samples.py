"""Training samples: tiles looked up at random in deformed frames."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetrt.runtime.normalisation import Normalisation
from unetrt.trainer.augmentation import coordinates, look_up, vary_grey_values
from unetrt.trainer.dataset import Annotated, Dataset
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.targets import class_weights, cut_between, separation_weights


@dataclass(frozen=True)
class Sample:
    """One image as training sees it.

    Attributes
    ----------
    name
        Of the image.
    frame
        Normalised, (C, H, W) float32.
    target
        (2, H, W) float32: class index and weight of each pixel.
    """

    name: str
    frame: Tensor
    target: Tensor


@dataclass(frozen=True)
class Batch:
    """One step's input.

    Attributes
    ----------
    names
        Which images the tiles come from.
    tiles
        (N, C, h, w) float32.
    classes
        (N, h', w') int64.
    weights
        (N, h', w') float32.
    """

    names: tuple[str, ...]
    tiles: Tensor
    classes: Tensor
    weights: Tensor


def prepare(dataset: Dataset, recipe: Recipe, normalisation: Normalisation) -> list[Sample]:
    """Normalise every frame and work out classes and weights of every pixel."""
    border = recipe.separation_border if dataset.instances else 0
    cut = [cut_between(image.labels, border) for image in dataset.images]
    classes = [(labels > 0).astype(np.int32) if dataset.instances else labels for labels in cut]
    counts = sum(np.bincount(plane.ravel(), minlength=len(dataset.class_names)) for plane in classes)
    balance = class_weights(np.asarray(counts)) if recipe.balance else np.ones(len(dataset.class_names), np.float32)
    return [
        _sample(image, plane, balance, dataset.instances, recipe, normalisation)
        for image, plane in zip(dataset.images, classes, strict=True)
    ]


def _sample(
    image: Annotated,
    classes: NDArray[Any],
    balance: NDArray[np.float32],
    instances: bool,
    recipe: Recipe,
    normalisation: Normalisation,
) -> Sample:
    weights = balance[classes]
    if instances:
        weights = weights + separation_weights(image.labels, recipe.w0, recipe.sigma)
    target = np.stack([classes.astype(np.float32), weights])
    return Sample(image.name, torch.from_numpy(normalisation(image.frame)), torch.from_numpy(target))


class Sampler:
    """Draws batches: an image, a place in it and a deformation, all at random, each image equally often.

    Parameters
    ----------
    samples
        The images.
    recipe
        Tile, batch, depth and augmentation.
    generator
        Where all randomness comes from.
    """

    def __init__(self, samples: Sequence[Sample], recipe: Recipe, generator: torch.Generator) -> None:
        self._samples, self._recipe, self._generator = samples, recipe, generator
        self._side = recipe.legal_tile()
        self._halo = recipe.shape(1, 2).geometry.halo

    def batch(self) -> Batch:
        """Draw one batch."""
        chosen = torch.randint(len(self._samples), (self._recipe.batch,), generator=self._generator)
        samples = [self._samples[index] for index in chosen.tolist()]
        tiles, targets = zip(*(self._tile(sample) for sample in samples), strict=True)
        target = torch.stack(targets)
        names = tuple(sample.name for sample in samples)
        return Batch(names, torch.stack(tiles), target[:, 0].long(), target[:, 1])

    def _tile(self, sample: Sample) -> tuple[Tensor, Tensor]:
        how, inner = self._recipe.augmentation, slice(self._halo, self._side - self._halo)
        centre = torch.rand(2, generator=self._generator) * torch.tensor(sample.frame.shape[-2:])
        at = coordinates((self._side, self._side), centre, how, self._generator)
        tile = vary_grey_values(look_up(sample.frame, at, "bilinear"), how, self._generator)
        return tile, look_up(sample.target, at[inner, inner], "nearest")

"""Training samples: tiles looked up at random in deformed frames."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.augmentation import coordinates, look_up, vary_grey_values
from unetrt.trainer.dataset import Annotated, Dataset
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.seeds import ORDER, SAMPLE, generator_for, seed_for
from unetrt.trainer.targets import class_weights, cut_between
from unetrt.trainer.weight_maps import cached_separation_weights, prune

CPU = torch.device("cpu")


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
    annotated
        Where tiles may be centred: numbers of pixels, row by row, (n,) int32; None: anywhere.
    """

    name: str
    frame: Tensor
    target: Tensor
    annotated: Tensor | None = None

    def to(self, device: torch.device) -> "Sample":
        """Return the sample with frame and target on a device."""
        return replace(self, frame=self.frame.to(device), target=self.target.to(device))

    def centre(self, generator: torch.Generator) -> Tensor:
        """Return a random place in the frame, (2,), row and column, around a pixel that is annotated."""
        height, width = self.frame.shape[-2:]
        within = torch.rand(2, generator=generator)
        if self.annotated is None:
            return within * torch.tensor([height, width])
        pixel = int(self.annotated[torch.randint(len(self.annotated), (), generator=generator)])
        return within - 0.5 + torch.tensor(divmod(pixel, width))


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
    balance = np.ones(len(dataset.class_names), np.float32)
    if recipe.balance:
        balance = class_weights(_counts(dataset, classes))
    samples = []
    for image, plane in zip(dataset.images, classes, strict=True):
        weights = balance[plane]
        if dataset.instances and recipe.w0 > 0:
            weights = weights + cached_separation_weights(image.labels, recipe.w0, recipe.sigma)
        samples.append(_sample(image, normalisation(image.frame), plane, weights))
    prune()
    return samples


def _counts(dataset: Dataset, classes: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return how many annotated pixels each class has."""
    counts = np.zeros(len(dataset.class_names), np.int64)
    for image, plane in zip(dataset.images, classes, strict=True):
        known = plane.ravel() if image.ignored is None else plane[~image.ignored]
        counts += np.bincount(known, minlength=len(counts))
    return counts


def _sample(
    image: Annotated, frame: NDArray[np.float32], classes: NDArray[Any], weights: NDArray[np.float32]
) -> Sample:
    annotated = None
    if image.ignored is not None:
        weights = np.where(image.ignored, np.float32(0), weights)
        annotated = torch.from_numpy(np.flatnonzero(~image.ignored).astype(np.int32))
    target = np.stack([classes.astype(np.float32), weights])
    return Sample(image.name, torch.from_numpy(frame), torch.from_numpy(target), annotated)


def normalisation_for(recipe: Recipe, dataset: Dataset) -> Normalisation:
    """Return the recipe's normalisation; `fixed` takes mean and deviation of each channel over the training images."""
    if recipe.normalisation != "fixed":
        return Normalisation(recipe.normalisation)
    pixels = sum(image.labels.size for image in dataset.images)
    mean = _sums(dataset, np.zeros(dataset.channels)) / pixels
    deviation = np.sqrt(_sums(dataset, mean, power=2) / pixels)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return Normalisation("fixed", offset=tuple(mean.tolist()), scale=tuple(scale.tolist()))


def _sums(dataset: Dataset, centre: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
    """Return sum((x - centre)^power) of each channel, (C,), an image at a time."""
    sums: NDArray[np.float64] = np.zeros(dataset.channels)
    for image in dataset.images:
        sums += ((image.frame - centre[:, None, None]) ** power).sum(axis=(1, 2))
    return sums


def _home(samples: Sequence[Sample], device: torch.device) -> torch.device:
    """Return the device if it has room for the samples and for a network beside them."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if sum(sample.frame.nbytes + sample.target.nbytes for sample in samples) < free / 2 else CPU


class Sampler:
    """Draws batches: a place in an image and a deformation, at random; each image once before any comes again.

    Tile `index` of step `step` depends on these numbers and the seed alone.

    Parameters
    ----------
    samples
        The images.
    recipe
        Tile, batch, depth and augmentation.
    seed
        Where all randomness comes from.
    device
        Where frames are kept and tiles are deformed, if they take less than half of its free memory; else the CPU.
    """

    def __init__(self, samples: Sequence[Sample], recipe: Recipe, seed: int, device: torch.device = CPU) -> None:
        home = _home(samples, device)
        self._samples = [sample.to(home) for sample in samples]
        self._recipe, self._seed = recipe, seed
        self._side = recipe.legal_tile()
        self._halo = recipe.shape(1, 2).geometry.halo

    def batch(self, step: int, indices: range | None = None) -> Batch:
        """Draw the batch of a step, 0 and up, or those tiles of it that `indices` names."""
        indices = range(self._recipe.batch) if indices is None else indices
        samples = [self._chosen(step * self._recipe.batch + index) for index in indices]
        generators = [generator_for(self._seed, SAMPLE, step, index) for index in indices]
        tiles, targets = zip(*(self._tile(*drawn) for drawn in zip(samples, generators, strict=True)), strict=True)
        target = torch.stack(targets)
        names = tuple(sample.name for sample in samples)
        return Batch(names, torch.stack(tiles), target[:, 0].long(), target[:, 1])

    def _chosen(self, number: int) -> Sample:
        """Return the image of the tile `number` of the training."""
        epoch, place = divmod(number, len(self._samples))
        order = np.random.default_rng(seed_for(self._seed, ORDER, epoch)).permutation(len(self._samples))
        return self._samples[int(order[place])]

    def _tile(self, sample: Sample, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        how, inner = self._recipe.augmentation, slice(self._halo, self._side - self._halo)
        centre = sample.centre(generator).to(sample.frame.device)
        at = coordinates((self._side, self._side), centre, how, generator)
        tile = vary_grey_values(look_up(sample.frame, at, "bilinear"), how, generator)
        return tile, look_up(sample.target, at[inner, inner], "nearest")

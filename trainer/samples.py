"""Training samples: annotated images prepared for training, and batches of tiles drawn from them.

Every random number follows from the training's seed, its purpose and its position (step, tile), never from the numbers
drawn before it. A resumed training therefore draws what an uninterrupted one would, and several processes draw what one
process would.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unetrt.runtime.model.spec import CORE
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.augmentation import coordinates, look_up, vary_grey_values
from unetrt.trainer.dataset import AnnotatedImage, Dataset
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.targets import Target, cached_separation_weights, class_weights, prune_cache

CPU = torch.device("cpu")
# Purposes of random numbers: independent streams for the same position.
WEIGHTS, ORDER, SAMPLE, DROPOUT = range(4)


def seed_for(seed: int, purpose: int, *position: int) -> int:
    """Return the 63-bit seed for a purpose and a position, such as step and tile."""
    return int(np.random.SeedSequence((seed, purpose, *position)).generate_state(1, np.uint64)[0] >> 1)


def generator_for(seed: int, purpose: int, *position: int) -> torch.Generator:
    """Return torch's CPU generator for a purpose and a position."""
    return torch.Generator().manual_seed(seed_for(seed, purpose, *position))


@dataclass(frozen=True)
class TrainingSample:
    """An image prepared for training.

    Attributes
    ----------
    name
        Name of the image.
    frame
        Normalised, (C, H, W) float32.
    target
        (2, H, W) float32: class index and weight of each pixel.
    annotated
        Flat indices of the pixels on which tiles may be centred, (n,) int32; None: all pixels.
    """

    name: str
    frame: Tensor
    target: Tensor
    annotated: Tensor | None = None

    def to(self, device: torch.device) -> "TrainingSample":
        """Return the sample with frame and target on a device."""
        return replace(self, frame=self.frame.to(device), target=self.target.to(device))

    def centre(self, generator: torch.Generator) -> Tensor:
        """Return a random tile centre, (2,), row and column in pixels, on an annotated pixel."""
        height, width = self.frame.shape[-2:]
        within = torch.rand(2, generator=generator)
        if self.annotated is None:
            return within * torch.tensor([height, width])
        pixel = int(self.annotated[torch.randint(len(self.annotated), (), generator=generator)])
        return within - 0.5 + torch.tensor(divmod(pixel, width))


def target_for(recipe: Recipe, dataset: Dataset) -> Target:
    """Return what a network learns from a dataset; class maps are learnt as they are."""
    if dataset.instances and recipe.target == "cores":
        return Target.cores([image.labels for image in dataset.images], recipe.rim, recipe.augmentation.zoom)
    return Target.border(dataset.class_names, recipe.separation_border if dataset.instances else 0)


def prepare(
    dataset: Dataset, recipe: Recipe, normalisation: Normalisation, target: Target | None = None
) -> list[TrainingSample]:
    """Normalise every frame, and compute the class and the weight of every pixel; target None is that of the recipe."""
    target = target or target_for(recipe, dataset)
    classes = [target.classes(image.labels) if dataset.instances else image.labels for image in dataset.images]
    count = len(target.class_names)
    balance = np.ones(count, np.float32)
    if recipe.balance:
        balance = class_weights(_class_counts(dataset, classes, count))
    if dataset.instances:
        balance[1:] *= recipe.foreground
        balance[CORE:] *= recipe.core
    samples = []
    for image, plane in zip(dataset.images, classes, strict=True):
        weights = balance[plane]
        if dataset.instances and recipe.w0 > 0:
            weights = weights + cached_separation_weights(image.labels, recipe.w0, recipe.sigma)
        samples.append(_sample(image, normalisation(image.frame), plane, weights))
    prune_cache()
    return samples


def _class_counts(dataset: Dataset, classes: Sequence[NDArray[Any]], count: int) -> NDArray[np.int64]:
    """Return the number of annotated pixels of each of `count` classes, (count,)."""
    counts = np.zeros(count, np.int64)
    for image, plane in zip(dataset.images, classes, strict=True):
        known = plane.ravel() if image.ignored is None else plane[~image.ignored]
        counts += np.bincount(known, minlength=count)
    return counts


def _sample(
    image: AnnotatedImage, frame: NDArray[np.float32], classes: NDArray[Any], weights: NDArray[np.float32]
) -> TrainingSample:
    annotated = None
    if image.ignored is not None:
        weights = np.where(image.ignored, np.float32(0), weights)
        annotated = torch.from_numpy(np.flatnonzero(~image.ignored).astype(np.int32))
    target = np.stack([classes.astype(np.float32), weights])
    return TrainingSample(image.name, torch.from_numpy(frame), torch.from_numpy(target), annotated)


def normalisation_for(recipe: Recipe, dataset: Dataset) -> Normalisation:
    """Return the recipe's normalisation; for `fixed`, with mean and standard deviation of each channel of a dataset."""
    if recipe.normalisation != "fixed":
        return Normalisation(recipe.normalisation)
    pixels = sum(image.labels.size for image in dataset.images)
    mean = _channel_sums(dataset, np.zeros(dataset.channels)) / pixels
    deviation = np.sqrt(_channel_sums(dataset, mean, power=2) / pixels)
    scale = np.divide(1, deviation, out=np.zeros_like(deviation), where=deviation > 0)
    return Normalisation("fixed", offset=tuple(mean.tolist()), scale=tuple(scale.tolist()))


def _channel_sums(dataset: Dataset, centre: NDArray[np.float64], power: int = 1) -> NDArray[np.float64]:
    """Return the sum of (x - centre)^power over all pixels of each channel, (C,)."""
    sums: NDArray[np.float64] = np.zeros(dataset.channels)
    for image in dataset.images:
        sums += ((image.frame - centre[:, None, None]) ** power).sum(axis=(1, 2))
    return sums


@dataclass(frozen=True)
class Batch:
    """The input of one training step.

    Attributes
    ----------
    names
        Image of each tile.
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


class Sampler:
    """Draws batches of randomly placed and deformed tiles; every image is drawn once before any is drawn again.

    A tile is a function of seed, step and index in the batch.

    Parameters
    ----------
    samples
        The images.
    recipe
        Tile, batch, depth and augmentation.
    seed
        Seed of all random numbers.
    device
        Where tiles are deformed if the samples take less than half of its free memory; otherwise on the CPU.
    """

    def __init__(
        self, samples: Sequence[TrainingSample], recipe: Recipe, seed: int, device: torch.device = CPU
    ) -> None:
        device = _device_with_room(samples, device)
        self._samples = [sample.to(device) for sample in samples]
        self._recipe, self._seed = recipe, seed
        self._side = recipe.legal_tile()
        self._halo = recipe.shape(1, 2).geometry.halo

    def batch(self, step: int, indices: range | None = None) -> Batch:
        """Draw the batch of a step, from 0, or only those of its tiles that `indices` names."""
        indices = range(self._recipe.batch) if indices is None else indices
        samples = [self._chosen(step * self._recipe.batch + index) for index in indices]
        generators = [generator_for(self._seed, SAMPLE, step, index) for index in indices]
        tiles, targets = zip(*(self._tile(*drawn) for drawn in zip(samples, generators, strict=True)), strict=True)
        target = torch.stack(targets)
        names = tuple(sample.name for sample in samples)
        return Batch(names, torch.stack(tiles), target[:, 0].long(), target[:, 1])

    def _chosen(self, number: int) -> TrainingSample:
        """Return the image of tile `number` of the training, from 0."""
        epoch, place = divmod(number, len(self._samples))
        order = np.random.default_rng(seed_for(self._seed, ORDER, epoch)).permutation(len(self._samples))
        return self._samples[int(order[place])]

    def _tile(self, sample: TrainingSample, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a tile (C, h, w) and the target of its core (2, h', w')."""
        how, inner = self._recipe.augmentation, slice(self._halo, self._side - self._halo)
        centre = sample.centre(generator).to(sample.frame.device)
        at = coordinates((self._side, self._side), centre, how, generator)
        tile = vary_grey_values(look_up(sample.frame, at, "bilinear"), how, generator)
        return tile, look_up(sample.target, at[inner, inner], "nearest")


def _device_with_room(samples: Sequence[TrainingSample], device: torch.device) -> torch.device:
    """Return `device` if it has room for the samples and for a network beside them, otherwise the CPU."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if sum(sample.frame.nbytes + sample.target.nbytes for sample in samples) < free / 2 else CPU

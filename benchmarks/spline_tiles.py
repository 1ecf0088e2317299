"""Deformed training tiles as most code draws them: splines of SciPy for the displacements, and for the pixels."""

from math import pi
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from unetrt.trainer.augmentation import Augmentation, vary_grey_values
from unetrt.trainer.samples import TrainingSample

Array = NDArray[Any]


class SplineTiles:
    """Draws tiles of one sample, in the same steps as `Sampler` and varied as much.

    Parameters
    ----------
    sample
        Frame (1, H, W), and classes and weights.
    side, halo
        Of the square tiles, and what of it has no classes on each side; pixels.
    how
        How much tiles vary; zoom is not among it.
    order
        Of the spline through the frame's pixels: 1, as `Sampler` has it, or 3. Its coefficients are worked out here.
    """

    def __init__(self, sample: TrainingSample, side: int, halo: int, how: Augmentation, order: int) -> None:
        self._sample, self._side, self._how, self._order = sample, side, how, order
        self._inner = slice(halo, side - halo)
        frame = sample.frame[0].numpy()
        self._frame = ndimage.spline_filter(frame, order, np.float32, mode="mirror") if order > 1 else frame
        self._target = sample.target.numpy()

    def draw(self, step: int) -> tuple[Tensor, Array]:
        """Return the tile (1, side, side) float32 of a step, and classes and weights of its inner pixels."""
        rng, generator = np.random.default_rng(step), torch.Generator().manual_seed(step)
        centre = self._sample.centre(generator).numpy()
        image, target = self.read(self.coordinates(centre, rng))
        return vary_grey_values(torch.from_numpy(image[None]), self._how, generator), target

    def coordinates(self, centre: Array, rng: np.random.Generator) -> Array:
        """Return where in the frame each pixel lies, (2, side, side), row and column; `centre` is (2,)."""
        angle = rng.uniform(-1, 1) * self._how.rotation * pi / 180
        mirror = -1.0 if self._how.flips and rng.random() < 0.5 else 1.0
        cosine, sine = np.cos(angle), np.sin(angle)
        columns = np.arange(self._side, dtype=np.float32) - (self._side - 1) / 2
        rows = columns[:, None]
        turned = (cosine * rows - mirror * sine * columns, sine * rows + mirror * cosine * columns)
        vectors = rng.normal(0, self._how.displacement, (2, self._how.coarse, self._how.coarse))
        return np.stack(turned).astype(np.float32) + centre[:, None, None] + spline_displacements(vectors, self._side)

    def read(self, at: Array) -> tuple[Array, Array]:
        """Return the frame's pixels at coordinates (2, side, side), and classes and weights (2, h, w) of the inner."""
        image = ndimage.map_coordinates(self._frame, at, order=self._order, mode="mirror", prefilter=False)
        inner = at[:, self._inner, self._inner]
        planes = [ndimage.map_coordinates(plane, inner, order=0, mode="mirror") for plane in self._target]
        return image, np.stack(planes)


def spline_displacements(vectors: Array, side: int) -> Array:
    """Return displacements (2, side, side): a cubic spline through vectors (2, n, n), spread from end to end."""
    places = np.linspace(0, vectors.shape[-1] - 1, side, dtype=np.float32)
    grid = np.stack(np.meshgrid(places, places, indexing="ij"))
    return np.stack([ndimage.map_coordinates(plane, grid, np.float32, mode="mirror") for plane in vectors])

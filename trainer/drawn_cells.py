"""Synthetic micrographs with known instances: touching cells, uneven illumination, photon and read noise.

>>> draw((512, 512), seed=0).labels.max()
234
"""

from dataclasses import dataclass
from math import pi

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

# A 16-bit camera: dark level in grey values, grey values per electron, electrons of a bright cell, read noise in
# electrons.
DARK, GAIN, PHOTONS, READ_NOISE = 400, 12, 220, 4
# Standard deviation of the optics' Gaussian blur, in pixels.
BLUR = 1.1
# Largest share of a new cell that other cells may cover.
OVERLAP = 0.12

Offsets = NDArray[np.float64]


@dataclass(frozen=True)
class Drawing:
    """A synthetic micrograph.

    Attributes
    ----------
    frame
        (H, W) uint16.
    labels
        (H, W) int32, one number for each cell, 0 is the background.
    """

    frame: NDArray[np.uint16]
    labels: NDArray[np.int32]


def draw(size: tuple[int, int], seed: int, density: float = 0.35) -> Drawing:
    """Draw cells until they cover the share `density` of an image of `size` (H, W) pixels."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(size, np.int32)
    light = np.zeros(size, np.float32)
    centres: list[tuple[float, float]] = []
    wanted, covered = density * labels.size, 0
    for _ in range(labels.size // 40):
        if covered >= wanted:
            break
        centre = _place(size, centres, rng)
        added = _add_cell(labels, light, centre, len(centres) + 1, rng)
        if added:
            centres.append(centre)
            covered += added
    return Drawing(_photograph(light, rng), labels)


def _place(size: tuple[int, int], centres: list[tuple[float, float]], rng: Generator) -> tuple[float, float]:
    """Return a random centre (y, x) in pixels, in 70 % of cases beside a cell, so that the two touch."""
    if centres and rng.random() < 0.7:
        y, x = centres[rng.integers(len(centres))]
        angle, distance = rng.uniform(0, 2 * pi), rng.uniform(16, 26)
        return y + distance * np.sin(angle), x + distance * np.cos(angle)
    return rng.uniform(0, size[0]), rng.uniform(0, size[1])


def _add_cell(
    labels: NDArray[np.int32], light: NDArray[np.float32], centre: tuple[float, float], number: int, rng: Generator
) -> int:
    """Draw a cell, an ellipse with a wavy outline, unless others cover too much of it; return its number of pixels."""
    reach = 24
    top, left = (max(0, int(at) - reach) for at in centre)
    window = (slice(top, int(centre[0]) + reach), slice(left, int(centre[1]) + reach))
    under = labels[window]
    if under.size == 0:
        return 0
    y, x = np.ogrid[top : top + under.shape[0], left : left + under.shape[1]]
    inside, depth = _ellipse(y - centre[0], x - centre[1], rng)
    free = inside & (under == 0)
    if free.sum() < max(60, (1 - OVERLAP) * inside.sum()):
        return 0
    under[free] = number
    texture = ndimage.gaussian_filter(rng.standard_normal(under.shape), 2.0)
    glow = rng.uniform(0.45, 1.2) * (0.75 + 0.35 * depth + 0.9 * texture)
    light[window][free] = np.clip(glow, 0.1, None)[free]
    return int(free.sum())


def _ellipse(y: Offsets, x: Offsets, rng: Generator) -> tuple[NDArray[np.bool_], Offsets]:
    """Return the mask of the pixels inside, and their depth: 0 at the outline, 1 at the centre."""
    major, minor = rng.uniform(10, 16), rng.uniform(8, 13)
    turn, wave, phase = rng.uniform(0, pi), rng.uniform(0, 0.1), rng.uniform(0, 2 * pi)
    along, across = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    outline = 1 + wave * np.sin(3 * np.arctan2(across, along) + phase)
    radius = np.hypot(along / major, across / minor) / outline
    return radius <= 1, np.clip(1 - radius, 0, 1)


def _photograph(light: NDArray[np.float32], rng: Generator) -> NDArray[np.uint16]:
    """Apply uneven illumination, blur, background, photon noise and read noise, and digitise."""
    height, width = light.shape
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    tilt = rng.uniform(-0.3, 0.3, 2)
    field = 1 + tilt[0] * y + tilt[1] * x - 0.35 * (y**2 + x**2)
    haze = 0.12 + 0.08 * ndimage.gaussian_filter(rng.standard_normal(light.shape), 25) * 25
    photons = PHOTONS * np.clip(field, 0.2, None) * (ndimage.gaussian_filter(light, BLUR) + np.clip(haze, 0.02, None))
    electrons = rng.poisson(photons) + rng.normal(0, READ_NOISE, light.shape)
    grey: NDArray[np.uint16] = np.clip(DARK + GAIN * electrons, 0, 65535).astype(np.uint16)
    return grey

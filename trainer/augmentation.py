"""Data augmentation: random elastic deformations and grey-value variation (Ronneberger et al. 2015, section 3.1).

Image, classes and weights are sampled at the same deformed coordinates of the mirrored frame. Tiles are deformed before
they are cut, so no corner is empty, and the context is the same as at inference.

>>> at = coordinates((572, 572), torch.tensor([512.0, 512.0]), Augmentation(), torch.Generator().manual_seed(0))
>>> look_up(torch.zeros(1, 1024, 1024), at, "bilinear").shape
torch.Size([1, 572, 572])
"""

from dataclasses import dataclass
from math import exp, log, pi

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """Ranges of the random variation of training tiles.

    Attributes
    ----------
    displacement
        Standard deviation of the displacement vectors, in pixels (10 in the paper).
    coarse
        Displacement vectors along each side of the tile (3 in the paper).
    rotation
        Largest rotation in either direction, in degrees.
    flips
        Whether half of the tiles are mirrored.
    zoom
        Largest factor by which tiles are magnified or reduced, at least 1; not in the paper.
    gain
        Grey values are multiplied by exp(N(0, gain)).
    offset
        N(0, offset) is added to grey values, in units of the normalised frame.
    noise
        Upper limit of the standard deviation of the Gaussian noise added to each tile, in the same units.
    gamma
        Grey values between 0 and 1 are raised to the power exp(N(0, gamma)); not in the paper.
    invert
        Share of the tiles that are inverted, x -> 1 - x: dark objects on a bright background; not in the paper.
    """

    displacement: float = 10.0
    coarse: int = 3
    rotation: float = 180.0
    flips: bool = True
    zoom: float = 1.0
    gain: float = 0.2
    offset: float = 0.05
    noise: float = 0.03
    gamma: float = 0.0
    invert: float = 0.0


NONE = Augmentation(displacement=0, rotation=0, flips=False, gain=0, offset=0, noise=0)


def coordinates(tile: tuple[int, int], centre: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return the frame coordinates (h, w, 2), row and column in pixels, of every pixel of a deformed tile.

    Parameters
    ----------
    tile
        Height and width, in pixels.
    centre
        (2,), row and column of the tile's centre in the frame, in pixels. The result is on its device.
    how
        Ranges of rotation, zoom and displacement.
    generator
        A generator on the CPU, so that a seed produces the same deformation on every device.
    """
    turn = _rotation(how, generator) * _zoom(how, generator)
    rows, columns = (torch.arange(side, device=centre.device) - (side - 1) / 2 for side in tile)
    down, right = (turn[:, axis].to(centre.device) for axis in (0, 1))
    at = (rows[:, None] * down + centre)[:, None] + (columns[:, None] * right)[None]
    return at + displacements(tile, how, generator, centre.device)


def displacements(
    tile: tuple[int, int], how: Augmentation, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Return smooth displacements (h, w, 2), in pixels: random vectors on a coarse grid, bicubically interpolated."""
    vectors = torch.randn(2, how.coarse, how.coarse, generator=generator) * how.displacement
    # Bicubic interpolation is separable: two thin matrix products are several times faster than 16 taps a pixel.
    down, right = (_bicubic(how.coarse, side).to(device) for side in tile)
    smooth = down @ vectors.to(device) @ right.T
    return smooth.permute(1, 2, 0)


def _bicubic(coarse: int, side: int) -> Tensor:
    """Return the interpolation matrix (side, coarse) from `coarse` points, spread from end to end, to pixels."""
    points = torch.eye(coarse)[None, None]
    weights: Tensor = F.interpolate(points, size=(side, coarse), mode="bicubic", align_corners=True)
    return weights[0, 0]


def look_up(planes: Tensor, at: Tensor, mode: str) -> Tensor:
    """Sample planes (C, H, W) float at coordinates (h, w, 2), row and column in pixels, reflected at the borders.

    Parameters
    ----------
    planes, at
        Tensors on the same device.
    mode
        `bilinear` or `nearest`.

    Returns
    -------
    (C, h, w), dtype of `planes`.
    """
    steps = (2 / max(1, side - 1) for side in planes.shape[-2:])
    rows, columns = (at[..., axis] * step - 1 for axis, step in enumerate(steps))
    grid = torch.stack([columns, rows], dim=-1)  # grid_sample takes x before y
    return F.grid_sample(planes[None], grid[None], mode=mode, padding_mode="reflection", align_corners=True)[0]


def vary_grey_values(tile: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a normalised tile (C, h, w) float32 with random contrast, gain, offset and noise."""
    tile = _vary_contrast(tile, how, generator)
    gain, offset, noise = torch.randn(2, generator=generator).tolist() + torch.rand(1, generator=generator).tolist()
    varied: Tensor = tile * exp(how.gain * gain) + how.offset * offset
    if how.noise > 0:
        varied += torch.randn(tile.shape, generator=_on(tile.device, generator), device=tile.device) * how.noise * noise
    return varied


def _vary_contrast(tile: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a tile with a random gamma, inverted in a share of the cases."""
    if how.gamma > 0:
        power = exp(how.gamma * float(torch.randn((), generator=generator)))
        # Saturated pixels, beyond the percentiles, stay as they are.
        tile = torch.where((tile > 0) & (tile < 1), tile.clamp(0, 1) ** power, tile)
    if how.invert > 0 and float(torch.rand((), generator=generator)) < how.invert:
        tile = 1 - tile
    return tile


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return a generator on `device`, seeded by `generator`, which is on the CPU."""
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def _zoom(how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a random factor, log-uniform between 1 / zoom and zoom; a scalar tensor."""
    return torch.exp((2 * torch.rand((), generator=generator) - 1) * log(how.zoom))


def _rotation(how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a random rotation matrix (2, 2), with a random reflection."""
    angle = (2 * torch.rand((), generator=generator) - 1) * how.rotation * pi / 180
    mirror = 1.0 - 2.0 * (how.flips and bool(torch.rand((), generator=generator) < 0.5))
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cosine, -sine * mirror]), torch.stack([sine, cosine * mirror])])

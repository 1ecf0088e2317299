"""Random deformations (Ronneberger et al. 2015, section 3.1): image, classes and weights move together.

Written once in torch. A tile is not cut and then deformed: its pixels are looked up in the mirrored frame at deformed
coordinates, so that no corner is ever empty and the context is the one that inference sees.
"""

from dataclasses import dataclass
from math import pi

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Augmentation:
    """How much samples vary.

    Attributes
    ----------
    displacement
        Standard deviation of the displacement vectors, in pixels (10 in the paper).
    coarse
        Vectors along each side of the tile (3 in the paper).
    rotation
        Largest rotation to either side, in degrees.
    flips
        Whether tiles are mirrored at random.
    gain
        Grey values are multiplied by exp(N(0, gain)).
    offset
        Grey values are shifted by N(0, offset), in units of the normalised frame.
    noise
        Each tile gets Gaussian noise of a standard deviation drawn from 0 ... noise, in the same units.
    """

    displacement: float = 10.0
    coarse: int = 3
    rotation: float = 180.0
    flips: bool = True
    gain: float = 0.2
    offset: float = 0.05
    noise: float = 0.03


NONE = Augmentation(displacement=0, rotation=0, flips=False, gain=0, offset=0, noise=0)


def coordinates(tile: tuple[int, int], centre: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return the frame coordinates (h, w, 2), row and column in pixels, of every pixel of a deformed tile.

    Parameters
    ----------
    tile
        Height and width, in pixels.
    centre
        (2,), row and column of the tile's centre in the frame: the random shift.
    """
    rows, columns = (torch.arange(side) - (side - 1) / 2 for side in tile)
    at = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
    at = at @ _rotation(how, generator).T
    return at + displacements(tile, how, generator) + centre


def displacements(tile: tuple[int, int], how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return smooth displacements (h, w, 2), in pixels: vectors on a coarse grid, bicubic in between (section 3.1)."""
    vectors = torch.randn(1, 2, how.coarse, how.coarse, generator=generator) * how.displacement
    smooth: Tensor = F.interpolate(vectors, size=tile, mode="bicubic", align_corners=True)
    return smooth[0].permute(1, 2, 0)


def look_up(planes: Tensor, at: Tensor, mode: str) -> Tensor:
    """Read planes (C, H, W) float at coordinates (h, w, 2), reflected at the borders; `bilinear` or `nearest`.

    Returns
    -------
    (C, h, w)
    """
    size = torch.tensor(planes.shape[-2:])
    normalised = 2 * at / (size - 1).clamp_min(1) - 1
    grid = normalised.flip(-1)[None]  # grid_sample takes x before y
    return F.grid_sample(planes[None], grid, mode=mode, padding_mode="reflection", align_corners=True)[0]


def vary_grey_values(tile: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a normalised tile (C, h, w) with another gain, offset and noise."""
    gain, offset, noise = torch.randn(2, generator=generator).tolist() + torch.rand(1, generator=generator).tolist()
    varied: Tensor = tile * torch.tensor(how.gain * gain).exp() + how.offset * offset
    if how.noise > 0:
        varied += torch.randn(tile.shape, generator=generator) * (how.noise * noise)
    return varied


def _rotation(how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a random rotation, perhaps with a reflection, (2, 2)."""
    angle = (2 * torch.rand((), generator=generator) - 1) * how.rotation * pi / 180
    mirror = 1.0 - 2.0 * (how.flips and bool(torch.rand((), generator=generator) < 0.5))
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cosine, -sine * mirror]), torch.stack([sine, cosine * mirror])])

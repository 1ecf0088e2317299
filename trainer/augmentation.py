"""Random deformations (Ronneberger et al. 2015, section 3.1): image, classes and weights move together.

Written once in torch. A tile is not cut and then deformed: its pixels are looked up in the mirrored frame at deformed
coordinates, so that no corner is ever empty and the context is the one that inference sees.
"""

from dataclasses import dataclass
from math import exp, log, pi

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
    zoom
        Objects become larger or smaller by up to this factor, at least 1; not in the paper.
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
    zoom: float = 1.0
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
        (2,), row and column of the tile's centre in the frame: the random shift. Its device is that of the result.
    generator
        On the CPU: the few random numbers are drawn there, so that a seed means the same deformation on any device.
    """
    turn = _rotation(how, generator) * _zoom(how, generator)
    rows, columns = (torch.arange(side, device=centre.device) - (side - 1) / 2 for side in tile)
    down, right = (turn[:, axis].to(centre.device) for axis in (0, 1))
    at = (rows[:, None] * down + centre)[:, None] + (columns[:, None] * right)[None]
    return at + displacements(tile, how, generator, centre.device)


def displacements(
    tile: tuple[int, int], how: Augmentation, generator: torch.Generator, device: torch.device | None = None
) -> Tensor:
    """Return smooth displacements (h, w, 2), in pixels: vectors on a coarse grid, bicubic in between (section 3.1)."""
    vectors = torch.randn(2, how.coarse, how.coarse, generator=generator) * how.displacement
    # Bicubic interpolation is separable: two thin products are several times faster than weighing 16 vectors a pixel.
    down, right = (_bicubic(how.coarse, side).to(device) for side in tile)
    smooth = down @ vectors.to(device) @ right.T
    return smooth.permute(1, 2, 0)


def _bicubic(coarse: int, side: int) -> Tensor:
    """Return the weight of each of `coarse` points, spread from end to end, for each of `side` pixels."""
    points = torch.eye(coarse)[None, None]
    weights: Tensor = F.interpolate(points, size=(side, coarse), mode="bicubic", align_corners=True)
    return weights[0, 0]


def look_up(planes: Tensor, at: Tensor, mode: str) -> Tensor:
    """Read planes (C, H, W) float at coordinates (h, w, 2), reflected at the borders; `bilinear` or `nearest`.

    Returns
    -------
    (C, h, w)
    """
    steps = (2 / max(1, side - 1) for side in planes.shape[-2:])
    rows, columns = (at[..., axis] * step - 1 for axis, step in enumerate(steps))
    grid = torch.stack([columns, rows], dim=-1)  # grid_sample takes x before y
    return F.grid_sample(planes[None], grid[None], mode=mode, padding_mode="reflection", align_corners=True)[0]


def vary_grey_values(tile: Tensor, how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a normalised tile (C, h, w) with another gain, offset and noise."""
    gain, offset, noise = torch.randn(2, generator=generator).tolist() + torch.rand(1, generator=generator).tolist()
    varied: Tensor = tile * exp(how.gain * gain) + how.offset * offset
    if how.noise > 0:
        varied += torch.randn(tile.shape, generator=_on(tile.device, generator), device=tile.device) * how.noise * noise
    return varied


def _on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Return a generator that can draw on `device`, seeded by a CPU's."""
    if device.type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))


def _zoom(how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a random factor, as often above 1 as below."""
    return torch.exp((2 * torch.rand((), generator=generator) - 1) * log(how.zoom))


def _rotation(how: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a random rotation, perhaps with a reflection, (2, 2)."""
    angle = (2 * torch.rand((), generator=generator) - 1) * how.rotation * pi / 180
    mirror = 1.0 - 2.0 * (how.flips and bool(torch.rand((), generator=generator) < 0.5))
    cosine, sine = torch.cos(angle), torch.sin(angle)
    return torch.stack([torch.stack([cosine, -sine * mirror]), torch.stack([sine, cosine * mirror])])

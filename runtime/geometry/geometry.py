"""Sizes: which tiles a network accepts, and how far apart they may lie.

All sizes are in pixels and hold for both axes. For a U-Net with two unpadded 3x3 convolutions a block they follow
from the depth d, the number of poolings (Ronneberger et al. 2015, section 2 and figure 1).
"""

from dataclasses import dataclass

from unetrt.runtime.errors import TileError


@dataclass(frozen=True)
class Geometry:
    """How a network's output lies in its input.

    Attributes
    ----------
    halo
        Pixels of context on each side of an output pixel: input side = output side + 2 * halo.
    grid
        Period of the pooling lattice: two inputs shifted by a multiple of it give outputs shifted by the same.
    remainder
        A tile side is legal when it leaves this remainder modulo `grid`.
    """

    halo: int
    grid: int
    remainder: int = 0

    def __post_init__(self) -> None:
        if self.halo < 0 or self.grid < 1 or not 0 <= self.remainder < self.grid:
            raise TileError(f"halo {self.halo}, grid {self.grid}, remainder {self.remainder} describe no network")

    @classmethod
    def unet(cls, depth: int) -> "Geometry":
        """Return the geometry of the 2015 U-Net with `depth` poolings (4 in the paper: halo 92, grid 16)."""
        if depth < 1:
            raise TileError(f"a U-Net of depth {depth} has no contracting path: use a depth of 1 or more")
        period = 2**depth
        return cls(halo=6 * period - 4, grid=period, remainder=-4 % period)

    @property
    def smallest(self) -> int:
        """The smallest legal tile side."""
        return self.side_for(1)

    def side_for(self, core: int) -> int:
        """Return the smallest legal tile side whose core has at least `core` pixels."""
        side = 2 * self.halo + core
        return side + (self.remainder - side) % self.grid

    def is_legal(self, side: int) -> bool:
        """Tell whether the network accepts a tile of this side."""
        return side > 2 * self.halo and side % self.grid == self.remainder

    def require(self, side: int) -> int:
        """Return `side`, or raise TileError naming the nearest legal sides."""
        if self.is_legal(side):
            return side
        above = max(self.smallest, side + (self.remainder - side) % self.grid)
        near = f"{above - self.grid} or {above}" if above > self.smallest else f"{above}"
        rule = f"sides are {self.remainder} (mod {self.grid}) and at least {self.smallest}"
        raise TileError(f"tile {side} is not legal for halo {self.halo} and grid {self.grid} ({rule}): use {near}")

    def core(self, side: int) -> int:
        """Return the side of the valid output of a tile."""
        return side - 2 * self.halo

    def stride(self, side: int) -> int:
        """Return the distance between neighbouring tiles: the largest multiple of the grid within the core.

        On any other distance, neighbours pool on different lattices and disagree with a whole-image pass. Zero
        means that the tile can only be used alone.
        """
        return self.core(side) // self.grid * self.grid

    def count(self, side: int, length: int) -> int:
        """Return how many tiles of this side cover an axis of `length` pixels.

        Raises
        ------
        TileError
            The core is smaller than the grid, so that there is no stride, and one tile is not enough.
        """
        core, stride = self.core(side), self.stride(side)
        if length <= core:
            return 1
        if stride == 0:
            rule = f"its core of {core} px is smaller than the grid of {self.grid} px"
            usable = f"use {self.side_for(self.grid)} or more"
            raise TileError(f"tile {side} cannot be placed more than once ({rule}) on {length} px: {usable}")
        return 1 + -(-(length - core) // stride)

    def side_for_count(self, length: int, count: int) -> int:
        """Return the smallest legal side of which `count` tiles cover an axis of `length` pixels."""
        side = self.side_for(-(-length // count))
        while self.core(side) + (count - 1) * self.stride(side) < length:
            side += self.grid
        return side

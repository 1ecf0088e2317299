"""How far an output pixel of a network looks, measured on its footprint."""

from dataclasses import dataclass

from unetrt.export.adoption.ruler import Ruler
from unetrt.export.adoption.sizes import Sizes
from unetrt.runtime.errors import ModelFileError, OptionError, TileError

# Farther than this nobody tiles; the measuring image is this long at most, in pixels.
MAX_LENGTH = 8192
# Periods that are looked for, in pixels, where the axes of a network do not tell its own.
MAX_PERIOD = 64
# How far, in pixels, what a line touches may lie off the line on average: even kernels make a half.
OFF_CENTRE = 0.75


@dataclass(frozen=True)
class ReceptiveField:
    """How far a network looks and how often it repeats, in pixels.

    Attributes
    ----------
    radius
        An output pixel depends on input pixels up to this far away along an axis, and on none beyond.
    grid
        Period of the lattice of its poolings and strides.
    margin
        By how much the output is smaller than the input, height and width.
    """

    radius: int
    grid: int
    margin: tuple[int, int]

    @property
    def halo(self) -> int:
        """The least halo that is exact and puts the tiles on the lattice of a pass over the whole image."""
        least = max(self.radius, *(pixels // 2 for pixels in self.margin))
        return least + (self.margin[0] // 2 - least) % self.grid


def measure(sizes: Sizes, grid: int | None = None) -> ReceptiveField:
    """Measure a network, at every phase of its grid.

    Parameters
    ----------
    sizes
        The network and what sizes it runs on.
    grid
        The period of its lattice, if known: it is verified where more than one size runs.

    Raises
    ------
    ModelFileError
        An operator sees the whole image, or its reach is not known.
    OptionError
        The grid is none, or is needed since it cannot be measured.
    """
    rulers = [_ruler(sizes, axis, sizes.step or grid or 1) for axis in (0, 1)]
    found = _grid(sizes, grid)
    if sizes.step and grid is None:
        found = _repeating(sizes, rulers, found)
    _require_centred(sizes, rulers, found)
    return ReceptiveField(max(ruler.radius(found) for ruler in rulers), found, sizes.margin)


def _repeating(sizes: Sizes, rulers: list[Ruler], lattice: int) -> int:
    """Return the period of the network's reach: that of its axes, or a multiple where it works in larger windows."""
    longest = max(MAX_PERIOD, lattice)
    for period in range(lattice, longest + 1, lattice):
        rulers = [
            ruler if ruler.holds(2 * period) else _ruler(sizes, axis, 2 * period) for axis, ruler in enumerate(rulers)
        ]
        if all(ruler.repeats(period) for ruler in rulers):
            return period
    raise OptionError(
        f"{sizes.foreign.name} does not repeat within {longest} px: give --grid, the product of its strides, poolings "
        "and windows"
    )


def _require_centred(sizes: Sizes, rulers: list[Ruler], period: int) -> None:
    """Refuse a network that loses more at one end of an axis than at the other: its answer lies elsewhere."""
    for ruler, margin in zip(rulers, sizes.margin, strict=True):
        if margin and abs(offset := ruler.offset(period)) > OFF_CENTRE:
            raise ModelFileError(
                f"{sizes.foreign.name} loses {margin} px, and not the same at both ends: its answer lies {offset:g} px "
                "off the middle of its image; pad it evenly, or not at all"
            )


def _grid(sizes: Sizes, given: int | None) -> int:
    lattice = sizes.lattice
    if lattice is None and given is None:
        raise OptionError(
            f"{sizes.foreign.name} runs on one size only, so that its grid cannot be measured: give --grid, the "
            "product of its strides and poolings"
        )
    if lattice is not None and given is not None and given % lattice:
        raise OptionError(
            f"grid {given} is no period of this network, whose lattice repeats every {lattice} px: use --grid {lattice}"
        )
    return given or lattice or 1


def _ruler(sizes: Sizes, axis: int, period: int) -> Ruler:
    """Return a ruler that is long enough for a period along an axis, each one tried twice as long as the last."""
    length, suspect = sizes.least[axis], None
    while not (ruler := Ruler(sizes, axis, length)).holds(period):
        operator = ruler.global_operator()
        # A window that fills a short image sees all of it; what sees all of a longer one too has no end.
        if operator and (operator == suspect or not sizes.step):
            raise ModelFileError(_unlimited(sizes, operator))
        length, suspect = _longer(sizes, length), operator
    return ruler


def _longer(sizes: Sizes, length: int) -> int:
    name, (height, width) = sizes.foreign.name, sizes.tile
    if not sizes.step:
        raise TileError(
            f"{name} runs on {height}x{width} px only, too small to see where the influence of a pixel ends: "
            "export it with open axes, or for a larger image"
        )
    if 2 * length > MAX_LENGTH:
        raise ModelFileError(f"{name}: an output pixel looks more than {length // 2} px far: no tile is large enough")
    return length + -(-length // sizes.step) * sizes.step


def _unlimited(sizes: Sizes, operator: str) -> str:
    return (
        f"{sizes.foreign.name}: {operator} sees the whole image, so every pixel depends on every other and no halo "
        "makes tiles exact: train the network without it (batch normalisation in place of instance or group "
        "normalisation, no squeeze-and-excitation, global pooling or attention)"
    )

"""Which sizes a network that is not ours runs on, found by trying."""

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from math import lcm

from onnx import ModelProto

from unetrt.export.adoption.foreign import Foreign
from unetrt.export.adoption.static_graph import Size, fixed, output_shape
from unetrt.runtime.errors import ModelFileError, OptionError, TileError

# Steps from the tile to other sizes: the first suits lattices of powers of two, the second those of 3 and 5 as well.
STEPS = (64, 960)
# A step so long that an axis which grows once in up to 256, 3 * 256 or 5 * 256 pixels grows by what it should.
FAR = 3840
# Sides that networks with padding want are multiples of one of these.
USUAL_GRIDS = (2, 4, 8, 16, 32, 64)


@dataclass(frozen=True)
class Sizes:
    """A network around one size, at which it is known to run.

    Attributes
    ----------
    foreign
        The network.
    tile
        Height and width that it runs on, in pixels.
    margin
        By how much its output is smaller than its input, in pixels: even, the same for every size.
    step
        It runs on sides that differ from the tile's by multiples of this too; 0 where it runs on the tile alone.
    """

    foreign: Foreign
    tile: Size
    margin: Size
    step: int

    def at(self, size: Size) -> ModelProto:
        """Return the static graph for this size; raises TileError where the network does not run on it."""
        graph = fixed(self.foreign, size)
        if _margin(graph, size) != self.margin:
            raise TileError(f"{self.foreign.name} gives {_px(output_shape(graph)[-2:])} px for {_px(size)} px")
        return graph

    @cached_property
    def least(self) -> Size:
        """The least height and the least width that run when the other is the tile's: measuring on those is cheap."""
        return self._least(0), self._least(1)

    @cached_property
    def lattice(self) -> int | None:
        """How often the network's lattice repeats, in pixels; None where only one size runs.

        An axis that grows by 4 when the image grows by 64 has a value each 16 px.
        """
        if not self.step:
            return None
        return lcm(*(self._lattice(axis) for axis in (0, 1)))

    def _lattice(self, axis: int) -> int:
        """Return how often the lattice repeats along one axis, seen on a long, narrow image, which is cheap."""
        narrow = [self.tile[0], self.least[1]] if axis == 0 else [self.least[0], self.tile[1]]
        before = _axes(self.at((narrow[0], narrow[1])))
        for step in (FAR, self.step):
            longer = list(narrow)
            longer[axis] += step
            try:
                after = _axes(self.at((longer[0], longer[1])))
            except TileError:
                continue
            pairs = [pair for name, axes in before.items() for pair in zip(axes, after.get(name, axes), strict=True)]
            return lcm(*(Fraction(step, grown - side).numerator for side, grown in pairs if grown > side))
        return 1

    def _least(self, axis: int) -> int:
        least = self.margin[axis] + 1
        below = range(least + (self.tile[axis] - least) % self.step, self.tile[axis], self.step) if self.step else ()
        for side in below:
            try:
                self.at((side, self.tile[1]) if axis == 0 else (self.tile[0], side))
            except TileError:
                continue
            return side
        return self.tile[axis]


def sizes_of(foreign: Foreign, tile: Size, grid: int | None) -> Sizes:
    """Find out what sizes a network runs on, starting from the tile and, where it is known, the grid.

    Raises
    ------
    TileError
        It does not run on the tile.
    ModelFileError
        Its answer is not one a pixel.
    """
    margin = _margin(_at_tile(foreign, tile, grid), tile)
    if min(margin) < 0 or any(pixels % 2 for pixels in margin):
        raise ModelFileError(_not_one_a_pixel(foreign, tile, margin))
    others: list[tuple[Size, Size]] = []
    for step in (*((grid * -(-STEPS[0] // grid),) if grid else ()), *STEPS):
        larger = (tile[0] + step, tile[1] + step)
        try:
            graph = fixed(foreign, larger)
        except TileError:
            continue
        if (given := _margin(graph, larger)) == margin:
            return Sizes(foreign, tile, margin, step)
        others.append((larger, given))
    if others and foreign.size is None:
        size, given = others[0]
        raise ModelFileError(_not_one_a_pixel(foreign, size, given))
    return Sizes(foreign, tile, margin, 0)


def _at_tile(foreign: Foreign, tile: Size, grid: int | None) -> ModelProto:
    try:
        return fixed(foreign, tile)
    except TileError as error:
        if foreign.size and foreign.size != tile:
            advice = (
                f"the file is fixed to {_px(foreign.size)}: use --tile {_px(foreign.size)}, or export it with open axes"
            )
            raise TileError(f"{error}; {advice}") from error
        for multiple in (grid,) if grid else USUAL_GRIDS:
            near = (-(-tile[0] // multiple) * multiple, -(-tile[1] // multiple) * multiple)
            beyond = (near[0] + multiple, near[1] + multiple)
            if near != tile and _runs(foreign, near) and _runs(foreign, beyond):
                rule = f"multiples of {multiple} are legal"
                raise TileError(f"tile {_px(tile)} does not run ({rule}): use --tile {_px(near)}") from error
        raise


def _runs(foreign: Foreign, size: Size) -> bool:
    try:
        fixed(foreign, size)
    except TileError:
        return False
    return True


def _axes(graph: ModelProto) -> dict[str, list[int]]:
    """Return the axes of all images inside a static graph."""
    found = ((value.name, value.type.tensor_type.shape.dim) for value in graph.graph.value_info)
    return {name: [dim.dim_value for dim in dims] for name, dims in found if len(dims) == 4}


def _margin(graph: ModelProto, size: Size) -> Size:
    shape = output_shape(graph)
    if len(shape) not in (3, 4):
        raise OptionError(
            f"the output has shape {shape}: it must be (batch, classes, H, W), or (batch, H, W) of labels"
        )
    if len(shape) == 4 and shape[1:3] == size:
        raise ModelFileError(f"the output has shape {shape}, its channels last: export it as (batch, classes, H, W)")
    return size[0] - shape[-2], size[1] - shape[-1]


def _not_one_a_pixel(foreign: Foreign, size: Size, margin: Size) -> str:
    answer = _px((size[0] - margin[0], size[1] - margin[1]))
    return (
        f"{foreign.name} gives {answer} px for {_px(size)} px: the output must be as large as the input, or smaller "
        "by the same even number of pixels for every size; scale it up inside the network before exporting it"
    )


def _px(size: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in size)

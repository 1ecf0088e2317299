"""The graph of a package: a block of a frame in, an output of the same size back, of which the halo is no result.

Programs that segment by blocks (bioimageio.core) ask three things of a graph. Its output is as large as its input; it
loses as much on all sides; and blocks whose inner parts lie side by side give the result of one pass over the frame.
`in_blocks` adds nodes to a model's own graph, whose nodes and weights stay as they are. The first nodes make a tile of
the block: they cut rows and columns off at its beginning, so that the tile begins one halo of the network before the
inner part, and lengthen it at its end to a side that the network takes. The last ones cut the output to the inner part
and put a halo of zeros around it.

A block's halo is a multiple of the grid. So the sides of blocks are multiples of it, like those of frames that blocks
cover without leaving the lattice: bioimageio.core refuses arrays whose sides are not those of a block.

`Blocks` are the sizes of blocks. The graph of a U-Net takes every side; that of another network has one tile, so its
blocks have one size.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from unetrt.export.onnx_model import copy_of, strip
from unetrt.runtime.errors import GateError, TileError
from unetrt.runtime.geometry.plan import Geometry
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec, Tensor
from unetrt.runtime.sessions.agreement import difference
from unetrt.runtime.sessions.onnxruntime import failures, load, session_options, translated

__all__ = ["IMAGE", "SEGMENTATION", "Blocks", "in_blocks", "require_same"]

Array = NDArray[Any]

# Input and output of the graph.
IMAGE, SEGMENTATION = "image", "segmentation"
# Beginning of the names that are added.
ADDED = "unetrt/block/"


@dataclass(frozen=True)
class Blocks:
    """The blocks that a packaged model takes.

    Attributes
    ----------
    spec
        The spec of the model, with batch 1.
    """

    spec: ModelSpec

    @property
    def of_any_side(self) -> bool:
        """Whether the graph takes every side, of at least `geometry.smallest` pixels: that of a U-Net does."""
        return self.spec.shape is not None

    @property
    def geometry(self) -> Geometry:
        """Geometry of blocks: the network's, with its halo rounded up to a multiple of the grid."""
        grid = self.spec.grid
        return Geometry(-(-self.spec.halo // grid) * grid, grid)

    @property
    def margin(self) -> int:
        """Pixels at the beginning of a block, on each axis, that the network does not see."""
        return self.geometry.halo - self.spec.halo

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of a usual block without its halo, in pixels: the stride of the model's tile.

        Raises
        ------
        TileError
            The tile of a network that has only this one cannot be placed more than once.
        """
        geometry = self.spec.geometry
        height, width = (geometry.stride(side) for side in self.spec.tile)
        if self.of_any_side:
            return max(height, geometry.grid), max(width, geometry.grid)
        for side, stride in zip(self.spec.tile, (height, width), strict=True):
            if stride == 0:
                raise TileError(
                    f"tile {side} cannot be placed next to another: its core of {geometry.core(side)} px is smaller "
                    f"than the grid of {geometry.grid} px; use {geometry.side_for(geometry.grid)} or more"
                )
        return height, width

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a usual block, in pixels."""
        height, width = (self.geometry.side_for(side) for side in self.inner)
        return height, width

    @property
    def tile(self) -> tuple[int, int]:
        """Height and width of the tile that computes a usual block, in pixels."""
        height, width = (self.spec.geometry.side_for(side) for side in self.inner)
        return (height, width) if self.of_any_side else self.spec.tile


def in_blocks(model: ModelProto, spec: ModelSpec) -> ModelProto:
    """Return a graph that takes blocks, made from the graph of a tile.

    Parameters
    ----------
    model
        A model of unetrt with batch 1. If it is a U-Net, only the shapes of its input and output depend on the tile.
    spec
        Its spec.

    Returns
    -------
    Input `IMAGE` (1, C, y, x) of the spec's input dtype; output `SEGMENTATION` (1, classes, y, x) float32, or
    (1, 1, y, x) uint8 for head `labels`. The sides are those of `Blocks`: free, or fixed. No metadata.
    """
    blocks, model = Blocks(spec), copy_of(model)
    strip(model)
    model.ClearField("metadata_props")
    given, answer = spec.tensors()
    sides: tuple[int | str, ...] = ("y", "x") if blocks.of_any_side else blocks.sides
    image = Tensor(_unused(model, IMAGE), (1, spec.channels, *blocks.sides), given.dtype)
    depth = 1 if spec.head == "labels" else len(spec.classes)
    segmentation = Tensor(_unused(model, SEGMENTATION), (1, depth, *blocks.sides), answer.dtype)
    added = _Nodes()
    added.tile(image, blocks)
    first = len(added.nodes)
    added.halo(answer, segmentation, blocks)
    graph = model.graph
    nodes = [*added.nodes[:first], *graph.node, *added.nodes[first:]]
    for field in ("node", "input", "output", "value_info"):
        graph.ClearField(field)
    graph.node.extend(nodes)
    graph.initializer.extend(added.constants)
    for values, tensor in ((graph.input, image), (graph.output, segmentation)):
        kind = helper.np_dtype_to_tensor_dtype(tensor.dtype)
        values.append(helper.make_tensor_value_info(tensor.name, kind, [*tensor.shape[:2], *sides]))
    onnx.checker.check_model(model, full_check=True)
    return model


def require_same(path: Path, spec: ModelSpec, image: Array, expected: Array) -> None:
    """Compare the result of a packaged graph with that of the model that it was made from.

    Parameters
    ----------
    path
        The file that `in_blocks` made.
    spec
        The spec of the model, with batch 1.
    image
        A usual block, (1, C, y, x), as the graph takes it.
    expected
        The model's output for its inner part, as `ModelSpec.tensors` says.

    Raises
    ------
    GateError
        They differ, for this block or, if the sides are free, for the smallest one in it.
    InferenceError
        ONNX Runtime cannot load or run the graph.
    """
    blocks = Blocks(spec)
    halo, smallest = blocks.geometry.halo, (blocks.geometry.smallest,) * 2
    for height, width in {blocks.sides, smallest if blocks.of_any_side else blocks.sides}:
        output = _run(path, image[..., :height, :width])
        found = output[..., halo : height - halo, halo : width - halo]
        found = found[:, 0] if spec.head == "labels" else found
        wanted = expected[..., : found.shape[-2], : found.shape[-1]]
        if reason := difference(spec, wanted, found):
            raise GateError(f"in blocks of {height}x{width} px the model gives another result: {reason}")


def _run(path: Path, image: Array) -> Array:
    """Return the output of a graph with one input and one output, computed by ONNX Runtime on the CPU."""
    try:
        engine = load(path, session_options(0), ["CPUExecutionProvider"])
        (output,) = engine.run(None, {engine.get_inputs()[0].name: np.ascontiguousarray(image)})
    except failures() as error:
        raise translated(error, "the model does not run in blocks") from error
    return np.asarray(output)


def _unused(model: ModelProto, name: str) -> str:
    """Return a name that no tensor of a graph has: `name`, or one that begins with it."""
    used = {each for node in model.graph.node for each in (*node.input, *node.output)}
    while name in used:
        name += "_"
    return name


class _Nodes:
    """Nodes and constants that are added to a graph, in order."""

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.constants: list[TensorProto] = []

    def tile(self, image: Tensor, blocks: Blocks) -> None:
        """Make a tile of a block; the names `inner` and `beyond` then are two lengths in pixels, of both axes.

        `inner` is the block's inner part; by `beyond` what begins at the tile's first pixel is lengthened.
        """
        end = [np.iinfo(np.int64).max] * 2
        if blocks.of_any_side:
            self._measure(image.name, blocks)
        else:
            end = [blocks.margin + side for side in blocks.tile]
            missing = (last - side for last, side in zip(end, blocks.sides, strict=True))
            self.constant("beyond", [max(pixels, 0) for pixels in missing])
            self.constant("inner", list(blocks.inner))
        cut = self.slice(image.name, [blocks.margin] * 2, self.constant("end", end), axes=[2, 3], output="begun")
        widths = self.node("Concat", [self.constant("before", [0] * 6), ADDED + "beyond"], "widths", axis=0)
        self.pad(image._replace(name=cut), widths, INPUT)

    def halo(self, answer: Tensor, segmentation: Tensor, blocks: Blocks) -> None:
        """Cut the network's output to the inner part, as (1, channels, height, width), and add a halo of zeros."""
        axes = [len(answer.shape) - 2, len(answer.shape) - 1]
        cut = self.slice(OUTPUT, [0, 0], ADDED + "inner", axes=axes, output="cut")
        leading = self.constant("leading", list(segmentation.shape[:2]))
        shape = self.node("Concat", [leading, ADDED + "inner"], "shape of cut", axis=0)
        shaped = self.node("Reshape", [cut, shape], "shaped")
        widths = self.constant("halo", [0, 0, *[blocks.geometry.halo] * 2] * 2)
        self.pad(answer._replace(name=shaped), widths, segmentation.name)

    def _measure(self, image: str, blocks: Blocks) -> None:
        """Compute `inner` and `beyond` (see `Geometry.side_for`) from the shape of a block."""
        geometry = blocks.spec.geometry
        shape = self.node("Shape", [image], "shape")
        sides = self.slice(shape, [2], self.constant("rank", [4]), axes=[0], output="sides")
        self.node("Sub", [sides, self.constant("halos", [2 * blocks.geometry.halo] * 2)], "inner")
        given = self.node("Sub", [sides, self.constant("margin", [blocks.margin] * 2)], "given")
        behind = self.node("Sub", [self.constant("remainder", [geometry.remainder] * 2), given], "behind")
        self.node("Mod", [behind, self.constant("grid", [geometry.grid] * 2)], "beyond")

    def constant(self, name: str, values: list[int]) -> str:
        """Add an int64 vector and return its name."""
        self.constants.append(numpy_helper.from_array(np.array(values, np.int64), ADDED + name))
        return ADDED + name

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node of the standard with one output, and return the name of that: `ADDED` and `name`."""
        return self.write(operator, inputs, ADDED + name, **attributes)

    def write(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Add a node with this output, and return the name of that."""
        name = ADDED + output.removeprefix(ADDED)
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))
        return output

    def slice(self, tensor: str, starts: list[int], ends: str, axes: list[int], output: str) -> str:
        """Add a Slice, and return its output's name."""
        begin, along = self.constant(f"{output}/starts", starts), self.constant(f"{output}/axes", axes)
        return self.node("Slice", [tensor, begin, ends, along], output)

    def pad(self, tensor: Tensor, widths: str, output: str) -> None:
        """Add zeros around a tensor; ONNX Runtime pads no uint16, and uint8 only from opset 13 on: those as int32."""
        if tensor.dtype.kind == "f":
            self.write("Pad", [tensor.name, widths], output)
            return
        wide = self.node("Cast", [tensor.name], f"{output}/int32", to=TensorProto.INT32)
        padded = self.node("Pad", [wide, widths], f"{output}/padded")
        self.write("Cast", [padded], output, to=helper.np_dtype_to_tensor_dtype(tensor.dtype))

"""A network of another toolkit: its ONNX file, its graph at a fixed size, and the sizes it runs on.

`read_foreign` checks a file: one image in, one output, which may be chosen, no spec of unetrt. `Foreign.at` returns its
graph with every shape fixed, and raises TileError for a size that does not run. `sizes_of` tries sizes around a tile.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from hashlib import sha256
from math import lcm, prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto

from unetrt.export.adoption._ends import WHOLE, give_channels_first, is_channels_last, keep_output, take_float_image
from unetrt.export.onnx_model import axes_of, copy_of, declare_input, inferred, strip
from unetrt.runtime.errors import BackendUnavailableError, ModelFileError, OptionError, TileError, one_line
from unetrt.runtime.files.atomic import scratch_folder
from unetrt.runtime.model.integrity import external_files
from unetrt.runtime.model.onnx_file import read_metadata
from unetrt.runtime.model.spec import KEY, Precision
from unetrt.runtime.sessions.onnxruntime import probe

Size = tuple[int, int]

# `TensorProto.DataType` of onnx.proto -> precision that weights of this type are computed in.
FLOATS: dict[int, Precision] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
# The first opset whose Slice takes its bounds as inputs and whose Resize says how coordinates map.
OLDEST_OPSET = 11
# The domain of the standard's operators, in both spellings.
STANDARD = ("", "ai.onnx")
# Operators that repeat a graph.
REPEATING = ("Loop", "Scan", "SequenceMap")
# Limits of nodes after inlining, a large network has some thousands, and of functions that call each other.
MOST_NODES, MOST_NESTED = 1 << 17, 100
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger")

# Steps from the tile to other sizes, in pixels: 64 suits lattices of powers of two, 960 those with factors 3 and 5 too.
STEPS = (64, 960)
# A step, in pixels, on which an axis grows in proportion if it grows once in up to 256, 3 * 256 or 5 * 256 pixels.
FAR = 3840
# Sides of padded networks are multiples of one of these, usually of a power of two.
GRIDS = (*(2**power for power in range(1, 7)), *(side for side in range(3, 65) if side.bit_count() > 1))

# Graphs of one network for different sizes that are kept, each with all weights.
KEPT = 4


@dataclass(frozen=True)
class Foreign:
    """A graph with one input (N, C, H, W) of floats and one output.

    Attributes
    ----------
    model
        The model with its weights, functions inlined.
    name
        The file's name, for messages.
    brightest
        The largest grey value of an input that was of whole numbers, else None.
    """

    model: ModelProto
    name: str
    brightest: int | None = None

    @property
    def channels(self) -> int:
        """Number of channels of the input."""
        return int(_inputs(self.model)[0].type.tensor_type.shape.dim[1].dim_value)

    @property
    def size(self) -> Size | None:
        """Height and width that the file fixes, in pixels; None where one of them is open."""
        height, width = (int(dim.dim_value) for dim in _inputs(self.model)[0].type.tensor_type.shape.dim[2:])
        return (height, width) if height and width else None

    @cached_property
    def precision(self) -> Precision:
        """Type of the arithmetic: `int8` if the graph quantises, else the type of most weights."""
        if any(node.op_type in QUANTISED for node in self.model.graph.node):
            return "int8"
        counts: Counter[Precision] = Counter()
        for tensor in _weights(self.model):
            if tensor.data_type in FLOATS:
                counts[FLOATS[tensor.data_type]] += prod(tensor.dims)
        return counts.most_common(1)[0][0] if counts else "fp32"

    def sha256(self) -> str:
        """Return the hash of all weights, in the graph's order, in hexadecimal."""
        digest = sha256()
        for tensor in _weights(self.model):
            digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
        return digest.hexdigest()

    def at(self, size: Size, batch: int = 1) -> ModelProto:
        """Return the graph for inputs (batch, C, *size), all shapes inferred and all shape arithmetic folded.

        ONNX Runtime's basic optimisations fold the constants; they emit operators of the standard only.

        Raises
        ------
        TileError
            The network does not run at this size.
        """
        return copy_of(self._latest(size, batch))

    @cached_property
    def _latest(self) -> Callable[[Size, int], ModelProto]:
        """`_static` with its latest results kept: what is measured returns to a few sizes, mostly to the tile's."""
        return lru_cache(maxsize=KEPT)(self._static)

    def _static(self, size: Size, batch: int) -> ModelProto:
        model = copy_of(self.model)
        shape = (batch, self.channels, *size)
        declare_input(model, _inputs(model)[0].name, shape)
        try:
            static = inferred(_folded(model))
            if not all(isinstance(axis, int) and axis > 0 for axis in output_shape(static) or [0]):
                raise ValueError("the shape of its output depends on more than the input's shape")
            static = give_channels_first(static, size)
            Runner(static)(np.zeros(shape, np.float32))
        except _failures() as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            raise TileError(f"{self.name} does not run on {batch} x {size[0]}x{size[1]} px: {reason}") from error
        return static

    def runs(self, size: Size) -> bool:
        """Return whether the network runs at a size."""
        try:
            self.at(size)
        except TileError:
            return False
        return True


def read_foreign(path: str | Path, output: str | None = None) -> Foreign:
    """Read and check a file.

    Parameters
    ----------
    path
        The file.
    output
        Name of the output that counts; None for the only one.

    Raises
    ------
    ModelFileError
        It is not an ONNX file, is incomplete, keeps weights outside its folder, is a model of unetrt, or does not have
        one image as input and, unless one is chosen, one output.
    OptionError
        It has no output of this name.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist: give the ONNX file of a trained network")
    external_files(path)
    if KEY in read_metadata(path):
        raise ModelFileError(f"{path} is a model of unetrt already: nothing to adopt, `unetrt predict {path}` runs it")
    try:
        model = onnx.load(path)
        _require_bounded(model, path)
        onnx.checker.check_model(model)
        model = onnx.inliner.inline_local_functions(model)
    except ModelFileError:
        raise
    # onnx raises protobuf's DecodeError, ValueError, its checker's ValidationError and OSErrors.
    except Exception as error:
        reason = one_line(error, first=True)
        raise ModelFileError(f"{path} is not an ONNX file that can be read: {reason}") from error
    for opset in model.opset_import:
        if opset.domain in STANDARD and opset.version < OLDEST_OPSET:
            raise ModelFileError(
                f"{path} is of opset {opset.version}, {OLDEST_OPSET} is the oldest that can be adopted: export it "
                "again, or raise it with onnx.version_converter.convert_version"
            )
    keep_output(model, output, path)
    kind = _require_one_image(model, path)
    take_float_image(model.graph, _inputs(model)[0].name)
    return Foreign(model, path.name, WHOLE.get(kind))


def _require_bounded(model: ModelProto, path: Path) -> None:
    """Refuse operators that repeat a graph, and functions that become too many nodes when they are inlined."""
    functions = {(function.domain, function.name): function for function in model.functions}
    counted: dict[tuple[str, str], int] = {}

    def count(nodes: Iterable[NodeProto], depth: int) -> int:
        if depth > MOST_NESTED:
            raise ModelFileError(f"{path}: its functions call each other more than {MOST_NESTED} deep")
        total = 0
        for node in nodes:
            # protobuf returns text that is not UTF-8 as bytes
            if not all(isinstance(name, str) for name in (node.name, *node.input, *node.output)):
                raise ModelFileError(f"{path} has a name that is not UTF-8: export the network again")
            if node.op_type in REPEATING and node.domain in STANDARD:
                raise ModelFileError(
                    f"{path} has a {node.op_type}, which computes for as long as a value says: export the network "
                    "without it"
                )
            for graph in (graph for each in node.attribute for graph in (each.g, *each.graphs)):
                total += count(graph.node, depth + 1)
            key = (node.domain, node.op_type)
            if key in functions and key not in counted:
                counted[key] = count(functions[key].node, depth + 1)
            total += counted.get(key, 1)
        if total > MOST_NODES:
            raise ModelFileError(
                f"{path} has more than {MOST_NODES} nodes with its functions inlined: export it without"
            )
        return total

    count(model.graph.node, 0)
    for function in model.functions:
        count(function.node, 0)


def _require_one_image(model: ModelProto, path: Path) -> int:
    """Return the type of the input's values; raises ModelFileError unless there is one input, an image."""
    inputs = _inputs(model)
    if len(inputs) != 1:
        names = ", ".join(value.name for value in inputs) or "none"
        raise ModelFileError(f"{path} has {len(inputs)} inputs ({names}): export it with one image as input")
    axes = [axis or "?" for axis in axes_of(inputs[0])]
    if len(axes) != 4:
        raise ModelFileError(f"{path}: its input {inputs[0].name} has axes {axes}: it must be (batch, channels, H, W)")
    if not isinstance(axes[3 if is_channels_last(axes_of(inputs[0])) else 1], int):
        raise ModelFileError(
            f"{path}: its input {inputs[0].name} has axes {axes}: export it with a fixed channel count"
        )
    kind = int(inputs[0].type.tensor_type.elem_type)
    if kind not in (TensorProto.FLOAT, TensorProto.FLOAT16, *WHOLE):
        given = TensorProto.DataType.Name(kind).lower()
        raise ModelFileError(
            f"{path}: its input is {given}: export it for float32 or float16, normalised outside, or for raw uint8 or "
            "uint16"
        )
    return kind


def _inputs(model: ModelProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs of a graph without the weights, which old files list among them."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in stored]


def _weights(model: ModelProto) -> Iterator[TensorProto]:
    """Iterate over the constants of a graph: initializers and Constant nodes."""
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def output_shape(model: ModelProto) -> tuple[Any, ...]:
    """Return the shape of a graph's output; all lengths are int in a static graph."""
    return axes_of(model.graph.output[0])


class Runner:
    """A static graph in ONNX Runtime on the CPU."""

    def __init__(self, model: ModelProto) -> None:
        self._session = _session(model)
        self._name = self._session.get_inputs()[0].name
        self._dtype = onnx.helper.tensor_dtype_to_np_dtype(model.graph.input[0].type.tensor_type.elem_type)

    def __call__(self, image: NDArray[np.float32]) -> list[NDArray[Any]]:
        """Return all outputs for one input (N, C, H, W) float32, which is cast to the graph's dtype."""
        return list(self._session.run(None, {self._name: image.astype(self._dtype)}))


def _folded(model: ModelProto) -> ModelProto:
    with scratch_folder() as folder:
        path = folder / "folded.onnx"
        _session(model, path)
        folded = onnx.load(path)
    strip(folded)
    return folded


def _session(model: ModelProto, folded: Path | None = None) -> Any:
    """Return a session of ONNX Runtime, which writes the graph with its constants folded to a file if one is given."""
    if reason := probe():
        raise BackendUnavailableError(reason)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: failures are reported in one line by the caller
    if folded is not None:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(folded)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _failures() -> tuple[type[Exception], ...]:
    """Return the exceptions of onnx and ONNX Runtime for a graph that does not work."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    ours = (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError)
    return (*(getattr(state, name) for name in names), *ours)


@dataclass(frozen=True)
class Sizes:
    """The sizes that a network runs on, around one at which it is known to run.

    Attributes
    ----------
    foreign
        The network.
    tile
        Height and width that it runs on, in pixels.
    margin
        Input size minus output size, in pixels: even, and the same for every size.
    step
        The network also runs on sides that differ from the tile's by multiples of this; 0 if it runs on the tile alone.
    """

    foreign: Foreign
    tile: Size
    margin: Size
    step: int

    def at(self, size: Size) -> ModelProto:
        """Return the static graph for this size; raises TileError where the network does not run on it."""
        graph = self.foreign.at(size)
        if _margin(graph, size) != self.margin:
            raise TileError(f"{self.foreign.name} outputs {_px(output_shape(graph)[-2:])} px for {_px(size)} px")
        return graph

    @cached_property
    def least(self) -> Size:
        """The least height and width that run while the other side is the tile's: cheap sizes to measure on."""
        return self._least(0), self._least(1)

    @cached_property
    def lattice(self) -> int | None:
        """Period of the network's lattice, in pixels; None where only one size runs.

        An axis that grows by 4 when the image grows by 64 holds one value every 16 px.
        """
        if not self.step:
            return None
        return lcm(*(self._lattice(axis) for axis in (0, 1)))

    def _lattice(self, axis: int) -> int:
        """Return the period along one axis, from the axes inside the graph for two long, narrow images."""
        narrow = (self.tile[0], self.least[1]) if axis == 0 else (self.least[0], self.tile[1])
        before = _inner_axes(self.at(narrow))
        for step in (FAR, self.step):
            longer = (narrow[0] + step, narrow[1]) if axis == 0 else (narrow[0], narrow[1] + step)
            try:
                after = _inner_axes(self.at(longer))
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
    """Find the sizes that a network runs on, starting from the tile and, if known, the grid.

    Raises
    ------
    TileError
        It does not run on the tile.
    ModelFileError
        Its output does not have one value for each pixel.
    """
    margin = _margin(_at_tile(foreign, tile, grid), tile)
    if min(margin) < 0 or any(pixels % 2 for pixels in margin):
        raise ModelFileError(_not_one_a_pixel(foreign, tile, margin))
    others: list[tuple[Size, Size]] = []
    for step in _steps(foreign, grid):
        larger = (tile[0] + step, tile[1] + step)
        try:
            graph = foreign.at(larger)
        except TileError:
            continue
        if (given := _margin(graph, larger)) == margin:
            return Sizes(foreign, tile, margin, step)
        others.append((larger, given))
    if others and foreign.size is None:
        raise ModelFileError(_not_one_a_pixel(foreign, *others[0]))
    return Sizes(foreign, tile, margin, 0)


def _steps(foreign: Foreign, grid: int | None) -> Iterator[int]:
    """Iterate over steps to try, in pixels; where axes are open, one of them is a multiple of any grid up to 64."""
    if grid:
        yield grid * -(-STEPS[0] // grid)
    yield from STEPS
    if foreign.size is None and not grid:
        yield from range(STEPS[0] + 1, 2 * STEPS[0])


def _at_tile(foreign: Foreign, tile: Size, grid: int | None) -> ModelProto:
    """Return the static graph for the tile; the TileError where it does not run names a size that does."""
    try:
        return foreign.at(tile)
    except TileError as error:
        if foreign.size and foreign.size != tile:
            fixed = _px(foreign.size)
            raise TileError(
                f"{error}; the file is fixed to {fixed}: use --tile {fixed}, or export it with open axes"
            ) from error
        for multiple in (grid,) if grid else GRIDS:
            near = (-(-tile[0] // multiple) * multiple, -(-tile[1] // multiple) * multiple)
            beyond = (near[0] + multiple, near[1] + multiple)
            if near != tile and foreign.runs(near) and foreign.runs(beyond):
                rule = f"multiples of {multiple} are legal"
                raise TileError(f"tile {_px(tile)} does not run ({rule}): use --tile {_px(near)}") from error
        raise


def _inner_axes(graph: ModelProto) -> dict[str, list[int]]:
    """Return the axes of every tensor with four axes inside a static graph."""
    found = ((value.name, value.type.tensor_type.shape.dim) for value in graph.graph.value_info)
    return {name: [dim.dim_value for dim in dims] for name, dims in found if len(dims) == 4}


def _margin(graph: ModelProto, size: Size) -> Size:
    shape = output_shape(graph)
    if len(shape) not in (3, 4):
        raise OptionError(
            f"the output has shape {shape}: it must be (batch, classes, H, W), or (batch, H, W) of labels"
        )
    return size[0] - shape[-2], size[1] - shape[-1]


def _not_one_a_pixel(foreign: Foreign, size: Size, margin: Size) -> str:
    answer = _px((size[0] - margin[0], size[1] - margin[1]))
    return (
        f"{foreign.name} outputs {answer} px for {_px(size)} px: the output must be as large as the input, or smaller "
        "by the same even number of pixels for every size; scale it up inside the network before exporting it"
    )


def _px(size: tuple[int, ...]) -> str:
    return "x".join(str(side) for side in size)

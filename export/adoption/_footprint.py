"""The footprint of a network: the outputs that each pixel can influence, independent of the weights' values.

A static graph is rewritten into one, in float32, that computes with touched (1) and untouched (0). For an image that is
1 in one place, its output is 1 exactly where that place can have an influence. Unlike an experiment with noise, this
hides nothing: no ReLU is dead, no sum cancels and no weight is too small, because every sum is reduced to 0 or 1 again.
A weight of exactly zero has no influence.

Each operator of ONNX has one rule (`RULES`); operators of the same behaviour share it. An operator without a rule is
refused, since its reach would be a guess.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import onnx
import onnx.reference
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from unetrt.export.adoption._foreign import STANDARD
from unetrt.export.onnx_model import axes_of
from unetrt.runtime.errors import ModelFileError

# Least share of a pixel in an interpolated value that counts as influence: above the rounding of coordinates, and 1/128
# of a neighbour's share in a linear interpolation.
INTERPOLATED = 1e-3
Attributes = Iterable[onnx.AttributeProto]


class WholeImageError(ModelFileError):
    """A network whose output pixels depend on the whole image, so that no halo makes tiles exact.

    Attributes
    ----------
    cause
        The reason, as a part of a sentence.
    """

    def __init__(self, name: str, cause: str, remedy: str) -> None:
        super().__init__(
            f"{name}: {cause}, so no halo makes tiles exact: {remedy}, or accept tiles that differ with --approximate "
            "OVERLAP"
        )
        self.cause = cause


@dataclass(frozen=True)
class Footprint:
    """A graph that computes with touched (1) and untouched (0).

    Attributes
    ----------
    model
        Input: float32 (1, C, h, w) of zeros and ones. First output: the shape of the original's. Two scalar outputs
        follow for each mixer: the share of its input that is touched, and the share of its output.
    mixers
        The operators that may see the whole image, as `Operator "name"`, in the graph's order.
    """

    model: ModelProto
    mixers: tuple[str, ...]


def footprint(model: ModelProto, name: str) -> Footprint:
    """Return the footprint of a static graph with its constants folded and all shapes inferred.

    Parameters
    ----------
    model
        The graph.
    name
        The file's name, for messages.

    Raises
    ------
    ModelFileError
        An operator has no rule, or no halo makes tiles exact with it.
    """
    graph = _Graph(model, name)
    for node in model.graph.node:
        if graph.data(node):
            rule = RULES.get(node.op_type) if node.domain in STANDARD else None
            if rule is None:
                why = "is not among the operators whose reach is known here: export the network without it"
                graph.refuse(node, why)
            rule(graph, node)
        else:
            graph.evaluate(node)
    return Footprint(graph.finished(), tuple(graph.mixers))


class _Graph:
    """A footprint under construction: the rules read the original graph here and add nodes to the new one.

    Parameters
    ----------
    model
        The original: static, all shapes inferred.
    name
        The file's name, for messages.

    Attributes
    ----------
    opset
        Version of the standard's operators in both graphs.
    constants
        Values that do not depend on the image, by name.
    touched
        Names of the values that do.
    mixers
        The operators that may see the whole image, as `Operator "name"`, in the graph's order.
    """

    def __init__(self, model: ModelProto, name: str) -> None:
        graph = model.graph
        self.name = name
        self.opset = next(opset.version for opset in model.opset_import if opset.domain in STANDARD)
        self.constants: dict[str, NDArray[Any]] = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.touched = {graph.input[0].name}
        self.mixers: list[str] = []
        self._original = model
        self._nodes: list[NodeProto] = []
        self._kept: dict[str, NDArray[Any]] = {}
        self._probes: list[onnx.ValueInfoProto] = []
        values = (*graph.value_info, *graph.input, *graph.output)
        self._ranks = {value.name: len(axes_of(value)) for value in values}

    def data(self, node: NodeProto) -> list[str]:
        """Return the inputs of a node that depend on the image."""
        return [name for name in node.input if name in self.touched]

    def rank(self, name: str) -> int:
        """Return the number of axes of a value of the original graph."""
        return self._ranks[name]

    def constant(self, node: NodeProto, index: int) -> NDArray[Any] | None:
        """Return the input at `index` if it is constant, or None if it is left out or depends on the image."""
        return self.constants.get(node.input[index]) if index < len(node.input) else None

    def emit(self, operator: str, inputs: list[str], outputs: list[str], attributes: Attributes = ()) -> None:
        """Add a node."""
        node = helper.make_node(operator, inputs, outputs)
        node.attribute.extend(attributes)
        self._nodes.append(node)
        self.touched.update(outputs)

    def keep(self, array: NDArray[Any], like: str) -> str:
        """Add a constant and return its name, which begins with `like`."""
        name = f"{like}:{len(self._kept)}"
        self._kept[name] = array
        return name

    def touch(self, node: NodeProto, inputs: list[str], attributes: Attributes) -> None:
        """Add the operator of `node`, which sums, and reduce its output to zeros and ones."""
        out = node.output[0]
        self.emit(node.op_type, inputs, [f"{out}:sum"], attributes)
        self.emit("Sign", [f"{out}:sum"], [out])

    def reduce(self, name: str, axes: list[int] | None, keepdims: bool, out: str) -> None:
        """Add a node that is 1 where any value along `axes` (None for all axes) is 1."""
        attributes = [helper.make_attribute("keepdims", int(keepdims))]
        inputs = [name]
        if axes is not None and self.opset < 18:
            attributes.append(helper.make_attribute("axes", axes))
        elif axes is not None:
            inputs.append(self.keep(np.array(axes, np.int64), out))
        self.emit("ReduceMax", inputs, [out], attributes)

    def watch(self, node: NodeProto, before: str, after: str) -> None:
        """Record an operator that may see the whole image, and the touched share of its input and output."""
        self.mixers.append(f"{node.op_type} {node.name!r}")
        for probe, name in ((f"{after}:before", before), (f"{after}:after", after)):
            self.emit("ReduceMean", [name], [probe], [helper.make_attribute("keepdims", 0)])
            self._probes.append(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []))

    def evaluate(self, node: NodeProto) -> None:
        """Compute a node that does not depend on the image, such as the dequantisation of weights."""
        given = {name: self.constants[name] for name in node.input if name in self.constants}
        if set(node.input) - {""} - set(given):
            self.refuse(node, "takes a secondary output of another operator, whose reach is not known here")
        results = onnx.reference.ReferenceEvaluator(node).run(None, given)
        self.constants.update(zip(node.output, map(np.asarray, results), strict=True))

    def refuse(self, node: NodeProto, why: str) -> NoReturn:
        """Raise ModelFileError that names the operator."""
        raise ModelFileError(f"{self.name}: {node.op_type} {node.name!r} {why}")

    def finished(self) -> ModelProto:
        """Return the model: the image as input, the footprint and the probes of each mixer as outputs, all float32."""
        graph = self._original.graph
        ends = [_as_float(value) for value in (graph.input[0], graph.output[0])]
        constants = [numpy_helper.from_array(array, name) for name, array in self._kept.items()]
        made = helper.make_graph(self._nodes, "footprint", ends[:1], [*ends[1:], *self._probes], constants)
        opset = [helper.make_opsetid("", self.opset)]
        return helper.make_model(made, opset_imports=opset, ir_version=self._original.ir_version)


def _as_float(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(value.name, TensorProto.FLOAT, axes_of(value))


Rule = Callable[[_Graph, NodeProto], None]


def _pointwise(graph: _Graph, node: NodeProto) -> None:
    """Copy each value: activations, normalisation by stored statistics, casts, quantisation by stored scales."""
    if _attribute(node, "training_mode", 0):
        graph.refuse(node, "is in training mode: export the network in evaluation mode (net.eval() in torch)")
    if graph.data(node) != [node.input[0]]:
        graph.refuse(node, "takes its parameters from the image, so that its reach is not known here")
    graph.emit("Identity", [node.input[0]], [node.output[0]])


def _union(graph: _Graph, node: NodeProto) -> None:
    """Join the operands. A constant touches nothing, but broadcasting may enlarge the output to its shape."""
    operands = [
        name if name in graph.data(node) else graph.keep(_zeros(graph.constant(node, index)), node.output[0])
        for index, name in enumerate(node.input)
    ]
    graph.emit("Max", operands, [node.output[0]])


def _convolution(graph: _Graph, node: NodeProto) -> None:
    """Touch through every tap with a non-zero weight; a bias is the same everywhere."""
    weights = graph.constant(node, 1)
    if weights is None or graph.data(node) != [node.input[0]]:
        graph.refuse(node, "takes its weights from the image, so that its reach is not known here")
    graph.touch(node, [node.input[0], graph.keep(_taps(weights), node.output[0])], node.attribute)


def _product(graph: _Graph, node: NodeProto) -> None:
    """Touch through the non-zero weights of a constant factor, else join a row and a column."""
    if len(graph.data(node)) < 2:
        operands = [
            name if name in graph.data(node) else graph.keep(_taps(graph.constant(node, index)), node.output[0])
            for index, name in enumerate(node.input[:2])
        ]
        graph.touch(node, operands, [each for each in node.attribute if each.name in ("transA", "transB")])
    elif node.op_type == "MatMul":
        (left, right), out = node.input, node.output[0]
        graph.reduce(left, [-1], True, f"{out}:rows")
        graph.reduce(right, [-2], True, f"{out}:columns")
        graph.emit("Max", [f"{out}:rows", f"{out}:columns"], [out])
    else:
        graph.refuse(node, "multiplies two parts of the image: its reach is not known here")
    graph.watch(node, graph.data(node)[0], node.output[0])


def _window(graph: _Graph, node: NodeProto) -> None:
    """Join the pixels of a window, for averages and maxima."""
    graph.touch(node, [node.input[0]], node.attribute)


def _interpolation(graph: _Graph, node: NodeProto) -> None:
    """Join the pixels with a share in the value, negative shares of cubic kernels included.

    Coordinates that depend on the image's size are refused, since they differ between a tile and the frame.
    """
    mode = _attribute(node, "coordinate_transformation_mode", b"half_pixel")
    if mode in (b"align_corners", b"tf_crop_and_resize"):
        raise WholeImageError(
            graph.name,
            f"{node.op_type} {node.name!r} samples with {mode.decode()} at positions that depend on the image's size",
            "export the network with align_corners=False",
        )
    out = node.output[0]
    constants = [_kept(graph, node, index) for index in range(1, len(node.input))]
    graph.emit("Resize", [node.input[0], *constants], [f"{out}:sum"], node.attribute)
    graph.emit("Abs", [f"{out}:sum"], [f"{out}:abs"])
    threshold = graph.keep(np.array(INTERPOLATED, np.float32), out)
    graph.emit("Greater", [f"{out}:abs", threshold], [f"{out}:touched"])
    graph.emit("Cast", [f"{out}:touched"], [out], [helper.make_attribute("to", 1)])


def _layout(graph: _Graph, node: NodeProto) -> None:
    """Move values, which stay unchanged."""
    if node.op_type != "Concat" and graph.data(node) != [node.input[0]]:
        graph.refuse(node, "moves values to positions that depend on the image, so that its reach is not known here")
    inputs = [
        name if name in graph.data(node) else _kept(graph, node, index, zero=node.op_type == "Concat")
        for index, name in enumerate(node.input)
    ]
    graph.emit(node.op_type, inputs, list(node.output), node.attribute)


def _padding(graph: _Graph, node: NodeProto) -> None:
    """Pad with untouched values, since a padding value does not depend on the image."""
    inputs = [node.input[0], _kept(graph, node, 1), "", *([_kept(graph, node, 3)] if len(node.input) > 3 else [])]
    graph.emit("Pad", inputs if len(inputs) > 3 else inputs[:2], list(node.output), node.attribute)


def _reduction(graph: _Graph, node: NodeProto) -> None:
    """Join the values along the axes."""
    stored = graph.constant(node, 1)
    axes = [int(axis) for axis in (_attribute(node, "axes", []) if stored is None else stored)]
    if node.op_type.startswith("Arg"):
        axes = [_attribute(node, "axis", 0)]
    if not axes and _attribute(node, "noop_with_empty_axes", 0):
        _pointwise(graph, node)
        return
    graph.reduce(node.input[0], axes or None, bool(_attribute(node, "keepdims", 1)), node.output[0])
    graph.watch(node, node.input[0], node.output[0])


def _global_pool(graph: _Graph, node: NodeProto) -> None:
    """Join all pixels."""
    graph.reduce(node.input[0], list(range(2, graph.rank(node.input[0]))), True, node.output[0])
    graph.watch(node, node.input[0], node.output[0])


def _normalised(graph: _Graph, node: NodeProto) -> None:
    """Join each value with all along the axes over which the statistics are computed."""
    out = node.output[0]
    graph.reduce(node.input[0], _axes(graph, node), True, f"{out}:over")
    graph.emit("Max", [node.input[0], f"{out}:over"], [out])
    graph.watch(node, node.input[0], out)


def _axes(graph: _Graph, node: NodeProto) -> list[int]:
    """Return the axes over which an operator computes its statistics."""
    rank = graph.rank(node.input[0])
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        # Before opset 13 all axes from `axis` on are flattened into one (onnx, Changelog.md, Softmax-13).
        return (
            list(range(_attribute(node, "axis", 1) % rank, rank))
            if graph.opset < 13
            else [_attribute(node, "axis", -1)]
        )
    if node.op_type in ("LayerNormalization", "RMSNormalization"):
        return list(range(_attribute(node, "axis", -1) % rank, rank))
    if node.op_type == "MeanVarianceNormalization":
        return list(_attribute(node, "axes", [0, 2, 3]))
    if node.op_type == "LpNormalization":
        return [_attribute(node, "axis", -1)]
    if node.op_type == "LRN":
        return [1]
    return list(range(1, rank))  # InstanceNormalization, GroupNormalization: space and, to be safe, all channels


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    found = [helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name]
    return found[0] if found else default


def _kept(graph: _Graph, node: NodeProto, index: int, zero: bool = False) -> str:
    constant = graph.constant(node, index)
    if constant is None:
        return ""
    return graph.keep(_zeros(constant) if zero else constant, node.output[0])


def _zeros(constant: NDArray[Any] | None) -> NDArray[np.float32]:
    return np.zeros(() if constant is None else constant.shape, np.float32)


def _taps(weights: NDArray[Any] | None) -> NDArray[np.float32]:
    assert weights is not None
    return np.asarray(weights != 0, np.float32)


RULES: dict[str, Rule] = {
    operator: rule
    for rule, operators in (
        (
            _pointwise,
            "Abs Acos Asin Atan BatchNormalization BitShift Cast CastLike Ceil Celu Clip Cos DequantizeLinear Dropout "
            "Elu Erf Exp Floor Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Not QuantizeLinear "
            "Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Softplus Softsign Sqrt Swish Tanh ThresholdedRelu",
        ),
        (
            _union,
            "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum "
            "Where Xor",
        ),
        (_convolution, "Conv ConvTranspose"),
        (_product, "Gemm MatMul"),
        (_window, "AveragePool LpPool MaxPool"),
        (_interpolation, "Resize"),
        (
            _layout,
            "Concat DepthToSpace Expand Flatten Gather Reshape Slice SpaceToDepth Split Squeeze Tile Transpose "
            "Unsqueeze",
        ),
        (_padding, "Pad"),
        (
            _reduction,
            "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
            "ReduceSum ReduceSumSquare",
        ),
        (_global_pool, "GlobalAveragePool GlobalLpPool GlobalMaxPool"),
        (
            _normalised,
            "GroupNormalization Hardmax InstanceNormalization LRN LayerNormalization LogSoftmax LpNormalization "
            "MeanVarianceNormalization RMSNormalization Softmax",
        ),
    )
    for operator in operators.split()
}

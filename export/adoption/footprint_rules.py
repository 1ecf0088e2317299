"""How each operator of ONNX passes on what is touched; see `footprint`. Operators that behave alike share a rule."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from unetrt.export.adoption.footprint_graph import FootprintGraph

# What an interpolation must pass on to count: more than rounding of its coordinates, less than the share of a
# neighbour in a linear interpolation by a factor of 64, 1/128.
INTERPOLATED = 1e-3
Rule = Callable[[FootprintGraph, NodeProto], None]


def _pointwise(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on value by value: activations, normalisation by stored statistics, casts, quantisation by stored scales."""
    if _attribute(node, "training_mode", 0):
        graph.refuse(node, "is in training mode: export the network in evaluation mode (net.eval() in torch)")
    if graph.data(node) != [node.input[0]]:
        graph.refuse(node, "takes its parameters from the image, so that its reach is not known here")
    graph.emit("Identity", [node.input[0]], [node.output[0]])


def _union(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on what any operand has. A constant only gives its shape, should it be the larger."""
    operands = [
        name if name in graph.data(node) else graph.keep(_zeros(graph.constant(node, index)), node.output[0])
        for index, name in enumerate(node.input)
    ]
    graph.emit("Max", operands, [node.output[0]])


def _convolution(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on at each tap with a weight that is not exactly zero; the bias is the same everywhere."""
    weights = graph.constant(node, 1)
    if weights is None or graph.data(node) != [node.input[0]]:
        graph.refuse(node, "takes its weights from the image, so that its reach is not known here")
    graph.touch(node.op_type, [node.input[0], graph.keep(_taps(weights), node.output[0])], node)


def _product(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on as a convolution where one factor is constant, else the union of a row and a column."""
    if len(graph.data(node)) < 2:
        operands = [
            name if name in graph.data(node) else graph.keep(_taps(graph.constant(node, index)), node.output[0])
            for index, name in enumerate(node.input[:2])
        ]
        bare = NodeProto()
        bare.CopyFrom(node)
        kept = [attribute for attribute in node.attribute if attribute.name in ("transA", "transB")]
        del bare.attribute[:]
        bare.attribute.extend(kept)
        graph.touch(node.op_type, operands, bare)
    elif node.op_type == "MatMul":
        (left, right), out = node.input, node.output[0]
        graph.reduce(left, [-1], True, f"{out}:rows")
        graph.reduce(right, [-2], True, f"{out}:columns")
        graph.emit("Max", [f"{out}:rows", f"{out}:columns"], [out])
    else:
        graph.refuse(node, "multiplies two parts of the image: its reach is not known here")
    graph.watch(node, graph.data(node)[0], node.output[0])


def _window(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on what any pixel of a window has: averages and maxima alike."""
    graph.touch(node.op_type, [node.input[0]], node)


def _interpolation(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on what has a share: negative for cubic kernels. Coordinates that depend on the image's size fit no tile."""
    mode = _attribute(node, "coordinate_transformation_mode", b"half_pixel")
    if mode in (b"align_corners", b"tf_crop_and_resize"):
        graph.refuse(
            node,
            f"samples with {mode.decode()}: where it reads depends on the size of the image, so no halo makes tiles "
            "exact; export the network with align_corners=False",
        )
    out = node.output[0]
    constants = [_kept(graph, node, index) for index in range(1, len(node.input))]
    graph.emit("Resize", [node.input[0], *constants], [f"{out}:sum"], node.attribute)
    graph.emit("Abs", [f"{out}:sum"], [f"{out}:abs"])
    threshold = graph.keep(np.array(INTERPOLATED, np.float32), out)
    graph.emit("Greater", [f"{out}:abs", threshold], [f"{out}:touched"])
    graph.emit("Cast", [f"{out}:touched"], [out], [helper.make_attribute("to", 1)])


def _layout(graph: FootprintGraph, node: NodeProto) -> None:
    """Move values as they are."""
    if node.op_type != "Concat" and graph.data(node) != [node.input[0]]:
        graph.refuse(node, "moves values to where the image says: its reach is not known here")
    inputs = [
        name if name in graph.data(node) else _kept(graph, node, index, zero=node.op_type == "Concat")
        for index, name in enumerate(node.input)
    ]
    graph.emit(node.op_type, inputs, list(node.output), node.attribute)


def _padding(graph: FootprintGraph, node: NodeProto) -> None:
    """Pad with what is the same everywhere: untouched."""
    inputs = [node.input[0], _kept(graph, node, 1), "", *([_kept(graph, node, 3)] if len(node.input) > 3 else [])]
    graph.emit("Pad", inputs if len(inputs) > 3 else inputs[:2], list(node.output), node.attribute)


def _reduction(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on what anything along the axes has."""
    stored = graph.constant(node, 1)
    axes = [int(axis) for axis in (_attribute(node, "axes", []) if stored is None else stored)]
    if node.op_type.startswith("Arg"):
        axes = [_attribute(node, "axis", 0)]
    if not axes and _attribute(node, "noop_with_empty_axes", 0):
        _pointwise(graph, node)
        return
    graph.reduce(node.input[0], axes or None, bool(_attribute(node, "keepdims", 1)), node.output[0])
    graph.watch(node, node.input[0], node.output[0])


def _global_pool(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on what any pixel has."""
    graph.reduce(node.input[0], list(range(2, graph.rank(node.input[0]))), True, node.output[0])
    graph.watch(node, node.input[0], node.output[0])


def _normalised(graph: FootprintGraph, node: NodeProto) -> None:
    """Pass on to a value what anything has along the axes whose statistics it is divided by."""
    out = node.output[0]
    graph.reduce(node.input[0], _axes(graph, node), True, f"{out}:over")
    graph.emit("Max", [node.input[0], f"{out}:over"], [out])
    graph.watch(node, node.input[0], out)


def _axes(graph: FootprintGraph, node: NodeProto) -> list[int]:
    """Return the axes that an operator takes its statistics over."""
    rank = graph.rank(node.input[0])
    if node.op_type in ("Softmax", "LogSoftmax", "Hardmax"):
        # Before opset 13 all axes from `axis` on are one (onnx, Changelog.md, Softmax-13).
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
    return list(range(1, rank))  # InstanceNormalization and GroupNormalization: space, and some channels


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    found = [helper.get_attribute_value(attribute) for attribute in node.attribute if attribute.name == name]
    return found[0] if found else default


def _kept(graph: FootprintGraph, node: NodeProto, index: int, zero: bool = False) -> str:
    constant = graph.constant(node, index)
    if constant is None:
        return ""
    return graph.keep(_zeros(constant) if zero else constant, node.output[0])


def _zeros(constant: NDArray[Any] | None) -> NDArray[np.float32]:
    return np.zeros(() if constant is None else constant.shape, np.float32)


def _taps(weights: NDArray[Any] | None) -> NDArray[np.float32]:
    assert weights is not None
    return np.asarray(weights != 0, np.float32)


_OPERATORS: tuple[tuple[Rule, str], ...] = (
    (
        _pointwise,
        "Abs Acos Asin Atan BatchNormalization BitShift Cast CastLike Ceil Celu Clip Cos Dropout Elu Erf Exp Floor",
    ),
    (
        _pointwise,
        "Gelu HardSigmoid HardSwish Identity LeakyRelu Log Mish Neg Not Reciprocal Relu Round Selu Shrink Sigmoid",
    ),
    (_pointwise, "Sign Sin Softplus Softsign Sqrt Swish Tanh ThresholdedRelu QuantizeLinear DequantizeLinear"),
    (
        _union,
        "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor",
    ),
    (_convolution, "Conv ConvTranspose"),
    (_product, "Gemm MatMul"),
    (_window, "AveragePool LpPool MaxPool"),
    (_interpolation, "Resize"),
    (
        _layout,
        "Concat DepthToSpace Expand Flatten Gather Reshape Slice SpaceToDepth Split Squeeze Tile Transpose Unsqueeze",
    ),
    (_padding, "Pad"),
    (
        _reduction,
        "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd",
    ),
    (_reduction, "ReduceSum ReduceSumSquare"),
    (_global_pool, "GlobalAveragePool GlobalLpPool GlobalMaxPool"),
    (_normalised, "GroupNormalization Hardmax InstanceNormalization LRN LayerNormalization LogSoftmax LpNormalization"),
    (_normalised, "MeanVarianceNormalization RMSNormalization Softmax"),
)
RULES: dict[str, Rule] = {operator: rule for rule, operators in _OPERATORS for operator in operators.split()}

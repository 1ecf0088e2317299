"""The operators that a model file may have besides those of a U-Net's layers, each with a rule for its result's shape.

They are those of the heads and precisions that unetrt exports, and those of the networks that it adopts: operators
whose result has a size that follows from shapes and constants, and that look nothing up at run time. `safety` applies
the rules.
"""

from collections.abc import Callable
from itertools import zip_longest
from math import prod

import numpy as np

from unetrt.runtime.model.onnx_file import AGAIN, FLOAT, Operation, Shape

Rule = Callable[[Operation], Shape | list[Shape]]

BFLOAT16 = 16
# TensorProto.DataType of floating-point numbers -> how numpy reads their bytes; of bfloat16, its 16 bits.
FRACTIONS = {FLOAT: "<f4", 10: "<f2", 11: "<f8", BFLOAT16: "<u2"}
# Axes that a node adds at most.
MOST_ADDED = 8


def _gathered(op: Operation) -> Shape:
    shape, axis, places = op.shape(), op.axis(0), op.constant(1) or []
    wrong = next((place for place in places if not -shape[axis] <= place < shape[axis]), None)
    op.require(wrong is None, f"takes element {wrong} of {shape[axis]}")
    return (*shape[:axis], *op.shape(1), *shape[axis + 1 :])


def _quantised(op: Operation) -> Shape:
    shape, scale = op.shape(), op.shape(1)
    op.require(not op.number("block_size", 0), "has a block_size")
    op.require(prod(scale) == 1 or scale == (shape[op.axis(1)],), f"takes scales of shape {scale} for {shape}")
    return shape


def _joined(op: Operation, one: Shape, other: Shape) -> Shape:
    """Broadcast two shapes as numpy does."""
    pairs = list(zip_longest(reversed(one), reversed(other), fillvalue=1))
    op.require(all(a == b or 1 in (a, b) for a, b in pairs), f"takes shapes {one} and {other}, which do not fit")
    return tuple(b if a == 1 else a for a, b in reversed(pairs))


def _broadcast(op: Operation) -> Shape:
    shape: Shape = ()
    for index in range(len(op.values)):
        shape = _joined(op, shape, op.shape(index))
    return shape


def _quotient(op: Operation) -> Shape:
    """Broadcast; division of integers by 0 ends the process."""
    op.require(op.value().data_type in FRACTIONS, "divides integers, perhaps by 0")
    return _broadcast(op)


def _batch_normalised(op: Operation) -> Shape:
    op.require(all(op.shape(index) == op.shape()[1:2] for index in range(1, 5)), "takes other than one value a channel")
    return op.shape()


def _grouped(op: Operation) -> Shape:
    groups = op.number("num_groups", 0)
    op.require(groups > 0 and op.shape()[1] % groups == 0, f"has {groups} groups, which do not divide its channels")
    return op.shape()


def _product(op: Operation) -> Shape:
    first, second = op.shape(), op.shape(1)
    if op.node.operator == "Gemm":
        op.require(len(first) == len(second) == 2, f"multiplies shapes {first} and {second}")
        first, second = (
            shape[::-1] if op.number(name, 0) else shape for name, shape in (("transA", first), ("transB", second))
        )
    op.require(min(len(first), len(second)) > 1 and first[-1] == second[-2], f"multiplies shapes {first} and {second}")
    return (*_joined(op, first[:-2], second[:-2]), first[-2], second[-1])


def _resized(op: Operation) -> Shape:
    shape = op.shape()
    taken = ("tf_crop_and_resize", "tf_half_pixel_for_nn")
    op.require(op.node.attributes.get("coordinate_transformation_mode") not in taken, f"uses {' or '.join(taken)}")
    op.require(op.node.attributes.get("keep_aspect_ratio_policy", "stretch") == "stretch", "keeps the aspect ratio")
    places = op.axes(MOST_ADDED, len(shape)) or list(range(len(shape)))
    scales, sizes = op.constant(2, (FLOAT,)) or None, op.constant(3)
    found = list(shape)
    op.require(
        len(scales or sizes or []) == len(places), f"has other than one scale or size for each of {len(places)} axes"
    )
    for index, axis in enumerate(places):
        # Engines multiply in float32.
        scaled = np.float32(scales[index]) * np.float32(shape[axis]) if scales else np.float32(0)
        op.require(bool(np.isfinite(scaled)), "scales by NaN or infinity")
        found[axis] = int(scaled) if scales else (sizes or [])[index]
    return tuple(found)


def _rearranged(op: Operation) -> Shape:
    shape, block = op.shape(), op.number("blocksize", 0)
    op.require(len(shape) == 4 and block > 0, f"has blocksize {block}")
    batch, channels, height, width = shape
    if op.node.operator == "DepthToSpace":
        op.require(channels % block**2 == 0, f"splits {channels} channels into blocks of {block}")
        return batch, channels // block**2, height * block, width * block
    op.require(height % block == width % block == 0, f"splits {height} x {width} pixels into blocks of {block}")
    return batch, channels * block**2, height // block, width // block


def _expanded(op: Operation) -> Shape:
    return _joined(op, op.shape(), tuple(op.constant(1) or ()))


def _tiled(op: Operation) -> Shape:
    shape, repeats = op.shape(), op.constant(1) or []
    op.require(len(repeats) == len(shape), f"has {len(repeats)} repeats for {len(shape)} axes")
    return tuple(side * repeat for side, repeat in zip(shape, repeats, strict=True))


def _flattened(op: Operation) -> Shape:
    shape = op.shape()
    axis = op.number("axis", 1)
    axis = op.place(axis, len(shape)) if axis < len(shape) else op.place(axis - 1, len(shape)) + 1
    return prod(shape[:axis]), prod(shape[axis:])


def _reshaped(op: Operation) -> Shape:
    shape, wanted = op.shape(), op.constant(1) or []
    copies = not op.number("allowzero", 0)
    op.require(min(wanted, default=0) >= -1 and wanted.count(-1) <= 1, f"makes shape {wanted[:MOST_ADDED]}")
    op.require(not copies or 0 not in wanted[len(shape) :], f"copies an axis of {shape} that is not there")
    found = [shape[axis] if copies and side == 0 else side for axis, side in enumerate(wanted)]
    if -1 in found:
        found[found.index(-1)] = prod(shape) // max(1, -prod(found))
    op.require(prod(found) == prod(shape), f"makes shape {wanted[:MOST_ADDED]} of {shape}")
    return tuple(found)


def _split(op: Operation) -> list[Shape]:
    shape, axis, count = op.shape(), op.axis(0), len(op.node.outputs)
    sizes = op.listed("split", 1)
    if sizes is None:
        each = -(-shape[axis] // count)
        sizes = [*[each] * (count - 1), shape[axis] - each * (count - 1)]
    op.require(
        len(sizes) == count and min(sizes) > 0 and sum(sizes) == shape[axis], f"splits {shape[axis]} as {sizes[:8]}"
    )
    return [(*shape[:axis], size, *shape[axis + 1 :]) for size in sizes]


def _squeezed(op: Operation) -> Shape:
    shape = op.shape()
    axes = op.axes(1, len(shape))
    axes = [axis for axis, side in enumerate(shape) if side == 1] if axes is None else axes
    op.require(all(shape[axis] == 1 for axis in axes), f"removes axes {axes} of {shape}")
    return tuple(side for axis, side in enumerate(shape) if axis not in axes)


def _unsqueezed(op: Operation) -> Shape:
    shape = op.shape()
    count = len(op.listed("axes", 1) or [])
    op.require(0 < count <= MOST_ADDED, f"adds {count} axes")
    axes, sides = op.axes(1, len(shape) + count) or [], iter(shape)
    return tuple(1 if axis in axes else next(sides) for axis in range(len(shape) + count))


def _transposed(op: Operation) -> Shape:
    shape = op.shape()
    order = op.node.attributes.get("perm", list(range(len(shape)))[::-1])
    if not isinstance(order, list) or sorted(order) != list(range(len(shape))):
        op.refuse(f"has an order of axes that is not one of {len(shape)}; {AGAIN}")
    return tuple(shape[axis] for axis in order)


def _padded(op: Operation) -> Shape:
    found, pads, mode = list(op.shape()), op.constant(1) or [], op.node.attributes.get("mode", "constant")
    axes = op.axes(3, len(found))
    axes = list(range(len(found))) if axes is None else axes
    op.require(len(pads) == 2 * len(axes), f"has {len(pads)} pads for {len(axes)} axes")
    for axis, first, last in zip(axes, pads[: len(axes)], pads[len(axes) :], strict=True):
        side = found[axis]
        # OpenVINO 2026.4 crashes where more is cropped than there is.
        op.require(side + min(first, 0) + min(last, 0) > 0, f"crops {first} and {last} of {side} pixels")
        op.require(
            mode in ("constant", "edge") or 0 <= min(first, last) <= max(first, last) < side,
            f"mirrors {first} and {last} of {side} pixels",
        )
        found[axis] = side + first + last
    return tuple(found)


def _reduced(op: Operation) -> Shape:
    shape = op.shape()
    axes = [op.axis(0)] if op.node.operator.startswith("Arg") else op.axes(1, len(shape))
    if not axes:
        axes = [] if op.number("noop_with_empty_axes", 0) else list(range(len(shape)))
    kept = op.number("keepdims", 1)
    return tuple(1 if axis in axes else side for axis, side in enumerate(shape) if kept or axis not in axes)


def _pooled_globally(op: Operation) -> Shape:
    return (*op.shape()[:2], *(1 for _ in op.shape()[2:]))


# Operators whose result has the shape of their first input.
POINTWISE = (
    *("Abs", "Acos", "Asin", "Atan", "Cast", "CastLike", "Ceil", "Celu", "Clip", "Cos", "Dropout", "Elu", "Erf", "Exp"),
    *("Floor", "Gelu", "HardSigmoid", "HardSwish", "Hardmax", "Identity", "InstanceNormalization", "LRN"),
    *("LayerNormalization", "LeakyRelu", "Log", "LogSoftmax", "LpNormalization", "MeanVarianceNormalization", "Mish"),
    *("Neg", "Not", "RMSNormalization", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin"),
    *("Softmax", "Softplus", "Softsign", "Sqrt", "Swish", "Tanh", "ThresholdedRelu"),
)
# Operator -> rule.
OTHER_RULES: dict[str, Rule] = {
    operator: rule
    for rule, operators in (
        (
            _broadcast,
            "Add And BitShift Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mul Or PRelu Pow Sub Sum "
            "Where Xor",
        ),
        (_quotient, "Div Mod"),
        (_batch_normalised, "BatchNormalization"),
        (_grouped, "GroupNormalization"),
        (_quantised, "DequantizeLinear QuantizeLinear"),
        (_product, "Gemm MatMul"),
        (_resized, "Resize"),
        (_rearranged, "DepthToSpace SpaceToDepth"),
        (_expanded, "Expand"),
        (_tiled, "Tile"),
        (_flattened, "Flatten"),
        (_gathered, "Gather"),
        (_reshaped, "Reshape"),
        (_split, "Split"),
        (_squeezed, "Squeeze"),
        (_unsqueezed, "Unsqueeze"),
        (_transposed, "Transpose"),
        (_padded, "Pad"),
        (
            _reduced,
            "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
            "ReduceSum ReduceSumSquare",
        ),
        (_pooled_globally, "GlobalAveragePool GlobalLpPool GlobalMaxPool"),
    )
    for operator in operators.split()
}
# Rules of operators whose result cannot take the place of an input in memory.
OTHER_APART = (_product, _resized, _reduced, _pooled_globally)
# Fewest inputs in any version of an operator (onnx 1.23, docs/Operators.md), of all operators, where it is not 1.
_FEWEST = {
    2: "Add And BitShift CastLike Conv ConvTranspose DequantizeLinear Div Equal Expand Gather Gemm Greater "
    "GreaterOrEqual LayerNormalization Less LessOrEqual MatMul Mod Mul Or PRelu Pow QuantizeLinear RMSNormalization "
    "Sub Tile Xor",
    3: "GroupNormalization InstanceNormalization Where",
    5: "BatchNormalization",
}
FEWEST_INPUTS = {operator: count for count, operators in _FEWEST.items() for operator in operators.split()}

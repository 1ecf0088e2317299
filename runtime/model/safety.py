"""The network of a model file, checked before any engine opens it: operators, shapes and numbers.

Engines crash on some files that ONNX allows. `require_safe` checks the integrity of the file, and looks at every node:
its operator is one that unetrt exports or adopts, and the size of its result is known. `Network` derives it.
"""

from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.byte_pairs import (
    DIM,
    DIM_VALUE,
    ELEM_TYPE,
    GRAPH_INPUT,
    GRAPH_OUTPUT,
    INITIALIZER,
    NODE,
    SHAPE,
    TENSOR_TYPE,
    VALUE_NAME,
    VALUE_TYPE,
)
from unetrt.runtime.model.integrity import BITS, MAX_BYTES, STRING, StoredTensor, checked, is_intact
from unetrt.runtime.model.onnx_file import (
    AGAIN,
    BOOL,
    FLOAT,
    GRAPH,
    INT64,
    MAX_TEXT,
    RAW_DATA,
    SHOWN,
    Field,
    Message,
    Node,
    Operation,
    Shape,
    Value,
    integers,
    opened,
    read_spec,
    signed,
)
from unetrt.runtime.model.operators import (
    BFLOAT16,
    FEWEST_INPUTS,
    FRACTIONS,
    OTHER_APART,
    OTHER_RULES,
    POINTWISE,
    Rule,
)
from unetrt.runtime.model.spec import MAX_ELEMENTS, ModelSpec

# The oldest opset whose Slice, Pad and Resize take bounds as inputs. The latest is 26; from some versions that do not
# exist OpenVINO 2026.4 never returns.
OLDEST_OPSET, MAX_OPSET = 11, 1000
# ModelProto, GraphProto and OperatorSetIdProto.
OPSET, TRAINING, FUNCTION = 8, 20, 25
SPARSE_INITIALIZER = 15
OPSET_DOMAIN, OPSET_VERSION = 1, 2
# Domains of ONNX's standard operators.
ONNX = ("", "ai.onnx")
# Limits: axes of a value (TensorRT's), and steps of a pooling, values of its result times taps, of which engines take
# some 10^9 a second.
MOST_AXES, MOST_STEPS = 8, 1 << 38
# Nodes of a graph. OpenVINO 2026.4 takes minutes to compile a chain of 20,000, and does not end at a signal meanwhile.
MOST_NODES = 8192
# TensorProto.DataType of some results; of values, which are neither texts nor complex; and of those with fractions.
UINT8 = 2
# The fields float_data and double_data; int32_data holds fractions of 16 bits, one in each integer.
TYPED_FRACTIONS, INTEGERS = (4, 10), 5
VALUE_TYPES = BITS.keys() - {STRING, 14, 15}
# The types of a model's input and output, as numpy names them.
NAMES = {FLOAT: "float32", UINT8: "uint8", 4: "uint16"}


def _same(op: Operation) -> Shape:
    """Pass the shape on; the operators with an axis name one that is there."""
    shape = op.shape()
    if "axis" in op.node.attributes and shape:
        op.place(op.number("axis", 0), len(shape) + (op.node.operator == "Flatten"))
    return shape


def _dropout(op: Operation) -> Shape:
    """Pass the shape on; in training, a drop-out draws at random."""
    training = op.constant(2, (BOOL,))
    op.require(not training or not training[0], "drops values at random: export the network in evaluation mode")
    return _same(op)


def _convolution(op: Operation) -> Shape:
    shape, weights, groups = op.shape(), op.shape(1), op.number("group", 1)
    transposed = op.node.operator == "ConvTranspose"
    op.require(len(shape) == len(weights) > 2 and groups > 0, f"takes shapes {shape} and {weights} in {groups} groups")
    out, taken = (weights[1] * groups, weights[0]) if transposed else (weights[0], weights[1] * groups)
    op.require(shape[1] == taken and out % groups == 0, f"takes {shape[1]} channels, its weights {taken}")
    op.require(op.given(2) is None or op.shape(2) == (out,), f"has biases other than one for each of {out} channels")
    kernel = op.numbers("kernel_shape", list(weights[2:]))
    op.require(tuple(kernel) == weights[2:], f"has kernel_shape {kernel}, its weights {weights[2:]}")
    return (shape[0], out, *_windows(op, shape[2:], kernel, transposed))


def _pooled(op: Operation) -> Shape:
    shape = op.shape()
    kernel = op.node.attributes.get("kernel_shape")
    op.require(isinstance(kernel, list) and len(kernel) == len(shape) - 2 > 0, "has no kernel_shape")
    kernel = op.numbers("kernel_shape", [0] * (len(shape) - 2))
    shape = (*shape[:2], *_windows(op, shape[2:], kernel, ceil=op.number("ceil_mode", 0) == 1))
    op.require(prod(shape) * prod(kernel) <= MOST_STEPS, f"takes {prod(shape) * prod(kernel)} steps, over {MOST_STEPS}")
    return shape


def _windows(op: Operation, sides: Shape, kernel: list[int], transposed: bool = False, ceil: bool = False) -> Shape:
    """Return the sides of the result of a convolution or pooling (onnx, Operators.md: Conv, ConvTranspose, MaxPool)."""
    count = len(sides)
    strides, dilations = (op.numbers(name, [1] * count) for name in ("strides", "dilations"))
    pads, further = op.numbers("pads", [0, 0] * count), op.numbers("output_padding", [0] * count)
    auto = op.node.attributes.get("auto_pad", "NOTSET")
    op.require(auto in ("NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER"), "has an unknown auto_pad")
    op.require(
        min(*kernel, *strides, *dilations) > 0 <= min(*pads, *further), "has a kernel, stride or pad out of range"
    )
    full = op.numbers("output_shape", [0] * count)
    found = []
    for axis, (side, stride, taps) in enumerate(zip(sides, strides, kernel, strict=True)):
        span = (taps - 1) * dilations[axis] + 1
        begin, end = (pads[axis], pads[axis + count]) if auto == "NOTSET" else (0, 0)
        if transposed:
            most = stride * (side - 1) + span + further[axis]
            found.append(full[axis] or (side * stride if str(auto).startswith("SAME") else most - begin - end))
            op.require(0 < found[-1] <= max(most, side * stride), f"makes {found[-1]} of {side} pixels")
        elif str(auto).startswith("SAME"):
            found.append(-(-side // stride))
        else:
            room = side + begin + end - span
            op.require(room >= 0, f"has a kernel of {span} pixels, larger than its padded input")
            steps = -(-room // stride) if ceil else room // stride
            # A window that begins in the padding beyond the end does not count.
            found.append(steps + (not ceil or steps * stride < side + begin))
    return tuple(found)


def _concatenated(op: Operation) -> Shape:
    axis, shape = op.axis(0), op.shape()
    shapes = [op.shape(index) for index in range(len(op.values))]
    alike = {(*one[:axis], *one[axis + 1 :]) for one in shapes}
    op.require(len(alike) == 1 and {len(one) for one in shapes} == {len(shape)}, f"joins shapes {shapes[:4]}")
    return (*shape[:axis], sum(one[axis] for one in shapes), *shape[axis + 1 :])


def _sliced(op: Operation) -> Shape:
    found, starts, ends = list(op.shape()), op.constant(1) or [], op.constant(2) or []
    axes = op.axes(3, len(found))
    axes = list(range(len(starts))) if axes is None else axes
    steps = op.constant(4) or [1] * len(axes)
    op.require(len(starts) == len(ends) == len(axes) == len(steps) <= len(found), "has other than one bound an axis")
    op.require(all(0 < abs(step) <= MAX_BYTES for step in steps), "has a step of 0, or beyond 32 bits")
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        found[axis] = len(range(*slice(start, end, step).indices(found[axis])))
    return tuple(found)


# Operators of a U-Net -> rule; those of other heads, precisions and networks are in `operators`.
RULES: dict[str, Rule] = {
    **OTHER_RULES,
    **dict.fromkeys(POINTWISE, _same),
    "Dropout": _dropout,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
    "AveragePool": _pooled,
    "LpPool": _pooled,
    "MaxPool": _pooled,
    "Slice": _sliced,
    "Concat": _concatenated,
}
# Operators whose result cannot take the place of an input in memory.
APART = {operator for operator, rule in RULES.items() if rule in (_convolution, _pooled, *OTHER_APART)}
BOOLEAN = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor")


def _type_of(op: Operation) -> int:
    """Return the TensorProto.DataType of an operation's result."""
    match op.node.operator:
        case "Cast":
            return op.number("to", 0)
        case "ArgMax" | "ArgMin":
            return INT64
        case "Where" | "DequantizeLinear" | "CastLike":
            return op.value(1).data_type
        case "QuantizeLinear":
            return op.value(2).data_type if op.given(2) else op.number("output_dtype", UINT8)
        case operator:
            return BOOL if operator in BOOLEAN else op.value().data_type


class Declared(NamedTuple):
    """A ValueInfoProto: name, TensorProto.DataType and lengths of the axes, None where they are open."""

    name: str
    data_type: int
    axes: tuple[int | None, ...]

    @classmethod
    def read(cls, info: Message) -> "Declared":
        """Read a ValueInfoProto; one without a shape has no axes."""
        name, kind, axes = "", 0, list[int | None]()
        for part in info.fields():
            if part.number == VALUE_NAME:
                name = info.read(part, MAX_TEXT).decode(errors="replace")
            elif part.number == VALUE_TYPE:
                tensor = info.inside(part)
                tensor = tensor.inside(tensor.only(TENSOR_TYPE))
                kind = tensor.only(ELEM_TYPE).value
                for shape in (tensor.inside(each) for each in tensor.fields() if each.number == SHAPE):
                    axes = [_length(shape.inside(dim)) for dim in shape.fields() if dim.number == DIM]
        return cls(name, kind, tuple(axes))

    def __str__(self) -> str:
        """Return name, shape and type as `unetrt.runtime.model.spec.Tensor` writes them."""
        shape = ", ".join("?" if length is None else str(length) for length in self.axes)
        return f"{self.name[:SHOWN]} ({shape}) {NAMES.get(self.data_type, f'type {self.data_type}')}"


def _length(dim: Message) -> int | None:
    return next((signed(part.value) for part in dim.fields() if part.number == DIM_VALUE), None)


class Network:
    """The network of an ONNX file; its values' shapes are derived here, before an engine derives them.

    Engines trust a file's numbers: OpenVINO 2026.4 reads wherever the indices of a GatherND point, and a Tile of 100
    bytes fills any memory. So only operators of `RULES` are let through, with constants for lengths and places.

    Parameters
    ----------
    model
        The file's ModelProto.
    folder
        Its folder, for external data.

    Attributes
    ----------
    inputs, outputs
        As the file declares them, without constants that it lists among the inputs.
    values
        Inputs, constants and results, by name.
    peak
        Bytes that a pass holds at once at least.
    """

    def __init__(self, model: Message, folder: Path) -> None:
        self._folder = folder
        self.values: dict[str, Value] = {}
        self.peak = 0
        inputs, self.outputs, self._nodes = list[Declared](), list[Declared](), list[Node]()
        for graph, part in self._parts(model):
            if part.number == NODE:
                if len(self._nodes) == MOST_NODES:
                    raise ModelFileError(f"it has more than {MOST_NODES} nodes: export it with its constants folded")
                self._nodes.append(Node.read(graph.inside(part)))
            elif part.number == INITIALIZER:
                self._keep(graph.inside(part))
            elif part.number in (GRAPH_INPUT, GRAPH_OUTPUT):
                declared = inputs if part.number == GRAPH_INPUT else self.outputs
                declared.append(Declared.read(graph.inside(part)))
            elif part.number == SPARSE_INITIALIZER:
                raise ModelFileError("it has sparse weights: export it with dense ones")
        self.inputs = [one for one in inputs if one.name not in self.values]

    @staticmethod
    def _parts(model: Message) -> Iterator[tuple[Message, Field]]:
        """Iterate over the fields of the graph; raises ModelFileError for functions and old operators."""
        for part in model.fields():
            if part.number in (TRAINING, FUNCTION):
                what = "functions" if part.number == FUNCTION else "a graph for training"
                raise ModelFileError(f"it has {what}: a model of unetrt has none; export the network with unetrt")
            if part.number == OPSET:
                _require_opset(model.inside(part))
        graph = model.inside(model.only(GRAPH))
        for part in graph.fields():
            yield graph, part

    def require_fit(self, spec: ModelSpec) -> None:
        """Derive every shape; raises ModelFileError for what is not safe, or does not fit the spec."""
        expected, outputs = spec.tensors(), self.outputs
        if [str(one) for one in self.inputs] == [str(expected.input)]:
            self.derive(expected.input.shape)
            outputs = [self._derived(one) for one in outputs]
        if mismatch := expected.mismatch(str(one) for one in (*self.inputs, *outputs)):
            raise ModelFileError(f"{mismatch}; export it again")

    def require_numbers(self) -> None:
        """Raise ModelFileError for a constant that holds NaN: its network has no answer."""
        for name, value in self.values.items():
            if value.tensor is not None and value.data_type in FRACTIONS and _holds_nan(value):
                raise ModelFileError(f"its tensor {name[:SHOWN]!r} holds NaN; {AGAIN}")

    def _derived(self, output: Declared) -> Declared:
        value = self.values.get(output.name)
        return output if value is None else Declared(output.name, value.data_type, value.shape)

    def derive(self, shape: Shape) -> None:
        """Derive the results of all nodes, and `peak`, for one input of this shape.

        Raises
        ------
        ModelFileError
            There is another number of inputs, or a node is not safe.
        """
        if len(self.inputs) != 1:
            raise ModelFileError(f"it has {len(self.inputs)} inputs, not one")
        self._add(self.inputs[0].name, Value(shape, self.inputs[0].data_type))
        last = {name: index for index, node in enumerate(self._nodes) for name in node.inputs}
        last |= dict.fromkeys((output.name for output in self.outputs), len(self._nodes))
        live = self.peak = _nbytes(self.values[self.inputs[0].name])
        for index, node in enumerate(self._nodes):
            self._run(node)
            made = self._size(name for name in node.outputs if name in last)
            freed = self._size(name for name in set(node.inputs) if last[name] == index)
            reused = 0 if node.operator in APART else min(made, freed)
            self.peak = max(self.peak, live + made - reused)
            live += made - freed

    def _size(self, names: Iterable[str]) -> int:
        """Return the size in bytes of the values that are not constants."""
        values = (self.values[name] for name in names if name)
        return sum(_nbytes(value) for value in values if value.tensor is None)

    def _run(self, node: Node) -> None:
        """Add the results of a node to `values`."""
        if not node.operator or not any(node.outputs):
            raise ModelFileError(f"it has a node without operator or output; {AGAIN}")
        if not node.name.isprintable():  # ONNX Runtime writes names to the terminal as they are
            raise ModelFileError(f"it has a node of the name {node.name[:SHOWN]!r}: use printable names")
        operation = Operation(node, [self._named(node, name) if name else None for name in node.inputs])
        tensors = [content for content in node.attributes.values() if isinstance(content, Message)]
        if node.operator == "Constant" and node.domain in ONNX and len(tensors) == len(node.attributes) == 1:
            self._keep(tensors[0], node.outputs[0])
            return
        rule = RULES.get(node.operator) if node.domain in ONNX else None
        if rule is None or tensors or node.others:
            operation.refuse(
                "is not an operator that unetrt exports or adopts: export the network without it, or convert its ONNX "
                "file with `unetrt adopt`"
            )
        operation.require(not node.nan, "has an attribute that is NaN")
        found = rule(_with_inputs(operation))
        shapes, kind = found if isinstance(found, list) else [found], _type_of(operation)
        operation.require(kind in VALUE_TYPES, f"has results of data type {kind}")
        operation.require(len(shapes) >= sum(map(bool, node.outputs)), "has more results than one")
        for name, shape in zip(node.outputs, shapes, strict=False):
            operation.require(len(shape) <= MOST_AXES and min(shape, default=1) > 0, f"has a result of shape {shape}")
            if prod(shape) > MAX_ELEMENTS:
                operation.refuse(f"has a result of shape {shape}, more than {MAX_ELEMENTS} values: use a smaller tile")
            self._add(name, Value(shape, kind))

    def _named(self, node: Node, name: str) -> Value:
        if name not in self.values:
            raise ModelFileError(
                f"its {node.operator[:SHOWN]} takes {name[:SHOWN]!r}, which nothing before it makes; {AGAIN}"
            )
        return self.values[name]

    def _keep(self, tensor: Message, name: str | None = None) -> None:
        """Check a constant and add it."""
        stored = StoredTensor.read(tensor)
        file = checked(stored, self._folder)
        outside = (file, int(dict(stored.external).get("offset", "0"))) if file else None
        self._add(stored.name if name is None else name, Value(tuple(stored.dims), stored.data_type, tensor, outside))

    def _add(self, name: str, value: Value) -> None:
        if not name.isprintable():
            raise ModelFileError(f"it has a value of the name {name[:SHOWN]!r}: use printable names")
        if name in self.values:
            raise ModelFileError(f"it has two values of the name {name[:SHOWN]!r}; {AGAIN}")
        self.values[name] = value


def _with_inputs(operation: Operation) -> Operation:
    """Return an operation that has the inputs that its operator needs; raises ModelFileError for others.

    OpenVINO 2026.4 crashes on a convolution without weights.
    """
    operator, values = operation.node.operator, operation.values
    needed = FEWEST_INPUTS.get(operator, 1)
    there = sum(value is not None for value in values[:needed])
    if there < needed:
        raise ModelFileError(f"it has a {operator} with {there} of the {needed} inputs that it needs; {AGAIN}")
    return operation


def require_safe(path: str | Path) -> int:
    """Check a model file before an engine opens it; return the bytes that a pass holds at once at least.

    They are those of the values between the nodes, without weights and without what an engine needs besides.

    Raises
    ------
    ModelFileError
        The file is not a model of unetrt, or damaged, as in `is_intact`; an operator is not among those
        that unetrt exports or adopts, or takes places, lengths or parameters that it cannot; a value has more than
        `MAX_ELEMENTS` elements; or input and output are not those of the spec.
    """
    path = Path(path)
    spec = read_spec(path)
    as_verified = is_intact(path)
    with opened(path) as model:
        try:
            network = Network(model, path.parent)
            network.require_fit(spec)
            if not as_verified:
                network.require_numbers()
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
    return network.peak


def _holds_nan(value: Value) -> bool:
    """Return whether a constant of fractions has an element that is NaN."""
    tensor = value.tensor
    assert tensor is not None
    contents = [tensor.read(part) for part in tensor.fields() if part.number in (RAW_DATA, *TYPED_FRACTIONS)]
    if value.outside:
        path, offset = value.outside
        with path.open("rb") as file:
            file.seek(offset)
            contents.append(file.read(_nbytes(value)))
    kind = FRACTIONS[value.data_type]
    if np.dtype(kind).itemsize == 2:
        fields = [part for part in tensor.fields() if part.number == INTEGERS]
        halves = [half for part in fields for half in integers(tensor, part, prod(value.shape))]
        contents.append(np.array([half & 0xFFFF for half in halves], "<u2").tobytes())
    arrays = [np.frombuffer(content, kind) for content in contents if len(content) % np.dtype(kind).itemsize == 0]
    if value.data_type == BFLOAT16:  # the upper half of a float32
        arrays = [(array.astype(np.uint32) << 16).view(np.float32) for array in arrays]
    return any(bool(np.isnan(array).any()) for array in arrays)


def _nbytes(value: Value) -> int:
    return -(-prod(value.shape) * BITS[value.data_type] // 8)


def _require_opset(opset: Message) -> None:
    """Refuse versions of the standard's operators that are too old, or do not exist."""
    domain, version = "", 0
    for part in opset.fields():
        if part.number == OPSET_DOMAIN:
            domain = opset.read(part, MAX_TEXT).decode(errors="replace")
        elif part.number == OPSET_VERSION:
            version = signed(part.value)
    least = OLDEST_OPSET if domain in ONNX else 1
    if not least <= version <= MAX_OPSET:
        raise ModelFileError(
            f"it has version {version} of an operator set: {least} to {MAX_OPSET} are possible; {AGAIN}"
        )

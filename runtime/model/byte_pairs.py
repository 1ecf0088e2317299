"""16-bit frames for TensorRT, which has no uint16 tensors: the graph takes their bytes in pairs and combines them.

`as_byte_pairs` edits the ONNX file of a uint16 model. The host's memory stays the same: a uint16 array (N, C, h, w) on
a little-endian machine, viewed as uint8, is (N, C, h, w, 2) with the low byte first.
"""

from collections.abc import Callable
from struct import pack

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import (
    ATTRIBUTE,
    ATTRIBUTE_INT,
    ATTRIBUTE_NAME,
    ATTRIBUTE_STRING,
    DOMAIN,
    GRAPH,
    NODE_INPUT,
    NODE_NAME,
    NODE_OUTPUT,
    OP_TYPE,
    VARINT,
    Field,
    Message,
    WireError,
    field_of,
    number_field,
    parts,
    replace,
    signed,
)
from unetrt.runtime.model.spec import INPUT

# Field numbers (onnx-ml.proto) of GraphProto, ...
NODE, INITIALIZER, GRAPH_INPUT, GRAPH_OUTPUT, VALUE_INFO = 1, 5, 11, 12, 13
# ... AttributeProto, ...
ATTRIBUTE_TYPE, TYPE_STRING = 20, 3
# ... ValueInfoProto, TypeProto, TypeProto.Tensor, TensorShapeProto and its Dimension, ...
VALUE_NAME, VALUE_TYPE, TENSOR_TYPE, ELEM_TYPE, SHAPE, DIM, DIM_VALUE = 1, 2, 1, 1, 2, 1, 1
# ... and TensorProto.
TENSOR_DIMS, TENSOR_TYPE_OF, TENSOR_NAME, TENSOR_RAW = 1, 2, 8, 9
# TensorProto.DataType.
FLOAT, UINT8, UINT16 = 1, 2, 4

FRAME = INPUT.encode()
# low + 256 high as one Einsum: 2 layers in TensorRT for RTX 1.7, where Mul and ReduceSum give 4 and MatMul 7. Exact in
# float32 and TF32, as bytes and weights have at most 8 significant bits.
EQUATION = b"nchwb,b->nchw"
WEIGHTS = pack("<2f", 1, 256)


def as_byte_pairs(model: bytes) -> bytes:
    """Return an ONNX model whose input, uint16 (N, C, h, w), is replaced by its bytes, uint8 (N, C, h, w, 2).

    The Cast of the input to float32 then casts the bytes, and a new node after it computes low + 256 high, exactly. All
    other bytes of the file stay the same; its spec still says uint16, the dtype of frames.

    Raises
    ------
    ModelFileError
        The input is not uint16 with four axes, or is read by anything but one Cast to float32.
    """
    try:
        return _within(model, (GRAPH,), _paired)
    except WireError as error:
        raise ModelFileError(f"the model is not a whole ONNX file: {error}; export it again") from error


def _paired(graph: bytes) -> bytes:
    """Return the graph with its input changed, and a node and an initializer added."""
    message = Message.of(graph)
    fields = list(message.fields())
    changes = {
        part: field_of(part.number, _of_pairs(message.read(part)))
        for part in fields
        if part.number in (GRAPH_INPUT, VALUE_INFO) and _is_frame(message, part)
    }
    if not any(part.number == GRAPH_INPUT for part in changes):
        raise ModelFileError(f"the model has no input {INPUT!r}: export it with unetrt")
    cast = _only_reader(message, fields)
    values, weights = _unused(b"frame_bytes", graph), _unused(b"frame_byte_weights", graph)
    node = message.read(cast)
    output = Message.of(node).only(NODE_OUTPUT)
    einsum = _einsum(values, weights, Message.of(node).read(output))
    changes[cast] = field_of(NODE, replace(node, {output: field_of(NODE_OUTPUT, values)})) + field_of(NODE, einsum)
    return replace(graph, changes) + field_of(INITIALIZER, _weights(weights))


def _only_reader(graph: Message, fields: list[Field]) -> Field:
    """Return the Cast that is the only reader of the input, subgraphs included."""
    nodes = (message for kind, message in parts(graph, "graph") if kind == "node")
    readers = sum(_texts(node, NODE_INPUT).count(FRAME) for node in nodes)
    readers += sum(part.number == GRAPH_OUTPUT and _is_frame(graph, part) for part in fields)
    casts = [part for part in fields if part.number == NODE and _casts_frame(graph.inside(part))]
    if readers != 1 or len(casts) != 1:
        raise ModelFileError(
            f"input {INPUT!r} is read {readers} times, {len(casts)} of them by a Cast to float32: it must be read "
            "once, by such a Cast; export the model with unetrt"
        )
    return casts[0]


def _casts_frame(node: Message) -> bool:
    standard = _texts(node, DOMAIN) in ([], [b""], [b"ai.onnx"])
    if not standard or _texts(node, OP_TYPE) != [b"Cast"] or _texts(node, NODE_INPUT) != [FRAME]:
        return False
    attributes = [node.inside(part) for part in node.fields() if part.number == ATTRIBUTE]
    return any(
        _texts(each, ATTRIBUTE_NAME) == [b"to"] and _numbers(each, ATTRIBUTE_INT) == [FLOAT] for each in attributes
    )


def _is_frame(message: Message, info: Field) -> bool:
    return _texts(message.inside(info), VALUE_NAME) == [FRAME]


def _of_pairs(info: bytes) -> bytes:
    """Convert a ValueInfoProto of uint16 (N, C, h, w) to one of uint8 (N, C, h, w, 2)."""
    return _within(info, (VALUE_TYPE, TENSOR_TYPE), _tensor_of_pairs)


def _tensor_of_pairs(kind: bytes) -> bytes:
    message = Message.of(kind)
    element, shape = message.only(ELEM_TYPE), message.inside(message.only(SHAPE))
    axes = sum(part.number == DIM for part in shape.fields())
    if (element.kind, element.value, axes) != (VARINT, UINT16, 4):
        raise ModelFileError(
            f"input {INPUT!r} has ONNX type {element.value} and {axes} axes: only uint16, type {UINT16}, with 4 "
            "axes is converted to bytes; TensorRT has float32 and uint8 inputs"
        )
    kind = replace(kind, {element: number_field(ELEM_TYPE, UINT8)})
    return _within(kind, (SHAPE,), lambda dims: dims + field_of(DIM, number_field(DIM_VALUE, 2)))


def _einsum(values: bytes, weights: bytes, output: bytes) -> bytes:
    texts = [
        (NODE_INPUT, values),
        (NODE_INPUT, weights),
        (NODE_OUTPUT, output),
        (NODE_NAME, values),
        (OP_TYPE, b"Einsum"),
    ]
    equation = field_of(ATTRIBUTE_NAME, b"equation") + field_of(ATTRIBUTE_STRING, EQUATION)
    attribute = field_of(ATTRIBUTE, equation + number_field(ATTRIBUTE_TYPE, TYPE_STRING))
    return b"".join(field_of(number, text) for number, text in texts) + attribute


def _weights(name: bytes) -> bytes:
    kind = number_field(TENSOR_DIMS, 2) + number_field(TENSOR_TYPE_OF, FLOAT)
    return kind + field_of(TENSOR_NAME, name) + field_of(TENSOR_RAW, WEIGHTS)


def _unused(name: bytes, graph: bytes) -> bytes:
    """Extend a name until it occurs nowhere in the graph's bytes."""
    while name in graph:
        name += b"_"
    return name


def _texts(message: Message, number: int) -> list[bytes]:
    return [message.read(part) for part in message.fields() if part.number == number]


def _numbers(message: Message, number: int) -> list[int]:
    return [signed(part.value) for part in message.fields() if part.number == number]


def _within(message: bytes, path: tuple[int, ...], change: Callable[[bytes], bytes]) -> bytes:
    """Return a message with `change` applied to the field at `path`, field numbers from the outside in."""
    if not path:
        return change(message)
    outer = Message.of(message)
    part = outer.only(path[0])
    return replace(message, {part: field_of(path[0], _within(outer.read(part), path[1:], change))})

"""Model files with another tile.

The graph of a U-Net depends on the tile in three places: the shapes of input and output, and the spec. The crops of the
skips end at negative indices, so they do not. (Files of earlier versions count the ends from the start; a crop takes
as much from both ends, so its end is minus its start.) Weights and all nodes stay byte for byte. The file is checked
against its digest before it is changed: damage must not be confirmed by a new digest.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.byte_pairs import (
    DIM,
    DIM_VALUE,
    ELEM_TYPE,
    FLOAT,
    GRAPH_INPUT,
    GRAPH_OUTPUT,
    INITIALIZER,
    NODE,
    SHAPE,
    TENSOR_DIMS,
    TENSOR_NAME,
    TENSOR_RAW,
    TENSOR_TYPE,
    TENSOR_TYPE_OF,
    UINT8,
    UINT16,
    VALUE_INFO,
    VALUE_NAME,
    VALUE_TYPE,
)
from unetrt.runtime.model.integrity import external_files, with_digest
from unetrt.runtime.model.onnx_file import (
    ENTRY_KEY,
    ENTRY_VALUE,
    GRAPH,
    METADATA,
    NODE_INPUT,
    NODE_OUTPUT,
    OP_TYPE,
    Field,
    Message,
    field_of,
    number_field,
    opened,
    read_entry,
    read_spec,
)
from unetrt.runtime.model.onnx_file import replace as replaced
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import INPUT, KEY, OUTPUT, ModelSpec

INT64 = 7  # TensorProto.DataType
ELEMENT = {"float32": FLOAT, "uint8": UINT8, "uint16": UINT16}
# Bytes of the longest constant that a crop is made from: 4 axes.
MOST_RAW = 32


def retiled(path: str | Path, tile: tuple[int, int], batch: int) -> bytes:
    """Return a U-Net's model file with another tile, and the digest of its contents.

    Parameters
    ----------
    path
        A file that `unetrt export` wrote.
    tile
        Height and width, in pixels.
    batch
        Tiles in one pass.

    Raises
    ------
    ModelFileError
        The file cannot be read, is damaged, holds another kind of network, or keeps weights in other files.
    TileError
        The tile is not legal.
    """
    path = Path(path)
    spec, shape = require_retilable(path)
    for side in tile:
        shape.geometry.require(side)
    spec = replace(spec, tile=tile, batch=batch)
    with opened(path) as model:
        changes: dict[Field, bytes] = {}
        for part in model.fields():
            if part.number == GRAPH:
                changes[part] = field_of(GRAPH, _graph(model.read(part), spec))
            elif part.number == METADATA and read_entry(model.inside(part))[0] == KEY:
                entry = field_of(ENTRY_KEY, KEY.encode()) + field_of(ENTRY_VALUE, spec.to_json().encode())
                changes[part] = field_of(METADATA, entry)
        return with_digest(replaced(path.read_bytes(), changes))


def require_retilable(path: Path) -> tuple[ModelSpec, UNetShape]:
    """Return the spec and the shape of a file whose tile can be changed; raises ModelFileError for others."""
    spec = read_spec(path)
    require_safe(path)
    if spec.shape is None:
        raise ModelFileError(f"{path} is not a U-Net of ours: export or adopt its network again, with another tile")
    if external_files(path):
        raise ModelFileError(f"{path} keeps weights in other files: export it again, with another tile")
    return spec, spec.shape


def _graph(graph: bytes, spec: ModelSpec) -> bytes:
    """Return a GraphProto with the shapes of a spec; those of intermediate values are left out, engines infer them."""
    message = Message.of(graph)
    fields = list(message.fields())
    changes: dict[Field, bytes] = {}
    for part in fields:
        if part.number == VALUE_INFO:
            changes[part] = b""
        elif part.number == GRAPH_INPUT:
            changes[part] = field_of(GRAPH_INPUT, _value(INPUT, spec.new_input()))
        elif part.number == GRAPH_OUTPUT:
            changes[part] = field_of(GRAPH_OUTPUT, _value(OUTPUT, spec.new_output()))
    added = b""
    for part, constant, ends in _fixed_crops(message, fields):
        changes[part] = field_of(NODE, constant)
        added += field_of(INITIALIZER, ends)
    return replaced(graph, changes) + added


def _value(name: str, array: NDArray[Any]) -> bytes:
    """Return a ValueInfoProto with the dtype and shape of an array."""
    axes = b"".join(field_of(DIM, number_field(DIM_VALUE, length)) for length in array.shape)
    kind = number_field(ELEM_TYPE, ELEMENT[array.dtype.name]) + field_of(SHAPE, axes)
    return field_of(VALUE_NAME, name.encode()) + field_of(VALUE_TYPE, field_of(TENSOR_TYPE, kind))


def _fixed_crops(graph: Message, fields: list[Field]) -> Iterator[tuple[Field, bytes, bytes]]:
    """Yield each node that crops height or width up to a fixed index, its replacement, and the constant that takes."""
    tensors = (_constant(graph.inside(part)) for part in fields if part.number == INITIALIZER)
    constants = dict(tensor for tensor in tensors if tensor is not None)
    for part in fields:
        if part.number != NODE or _only_text(graph.inside(part), OP_TYPE) != b"Slice":
            continue
        node = Message.of(graph.read(part))
        inputs = [each for each in node.fields() if each.number == NODE_INPUT]
        if len(inputs) < 4:
            continue
        starts, ends, axes = (constants.get(node.read(each)) for each in inputs[1:4])
        if not (starts and ends and axes) or min(axes) < 2 or max(ends) < 0:
            continue
        name = node.read(node.only(NODE_OUTPUT)) + b"/retiled_ends"
        changed = replaced(graph.read(part), {inputs[2]: field_of(NODE_INPUT, name)})
        kind = number_field(TENSOR_DIMS, len(starts)) + number_field(TENSOR_TYPE_OF, INT64)
        values = field_of(TENSOR_RAW, np.negative(starts).astype("<i8").tobytes())
        yield part, changed, kind + field_of(TENSOR_NAME, name) + values


def _constant(tensor: Message) -> tuple[bytes, list[int]] | None:
    """Return name and values of a short int64 TensorProto, None for others."""
    fields = {part.number: part for part in tensor.fields()}
    raw, kind = fields.get(TENSOR_RAW), fields.get(TENSOR_TYPE_OF)
    if raw is None or kind is None or TENSOR_NAME not in fields:
        return None
    if kind.value != INT64 or raw.size > MOST_RAW or raw.size % 8:
        return None
    return tensor.read(fields[TENSOR_NAME]), np.frombuffer(tensor.read(raw), "<i8").tolist()


def _only_text(message: Message, number: int) -> bytes:
    return b"".join(message.read(part) for part in message.fields() if part.number == number)

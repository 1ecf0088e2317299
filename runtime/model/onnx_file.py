"""ONNX files, read without an ONNX library and without the weights.

An ONNX file is one protobuf message, ModelProto; field numbers are those of onnx-ml.proto, ONNX 1.23. A protobuf
message is a sequence of fields: a tag (field number and wire type), for some types a length, then the content, which
may be a message again; only the schema says which (protobuf.dev, "Encoding"). `Message` iterates over fields and skips
contents with a seek, so reading a file's spec (`read_spec`) does not read its weights. `field_of`, `number_field` and
`replace` encode single fields, to change a message byte for byte.

Some models come with unetrt, in `unetrt/models/NAME.onnx`. `resolved` turns their names into paths; functions that open
the file of a user call it first.

>>> message = Message.of(number_field(1, 300) + field_of(2, b"text"))
>>> [(part.number, part.value) for part in message.fields()], message.read(message.only(2))
([(1, 300), (2, 0)], b'text')
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from io import BytesIO
from math import isnan, prod
from pathlib import Path
from struct import calcsize, iter_unpack
from typing import Any, BinaryIO, NamedTuple, NoReturn, Self

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.spec import KEY, ModelSpec

# Wire types, and the bytes of those of fixed size. Groups (3, 4) are of proto1; ONNX files have none.
VARINT, DELIMITED = 0, 2
FIXED = {1: 8, 5: 4}

# Tags are 32 bits wide: 29 for the number, 3 for the type.
MAX_TAG = 1 << 32

# Limit of fields that are read: a U-Net's file has some thousands, and a crafted one could take minutes to read.
MAX_FIELDS = 1_000_000


class WireError(ValueError):
    """Bytes that are not a valid protobuf message; the text says why, and begins with `it`."""


class Field(NamedTuple):
    """One field of a message.

    Attributes
    ----------
    number, kind
        Field number in the schema, and wire type.
    value
        Value of a varint, 0 to 2^64 - 1; 0 for other wire types.
    begin, content, end
        Offsets in the file, in bytes, of the tag, the content and the next field.
    """

    number: int
    kind: int
    value: int
    begin: int
    content: int
    end: int

    @property
    def size(self) -> int:
        """Size of the content in bytes."""
        return self.end - self.content


@dataclass(frozen=True)
class Message:
    """A message in a range of a file.

    Attributes
    ----------
    file
        A seekable file.
    begin, end
        Range in the file, in bytes.
    budget
        The number of fields that may still be read, shared with nested messages.
    """

    file: BinaryIO
    begin: int
    end: int
    budget: Iterator[int] = field(default_factory=lambda: iter(range(MAX_FIELDS)))

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return a message of bytes in memory."""
        return cls(BytesIO(content), 0, len(content))

    def fields(self) -> Iterator[Field]:
        """Iterate over the fields in file order; raises WireError where one is malformed or truncated."""
        position = self.begin
        while position < self.end:
            if next(self.budget, None) is None:
                raise WireError(f"it has more than {MAX_FIELDS} fields")
            self.file.seek(position)
            found = self._field(position)
            yield found
            position = found.end

    def _field(self, begin: int) -> Field:
        tag = read_varint(self.file)
        number, kind = tag >> 3, tag & 7
        if number == 0 or tag >= MAX_TAG or kind not in (VARINT, DELIMITED, *FIXED):
            raise WireError(f"its byte {begin} starts no field")
        value = read_varint(self.file) if kind in (VARINT, DELIMITED) else FIXED[kind]
        content = self.file.tell()
        end = content if kind == VARINT else content + value
        if end > self.end:
            raise WireError(f"{end - self.end} bytes are missing")
        return Field(number, kind, value if kind == VARINT else 0, begin, content, end)

    def inside(self, part: Field) -> "Message":
        """Return the message in a field; raises WireError where the wire type rules that out."""
        if part.kind != DELIMITED:
            raise WireError(f"its field {part.number} at byte {part.begin} holds no message")
        return Message(self.file, part.content, part.end, self.budget)

    def read(self, part: Field, limit: int | None = None) -> bytes:
        """Return the content of a field; raises WireError where it is longer than `limit` bytes."""
        if part.kind != DELIMITED or (limit is not None and part.size > limit):
            raise WireError(f"its field {part.number} at byte {part.begin} is not one of up to {limit} bytes")
        self.file.seek(part.content)
        return self.file.read(part.size)

    def only(self, number: int) -> Field:
        """Return the field with this number; raises WireError unless there is exactly one."""
        found = [part for part in self.fields() if part.number == number]
        if len(found) != 1:
            raise WireError(f"its field {number} is there {len(found)} times, not once")
        return found[0]


def read_varint(file: BinaryIO) -> int:
    """Read a varint at the file's position, 0 to 2^64 - 1; raises WireError where it is truncated or too long."""
    byte = file.read(1)
    if byte and byte[0] < 0x80:
        return byte[0]
    value = byte[0] & 0x7F if byte else 0
    for shift in range(7, 64, 7):
        byte = byte and file.read(1)
        if not byte:
            raise WireError("it ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80 and value < 1 << 64:
            return value
    raise WireError("it holds a number of more than 64 bits")


def signed(value: int) -> int:
    """Interpret a varint's value as int64."""
    return value - (1 << 64) if value >> 63 else value


def integers(message: Message, part: Field, most: int) -> list[int]:
    """Return the int64 values in one field, one or up to `most` packed ones; raises WireError where it has others."""
    if part.kind == VARINT:
        return [signed(part.value)]
    # A varint has at most 10 bytes.
    packed, found = BytesIO(message.read(part, 10 * most)), []
    while packed.tell() < part.size:
        found.append(signed(read_varint(packed)))
    return found


def varint(value: int) -> bytes:
    """Encode a non-negative integer as a varint."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def number_field(number: int, value: int) -> bytes:
    """Encode a varint field that holds a non-negative integer."""
    return varint(number << 3 | VARINT) + varint(value)


def field_of(number: int, content: bytes) -> bytes:
    """Encode a length-delimited field: bytes, text or a message."""
    return varint(number << 3 | DELIMITED) + varint(len(content)) + content


def replace(message: bytes, changes: Mapping[Field, bytes]) -> bytes:
    """Return a message with some fields, those of `Message.of(message)`, replaced by encoded ones.

    All other bytes stay as they are.
    """
    parts, position = [], 0
    for part in sorted(changes, key=lambda part: part.begin):
        parts += [message[position : part.begin], changes[part]]
        position = part.end
    return b"".join([*parts, message[position:]])


MODELS = Path(str(resources.files("unetrt"))) / "models"
SUFFIX = ".onnx"


def bundled_names() -> list[str]:
    """Return the names of the models that come with this installation, sorted."""
    return sorted(path.stem for path in MODELS.glob(f"*{SUFFIX}"))


def bundled_path(name: str) -> Path:
    """Return the path of the file of a model that comes with unetrt."""
    return MODELS / f"{name}{SUFFIX}"


def bundled_advice() -> str:
    """Return the end of an error message about a model that does not exist: the names that would work, if any."""
    return f"; models: {', '.join(bundled_names())}" if bundled_names() else ""


def resolved(model: str | Path) -> Path:
    """Return the path of a model: one that exists as it is, else that of the bundled model of this name.

    Raises ModelFileError where the system refuses to look, as for a name that is too long.
    """
    path = Path(model)
    try:
        exists = path.exists()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be opened: {error.strerror or error}") from error
    return bundled_path(str(path)) if str(path) in bundled_names() and not exists else path


# ModelProto and StringStringEntryProto.
GRAPH, METADATA = 7, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2

# Limit of metadata that is read, in bytes; a spec has a few kilobytes.
MAX_METADATA = 1 << 24

# Nesting of messages: kind -> field number -> kind. All paths that lead to a tensor, a node or an opset.
CHILDREN = {
    "model": {GRAPH: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
# Fields that occur once. Engines merge duplicates in different ways, so duplicates are refused.
SINGLE = {"model": {GRAPH}, "training": {1, 2}, "attribute": {5, 6, 22}, "sparse tensor": {1, 2}}

# Limit of nesting; a subgraph is 3 levels below its graph. Protobuf's own limit is 100.
MAX_DEPTH = 32


def read_spec(path: str | Path) -> ModelSpec:
    """Return the spec in an ONNX file.

    Raises
    ------
    ModelFileError
        The file does not exist, is not an ONNX file, is truncated, or has no valid spec.
    """
    path = Path(path)
    _require_model(path)
    entries = read_metadata(path)
    if KEY not in entries:
        raise ModelFileError(
            f"{path} carries no unetrt spec, so its tile and normalisation are unknown: export it with `unetrt "
            f"export`, or convert a network of another toolkit with `unetrt adopt {path}`"
        )
    try:
        return ModelSpec.from_json(entries[KEY])
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _require_model(path: Path) -> None:
    """Raise ModelFileError for paths that are easily confused with a model file."""
    if path.is_dir():
        model = path / "model.onnx"
        advice = f"give {model}" if model.is_file() else f"`unetrt export {path}` makes a model file of a training"
        if str(path) in bundled_names():
            advice += f"; for the model {path} that comes with unetrt, use another working folder"
        raise ModelFileError(f"{path} is a folder: {advice}")
    if not path.exists():
        raise ModelFileError(
            f"{path} does not exist: `unetrt export CHECKPOINT -o {path.name}` writes a model{bundled_advice()}"
        )
    if not path.is_file():
        raise ModelFileError(f"{path} is not a regular file: give a model file")
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path} is a checkpoint: give the model.onnx beside it, or `unetrt export {path}`")
    if path.suffix in (".engine", ".plan"):
        raise ModelFileError(f"{path} is an engine: give the ONNX file that it was built from")


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata_props of an ONNX file; raises ModelFileError where it is invalid or truncated."""
    with opened(path) as model:
        fields = list(model.fields())
        if not any(part.number == GRAPH for part in fields):
            raise ModelFileError(
                f"{path} is not an ONNX file: it has no graph; give the model.onnx that `unetrt export` wrote"
            )
        entries = [part for part in fields if part.number == METADATA]
        if sum(part.size for part in entries) > MAX_METADATA:
            raise WireError(f"it has more than {MAX_METADATA} bytes of metadata")
        return dict(read_entry(model.inside(part)) for part in entries)


@contextmanager
def opened(path: Path) -> Iterator[Message]:
    """Yield the ModelProto of a file; converts a WireError or OSError, inside the `with` too, to ModelFileError."""
    if not path.is_file():  # opening a pipe would block
        raise ModelFileError(
            f"{path} does not exist or is not a regular file: give the model.onnx that `unetrt export` wrote"
        )
    try:
        with path.open("rb") as file:
            yield Message(file, 0, path.stat().st_size)
    except WireError as error:
        raise ModelFileError(f"{path} is not a whole ONNX file: {error}; export or copy it again") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def parts(message: Message, kind: str = "model", depth: int = 0) -> Iterator[tuple[str, Message]]:
    """Iterate, depth first, over a message and those that `CHILDREN` leads to, as (kind, message).

    Raises
    ------
    WireError
        A message is malformed, is nested too deeply, or occurs twice where one is allowed.
    """
    yield kind, message
    if depth > MAX_DEPTH:
        raise WireError(f"its messages are nested more than {MAX_DEPTH} deep")
    seen: set[int] = set()
    for part in message.fields():
        child = CHILDREN.get(kind, {}).get(part.number)
        if child is None:
            continue
        if part.number in seen & SINGLE.get(kind, set()):
            raise WireError(f"its {kind} at byte {message.begin} has two of its field {part.number} ({child})")
        seen.add(part.number)
        yield from parts(message.inside(part), child, depth + 1)


# NodeProto, and AttributeProto; OTHER are graphs, types, sparse tensors and lists of tensors.
NODE_INPUT, NODE_OUTPUT, NODE_NAME, OP_TYPE, ATTRIBUTE, DOMAIN = 1, 2, 3, 4, 5, 7
ATTRIBUTE_NAME, ATTRIBUTE_INT, ATTRIBUTE_STRING, ATTRIBUTE_TENSOR, ATTRIBUTE_INTS = 1, 3, 4, 5, 8
ATTRIBUTE_FLOATS = (2, 7)  # float and floats, as little-endian float32
OTHER = {6, 10, 11, 14, 15, 22, 23}
# Limits of a name or text in bytes, and of the integers of an attribute.
MAX_TEXT, MAX_INTEGERS = 1 << 16, 1 << 12


@dataclass
class Node:
    """A NodeProto.

    Attributes
    ----------
    operator, domain, name
        Type, operator set and name.
    inputs, outputs
        Names of values; empty for those that are left out.
    attributes
        Name -> integers, text or a TensorProto. Of fractions, only whether all are numbers is read.
    nan
        Whether a fraction is NaN.
    others
        Names of attributes that hold a graph, a type, a sparse tensor or a list of tensors.
    """

    operator: str = ""
    domain: str = ""
    name: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    attributes: dict[str, "list[int] | str | Message"] = field(default_factory=dict)
    nan: bool = False
    others: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, message: Message) -> "Node":
        """Read a NodeProto; raises WireError where it is malformed, or has a name or an attribute twice."""
        node, seen = cls(), set[int]()
        texts = {OP_TYPE: "operator", DOMAIN: "domain", NODE_NAME: "name"}
        for part in message.fields():
            if part.number in seen & texts.keys():
                raise WireError(f"its node at byte {message.begin} has two of its field {part.number}")
            seen.add(part.number)
            if part.number == ATTRIBUTE:
                node._take(message.inside(part))
            elif part.number in (NODE_INPUT, NODE_OUTPUT):
                (node.inputs if part.number == NODE_INPUT else node.outputs).append(_text(message, part))
            elif part.number in texts:
                setattr(node, texts[part.number], _text(message, part))
        return node

    def _take(self, attribute: Message) -> None:
        name, found, is_other = "", list[int](), False
        content: str | Message | None = None
        for part in attribute.fields():
            if part.number == ATTRIBUTE_NAME:
                name = _text(attribute, part)
            elif part.number in (ATTRIBUTE_INT, ATTRIBUTE_INTS):
                found += integers(attribute, part, MAX_INTEGERS)
            elif part.number == ATTRIBUTE_STRING:
                content = _text(attribute, part)
            elif part.number == ATTRIBUTE_TENSOR:
                content = attribute.inside(part)
            elif part.number in ATTRIBUTE_FLOATS and part.size % 4 == 0:
                attribute.file.seek(part.content)
                stored = attribute.file.read(min(part.size, MAX_TEXT))
                self.nan |= any(isnan(number) for (number,) in iter_unpack("<f", stored))
            is_other |= part.number in OTHER
        self.others += [name] * is_other
        if name in self.attributes:
            raise WireError(f"its node at byte {attribute.begin} has an attribute twice")
        self.attributes[name] = found if content is None else content


def _text(message: Message, part: Field) -> str:
    return message.read(part, MAX_TEXT).decode(errors="replace")


# TensorProto.DataType of some values, and TensorProto's fields of numbers.
FLOAT, INT32, INT64, BOOL = 1, 6, 7, 9
RAW_DATA, FLOAT_DATA, INT32_DATA, INT64_DATA = 9, 4, 5, 7
# Limits: numbers of a constant that shapes or places follow from, and characters of what an error shows of a name.
MOST_NUMBERS, SHOWN = 1 << 16, 60
# Advice for a damaged file.
AGAIN = "export or copy the model again"

Shape = tuple[int, ...]


class Value(NamedTuple):
    """A value of a network.

    Attributes
    ----------
    shape, data_type
        Lengths of the axes, and TensorProto.DataType.
    tensor
        The TensorProto of a constant, None for other values.
    outside
        The file with a constant's numbers, and their offset in bytes; None where they are in the TensorProto.
    """

    shape: Shape
    data_type: int
    tensor: Message | None = None
    outside: tuple[Path, int] | None = None


class Operation(NamedTuple):
    """A node, and the values of its inputs; None for those that are left out."""

    node: Node
    values: list[Value | None]

    def refuse(self, why: str) -> NoReturn:
        """Raise ModelFileError: the node's operator and name, then `why`."""
        raise ModelFileError(f"its {self.node.operator[:SHOWN]} {self.node.name[:SHOWN]!r} {why}")

    def require(self, holds: bool, why: str) -> None:
        """Raise ModelFileError unless `holds`."""
        if not holds:
            self.refuse(f"{why}; {AGAIN}")

    def given(self, index: int) -> Value | None:
        """Return an input; None where it is left out."""
        return self.values[index] if index < len(self.values) else None

    def value(self, index: int = 0) -> Value:
        """Return an input that the operator needs."""
        value = self.given(index)
        if value is None:
            self.refuse(f"lacks its input {index + 1}; {AGAIN}")
        return value

    def shape(self, index: int = 0) -> Shape:
        """Return the shape of an input that the operator needs."""
        return self.value(index).shape

    def constant(self, index: int, kinds: tuple[int, ...] = (INT32, INT64)) -> list[Any] | None:
        """Return the numbers of an input that must be a constant; None where it is left out."""
        value = self.given(index)
        if value is None:
            return None
        if value.tensor is None or value.data_type not in kinds or prod(value.shape) > MOST_NUMBERS:
            self.refuse(
                f"takes places or lengths from {self.node.inputs[index][:SHOWN]!r}, which is not a constant of up to "
                f"{MOST_NUMBERS} integers: export the network for one size, with its constants folded"
            )
        return _numbers(value)

    def numbers(self, name: str, default: list[int]) -> list[int]:
        """Return an attribute of as many integers, of 31 bits and a sign, as `default` has."""
        found = self.node.attributes.get(name, default)
        if not isinstance(found, list) or len(found) != len(default) or max(map(abs, found), default=0) >= 1 << 31:
            self.refuse(f"has an attribute {name} that is not {len(default)} integers of 32 bits; {AGAIN}")
        return found

    def number(self, name: str, default: int) -> int:
        """Return an attribute that is one integer."""
        return self.numbers(name, [default])[0]

    def listed(self, name: str, index: int) -> list[int] | None:
        """Return integers of an input that must be a constant, or of the attribute `name`; None without both."""
        stored = self.node.attributes.get(name)
        return self.constant(index) or (stored if isinstance(stored, list) else None)

    def axes(self, index: int, rank: int) -> list[int] | None:
        """Return the axes, counted from 0, that an input or the attribute `axes` names; None without both."""
        found = self.listed("axes", index)
        places = None if found is None else [self.place(axis, rank) for axis in found]
        self.require(len(set(places or [])) == len(places or []), "names an axis twice")
        return places

    def place(self, axis: int, rank: int) -> int:
        """Return an axis counted from 0; a negative one counts from the end."""
        self.require(-rank <= axis < rank, f"names axis {axis} of {rank}")
        return axis % rank

    def axis(self, default: int) -> int:
        """Return the attribute `axis`, counted from 0, of the first input."""
        return self.place(self.number("axis", default), len(self.shape()))


def _numbers(value: Value) -> list[Any]:
    """Return the numbers of a constant of integers or float32; raises OSError where their file cannot be read."""
    tensor, found, count = value.tensor, list[Any](), prod(value.shape)
    code = {FLOAT: "<f", INT32: "<i", INT64: "<q", BOOL: "<?"}[value.data_type]
    assert tensor is not None
    if value.outside:
        path, offset = value.outside
        with path.open("rb") as file:
            file.seek(offset)
            found += (number for (number,) in iter_unpack(code, file.read(count * calcsize(code))))
    for part in tensor.fields():
        if part.number == RAW_DATA or (part.number == FLOAT_DATA and part.kind == DELIMITED):
            found += (number for (number,) in iter_unpack(code, tensor.read(part)))
        elif part.number in (INT32_DATA, INT64_DATA):
            found += integers(tensor, part, MOST_NUMBERS)
    if len(found) != count:
        raise WireError(f"its tensor at byte {tensor.begin} has {len(found)} of its {count} numbers")
    return found


def read_entry(entry: Message, limit: int = MAX_METADATA) -> tuple[str, str]:
    """Return key and value, each up to `limit` bytes, of a StringStringEntryProto; of duplicates the last."""
    texts = {ENTRY_KEY: "", ENTRY_VALUE: ""}
    for part in entry.fields():
        if part.number in texts:
            texts[part.number] = entry.read(part, limit).decode(errors="replace")
    return texts[ENTRY_KEY], texts[ENTRY_VALUE]

"""Protobuf's wire format: enough to read an ONNX file without an ONNX library, and to change single fields of one.

A message is a row of fields: a tag (number and wire type), for some types a length, then the content, which may again
be a message; only the schema tells (protobuf.dev, "Encoding"). Contents that nobody asks for are skipped by a seek.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import BinaryIO, NamedTuple, Self

# Wire types, and how many bytes the fixed ones take. Groups (3, 4) are of proto1; no ONNX file has any.
VARINT, DELIMITED = 0, 2
FIXED = {1: 8, 5: 4}

# Tags are 32 bits wide: 29 for the number, 3 for the type.
MAX_TAG = 1 << 32

# A U-Net's file has some thousands. More than this costs seconds to read, and is there for that alone.
MAX_FIELDS = 1_000_000


class WireError(ValueError):
    """Bytes that are no protobuf message; the text begins with `it` and says what is wrong."""


class Field(NamedTuple):
    """One field of a message.

    Attributes
    ----------
    number, kind
        What the schema calls it by, and its wire type.
    value
        What a varint says, 0 to 2^64 - 1; of other wire types 0.
    begin, content, end
        Where its tag begins, its content begins and the next field begins, in bytes from the start of the file.
    """

    number: int
    kind: int
    value: int
    begin: int
    content: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the content."""
        return self.end - self.content


@dataclass(frozen=True)
class Message:
    """A range of a file that holds a message.

    Attributes
    ----------
    file
        Read where it is asked to be, in any order.
    begin, end
        In bytes from the start of the file.
    budget
        What is left of the fields that may be read; shared by the messages inside.
    """

    file: BinaryIO
    begin: int
    end: int
    budget: Iterator[int] = field(default_factory=lambda: iter(range(MAX_FIELDS)))

    @classmethod
    def of(cls, content: bytes) -> Self:
        """Return the message that these bytes are."""
        return cls(BytesIO(content), 0, len(content))

    def fields(self) -> Iterator[Field]:
        """Iterate over the fields in their order in the file; raises WireError where one is malformed or cut short."""
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
        """Return the message that a field holds."""
        if part.kind != DELIMITED:
            raise WireError(f"its field {part.number} at byte {part.begin} holds no message")
        return Message(self.file, part.content, part.end, self.budget)

    def read(self, part: Field, limit: int | None = None) -> bytes:
        """Return the content of a field; raises WireError where it has more than `limit` bytes."""
        if part.kind != DELIMITED or (limit is not None and part.size > limit):
            raise WireError(f"its field {part.number} at byte {part.begin} is not one of up to {limit} bytes")
        self.file.seek(part.content)
        return self.file.read(part.size)

    def only(self, number: int) -> Field:
        """Return the one field with this number; raises WireError where there is none, or several to choose from."""
        found = [part for part in self.fields() if part.number == number]
        if len(found) != 1:
            raise WireError(f"its field {number} is there {len(found)} times, not once")
        return found[0]


def read_varint(file: BinaryIO) -> int:
    """Return the number at the file's position, 0 to 2^64 - 1; raises WireError where there is none."""
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise WireError("it ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80 and value < 1 << 64:
            return value
    raise WireError("it holds a number of more than 64 bits")


def signed(value: int) -> int:
    """Return a varint's value as int64."""
    return value - (1 << 64) if value >> 63 else value


def varint(value: int) -> bytes:
    """Encode a number of 0 or more."""
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def number_field(number: int, value: int) -> bytes:
    """Encode a field that holds a number of 0 or more."""
    return varint(number << 3 | VARINT) + varint(value)


def field_of(number: int, content: bytes) -> bytes:
    """Encode a field that holds bytes, text or a message."""
    return varint(number << 3 | DELIMITED) + varint(len(content)) + content


def replace(message: bytes, changes: Mapping[Field, bytes]) -> bytes:
    """Return a message whose fields `changes` are replaced by encoded ones; all else stays byte for byte.

    The fields are those of `Message.of(message)`.
    """
    parts, position = [], 0
    for part in sorted(changes, key=lambda part: part.begin):
        parts += [message[position : part.begin], changes[part]]
        position = part.end
    return b"".join([*parts, message[position:]])

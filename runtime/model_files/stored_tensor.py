"""A tensor as an ONNX file stores it: what it claims to be, and whether its bytes fit that. The bytes stay unread."""

from dataclasses import dataclass, field
from io import BytesIO
from math import prod

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model_files.onnx_file import read_entry
from unetrt.runtime.model_files.protobuf import VARINT, Field, Message, WireError, read_varint, signed

# Field numbers of TensorProto (onnx-ml.proto), and where its values may lie other than in raw_data.
DIMS, DATA_TYPE, NAME, RAW_DATA, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 8, 9, 13, 14
TYPED_DATA = (4, 5, 6, 7, 10, 11)
# SparseTensorProto: the dims of the tensor that an engine makes of it.
SPARSE_DIMS = 3

# TensorProto.DataType -> bits of an element; strings have none.
FLOAT, STRING = 1, 8
BITS = {
    **dict.fromkeys((25, 26), 2),
    **dict.fromkeys((21, 22, 23), 4),
    **dict.fromkeys((27, 28), 6),
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),
    **dict.fromkeys((4, 5, 10, 16), 16),
    **dict.fromkeys((1, 6, 12), 32),
    **dict.fromkeys((7, 11, 13, 14), 64),
    15: 128,
    STRING: 0,
}
# One number of a typed field takes a byte or more, and holds up to four elements (those of 2 bits).
ELEMENTS_A_BYTE = 4

# Protobuf's own limit for a message, and more than any layer of a U-Net has.
MAX_BYTES = (1 << 31) - 1
MAX_RANK = 64
# Bytes of a name or a path, and how many characters of it an error shows.
MAX_TEXT = 1 << 16
SHOWN = 60


@dataclass
class StoredTensor:
    """A TensorProto without its values.

    Attributes
    ----------
    name
        What errors call it.
    dims
        Elements along each axis.
    data_type
        TensorProto.DataType.
    raw, typed
        Bytes of raw_data, None where there is none, and of all typed fields together, their tags included.
    external
        The entries of external_data: location, offset, length and others.
    is_external
        Whether data_location says that the values lie in another file.
    """

    name: str = ""
    dims: list[int] = field(default_factory=list)
    data_type: int = 0
    raw: int | None = None
    typed: int = 0
    external: list[tuple[str, str]] = field(default_factory=list)
    is_external: bool = False

    @classmethod
    def read(cls, message: Message) -> "StoredTensor":
        """Return what a TensorProto says; raises WireError where it says something twice, or in no form ONNX has."""
        tensor = cls()
        seen: set[int] = set()
        for part in message.fields():
            if part.number in seen & {DATA_TYPE, NAME, RAW_DATA, DATA_LOCATION}:
                raise WireError(f"its tensor at byte {message.begin} has two of its field {part.number}")
            seen.add(part.number)
            tensor._take(message, part)
        return tensor

    def _take(self, message: Message, part: Field) -> None:
        if part.number == DIMS:
            self.dims += _dims(message, part)
        elif part.number == DATA_TYPE:
            self.data_type = _number(part)
        elif part.number == NAME:
            self.name = message.read(part, MAX_TEXT).decode(errors="replace")[:SHOWN]
        elif part.number == RAW_DATA:
            self.raw = message.inside(part).end - part.content
        elif part.number == EXTERNAL_DATA:
            self.external.append(read_entry(message.inside(part), MAX_TEXT))
        elif part.number == DATA_LOCATION:
            self.is_external = _location(part)
        elif part.number in TYPED_DATA:
            self.typed += part.end - part.begin

    @property
    def size(self) -> int:
        """Bytes that the values take: dims times the element's bits, rounded up; of strings 0."""
        return -(-prod(self.dims) * BITS[self.data_type] // 8)

    def require_possible(self) -> None:
        """Raise ModelFileError where type and dims describe no tensor, or one too large for any network of ours."""
        if self.data_type not in BITS:
            raise self.wrong(f"data type {self.data_type}, which ONNX does not have")
        if min(self.dims, default=0) < 0 or len(self.dims) > MAX_RANK:
            raise self.wrong(f"dims {self._shape()}: {MAX_RANK} numbers of 0 or more at most")
        # With 1 for 0: an engine that multiplies all dims overflows although there are no elements.
        if prod(max(side, 1) for side in self.dims) * max(BITS[self.data_type], 8) > 8 * MAX_BYTES:
            raise self.wrong(f"dims {self._shape()}, more than {MAX_BYTES} bytes")

    def require_inline(self) -> None:
        """Raise ModelFileError where the values in the file are not as many as dims and type ask for."""
        if self.external:
            raise self.wrong("external data, and says that its values are inside: export the model again")
        if self.raw is not None and (self.data_type == STRING or self.typed or self.raw != self.size):
            raise self.wrong(f"{self.raw + self.typed} bytes, but its dims {self._shape()} need {self.size}")
        if self.raw is None and prod(self.dims) > ELEMENTS_A_BYTE * self.typed:
            raise self.wrong(f"{self.typed} bytes, too few for its dims {self._shape()}")

    def wrong(self, what: str) -> ModelFileError:
        """Return the error that says what the tensor has."""
        return ModelFileError(f"tensor {self.name!r} has {what}")

    def _shape(self) -> str:
        shown = "x".join(str(side) for side in self.dims[:8]) or "()"
        return shown if len(self.dims) <= 8 else f"{shown}x... ({len(self.dims)} of them)"


def require_sparse(message: Message) -> None:
    """Raise ModelFileError where a SparseTensorProto, made dense, is no tensor or too large for any network of ours."""
    dims = [side for part in message.fields() if part.number == SPARSE_DIMS for side in _dims(message, part)]
    StoredTensor(name="of a sparse one", dims=dims, data_type=FLOAT).require_possible()


def _dims(message: Message, part: Field) -> list[int]:
    """Return the dims of one field: one number, or several packed."""
    if part.kind == VARINT:
        return [signed(part.value)]
    # Ten bytes are the longest varint there is.
    packed, found = BytesIO(message.read(part, 10 * MAX_RANK)), []
    while packed.tell() < part.size:
        found.append(signed(read_varint(packed)))
    return found


def _number(part: Field) -> int:
    if part.kind != VARINT:
        raise WireError(f"its field {part.number} at byte {part.begin} is no number")
    return part.value


def _location(part: Field) -> bool:
    if _number(part) not in (0, 1):
        raise WireError(f"its tensor's values at byte {part.begin} lie neither inside (0) nor outside (1)")
    return part.value == 1

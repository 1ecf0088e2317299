"""How many inputs a node needs, by its operator: engines die of nodes that have fewer.

A tensor as an ONNX file stores it: what it claims to be, and whether its bytes fit that. The bytes stay unread.

The files beside an ONNX file that hold its weights, checked before any engine opens one.

A model file may come from anywhere, and names files for the engine to read. What is let through here is a plain
relative path to a regular file in the model's own folder that holds what the tensors need. A file that is changed
between this check and the engine's reading is not caught.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BytesIO
from math import prod
from pathlib import Path, PurePosixPath
from stat import S_ISREG

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import (
    VARINT,
    Field,
    Message,
    WireError,
    opened,
    parts,
    read_entry,
    read_varint,
    signed,
)

# NodeProto.
INPUT, OUTPUT, OP_TYPE, DOMAIN = 1, 2, 4, 7
# Names of ONNX's own set of operators.
ONNX = ("", "ai.onnx")
# Bytes of a name that is read; those of operators are shorter.
LONGEST = 1 << 16

# The fewest of any version, for operators of ONNX 1.23 (its docs/Operators.md) that do not need exactly one. Loop and
# Scan may leave their first ones empty.
_FEWEST = {
    0: "Constant Loop Optional OptionalHasElement RandomNormal RandomUniform Scan SequenceEmpty",
    2: "Add AffineGrid And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CausalConvWithState CenterCropPad "
    "Compress Conv ConvInteger ConvTranspose CumProd CumSum DequantizeLinear Div Equal Expand Gather GatherElements "
    "GatherND Gemm Greater GreaterOrEqual GridSample LayerNormalization Less LessOrEqual MatMul MatMulInteger "
    "MaxRoiPool MaxUnpool Mod Mul NegativeLogLikelihoodLoss NonMaxSuppression Or PRelu Pow QuantizeLinear "
    "RMSNormalization ReverseSequence STFT SequenceAt SequenceInsert SoftmaxCrossEntropyLoss StringConcat Sub SwiGLU "
    "TensorScatter Tile Xor",
    3: "Attention Col2Im DeformConv GRU GroupNormalization InstanceNormalization LSTM LinearAttention OneHot RNN Range "
    "RoiAlign RotaryEmbedding Scatter ScatterElements ScatterND Where",
    5: "BatchNormalization MelWeightMatrix",
    8: "QLinearConv QLinearMatMul",
}
FEWEST_INPUTS = {operator: count for count, operators in _FEWEST.items() for operator in operators.split()}


def require_node(node: Message) -> None:
    """Refuse a node without operator or output (TensorRT for RTX 1.7 dies of one), or with too few inputs.

    Raises
    ------
    ModelFileError
        It is such a node. OpenVINO 2026.4 dies of a convolution without weights.
    WireError
        It is malformed.
    """
    fields = list(node.fields())
    if not {OUTPUT, OP_TYPE} <= {part.number for part in fields}:
        raise ModelFileError("it has a node without operator or output; export or copy it again")
    named = [part for part in fields if part.number in (OP_TYPE, DOMAIN)]
    texts = {part.number: node.read(part, LONGEST).decode(errors="replace") for part in named}
    needed = FEWEST_INPUTS.get(texts[OP_TYPE], 1) if texts.get(DOMAIN, "") in ONNX else 0
    given = [part.size > 0 for part in fields if part.number == INPUT]
    if len(given) < needed or not all(given[:needed]):
        raise ModelFileError(
            f"it has a {texts[OP_TYPE]} with {sum(given[:needed])} of the {needed} inputs that it needs; export or "
            "copy it again"
        )


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


# Characters that some file system reads as more than a name: Windows' separators, drives, streams and wildcards. ONNX
# Runtime itself takes a location that begins with */_ORT_MEM_ADDR_ for an address in memory (its tensorprotoutils.h).
SPECIAL = '\\:*?"<>|'
# Digits of 2^63 - 1, the largest offset that engines can hold.
MAX_DIGITS = 19
CHUNK = 1 << 20
# OperatorSetIdProto. ONNX itself is at version 26.
OPSET_VERSION, MAX_OPSET = 2, 1000


def require_safe(path: str | Path) -> None:
    """Raise ModelFileError, as `external_files` does, where an engine should not be given this ONNX file."""
    external_files(path)


def external_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files that an ONNX file keeps weights in, sorted; none for most.

    Looks at every tensor: initializers, sparse ones, attributes, in subgraphs and functions too; and at every node. No
    weights are read.

    Raises
    ------
    ModelFileError
        The file is no whole ONNX file; a tensor's bytes do not fit its dims and type; or its data lie outside the
        folder, or in a file that is missing, irregular or too short.
    """
    path = Path(path)
    with opened(path) as model:
        try:
            found = {_checked(tensor, path.parent) for tensor in _tensors(model)}
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error
    return tuple(sorted(file for file in found if file is not None))


def sha256_of_model(path: str | Path) -> str:
    """Return the SHA-256 of a model, in hexadecimal: of its ONNX file and of the files with its weights.

    Without such files it is what `sha256sum` prints of the ONNX file. With them it is that of a list: the SHA-256 of
    the ONNX file, then a line with SHA-256 and name, relative to its folder, for each file in their order.

    Raises
    ------
    ModelFileError
        As `external_files` does, or a file cannot be read.
    """
    path = Path(path)
    files = external_files(path)
    if not files:
        return _sha256(path)
    lines = [_sha256(path), *(f"{_sha256(file)}  {file.relative_to(path.parent).as_posix()}" for file in files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tensors(model: Message) -> Iterator[StoredTensor]:
    for kind, message in parts(model):
        if kind == "tensor":
            yield StoredTensor.read(message)
        elif kind == "sparse tensor":
            require_sparse(message)
        elif kind == "node":
            require_node(message)
        elif kind == "opset":
            _require_opset(message)


def _require_opset(opset: Message) -> None:
    """Refuse versions that there are none of: OpenVINO 2026.4 counts up to them, for ever."""
    for part in opset.fields():
        if part.number == OPSET_VERSION and not 1 <= signed(part.value) <= MAX_OPSET:
            raise ModelFileError(
                f"it is written for version {signed(part.value)} of a set of operators, 1 to {MAX_OPSET} are possible; "
                "export or copy it again"
            )


def _checked(tensor: StoredTensor, folder: Path) -> Path | None:
    """Return the file with a tensor's values, None where they are inside; raises ModelFileError as promised above."""
    tensor.require_possible()
    if not tensor.is_external:
        tensor.require_inline()
        return None
    if tensor.data_type == STRING or tensor.raw is not None or tensor.typed:
        raise tensor.wrong("values outside, which it may not: it holds strings, or values inside too")
    entries = dict(tensor.external)
    if len(entries) < len(tensor.external):
        raise tensor.wrong("an entry of its external data twice")
    file = _plain_path(tensor, entries.get("location", ""), folder)
    _require_range(tensor, entries, file, _regular_size(tensor, file, folder))
    return file


def _plain_path(tensor: StoredTensor, location: str, folder: Path) -> Path:
    odd = [character for character in location if character in SPECIAL or not character.isprintable()]
    relative = PurePosixPath(location)
    if odd or "\ufffd" in location or not relative.parts or relative.is_absolute() or ".." in relative.parts:
        raise tensor.wrong(
            f"its values at {location[:200]!r}: only a plain path within the model's own folder is opened; "
            "keep the files together and export the model again"
        )
    return folder / relative


def _regular_size(tensor: StoredTensor, file: Path, folder: Path) -> int:
    """Return the bytes of a file, or raise ModelFileError where it is missing, no regular file, or elsewhere."""
    try:
        real, status = file.resolve(strict=True), file.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise tensor.wrong(
            f"its values in {file}, which cannot be read ({reason}): copy it beside the model"
        ) from error
    if not real.is_relative_to(folder.resolve()):
        raise tensor.wrong(f"its values in {file}, a link out of the model's folder: copy the file itself there")
    if not S_ISREG(status.st_mode):
        raise tensor.wrong(f"its values in {file}, which is no regular file: copy the weights there")
    return status.st_size


def _require_range(tensor: StoredTensor, entries: dict[str, str], file: Path, there: int) -> None:
    """Raise ModelFileError unless length is what the tensor needs and the file has as much from offset on."""
    offset = _count(tensor, "offset", entries.get("offset", "0"))
    length = _count(tensor, "length", entries.get("length", str(tensor.size)))
    if length != tensor.size:
        raise tensor.wrong(
            f"{length} bytes in {file}, but its dims and type need {tensor.size}: export the model again"
        )
    if offset + length > there:
        raise tensor.wrong(f"bytes {offset} to {offset + length} of {file}, which has {there}: copy the file again")


def _count(tensor: StoredTensor, what: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise tensor.wrong(f"external data with {what} {text[:SHOWN]!r}: it must be a number of bytes")
    return int(text)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()

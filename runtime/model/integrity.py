"""The integrity of a model file: its tensors, its files with weights, and its digest.

A model file may come from anywhere. Engines allocate what a file asks for, and open any file that it names. So
the bytes of each tensor must fit its dims and type, and external data must be a plain relative path to a regular file
in the model's folder that holds the bytes the tensor needs.

A file that unetrt writes ends with the SHA-256 of everything else in it (`with_digest`): graph, weights and spec.
`is_intact` compares the two, so that no bit changes unnoticed on the way. Files of earlier versions state no digest. It
shows damage and not who wrote a file; and a file that changes between the check and the engine's reading is not
detected.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path, PurePosixPath
from stat import S_ISREG

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import (
    AGAIN,
    ENTRY_KEY,
    ENTRY_VALUE,
    FLOAT,
    MAX_TEXT,
    METADATA,
    RAW_DATA,
    SHOWN,
    VARINT,
    Field,
    Message,
    WireError,
    field_of,
    integers,
    opened,
    parts,
    read_entry,
)
from unetrt.runtime.model.onnx_file import replace as replaced

# Field numbers of TensorProto (onnx-ml.proto), and of its fields of typed values, the alternative to raw_data.
DIMS, DATA_TYPE, NAME, EXTERNAL_DATA, DATA_LOCATION = 1, 2, 8, 13, 14
TYPED_DATA = (4, 5, 6, 7, 10, 11)
# SparseTensorProto: dims of the dense tensor.
SPARSE_DIMS = 3

# TensorProto.DataType -> bits of an element; 0 for strings.
STRING = 8
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
# A number in a typed field takes at least one byte, and holds up to four elements (of 2 bits).
ELEMENTS_PER_BYTE = 4

# Protobuf's limit for a message, which no layer of a U-Net reaches.
MAX_BYTES = (1 << 31) - 1
MAX_RANK = 64


@dataclass
class StoredTensor:
    """A TensorProto without its values.

    Attributes
    ----------
    name
        Its name.
    dims
        Lengths of the axes.
    data_type
        TensorProto.DataType.
    raw, typed
        Size in bytes of raw_data, None without it, and of all typed fields, tags included.
    external
        The entries of external_data: location, offset, length and others.
    is_external
        Whether data_location is EXTERNAL: the values are in another file.
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
        """Read a TensorProto; raises WireError where a field is malformed, or occurs twice where one is allowed."""
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
            self.dims += integers(message, part, MAX_RANK)
        elif part.number == DATA_TYPE:
            self.data_type = _number(part)
        elif part.number == NAME:
            self.name = message.read(part, MAX_TEXT).decode(errors="replace")
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
        """Size of the values in bytes: elements times bits, rounded up; 0 for strings."""
        return -(-prod(self.dims) * BITS[self.data_type] // 8)

    def require_possible(self) -> None:
        """Raise ModelFileError where type or dims are invalid, or the tensor exceeds MAX_BYTES."""
        if self.data_type not in BITS:
            raise self.invalid(f"data type {self.data_type}: it must be one of ONNX 1.23, 1 to 28; {AGAIN}")
        if min(self.dims, default=0) < 0 or len(self.dims) > MAX_RANK:
            raise self.invalid(f"dims {self._shape()}: they must be at most {MAX_RANK} numbers of 0 or more; {AGAIN}")
        # 1 instead of 0: an engine that multiplies all dims overflows although there are no elements.
        if prod(max(side, 1) for side in self.dims) * max(BITS[self.data_type], 8) > 8 * MAX_BYTES:
            raise self.invalid(f"dims {self._shape()}, more than {MAX_BYTES} bytes; {AGAIN}")

    def require_inline(self) -> None:
        """Raise ModelFileError where the number of values in the file differs from that of dims and type."""
        if self.external:
            raise self.invalid(f"entries of external data, but its values are in the file; {AGAIN}")
        if self.raw is not None and (self.data_type == STRING or self.typed or self.raw != self.size):
            raise self.invalid(f"{self.raw + self.typed} bytes, but its dims {self._shape()} need {self.size}; {AGAIN}")
        if self.raw is None and prod(self.dims) > ELEMENTS_PER_BYTE * self.typed:
            raise self.invalid(f"{self.typed} bytes, too few for its dims {self._shape()}; {AGAIN}")

    def invalid(self, what: str) -> ModelFileError:
        """Return the error for a tensor that has `what`."""
        return ModelFileError(f"tensor {self.name[:SHOWN]!r} has {what}")

    def _shape(self) -> str:
        shown = "x".join(str(side) for side in self.dims[:8]) or "()"
        return shown if len(self.dims) <= 8 else f"{shown}x... ({len(self.dims)} of them)"


def require_sparse(message: Message) -> None:
    """Raise ModelFileError where the dense form of a SparseTensorProto has invalid dims, or exceeds MAX_BYTES."""
    dims = [
        side for part in message.fields() if part.number == SPARSE_DIMS for side in integers(message, part, MAX_RANK)
    ]
    StoredTensor(name="(sparse)", dims=dims, data_type=FLOAT).require_possible()


def _number(part: Field) -> int:
    if part.kind != VARINT:
        raise WireError(f"its field {part.number} at byte {part.begin} is not a number")
    return part.value


def _location(part: Field) -> bool:
    if _number(part) not in (0, 1):
        raise WireError(f"its tensor's data_location at byte {part.begin} is neither DEFAULT (0) nor EXTERNAL (1)")
    return part.value == 1


# Characters with a meaning in some file system: Windows' separators, drives, streams and wildcards. ONNX Runtime also
# interprets a location that begins with */_ORT_MEM_ADDR_ as an address in memory (its tensorprotoutils.h).
SPECIAL = '\\:*?"<>|'
# Digits of 2^63 - 1, the largest offset of a file.
MAX_DIGITS = 19
CHUNK = 1 << 20
# Key of the digest in metadata_props, and the most of its entries that are read.
DIGEST, MAX_DIGESTS = "unetrt_sha256", 16


def is_intact(path: str | Path) -> bool:
    """Return whether an ONNX file and its external weights are as written; False where it states no digest.

    Raises
    ------
    ModelFileError
        As `external_files` does, or the contents do not have the stated digest.
    """
    path = Path(path)
    files = external_files(path)
    with opened(path) as model:
        entries = _digests(model)
        stated = {read_entry(model.inside(part))[1] for part in entries}
        found = _with_external(_sha256_around(model, entries), files, path.parent) if stated else ""
    if stated and stated != {found}:
        raise ModelFileError(
            f"{path} is damaged: its contents do not have the SHA-256 that it states; export or copy it again, or, "
            f"where another program changed it on purpose, remove {DIGEST} from its metadata_props"
        )
    return bool(stated)


def with_digest(content: bytes, folder: Path = Path()) -> bytes:
    """Return an ONNX file's bytes with the digest of all others as the last field; any earlier digest is left out.

    Parameters
    ----------
    content
        A ModelProto.
    folder
        Folder of its external weights, which the digest includes.

    Raises
    ------
    ModelFileError
        As `external_files` does.
    """
    content = replaced(content, dict.fromkeys(_digests(Message.of(content)), b""))
    digest = _with_external(hashlib.sha256(content).hexdigest(), _external(Message.of(content), folder), folder)
    entry = field_of(ENTRY_KEY, DIGEST.encode()) + field_of(ENTRY_VALUE, digest.encode())
    return content + field_of(METADATA, entry)


def _digests(model: Message) -> list[Field]:
    """Return the entries of a model's metadata that state its digest: one, or none."""
    metadata = (part for part in model.fields() if part.number == METADATA)
    found = [part for part in metadata if read_entry(model.inside(part))[0] == DIGEST]
    if len(found) > MAX_DIGESTS:
        raise WireError(f"it states its SHA-256 {len(found)} times")
    return found


def _sha256_around(model: Message, left_out: list[Field]) -> str:
    """Return the SHA-256 of a message without some of its fields, which are in file order."""
    digest, position = hashlib.sha256(), model.begin
    for begin, end in (*((part.begin, part.end) for part in left_out), (model.end, model.end)):
        model.file.seek(position)
        while chunk := model.file.read(min(CHUNK, begin - model.file.tell())):
            digest.update(chunk)
        position = end
    return digest.hexdigest()


def external_files(path: str | Path) -> tuple[Path, ...]:
    """Return the files that hold an ONNX file's external weights, sorted; most models have none.

    Checks every tensor: initializers, sparse tensors and attributes, in subgraphs and functions too.

    Raises
    ------
    ModelFileError
        The file is not a valid ONNX file; a tensor's bytes do not fit its dims and type; or its values are outside the
        folder, or in a file that is missing, not a regular file, or too short.
    """
    path = Path(path)
    with opened(path) as model:
        try:
            return _external(model, path.parent)
        except ModelFileError as error:
            raise ModelFileError(f"{path}: {error}") from error


def _external(model: Message, folder: Path) -> tuple[Path, ...]:
    found = {checked(tensor, folder) for tensor in _tensors(model)}
    return tuple(sorted(file for file in found if file is not None))


def sha256_of_model(path: str | Path) -> str:
    """Return the SHA-256 of a model, in hexadecimal: of its ONNX file and of its external weights.

    Without external weights it is the SHA-256 of the ONNX file. With them it is that of a list: the SHA-256 of the ONNX
    file, then for each file, sorted, a line with its SHA-256 and its name relative to the model's folder.

    Raises
    ------
    ModelFileError
        As `external_files` does, or a file cannot be read.
    """
    path = Path(path)
    files = external_files(path)
    return _with_external(_sha256(path), files, path.parent)


def _with_external(digest: str, files: tuple[Path, ...], folder: Path) -> str:
    """Return the digest of an ONNX file and its external weights, see `sha256_of_model`."""
    if not files:
        return digest
    lines = [digest, *(f"{_sha256(file)}  {file.relative_to(folder).as_posix()}" for file in files)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _tensors(model: Message) -> Iterator[StoredTensor]:
    for kind, message in parts(model):
        if kind == "tensor":
            yield StoredTensor.read(message)
        elif kind == "sparse tensor":
            require_sparse(message)


def checked(tensor: StoredTensor, folder: Path) -> Path | None:
    """Return the file with a tensor's values, None where they are in the ONNX file; raises as `external_files`."""
    tensor.require_possible()
    if not tensor.is_external:
        tensor.require_inline()
        return None
    if tensor.data_type == STRING or tensor.raw is not None or tensor.typed:
        raise tensor.invalid(f"external data, but is of strings or has values in the file too; {AGAIN}")
    entries = dict(tensor.external)
    if len(entries) < len(tensor.external):
        raise tensor.invalid(f"an entry of external data twice; {AGAIN}")
    file = _plain_path(tensor, entries.get("location", ""), folder)
    _require_range(tensor, entries, file, _regular_size(tensor, file, folder))
    return file


def _plain_path(tensor: StoredTensor, location: str, folder: Path) -> Path:
    odd = [character for character in location if character in SPECIAL or not character.isprintable()]
    relative = PurePosixPath(location)
    if odd or "\ufffd" in location or not relative.parts or relative.is_absolute() or ".." in relative.parts:
        raise tensor.invalid(
            f"its values at {location[:200]!r}: only a plain path within the model's folder is opened; keep the files "
            "together and export the model again"
        )
    return folder / relative


def _regular_size(tensor: StoredTensor, file: Path, folder: Path) -> int:
    """Return a file's size in bytes; raises ModelFileError where it is missing, not a regular file, or elsewhere."""
    try:
        real, status = file.resolve(strict=True), file.stat()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise tensor.invalid(
            f"its values in {file}, which cannot be read ({reason}): copy it beside the model"
        ) from error
    if not real.is_relative_to(folder.resolve()):
        raise tensor.invalid(f"its values in {file}, a link out of the model's folder: copy the file itself there")
    if not S_ISREG(status.st_mode):
        raise tensor.invalid(f"its values in {file}, which is not a regular file: copy the weights there")
    return status.st_size


def _require_range(tensor: StoredTensor, entries: dict[str, str], file: Path, there: int) -> None:
    """Raise ModelFileError unless the length is that of the tensor, and offset plus length lie within the file."""
    offset = _count(tensor, "offset", entries.get("offset", "0"))
    length = _count(tensor, "length", entries.get("length", str(tensor.size)))
    if length != tensor.size:
        raise tensor.invalid(f"{length} bytes in {file}, but its dims and type need {tensor.size}; {AGAIN}")
    if offset + length > there:
        raise tensor.invalid(f"bytes {offset} to {offset + length} of {file}, which has {there}: copy the file again")


def _count(tensor: StoredTensor, what: str, text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise tensor.invalid(f"external data with {what} {text[:SHOWN]!r}: it must be a number of bytes; {AGAIN}")
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

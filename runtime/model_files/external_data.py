"""The files beside an ONNX file that hold its weights, checked before any engine opens one.

A model file may come from anywhere, and names files for the engine to read. What is let through here is a plain
relative path to a regular file in the model's own folder that holds what the tensors need. A file that is changed
between this check and the engine's reading is not caught.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from stat import S_ISREG

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model_files.onnx_file import opened, parts
from unetrt.runtime.model_files.operators import require_node
from unetrt.runtime.model_files.protobuf import Message, signed
from unetrt.runtime.model_files.stored_tensor import SHOWN, STRING, StoredTensor, require_sparse

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

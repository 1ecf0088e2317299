"""Reads the spec out of an ONNX file without an ONNX library, and without reading the weights.

An ONNX file is one protobuf message, ModelProto (onnx.proto3): a row of fields, each with a tag and, for the kinds that
matter here, a length. The metadata lies at the top level, so the graph with all its weights is skipped by a seek.
"""

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.spec import KEY, ModelSpec

# Field numbers of ModelProto and of StringStringEntryProto, from onnx.proto3.
GRAPH, METADATA = 7, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2

# Wire types of protobuf and how many bytes the fixed ones take.
VARINT, DELIMITED = 0, 2
FIXED = {1: 8, 5: 4}

# A spec is a few kilobytes; more than this is no spec of ours.
MAX_METADATA = 1 << 24


def read_spec(path: str | Path) -> ModelSpec:
    """Return the spec that `path`, an ONNX file, carries.

    Raises
    ------
    ModelFileError
        There is no such file, it is no ONNX file, it is cut short, or it carries no spec.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist: `unetrt export CHECKPOINT -o {path.name}` writes a model")
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path} is a checkpoint: give the model.onnx beside it, or `unetrt export {path}`")
    entries = read_metadata(path)
    if KEY not in entries:
        raise ModelFileError(
            f"{path} carries no unetrt spec, so its tile and normalisation are unknown: export it with `unetrt export`"
        )
    try:
        return ModelSpec.from_json(entries[KEY])
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata_props of an ONNX file; raises ModelFileError where it is none or is cut short."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            fields = list(_fields(file, size, keep=METADATA))
            if not any(number == GRAPH for number, _ in fields):
                raise ModelFileError(f"{path} is not an ONNX file: it holds no graph")
            return dict(_entry(content) for number, content in fields if number == METADATA)
    except EOFError as error:
        raise ModelFileError(f"{path} is not a whole ONNX file: {error}; export or copy it again") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _fields(file: BinaryIO, size: int, keep: int) -> Iterator[tuple[int, bytes]]:
    """Iterate over the fields of a message of `size` bytes: number and, for those numbered `keep`, content."""
    while file.tell() < size:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == VARINT:
            _varint(file)
            yield number, b""
            continue
        if kind not in (DELIMITED, *FIXED) or number == 0:
            raise EOFError(f"its byte {file.tell()} starts no field")
        length = FIXED[kind] if kind in FIXED else _varint(file)
        left = size - file.tell()
        if length > left:
            raise EOFError(f"{length - left} bytes are missing")
        if number == keep and length <= MAX_METADATA:
            yield number, file.read(length)
        else:
            file.seek(length, 1)
            yield number, b""


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 64, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("it ends within a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise EOFError("it holds a number of more than 64 bits")


def _entry(content: bytes) -> tuple[str, str]:
    def text(number: int) -> str:
        found = [value for field, value in _fields(BytesIO(content), len(content), keep=number) if field == number]
        return found[-1].decode(errors="replace") if found else ""

    return text(ENTRY_KEY), text(ENTRY_VALUE)

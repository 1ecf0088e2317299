"""What an ONNX file says, read without an ONNX library and without the weights.

An ONNX file is one protobuf message, ModelProto. Field numbers are those of onnx-ml.proto, ONNX 1.23.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model_files.protobuf import Message, WireError
from unetrt.runtime.spec import KEY, ModelSpec

# ModelProto and StringStringEntryProto.
GRAPH, METADATA = 7, 14
ENTRY_KEY, ENTRY_VALUE = 1, 2

# A spec is a few kilobytes; more than this, in bytes, is no metadata of ours.
MAX_METADATA = 1 << 24

# Where messages lie in messages: kind -> field number -> kind. All ways that lead to a tensor, a node or an opset.
CHILDREN = {
    "model": {GRAPH: "graph", 8: "opset", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 9: "opset", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
}
# Those of which there is one. Given twice, an engine merges them; so that nobody is to guess how, they are refused.
SINGLE = {"model": {GRAPH}, "training": {1, 2}, "attribute": {5, 6, 22}, "sparse tensor": {1, 2}}

# Messages within messages; a subgraph is three deeper than its graph. Protobuf itself stops at 100.
MAX_DEPTH = 32


def read_spec(path: str | Path) -> ModelSpec:
    """Return the spec that `path`, an ONNX file, carries.

    Raises
    ------
    ModelFileError
        There is no such file, it is no ONNX file, it is cut short, or it carries no spec.
    """
    path = Path(path)
    _require_model(path)
    entries = read_metadata(path)
    if KEY not in entries:
        raise ModelFileError(
            f"{path} carries no unetrt spec, so its tile and normalisation are unknown: export it with `unetrt export`"
        )
    try:
        return ModelSpec.from_json(entries[KEY])
    except ModelFileError as error:
        raise ModelFileError(f"{path}: {error}") from error


def _require_model(path: Path) -> None:
    """Raise ModelFileError for what is easily taken for a model file."""
    if path.is_dir():
        model = path / "model.onnx"
        advice = f"give {model}" if model.is_file() else f"`unetrt export {path}` makes a model file of a training"
        raise ModelFileError(f"{path} is a folder: {advice}")
    if not path.exists():
        raise ModelFileError(f"{path} does not exist: `unetrt export CHECKPOINT -o {path.name}` writes a model")
    if not path.is_file():
        raise ModelFileError(f"{path} is no regular file: give a model file")
    if path.suffix == ".safetensors":
        raise ModelFileError(f"{path} is a checkpoint: give the model.onnx beside it, or `unetrt export {path}`")
    if path.suffix in (".engine", ".plan"):
        raise ModelFileError(f"{path} is an engine: give the ONNX file that it was built from")


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata_props of an ONNX file; raises ModelFileError where it is none or is cut short."""
    with opened(path) as model:
        fields = list(model.fields())
        if not any(part.number == GRAPH for part in fields):
            raise ModelFileError(f"{path} is not an ONNX file: it holds no graph")
        entries = [part for part in fields if part.number == METADATA]
        if sum(part.size for part in entries) > MAX_METADATA:
            raise WireError(f"it has more than {MAX_METADATA} bytes of metadata")
        return dict(read_entry(model.inside(part)) for part in entries)


@contextmanager
def opened(path: Path) -> Iterator[Message]:
    """Yield the ModelProto of a file; what is wrong with it, found inside the `with` too, becomes a ModelFileError."""
    if not path.is_file():  # opening a pipe would wait for its other end
        raise ModelFileError(
            f"{path} does not exist or is no regular file: give the model.onnx that `unetrt export` wrote"
        )
    try:
        with path.open("rb") as file:
            yield Message(file, 0, path.stat().st_size)
    except WireError as error:
        raise ModelFileError(f"{path} is not a whole ONNX file: {error}; export or copy it again") from error
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from error


def parts(message: Message, kind: str = "model", depth: int = 0) -> Iterator[tuple[str, Message]]:
    """Iterate over a message and, depth first, all those inside it that `CHILDREN` leads to: kind and message.

    Raises
    ------
    WireError
        A message is malformed, is nested too deeply, or is there twice where there can be one.
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


def read_entry(entry: Message, limit: int = MAX_METADATA) -> tuple[str, str]:
    """Return key and value, of up to `limit` bytes, of a StringStringEntryProto; given twice, the last counts."""
    texts = {ENTRY_KEY: "", ENTRY_VALUE: ""}
    for part in entry.fields():
        if part.number in texts:
            texts[part.number] = entry.read(part, limit).decode(errors="replace")
    return texts[ENTRY_KEY], texts[ENTRY_VALUE]

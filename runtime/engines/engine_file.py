"""An engine file and its sidecar: the plan as TensorRT wrote it, and beside it, as JSON, what must be known of it."""

import json
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from typing import Any

from unetrt._version import __version__
from unetrt.runtime.artifacts import whole_file
from unetrt.runtime.engines.facts import Facts
from unetrt.runtime.errors import EngineError, UnetrtError
from unetrt.runtime.spec import ModelSpec

SCHEMA = 1


@dataclass(frozen=True)
class Sidecar:
    """What stands beside an engine.

    Attributes
    ----------
    facts
        All that the engine depends on.
    spec
        The model's spec, which a plan cannot hold.
    source
        The model file that it was built from.
    sha256, size
        Of the engine file, in hexadecimal and in bytes.
    written_by
        Version of unetrt that wrote it.
    """

    facts: Facts
    spec: ModelSpec
    source: str
    sha256: str
    size: int
    written_by: str = ""

    def to_json(self) -> str:
        """Return the form in which it is stored."""
        parts = {"schema": SCHEMA, "facts": asdict(self.facts), "spec": json.loads(self.spec.to_json())}
        return json.dumps({**parts, **{name: getattr(self, name) for name in PLAIN}}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Sidecar":
        """Return what `to_json` wrote; raises EngineError for anything else."""
        try:
            stored = json.loads(text)
            if stored["schema"] != SCHEMA:
                raise EngineError(f"it has schema {stored['schema']}, this version reads {SCHEMA}")
            plain: dict[str, Any] = {name: _typed(stored[name], kind) for name, kind in PLAIN.items()}
            return cls(Facts.from_dict(stored["facts"]), ModelSpec.from_json(json.dumps(stored["spec"])), **plain)
        except (UnetrtError, KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise EngineError(f"it is not readable: {error}") from error


PLAIN = {"source": str, "sha256": str, "size": int, "written_by": str}


def sidecar_path(engine: Path) -> Path:
    """Return where the sidecar of an engine file lies: `model.engine.json`."""
    return engine.with_name(f"{engine.name}.json")


def write_engine(path: Path, content: bytes, facts: Facts, spec: ModelSpec, source: Path) -> Sidecar:
    """Write an engine and its sidecar, in this order: where the first cannot be replaced, both stay.

    What a kill between the two leaves is refused by `read_sidecar`.

    Raises
    ------
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    digest = sha256(content).hexdigest()
    sidecar = Sidecar(facts, spec, str(source), digest, len(content), f"unetrt {__version__}")
    with whole_file(sidecar_path(path)) as beside, whole_file(path) as engine:
        engine.write_bytes(content)
        beside.write_text(sidecar.to_json(), encoding="utf-8")
    return sidecar


def read_sidecar(path: str | Path) -> Sidecar:
    """Return what stands beside an engine file, which is whole and the one that it speaks of.

    Raises
    ------
    EngineError
        There is no such engine or no sidecar, it is not readable, or it is another engine's.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path} does not exist: `unetrt build model.onnx -o {path}` writes engines")
    beside = sidecar_path(path)
    again = f"`unetrt build model.onnx -o {path}` writes both"
    try:
        sidecar = Sidecar.from_json(beside.read_text(encoding="utf-8"))
        with path.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise EngineError(f"{path} has no {beside.name} beside it, so what it is stays unknown: {again}") from error
    except (EngineError, OSError, UnicodeDecodeError) as error:
        raise EngineError(f"{beside}: {error}; {again}") from error
    if digest != sidecar.sha256:
        raise EngineError(f"{path} is not the engine that {beside.name} speaks of, or is damaged: {again}")
    return sidecar


def _typed(value: object, kind: type) -> object:
    if type(value) is not kind:
        raise TypeError(f"{value!r} is no {kind.__name__}")
    return value

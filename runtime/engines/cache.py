"""Engines that were built before, found again by all that they depend on.

What TensorRT for RTX has compiled for a GPU, kept on disk: without it every start compiles again.
"""

import logging
import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from unetrt.runtime.engines.build import Progress, Within, build
from unetrt.runtime.engines.engine_file import Sidecar, read_sidecar, sidecar_path, write_engine
from unetrt.runtime.engines.facts import Difference, Facts
from unetrt.runtime.errors import EngineError, OutputError
from unetrt.runtime.files.atomic import cache_folder, clear_unfinished, locked, require_place, whole_file
from unetrt.runtime.machine import Machine
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.safety import external_files

log = logging.getLogger("unetrt")

# Bytes of engines that are kept; the longest unused go first.
KEEP = 20 * 2**30
# Seconds after which what is not finished is nobody's any more.
UNFINISHED = 3600.0


@dataclass(frozen=True)
class Entry:
    """One engine of the cache.

    Attributes
    ----------
    path
        The engine file.
    sidecar
        What it is; None where that cannot be told.
    used
        When it was last used, in seconds since 1970.
    size
        Of the engine file, in bytes.
    """

    path: Path
    sidecar: Sidecar | None
    used: float
    size: int


class EngineCache:
    """The engines of one folder, each under its key.

    Parameters
    ----------
    folder
        None: `unetrt/engines` in the user's cache folder.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = cache_folder("engines") if folder is None else Path(folder)

    def obtain(
        self,
        model: Path,
        facts: Facts,
        progress: Progress | None = None,
        force: bool = False,
        within: Within = nullcontext,
    ) -> tuple[Path, bool]:
        """Return the engine of a model file and whether it was built now; why that was needed is logged.

        Raises as `place` does.
        """
        path = self.folder / f"{facts.key}.engine"
        if not current(path, facts):
            log.info("an engine is built: %s", self.reason(model, facts))
        built = place(path, model, facts, progress, force, within)
        with suppress(OSError):
            os.utime(path)
        self.prune()
        return path, built

    def reason(self, model: Path, facts: Facts) -> str:
        """Return why there is no engine yet: what the most similar one of the same model file differs by."""
        same = [entry.sidecar for entry in self.entries() if entry.sidecar and Path(entry.sidecar.source) == model]
        differences = [facts.differences(sidecar.facts) for sidecar in same]
        if not differences:
            return f"there is none of {model} yet"
        fewest: list[Difference] = min(differences, key=len)
        changed = ", ".join(map(str, fewest))
        return f"changed since the last one: {changed}" if changed else "built anew"

    def entries(self) -> list[Entry]:
        """Return the engines, the last used first; another process may delete some meanwhile."""
        found = []
        for path in self.folder.glob("*.engine"):
            with suppress(OSError):
                about = path.stat()
                found.append(Entry(path, _sidecar(path), about.st_mtime, about.st_size))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self, keys: tuple[str, ...] = ()) -> list[Path]:
        """Delete the engines whose keys begin with one of `keys`, or all, and what killed builds left.

        Returns
        -------
        What is gone: not what another process has open, where the system protects that.
        """
        chosen = [path for path in self.folder.glob("*.engine") if not keys or path.name.startswith(keys)]
        gone = [path for path in chosen if _delete(path)]
        for sidecar in self.folder.glob("*.engine.json"):
            if not sidecar.with_suffix("").exists():
                sidecar.unlink(missing_ok=True)
        clear_unfinished(self.folder, older=UNFINISHED)
        return gone

    def prune(self, keep: int = KEEP) -> None:
        """Delete the longest unused engines beyond `keep` bytes; never the one used last."""
        kept = 0
        for number, entry in enumerate(self.entries()):
            kept += entry.size
            if number and kept > keep:
                _delete(entry.path)


def place(
    path: Path,
    model: Path,
    facts: Facts,
    progress: Progress | None = None,
    force: bool = False,
    within: Within = nullcontext,
) -> bool:
    """Build an engine at a place of one's own, unless it is there; return whether it was built.

    What another process builds at the same place meanwhile is waited for.

    Parameters
    ----------
    path
        The engine file; its sidecar goes beside it.
    model, facts
        What to build.
    progress
        Told of every step.
    force
        Build even where it is there.
    within
        As `build` has it.

    Raises
    ------
    OutputError
        The place cannot be written to.
    EngineError, ModelFileError, OutOfMemoryError
        As `build` raises them; nothing is left behind.
    """
    require_place(path, (model, *external_files(model)))
    with locked(path):
        if not force and current(path, facts):
            return False
        write_engine(path, build(model, facts, progress, within), facts, read_spec(model), model)
        return True


def current(path: Path, facts: Facts) -> bool:
    """Tell whether an engine file is there, whole, and what would be built with these facts."""
    with suppress(EngineError):
        return read_sidecar(path).facts == facts
    return False


def _sidecar(engine: Path) -> Sidecar | None:
    with suppress(EngineError, OSError, UnicodeDecodeError):
        return Sidecar.from_json(sidecar_path(engine).read_text(encoding="utf-8"))
    return None


def _delete(engine: Path) -> bool:
    """Delete an engine and then its sidecar; return whether it is gone."""
    with suppress(OSError):
        engine.unlink(missing_ok=True)
        sidecar_path(engine).unlink(missing_ok=True)
    return not engine.exists()


tensorrt_log = logging.getLogger("unetrt.tensorrt")


class RuntimeCache:
    """A file of compiled kernels, for one engine on one kind of GPU with one driver.

    A file that is damaged, or cannot be written, costs the time to compile again and nothing else.

    Parameters
    ----------
    facts, machine
        Of the engine, and of where it runs.
    """

    def __init__(self, facts: Facts, machine: Machine) -> None:
        parts = (facts.key, machine.gpu, machine.capability, machine.driver, machine.os)
        self.path = cache_folder("runtime") / f"{sha256(repr(parts).encode()).hexdigest()[:32]}.cache"
        self._known = b""

    def restore(self, cache: Any) -> None:
        """Give a TensorRT IRuntimeCache what is known so far."""
        with suppress(OSError):
            self._known = self.path.read_bytes()
            if not cache.deserialize(self._known):
                tensorrt_log.info("%s is of no use to this TensorRT: kernels are compiled again", self.path)

    def keep(self, cache: Any) -> None:
        """Write what has been compiled since; nothing where nothing was."""
        with suppress(OutputError, OSError):
            serialized = cache.serialize()
            if serialized is None or bytes(serialized) == self._known:
                return
            content = bytes(serialized)
            with locked(self.path), whole_file(self.path) as temporary:
                temporary.write_bytes(content)
            self._known = content

"""Caches on disk: engines under a hash of their facts, and the kernels that TensorRT for RTX compiled for a GPU.

`EngineCache.obtain` returns a cached engine or builds it, and logs which fact changed. `place` builds an engine at a
path of the user's. `RuntimeCache` saves TensorRT for RTX from compiling an engine's kernels again at each start.
"""

import json
import logging
import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_ISREG
from typing import Any

from unetrt.runtime.engines.build import DeviceContext, Progress, build
from unetrt.runtime.engines.engine_file import (
    Difference,
    Facts,
    Sidecar,
    load_sidecar,
    read_sidecar,
    sidecar_path,
    write_engine,
)
from unetrt.runtime.errors import EngineError, OutputError, printable
from unetrt.runtime.files.atomic import (
    cache_folder,
    cached_file,
    clear_unfinished,
    locked,
    private_folder,
    read_cached,
    require_place,
)
from unetrt.runtime.machine import Machine
from unetrt.runtime.model.integrity import external_files
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.records import to_json

log = logging.getLogger("unetrt")
tensorrt_log = logging.getLogger("unetrt.tensorrt")

# Bytes of engines that are kept; the least recently used are deleted first.
KEEP = 20 * 2**30
# Seconds to wait for another process that builds the same engine.
BUILD_WAIT = 3600.0
# Limit of a runtime cache in bytes; the kernels of a U-Net take some megabytes.
LARGEST = 1 << 30


@dataclass(frozen=True)
class Entry:
    """One engine of the cache.

    Attributes
    ----------
    path
        The engine file.
    sidecar
        Its sidecar; None where it is missing or damaged.
    used
        Time of the last use, in seconds since 1970.
    size
        Size of the engine file, in bytes.
    """

    path: Path
    sidecar: Sidecar | None
    used: float
    size: int


class EngineCache:
    """A folder of engines, each under its key; no other user can enter it, and links in it are replaced.

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
        device_context: DeviceContext = nullcontext,
    ) -> tuple[Path, bool]:
        """Return the engine of a model file, and whether it was built now; the reason for a build is logged.

        Parameters and exceptions are those of `place`.
        """
        path, spec = private_folder(self.folder) / f"{facts.key}.engine", read_spec(model)
        if not _is_current(path, facts, spec, cached=True):
            log.info("an engine is built: %s", printable(self.reason(model, facts)))
        with locked(path, BUILD_WAIT):
            if built := force or not _is_current(path, facts, spec, cached=True):
                content = build(model, facts, progress, device_context)
                write_engine(path, content, facts, spec, model, cached=True)
        with suppress(OSError):
            os.utime(path)
        self.prune()
        return path, built

    def reason(self, model: Path, facts: Facts) -> str:
        """Return why there is no engine yet: the facts that differ from the most similar one of the same model file."""
        same = [entry.sidecar for entry in self.entries() if entry.sidecar and Path(entry.sidecar.source) == model]
        differences = [facts.differences(sidecar.facts) for sidecar in same]
        if not differences:
            return f"{model} has no engine yet"
        fewest: list[Difference] = min(differences, key=len)
        changed = ", ".join(map(str, fewest))
        return f"changed since the last one: {changed}" if changed else "built again"

    def entries(self) -> list[Entry]:
        """Return the engines, the last used first; other processes may delete some at any time."""
        found = []
        for path in self.folder.glob("*.engine"):
            with suppress(OSError):
                about = path.lstat()
                if S_ISREG(about.st_mode):
                    found.append(Entry(path, _sidecar(path), about.st_mtime, about.st_size))
        return sorted(found, key=lambda entry: entry.used, reverse=True)

    def clear(self, keys: tuple[str, ...] = ()) -> list[Path]:
        """Delete the engines whose keys begin with one of `keys`, or all, and leftovers of killed builds.

        Returns
        -------
        The deleted engines: without those that another process has open, where the system protects them.
        """
        chosen = [path for path in self.folder.glob("*.engine") if not keys or path.name.startswith(keys)]
        gone = [path for path in chosen if _delete(path)]
        for sidecar in self.folder.glob("*.engine.json"):
            if not os.path.lexists(sidecar.with_suffix("")):
                with suppress(OSError):
                    sidecar.unlink(missing_ok=True)
        clear_unfinished(self.folder)
        return gone

    def prune(self, keep: int = KEEP) -> None:
        """Delete the least recently used engines beyond `keep` bytes; never the last used one."""
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
    device_context: DeviceContext = nullcontext,
) -> bool:
    """Build an engine at a path, unless the file there is that engine; return whether it was built.

    A build of another process at the same path is waited for.

    Parameters
    ----------
    path
        The engine file; its sidecar is written beside it.
    model, facts
        What to build.
    progress
        Receives every step.
    force
        Whether to build in any case.
    device_context
        See `build`.

    Raises
    ------
    OutputError
        The path cannot be written to.
    EngineError, ModelFileError, OutOfMemoryError
        See `build`; no file is left.
    """
    sources = (model, *external_files(model))
    for written in (path, sidecar_path(path)):
        require_place(written, sources)
    spec = read_spec(model)
    with locked(path, BUILD_WAIT):
        if not force and _is_current(path, facts, spec):
            clear_unfinished(path.parent)
            return False
        write_engine(path, build(model, facts, progress, device_context), facts, spec, model)
        return True


def _is_current(path: Path, facts: Facts, spec: ModelSpec, cached: bool = False) -> bool:
    """Return whether an undamaged engine with these facts and this spec is at a path; `cached` as in `read_sidecar`."""
    with suppress(EngineError):
        sidecar = read_sidecar(path, cached)
        return sidecar.facts == facts and _as_stored(sidecar.spec) == _as_stored(spec)
    return False


def _as_stored(spec: ModelSpec) -> str:
    """Return a spec as a sidecar stores it, where NaN is null."""
    return to_json(json.loads(spec.to_json()))


def _sidecar(engine: Path) -> Sidecar | None:
    with suppress(EngineError, OSError):
        return load_sidecar(engine, cached=True)
    return None


def _delete(engine: Path) -> bool:
    """Delete an engine and then its sidecar; return whether the engine is gone."""
    with suppress(OSError):
        engine.unlink(missing_ok=True)
        sidecar_path(engine).unlink(missing_ok=True)
    return not os.path.lexists(engine)


class RuntimeCache:
    """The runtime cache of TensorRT for RTX: a file of compiled kernels, for one engine, kind of GPU and driver.

    Where it is damaged or cannot be written, kernels are compiled again.

    Parameters
    ----------
    facts, machine
        Facts of the engine, and the machine on which it runs.
    """

    def __init__(self, facts: Facts, machine: Machine) -> None:
        parts = (facts.key, machine.gpu, machine.capability, machine.driver, machine.os)
        self.path = cache_folder("runtime") / f"{sha256(repr(parts).encode()).hexdigest()[:32]}.cache"
        self._known = b""

    def restore(self, cache: Any) -> None:
        """Load the file into a TensorRT IRuntimeCache."""
        with suppress(OSError):
            self._known = read_cached(self.path, LARGEST)
            if not cache.deserialize(self._known):
                tensorrt_log.info("this TensorRT cannot use %s: kernels are compiled again", self.path)

    def keep(self, cache: Any) -> None:
        """Write the file, if kernels were compiled since it was read."""
        with suppress(OutputError, OSError):
            serialized = cache.serialize()
            if serialized is None or bytes(serialized) == self._known:
                return
            content = bytes(serialized)
            with locked(self.path), cached_file(self.path) as temporary:
                temporary.write_bytes(content)
            self._known = content

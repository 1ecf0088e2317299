"""An engine file and its sidecar: the plan as TensorRT wrote it, and beside it, as JSON, what must be known of it.

Whether an engine runs on a machine; where not, what stands against it, and the command that builds one that does.

What an engine's input and output look like.
"""

import json
import os
import shlex
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from subprocess import list2cmdline
from typing import Any, NamedTuple

import numpy as np

from unetrt._version import __version__
from unetrt.runtime.engines.facts import BuildOptions, Difference, Facts
from unetrt.runtime.engines.flavours import (
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    named_flavour,
    rtx_serves,
    version_numbers,
)
from unetrt.runtime.errors import BackendUnavailableError, EngineError, UnetrtError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.machine import Machine, why_no_gpu
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec

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


def require_fit(path: Path, sidecar: Sidecar, machine: Machine, version: str | None = None) -> None:
    """Raise EngineError where an engine cannot run on `machine` with a version of its TensorRT, by default that here.

    The message names the fact that differs, what the engine was built with, what is here, and how to build it anew.
    """
    flavour = named_flavour(sidecar.facts.flavour)
    if reason := flavour.why_not_on(machine):
        raise EngineError(f"{path} does not fit this machine: {reason}, and give it {sidecar.source}")
    misfit = first_misfit(sidecar.facts, machine, version or flavour.version)
    if misfit is None:
        return
    if misfit.name == "GPU":
        raise EngineError(f"{path} runs on a GPU, {misfit.there}, and {why_no_gpu()}")
    raise EngineError(
        f"{path} does not fit this machine: built with {misfit.name} {misfit.there or 'none'}, here "
        f"{misfit.here or 'none'}; rebuild it with `{rebuild_command(path, sidecar, machine)}`"
    )


def misfit_here(path: Path, sidecar: Sidecar, machine: Machine) -> str | None:
    """Return one sentence that says why an engine does not run on this machine, or None where it does."""
    try:
        require_fit(path, sidecar, machine)
    except (BackendUnavailableError, EngineError) as error:
        return str(error)
    return None


def first_misfit(facts: Facts, machine: Machine, version: str) -> Difference | None:
    """Return the first fact that stands against running an engine, if there is one."""
    flavour, built = named_flavour(facts.flavour), facts.machine
    if not _version_fits(facts, version):
        return Difference(f"{flavour.title} version", facts.version, version)
    if not flavour.portable and machine.os != built.os:
        return Difference("system", built.os, machine.os)
    if not machine.gpu:
        return Difference("GPU", built.gpu or f"of compute capability {targets(facts)}", "")
    if flavour.portable:
        fits = rtx_serves(machine.capability, facts.options.capabilities)
        return None if fits else Difference("compute capability", targets(facts), machine.capability)
    fits = machine.capability == built.capability
    if facts.options.hardware_compatible == "ampere-plus":
        fits = _is_ampere_or_newer(machine)
    return None if fits else Difference("compute capability", built.capability, machine.capability)


def rebuild_command(path: Path, sidecar: Sidecar, machine: Machine | None = None) -> str:
    """Return the command that builds an engine as it was built, but for what keeps it from running on `machine`."""
    facts = sidecar.facts if machine is None else _fitting(sidecar.facts, machine)
    words = ["unetrt", "build", sidecar.source, "-o", str(path), *arguments(facts)]
    return list2cmdline(words) if os.name == "nt" else shlex.join(words)


def arguments(facts: Facts) -> list[str]:
    """Return the options of `unetrt build` that ask for what `facts` hold."""
    options, usual = facts.options, BuildOptions()
    given = ["--flavour", facts.flavour]
    given += [] if options.workspace is None else ["--workspace", str(options.workspace)]
    given += [] if options.level is None else ["--level", str(options.level)]
    given += ["--tf32"] if options.tf32 else []
    given += ["--version-compatible"] if options.version_compatible else []
    if options.hardware_compatible != usual.hardware_compatible:
        given += ["--hardware-compatible", options.hardware_compatible]
    for capability in options.capabilities:
        given += ["--capability", capability]
    return given


def targets(facts: Facts) -> str:
    """Return the compute capabilities that an engine of TensorRT for RTX was built for."""
    return ", ".join(facts.options.capabilities) or f"{', '.join(DEFAULT_CAPABILITIES)} and newer"


def _fitting(facts: Facts, machine: Machine) -> Facts:
    """Return facts with the options that an engine for the GPU of `machine` needs."""
    options = facts.options
    if options.hardware_compatible == "ampere-plus" and not _is_ampere_or_newer(machine):
        options = replace(options, hardware_compatible="none")
    if named_flavour(facts.flavour).portable and not rtx_serves(machine.capability, options.capabilities):
        nameable = machine.capability in CAPABILITIES
        options = replace(options, capabilities=(*options.capabilities, machine.capability) if nameable else ())
    return replace(facts, options=options)


def _version_fits(facts: Facts, version: str) -> bool:
    if not facts.options.version_compatible:
        return version == facts.version
    there, here = version_numbers(facts.version), version_numbers(version)
    return there[0] == here[0] and here >= there


def _is_ampere_or_newer(machine: Machine) -> bool:
    """Tell whether TensorRT's AMPERE_PLUS is for the GPU of `machine`: unlike TensorRT for RTX, it leaves none out."""
    return version_numbers(machine.capability) >= (8, 0)


class Binding(NamedTuple):
    """One end of an engine.

    Attributes
    ----------
    shape
        Lengths of its axes.
    dtype
        The numpy type of its elements.
    """

    shape: tuple[int, ...]
    dtype: type[np.generic]


def bindings(spec: ModelSpec) -> dict[str, Binding]:
    """Return an engine's input and output by name.

    They are those of the model file, but for uint16, which TensorRT does not have: there the input is the bytes of the
    same memory, (batch, C, h, w, 2) uint8, the lower byte first.
    """
    ends = {name: _of(array) for name, array in ((INPUT, spec.new_input()), (OUTPUT, spec.new_output()))}
    if spec.input_dtype == "uint16":
        ends[INPUT] = Binding((*ends[INPUT].shape, 2), np.uint8)
    return ends


def _of(array: Any) -> Binding:
    return Binding(array.shape, array.dtype.type)

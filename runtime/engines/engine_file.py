"""An engine file and its sidecar: what the engine depends on, and whether it runs on a machine.

`Facts` are everything that an engine depends on: the model file, `BuildOptions` that the user asks for, the TensorRT
flavour and the machine. Their hash is its key in the cache, and a comparison shows what changed since the last build.
The engine file is the plan as TensorRT wrote it, which the vendor's tools load; beside it, `model.engine.json` holds
the facts and the model's spec. Where an engine does not fit a machine, the error names the fact that differs and the
command that builds another.
"""

import json
import os
import shlex
from dataclasses import asdict, dataclass, replace
from hashlib import file_digest, sha256
from pathlib import Path
from subprocess import list2cmdline
from typing import Annotated, Any, Literal, NamedTuple, get_args

import numpy as np
from msgspec import Meta

from unetrt._version import __version__
from unetrt.runtime.engines.flavours import (
    CAPABILITIES,
    DEFAULT_CAPABILITIES,
    Flavour,
    named_flavour,
    rtx_serves,
    version_numbers,
)
from unetrt.runtime.errors import BackendUnavailableError, EngineError, OptionError, UnetrtError
from unetrt.runtime.files.atomic import cached_file, whole_file
from unetrt.runtime.machine import Machine, why_no_gpu
from unetrt.runtime.model.integrity import DIGEST, sha256_of_model
from unetrt.runtime.model.onnx_file import MAX_METADATA
from unetrt.runtime.model.spec import ModelSpec, Tensors
from unetrt.runtime.records import open_regular, parse, read_regular, to_json, validated

Compatibility = Literal["none", "same-capability", "ampere-plus"]
COMPATIBILITIES: tuple[Compatibility, ...] = get_args(Compatibility)

Count = Annotated[int, Meta(ge=0, le=1 << 20)]

# Part of every engine's key: increased when the same facts no longer produce the same engine.
METHOD = 1


@dataclass(frozen=True)
class BuildOptions:
    """Options of a build; those that a flavour does not have are refused.

    Attributes
    ----------
    workspace
        Bytes of workspace that a layer may use; None is TensorRT's default.
    level
        Builder optimisation level, 0 to 5: how long to search for faster kernels; None is TensorRT's default, 3.
    tf32
        Whether FP32 convolutions may round their factors to 10 bits of mantissa.
    version_compatible
        Whether newer releases of the same major version can load the engine (TensorRT).
    hardware_compatible
        Whether other GPUs can load it: those of the same compute capability, or all from Ampere on (TensorRT).
    capabilities
        Compute capabilities to build for (TensorRT for RTX); empty: `flavours.DEFAULT_CAPABILITIES` and newer.
    """

    workspace: int | None = None
    level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: Compatibility = "none"
    capabilities: tuple[str, ...] = ()

    @classmethod
    def for_gpu(cls, flavour: Flavour, machine: Machine) -> "BuildOptions":
        """Return the default options of an engine for the GPU of `machine`."""
        named = flavour.portable and machine.capability in CAPABILITIES and not rtx_serves(machine.capability)
        return cls(capabilities=(machine.capability,) if named else ())

    def require_for(self, flavour: Flavour, machine: Machine) -> None:
        """Raise OptionError where an option is invalid, or not one of `flavour`, or one is missing for `machine`.

        An engine that does not run on the GPU at hand is only built where the GPUs that it is for are named.
        """
        if self.workspace is not None and self.workspace < 1:
            raise OptionError(f"workspace must be at least 1 byte (got {self.workspace}): use 1GiB or more")
        if self.level is not None and not 0 <= self.level <= 5:
            raise OptionError(f"optimisation level must be 0 to 5 (got {self.level})")
        if flavour.portable and (self.version_compatible or self.hardware_compatible != "none"):
            raise OptionError(
                f"{flavour.title} builds for several GPUs by default, and only for its own version: use --capability "
                "instead of --version-compatible and --hardware-compatible"
            )
        if self.capabilities and not flavour.portable:
            raise OptionError(
                f"{flavour.title} builds for the GPU at hand: use --hardware-compatible ampere-plus, or --capability "
                "with --flavour tensorrt-rtx"
            )
        if not self.capabilities and (missing := BuildOptions.for_gpu(flavour, machine).capabilities):
            raise OptionError(
                f"{flavour.title} builds for compute capability {missing[0]} ({machine.gpu}) only where it is named: "
                f"use --capability {missing[0]}, or name the capabilities of the GPUs that the engine is for"
            )
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise OptionError(
                    f"{flavour.title} cannot build for compute capability {capability}: use {', '.join(CAPABILITIES)}"
                )


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model file that engines and measured times depend on.

    Attributes
    ----------
    model
        SHA-256 of the ONNX file and its external data, in hexadecimal.
    tile, batch, precision
        As in the model's spec. The hash covers them; they are repeated for readability.
    """

    model: str
    tile: tuple[Count, Count]
    batch: Count
    precision: str


def model_facts(path: Path, spec: ModelSpec) -> tuple[str, tuple[int, int], int, str]:
    """Return the fields of `ModelFacts` for a model file, in their order."""
    return sha256_of_model(path), spec.tile, spec.batch, spec.precision


@dataclass(frozen=True)
class Facts(ModelFacts):
    """Everything that an engine depends on; part of its sidecar's JSON.

    Attributes
    ----------
    flavour, version
        The TensorRT that builds it.
    machine
        Where it is built.
    options
        Options of the build.
    """

    flavour: str
    version: str
    machine: Machine
    options: BuildOptions

    @property
    def key(self) -> str:
        """The engine's name in the cache: 32 hexadecimal digits."""
        return key_of(METHOD, self)

    def differences(self, other: "Facts") -> list["Difference"]:
        """Return the facts that another engine does not share."""
        mine, its = self.described(), other.described()
        return [Difference(name, its[name], value) for name, value in mine.items() if its[name] != value]

    def described(self) -> dict[str, str]:
        """Return all facts as text, by readable names."""
        height, width = self.tile
        texts = {"tile": f"{height}x{width}", "batch": str(self.batch), "precision": self.precision}
        texts |= {"weights or graph": self.model[:12], "TensorRT": self.flavour, "TensorRT version": self.version}
        for name, value in asdict(self.machine).items():
            texts[{"gpu": "GPU", "capability": "compute capability", "os": "system"}.get(name, name)] = value
        for name, value in asdict(self.options).items():
            texts[f"option {name}"] = ", ".join(value) if isinstance(value, tuple) else str(value)
        return texts


def facts_of(model: Path, spec: ModelSpec, flavour: Flavour, machine: Machine, options: BuildOptions) -> Facts:
    """Return the facts of an engine to be built from a model file."""
    return Facts(*model_facts(model, spec), flavour.name, flavour.version, machine, options)


def key_of(method: int, facts: Any) -> str:
    """Return a hash of facts as a cache key: 32 hexadecimal digits.

    Parameters
    ----------
    method
        Version of the computation; increased when the same facts no longer lead to the same result.
    facts
        A dataclass of everything that the result depends on.
    """
    return sha256(json.dumps({"method": method, **asdict(facts)}, sort_keys=True).encode()).hexdigest()[:32]


class Difference(NamedTuple):
    """A fact in which two engines, or an engine and a machine, differ.

    Attributes
    ----------
    name
        The fact, in words.
    there, here
        Its value for the other engine, and for this one; or for the engine, and for this machine.
    """

    name: str
    there: str
    here: str

    def __str__(self) -> str:
        return f"{self.name} {self.there or 'none'} -> {self.here or 'none'}"


SCHEMA = 1
# Limit of a sidecar in bytes: that of a model file's metadata, which is written here with more spaces.
LARGEST = 4 * MAX_METADATA


@dataclass(frozen=True)
class Sidecar:
    """The contents of an engine's sidecar.

    Attributes
    ----------
    facts
        Everything that the engine depends on.
    spec
        The model's spec.
    source
        Path of the model file that it was built from.
    sha256, size
        SHA-256 of the engine file, in hexadecimal, and its size in bytes.
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
        """Return the text of the sidecar file; its last field is the SHA-256 of the others."""
        stored = json.loads(to_json({"schema": SCHEMA, **vars(self), "spec": json.loads(self.spec.to_json())}))
        return to_json({**stored, DIGEST: _sha256_of(stored)})

    @classmethod
    def from_json(cls, text: str) -> "Sidecar":
        """Return what `to_json` wrote; raises EngineError for any other text.

        Earlier versions wrote no digest.
        """
        whole = parse(text, "it", EngineError)
        stated = whole.pop(DIGEST, None)
        stored = dict(whole)
        if stored.pop("schema", None) != SCHEMA:
            raise EngineError(f"it does not have schema {SCHEMA}, which this version reads")
        record = validated(stored, _Stored, "it", EngineError)
        facts = validated(record.facts, Facts, "its facts", EngineError)
        if not all(text.isprintable() for text in facts.described().values()):
            raise EngineError("its facts are invalid: they must be text on one line")
        try:
            named_flavour(facts.flavour)
            spec = ModelSpec.from_json(json.dumps(record.spec))
            changed = stated is not None and stated != _sha256_of(whole)
        except (UnetrtError, RecursionError) as error:
            raise EngineError(f"it is invalid: {error}") from error
        if changed:
            raise EngineError("it is damaged: its contents do not have the SHA-256 that it states")
        return cls(facts, spec, record.source, record.sha256, record.size, record.written_by)


def _sha256_of(stored: dict[str, Any]) -> str:
    """Return the SHA-256 of a sidecar's other fields, in hexadecimal."""
    return sha256(json.dumps(stored, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class _Stored:
    """The JSON object of a sidecar, without its schema."""

    facts: dict[str, Any]
    spec: dict[str, Any]
    source: str
    sha256: str
    size: int
    written_by: str = ""


def sidecar_path(engine: Path) -> Path:
    """Return the path of an engine's sidecar: `model.engine.json`."""
    return engine.with_name(f"{engine.name}.json")


def write_engine(
    path: Path, content: bytes, facts: Facts, spec: ModelSpec, source: Path, cached: bool = False
) -> Sidecar:
    """Write an engine and then its sidecar; where the engine cannot be replaced, both old files stay.

    If the process is killed between the two, `read_sidecar` refuses the pair.

    Parameters
    ----------
    path
        The engine file.
    content
        The plan as TensorRT wrote it.
    facts, spec, source
        What the sidecar states.
    cached
        Whether the files are those of a cache, where links are replaced; see `cached_file`.

    Raises
    ------
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    digest = sha256(content).hexdigest()
    sidecar = Sidecar(facts, spec, str(source), digest, len(content), f"unetrt {__version__}")
    written = cached_file if cached else whole_file
    with written(sidecar_path(path)) as beside, written(path) as engine:
        engine.write_bytes(content)
        beside.write_text(sidecar.to_json(), encoding="utf-8")
    return sidecar


def read_sidecar(path: str | Path, cached: bool = False) -> Sidecar:
    """Return the sidecar of an engine file whose hash it states.

    Parameters
    ----------
    path
        The engine file.
    cached
        Whether both files are those of a cache: links and files of other users are refused.

    Raises
    ------
    EngineError
        The engine or its sidecar is missing or damaged, is no regular file, or the sidecar is that of another engine.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"{path} does not exist: `unetrt build model.onnx -o {path}` writes it")
    beside = sidecar_path(path)
    again = f"`unetrt build model.onnx -o {path}` writes both"
    try:
        sidecar = load_sidecar(path, cached)
    except FileNotFoundError as error:
        raise EngineError(f"{path} needs its sidecar {beside.name} beside it, which does not exist: {again}") from error
    except EngineError as error:
        raise EngineError(f"{beside}: {error}; {again}") from error
    try:
        with open_regular(path, own=cached) as file:
            whole = os.fstat(file.fileno()).st_size == sidecar.size
            digest = file_digest(file, "sha256").hexdigest() if whole else ""
    except OSError as error:
        raise EngineError(f"{path} cannot be read: {error.strerror or error}; {again}") from error
    if digest != sidecar.sha256:
        raise EngineError(f"{path} is damaged, or not the engine that {beside.name} describes: {again}")
    return sidecar


def load_sidecar(engine: Path, cached: bool = False) -> Sidecar:
    """Return the sidecar beside an engine file, without reading the engine; see `read_sidecar`.

    Raises
    ------
    FileNotFoundError
        There is no sidecar.
    EngineError
        It is damaged, or cannot be read.
    """
    try:
        return Sidecar.from_json(read_regular(sidecar_path(engine), LARGEST, own=cached).decode())
    except UnicodeDecodeError as error:
        raise EngineError("it is not UTF-8") from error
    except FileNotFoundError:
        raise
    except OSError as error:
        raise EngineError(error.strerror or str(error)) from error


def require_fit(path: Path, sidecar: Sidecar, machine: Machine, version: str | None = None) -> None:
    """Raise EngineError where an engine cannot run on `machine` with a version of TensorRT, by default the installed.

    The message names the fact that differs, its value at the build and here, and the command that rebuilds the engine.
    """
    flavour = named_flavour(sidecar.facts.flavour)
    if reason := flavour.why_not_on(machine):
        raise EngineError(f"{path} does not fit this machine: {reason}, and open {sidecar.source} with it")
    misfit = first_misfit(sidecar.facts, machine, version or flavour.version)
    if misfit is None:
        return
    if misfit.name == "GPU":
        raise EngineError(f"{path} needs a GPU ({misfit.there}), and {why_no_gpu()}")
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
    """Return the first fact because of which an engine does not run on a machine, or None."""
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
    """Return the command that rebuilds an engine, with the options changed that keep it from running on `machine`."""
    facts = sidecar.facts if machine is None else _fitting(sidecar.facts, machine)
    words = ["unetrt", "build", sidecar.source, "-o", str(path), *arguments(facts)]
    return list2cmdline(words) if os.name == "nt" else shlex.join(words)


def arguments(facts: Facts) -> list[str]:
    """Return the options of `unetrt build` that produce these facts."""
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
    """Return whether TensorRT's AMPERE_PLUS supports the GPU of `machine`: all from compute capability 8.0 on."""
    return version_numbers(machine.capability) >= (8, 0)


def engine_tensors(spec: ModelSpec) -> Tensors:
    """Return an engine's input and output: those of the model file, except for a uint16 input.

    TensorRT has no uint16. There the input is the bytes of the same memory, (batch, C, h, w, 2) uint8, low byte first.
    """
    tensors = spec.tensors()
    if spec.input_dtype != "uint16":
        return tensors
    return tensors._replace(input=tensors.input._replace(shape=(*tensors.input.shape, 2), dtype=np.dtype(np.uint8)))

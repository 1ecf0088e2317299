"""Facts: everything that an engine depends on. They give its key in the cache, and say what changed since the last one.

`BuildOptions` are what the user asks for; `facts_of` adds the model file, the TensorRT flavour and the machine.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args

from msgspec import Meta

from unetrt.runtime.engines.flavours import CAPABILITIES, Flavour, rtx_serves
from unetrt.runtime.errors import OptionError
from unetrt.runtime.machine import Machine
from unetrt.runtime.model.safety import sha256_of_model
from unetrt.runtime.model.spec import ModelSpec

Compatibility = Literal["none", "same-capability", "ampere-plus"]
COMPATIBILITIES: tuple[Compatibility, ...] = get_args(Compatibility)

Count = Annotated[int, Meta(ge=0, le=1 << 20)]

# Part of every engine's key: increased when the same facts no longer give the same engine.
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
    """What results for a model file depend on, as far as the file goes.

    Attributes
    ----------
    model
        SHA-256 of the ONNX file and its external data, in hexadecimal.
    tile, batch, precision
        Of the model: covered by the hash, but readable.
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
        A number that is increased when the same facts no longer give the same result.
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

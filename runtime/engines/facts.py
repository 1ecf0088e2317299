"""All that an engine depends on: its key in the cache, and whether it fits a machine.

What a build is asked for.
"""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from unetrt.runtime.engines.flavours import CAPABILITIES, Flavour, named_flavour, rtx_serves
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.records import validated
from unetrt.runtime.machine import Machine
from unetrt.runtime.model.safety import sha256_of_model
from unetrt.runtime.model.spec import ModelSpec

Compatibility = Literal["none", "same-capability", "ampere-plus"]
COMPATIBILITIES: tuple[Compatibility, ...] = get_args(Compatibility)


@dataclass(frozen=True)
class BuildOptions:
    """What a build is asked for; what a flavour does not have is refused.

    Attributes
    ----------
    workspace
        Bytes that a layer may use for itself; None leaves it to TensorRT.
    level
        How long to look for faster kernels, 0 to 5; None is TensorRT's default, 3.
    tf32
        Whether FP32 convolutions may round their factors to 10 bits; without, FP32 is FP32.
    version_compatible
        Whether newer releases of the same major version can load it (TensorRT).
    hardware_compatible
        Whether other GPUs can: those of the same compute capability, or all from Ampere on (TensorRT).
    capabilities
        Compute capabilities to build for (TensorRT for RTX); none: `flavours.DEFAULT_CAPABILITIES` and newer.
    """

    workspace: int | None = None
    level: int | None = None
    tf32: bool = False
    version_compatible: bool = False
    hardware_compatible: Compatibility = "none"
    capabilities: tuple[str, ...] = ()

    @classmethod
    def for_gpu(cls, flavour: Flavour, machine: Machine) -> "BuildOptions":
        """Return what is asked for by default so that the engine runs on the GPU of `machine`."""
        named = flavour.portable and machine.capability in CAPABILITIES and not rtx_serves(machine.capability)
        return cls(capabilities=(machine.capability,) if named else ())

    def require_for(self, flavour: Flavour, machine: Machine) -> None:
        """Raise OptionError where an option has no meaning, or none for `flavour`, or one is missing for `machine`.

        An engine that does not run on the GPU at hand is only built where the GPUs that it is for are named.
        """
        if self.workspace is not None and self.workspace < 1:
            raise OptionError(f"a workspace of {self.workspace} bytes is none: use 1GiB or more")
        if self.level is not None and not 0 <= self.level <= 5:
            raise OptionError(f"optimisation level {self.level} does not exist: use 0 to 5")
        if flavour.portable and (self.version_compatible or self.hardware_compatible != "none"):
            raise OptionError(
                f"{flavour.title} builds for several GPUs by itself, and only for its own version: use --capability, "
                "not --version-compatible and --hardware-compatible"
            )
        if self.capabilities and not flavour.portable:
            raise OptionError(
                f"{flavour.title} builds for the GPU at hand: use --hardware-compatible ampere-plus, or --capability "
                "with --flavour tensorrt-rtx"
            )
        if not self.capabilities and (missing := BuildOptions.for_gpu(flavour, machine).capabilities):
            raise OptionError(
                f"{flavour.title} builds for compute capability {missing[0]} ({machine.gpu}) only where it is named: "
                f"use --capability {missing[0]}, or name those of the GPUs that the engine is for"
            )
        for capability in self.capabilities:
            if capability not in CAPABILITIES:
                raise OptionError(
                    f"{flavour.title} cannot build for compute capability {capability}: use {', '.join(CAPABILITIES)}"
                )


# Part of every key: raised when the same facts no longer give the same engine.
METHOD = 1


def key_of(method: int, facts: Any) -> str:
    """Return the key in a cache of what follows from facts, a dataclass: 32 hexadecimal digits.

    Parameters
    ----------
    method
        Raised when the same facts no longer give the same thing.
    facts
        All that it depends on.
    """
    return sha256(json.dumps({"method": method, **asdict(facts)}, sort_keys=True).encode()).hexdigest()[:32]


class Difference(NamedTuple):
    """A fact of which two engines, or an engine and a machine, differ.

    Attributes
    ----------
    name
        The fact, in words.
    there, here
        What the other, or the engine, has; what is wanted, or the machine, has.
    """

    name: str
    there: str
    here: str

    def __str__(self) -> str:
        return f"{self.name} {self.there or 'none'} -> {self.here or 'none'}"


@dataclass(frozen=True)
class Facts:
    """All that an engine depends on.

    Attributes
    ----------
    model
        SHA-256 of the ONNX file and its external data, in hexadecimal.
    tile, batch, precision
        Of the model; its hash covers them, but says nothing to people.
    flavour, version
        Which TensorRT.
    machine
        Where it is built.
    options
        What was asked for.
    """

    model: str
    tile: tuple[int, int]
    batch: int
    precision: str
    flavour: str
    version: str
    machine: Machine
    options: BuildOptions

    @property
    def key(self) -> str:
        """What the engine is called in the cache: 32 hexadecimal digits."""
        return key_of(METHOD, self)

    def differences(self, other: "Facts") -> list[Difference]:
        """Return the facts that another engine does not share."""
        mine, its = self._flat(), other._flat()
        return [Difference(name, its[name], value) for name, value in mine.items() if its[name] != value]

    def _flat(self) -> dict[str, str]:
        height, width = self.tile
        shown = {"tile": f"{height}x{width}", "batch": str(self.batch), "precision": self.precision}
        shown |= {"weights or graph": self.model[:12], "TensorRT": self.flavour, "TensorRT version": self.version}
        for name, value in asdict(self.machine).items():
            shown[{"gpu": "GPU", "capability": "compute capability", "os": "system"}.get(name, name)] = value
        for name, value in asdict(self.options).items():
            shown[f"option {name}"] = ", ".join(value) if isinstance(value, tuple) else str(value)
        return shown

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Facts":
        """Return what `dataclasses.asdict` made of facts, read from JSON.

        Raises
        ------
        KeyError, TypeError, UnetrtError
            They are no facts of this version.
        """
        facts = validated(stored, cls, "the facts")
        named_flavour(facts.flavour)
        return facts


def facts_of(model: Path, spec: ModelSpec, flavour: Flavour, machine: Machine, options: BuildOptions) -> Facts:
    """Return the facts of an engine to be built from a model file."""
    return Facts(
        sha256_of_model(model), spec.tile, spec.batch, spec.precision, flavour.name, flavour.version, machine, options
    )

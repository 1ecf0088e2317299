"""All that an engine depends on: its key in the cache, and whether it fits a machine."""

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from unetrt.runtime.engines.flavours import Flavour, named_flavour
from unetrt.runtime.engines.machine import Machine
from unetrt.runtime.engines.options import BuildOptions
from unetrt.runtime.model_files.external_data import sha256_of_model
from unetrt.runtime.spec import ModelSpec
from unetrt.runtime.spec_types import COUNT, SPEC, TEXT, Rule, is_list, is_text, require

# What facts are as JSON.
FLAG = Rule(lambda value: type(value) is bool, "true or false")
FACTS = {
    **dict.fromkeys(("model", "precision", "flavour", "version"), TEXT),
    "tile": SPEC["tile"],
    "batch": COUNT,
}
MACHINE = dict.fromkeys(("gpu", "capability", "driver", "os"), TEXT)
OPTIONS = {
    **dict.fromkeys(("workspace", "level"), Rule(lambda value: value is None or type(value) is int, "a whole number")),
    **dict.fromkeys(("tf32", "version_compatible"), FLAG),
    "hardware_compatible": TEXT,
    "capabilities": Rule(lambda value: is_list(value, is_text), "a list of compute capabilities"),
}

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
        require(stored, FACTS, "")
        require(stored["machine"], MACHINE, "the machine's ")
        require(stored["options"], OPTIONS, "the options' ")
        options = {**stored["options"], "capabilities": tuple(stored["options"]["capabilities"])}
        parts = {"tile": tuple(stored["tile"]), "machine": Machine(**stored["machine"])}
        facts = cls(**{**stored, **parts, "options": BuildOptions(**options)})
        named_flavour(facts.flavour)
        return facts


def facts_of(model: Path, spec: ModelSpec, flavour: Flavour, machine: Machine, options: BuildOptions) -> Facts:
    """Return the facts of an engine to be built from a model file."""
    return Facts(
        sha256_of_model(model), spec.tile, spec.batch, spec.precision, flavour.name, flavour.version, machine, options
    )

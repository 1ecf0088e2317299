"""The two flavours of TensorRT, which share an API: TensorRT, and TensorRT for RTX.

TensorRT builds on the GPU that an engine is for, as it measures kernels there. TensorRT for RTX builds without a GPU,
for several GPUs, and compiles the rest at run time. `FLAVOURS` is the order of automatic choice.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from unetrt.runtime.candidates import first_usable, why_not_importable
from unetrt.runtime.errors import BackendUnavailableError, OptionError
from unetrt.runtime.machine import Machine, why_no_gpu

AUTO = "auto"

# Compute capabilities that an engine of TensorRT for RTX supports by default, and those that can be named
# (ComputeCapability in its Python module). Its library (1.7.1) has no entry for those between, such as 8.7, 9.0
# (Hopper), 10.0, 10.3 and 11.0; GPUs newer than all entries run engines that were built for the default.
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
CAPABILITIES = ("7.5", *DEFAULT_CAPABILITIES)


def rtx_serves(capability: str, named: tuple[str, ...] = ()) -> bool:
    """Return whether an engine of TensorRT for RTX runs on GPUs of a compute capability.

    Parameters
    ----------
    capability
        Of the GPU, such as `8.9`.
    named
        Capabilities that the engine was built for; empty: the default.
    """
    if named:
        return capability in named
    return capability in DEFAULT_CAPABILITIES or version_numbers(capability) > version_numbers(CAPABILITIES[-1])


def version_numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, for comparison: 8.9 < 12.0."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@dataclass(frozen=True)
class Flavour:
    """One TensorRT.

    Attributes
    ----------
    name
        Name in `--flavour`.
    title
        The vendor's name.
    module
        Its Python module.
    extra
        The extra of unetrt that installs it.
    portable
        Whether it builds without a GPU, for other GPUs and systems than those at hand, and compiles on the target.
    """

    name: str
    title: str
    module: str
    extra: str
    portable: bool

    def probe(self, machine: Machine) -> str | None:
        """Return None where it can build, else one sentence that says why not and what helps."""
        if reason := why_not_importable(self.module, self.title, self.extra):
            return reason
        if not (self.portable or machine.gpu):
            return f"{self.title} builds on the GPU that the engine is for, and {why_no_gpu()}"
        return None

    def why_not_on(self, machine: Machine) -> str | None:
        """Return None where its engines can run on the GPU of `machine`, else one sentence that says what can."""
        capability = machine.capability
        if not (self.portable and machine.gpu) or capability in CAPABILITIES or rtx_serves(capability):
            return None
        return (
            f"{self.title} does not run on compute capability {capability} ({machine.gpu}), only on "
            f"{', '.join(CAPABILITIES)} and newer: use backend tensorrt with TensorRT (pip install 'unetrt[tensorrt]') "
            "or backend onnxruntime-cuda (pip install 'unetrt[gpu]')"
        )

    def load(self) -> Any:
        """Return the Python module; raises BackendUnavailableError where it is not installed."""
        if reason := why_not_importable(self.module, self.title, self.extra):
            raise BackendUnavailableError(reason)
        return importlib.import_module(self.module)

    @property
    def version(self) -> str:
        """Its version, such as `1.7.1.116`."""
        return str(self.load().__version__)


# In the order in which `auto` tries them: where there is a GPU, TensorRT measures kernels on it.
FLAVOURS = (
    Flavour("tensorrt", "TensorRT", "tensorrt", "tensorrt", portable=False),
    Flavour("tensorrt-rtx", "TensorRT for RTX", "tensorrt_rtx", "rtx", portable=True),
)
NAMES = tuple(flavour.name for flavour in FLAVOURS)


def usable_flavour(name: str, machine: Machine, capabilities: tuple[str, ...] = ()) -> Flavour:
    """Return the flavour of that name, or for `auto` the first, that can build an engine here for the GPU at hand.

    Parameters
    ----------
    name
        A flavour's name, or `auto`.
    machine
        Where it builds, with the GPU at hand; without a GPU, only a portable flavour can build.
    capabilities
        Compute capabilities of the GPUs that the engine is for, instead of the GPU at hand.

    Raises
    ------
    OptionError
        There is no flavour of that name.
    BackendUnavailableError
        It, or for `auto` each, cannot build here or does not run on that GPU; the message says why.
    """

    def probe(flavour: Flavour) -> str | None:
        return (None if capabilities else flavour.why_not_on(machine)) or flavour.probe(machine)

    return first_usable(FLAVOURS if name == AUTO else (named_flavour(name),), probe)


def named_flavour(name: str) -> Flavour:
    """Return the flavour of that name; raises OptionError for an unknown one."""
    for flavour in FLAVOURS:
        if flavour.name == name:
            return flavour
    raise OptionError(f"TensorRT flavour {name!r} is unknown: use one of {', '.join((AUTO, *NAMES))}")

"""The two TensorRTs, which share an API: TensorRT, and TensorRT for RTX."""

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from unetrt.runtime.errors import BackendUnavailableError, OptionError
from unetrt.runtime.machine import Machine, why_no_gpu

AUTO = "auto"

# Compute capabilities of the GPUs that an engine of TensorRT for RTX is for unless some are named, and those that can
# be named (ComputeCapability in its Python module). Its library (1.7.1) has no entry for those between, such as 8.7,
# 9.0 (Hopper), 10.0, 10.3 and 11.0; what is newer than all runs engines for which none were named.
DEFAULT_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0", "12.1")
CAPABILITIES = ("7.5", *DEFAULT_CAPABILITIES)


def rtx_serves(capability: str, named: tuple[str, ...] = ()) -> bool:
    """Tell whether an engine of TensorRT for RTX runs on GPUs of a compute capability.

    Parameters
    ----------
    capability
        Of the GPU, such as `8.9`.
    named
        Those that it was built for; none: its default.
    """
    if named:
        return capability in named
    return capability in DEFAULT_CAPABILITIES or version_numbers(capability) > version_numbers(CAPABILITIES[-1])


def version_numbers(version: str) -> tuple[int, ...]:
    """Return a version as numbers, to compare: 8.9 < 12.0."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@dataclass(frozen=True)
class Flavour:
    """One TensorRT.

    Attributes
    ----------
    name
        What the user writes.
    title
        What its vendor calls it.
    module
        Its Python module.
    extra
        The extra of ours that installs it.
    portable
        Whether it builds without a GPU, for GPUs and systems other than those here, and leaves the rest to the target.
    """

    name: str
    title: str
    module: str
    extra: str
    portable: bool

    def probe(self, machine: Machine) -> str | None:
        """Return None where it can build, else one sentence that says why not and what helps."""
        if find_spec(self.module) is None:
            return f"{self.title} is not installed: pip install 'unetrt[{self.extra}]'"
        try:
            importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            return f"{self.title} does not load ({error}): pip install --force-reinstall 'unetrt[{self.extra}]'"
        if not (self.portable or machine.gpu):
            return f"{self.title} builds on the GPU that the engine is for, and {why_no_gpu()}"
        return None

    def why_not_on(self, machine: Machine) -> str | None:
        """Return None where engines of it can run on the GPU of `machine`, else one sentence that says what can."""
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
        try:
            return importlib.import_module(self.module)
        except (ImportError, OSError) as error:
            raise BackendUnavailableError(
                f"{self.title} does not load ({error}): pip install 'unetrt[{self.extra}]'"
            ) from error

    @property
    def version(self) -> str:
        """Its version, such as `1.7.1.116`."""
        return str(self.load().__version__)


# In the order in which `auto` tries them: where there is a GPU, TensorRT times its choices on it.
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
        A flavour's, or `auto`.
    machine
        Where it builds, with the GPU at hand; without one, a flavour that needs none builds for any.
    capabilities
        The engine is for GPUs of these compute capabilities instead.

    Raises
    ------
    OptionError
        There is none of that name.
    BackendUnavailableError
        It, or for `auto` each, cannot build here or does not run on that GPU; the message says why.
    """
    tried = FLAVOURS if name == AUTO else (named_flavour(name),)
    reasons = [(None if capabilities else one.why_not_on(machine)) or one.probe(machine) for one in tried]
    for flavour, reason in zip(tried, reasons, strict=True):
        if reason is None:
            return flavour
    raise BackendUnavailableError("; ".join(filter(None, reasons)))


def named_flavour(name: str) -> Flavour:
    """Return the flavour of that name; raises OptionError where there is none."""
    for flavour in FLAVOURS:
        if flavour.name == name:
            return flavour
    raise OptionError(f"there is no flavour {name!r} of TensorRT: use one of {', '.join((AUTO, *NAMES))}")

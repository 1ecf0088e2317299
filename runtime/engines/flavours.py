"""The two TensorRTs, which share an API: TensorRT, and TensorRT for RTX."""

import importlib
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from unetrt.runtime.engines.machine import Machine, why_no_gpu
from unetrt.runtime.errors import BackendUnavailableError, OptionError

AUTO = "auto"


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


def usable_flavour(name: str, machine: Machine) -> Flavour:
    """Return the flavour of that name, or for `auto` the first that can build on `machine`.

    Raises
    ------
    OptionError
        There is none of that name.
    BackendUnavailableError
        It, or for `auto` each, cannot build here; the message says why.
    """
    tried = FLAVOURS if name == AUTO else (named_flavour(name),)
    reasons = [flavour.probe(machine) for flavour in tried]
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

"""The packages through which CUDA is called, in the order in which they are tried; importing this imports none."""

import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import cast

from unetrt.runtime.cuda.contract import DeviceProperties, Driver
from unetrt.runtime.errors import BackendUnavailableError, InferenceError, OptionError

# Names the implementation to use, instead of the first that is usable.
VARIABLE = "UNETRT_CUDA"


@dataclass(frozen=True)
class Implementation:
    """One implementation of the contract.

    Attributes
    ----------
    name
        What the user writes, and what its package is called.
    package
        The Python module that it calls.
    extra
        The extra of ours that installs it.
    module
        Our module, with `devices()`, `cuda_version()` and `open_device(index)`.
    """

    name: str
    package: str
    extra: str
    module: str

    def probe(self) -> str | None:
        """Return None where it is usable, else one sentence that says why not; makes no context on any GPU."""
        return self.why_not_loaded() or self._why_no_device()

    def why_not_loaded(self) -> str | None:
        """Return None where its package can be called, with or without a GPU, else one sentence that says why not."""
        if not _is_installed(self.package):
            return f"{self.name} is not installed: pip install 'unetrt[{self.extra}]'"
        try:
            importlib.import_module(self.package)
        except (ImportError, OSError) as error:
            return f"{self.name} does not load ({error}): pip install --force-reinstall 'unetrt[{self.extra}]'"
        return None

    def devices(self) -> tuple[DeviceProperties, ...]:
        """Return CUDA's devices, in its order; raises CudaError."""
        return tuple(importlib.import_module(self.module).devices())

    def cuda_version(self) -> str:
        """Return the newest CUDA that the driver knows, such as `13.0`; raises CudaError."""
        version = importlib.import_module(self.module).cuda_version()
        return f"{version // 1000}.{version % 1000 // 10}"

    def open(self, index: int) -> Driver:
        """Return the device of that number; raises OptionError where there is none, and CudaError."""
        found = self.devices()
        if not 0 <= index < len(found):
            known = ", ".join(f"{number} ({device.name})" for number, device in enumerate(found))
            raise OptionError(f"there is no CUDA device {index}; there {_counted(len(found))}: {known}")
        return cast("Driver", importlib.import_module(self.module).open_device(index))

    def _why_no_device(self) -> str | None:
        try:
            found = self.devices()
        except InferenceError as error:
            return f"{self.name} finds no GPU that it can use: {error}"
        return None if found else f"{self.name} finds no GPU"


# cuda-python first: it has graphs, and its wheels need no compiler.
IMPLEMENTATIONS = (
    Implementation("cuda-python", "cuda.bindings.driver", "rtx", "unetrt.runtime.cuda.with_cuda_python"),
    Implementation("pycuda", "pycuda.driver", "tensorrt", "unetrt.runtime.cuda.with_pycuda"),
)
NAMES = tuple(implementation.name for implementation in IMPLEMENTATIONS)


def open_driver(index: int, environ: Mapping[str, str]) -> Driver:
    """Return a CUDA device, with its primary context retained until `release`.

    Parameters
    ----------
    index
        The device's number, as CUDA counts.
    environ
        The environment; `UNETRT_CUDA` in it names an implementation.

    Raises
    ------
    OptionError
        There is no such implementation, or no such device.
    BackendUnavailableError
        The named one, or each, cannot be used here; the message says why.
    CudaError
        The device's context cannot be had.
    """
    return _usable(environ).open(index)


def loaded_implementation(environ: Mapping[str, str] = os.environ) -> Implementation:
    """Return the first implementation whose package can be called, whether there is a GPU or not.

    Raises
    ------
    OptionError
        There is no implementation of the name in `UNETRT_CUDA`.
    BackendUnavailableError
        None can be called, or there is no driver; the message says why.
    """
    return _first(environ, Implementation.why_not_loaded)


def why_not(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return None where `open_driver` has an implementation to use, else why it has none, in one line."""
    try:
        _usable(environ)
    except (OptionError, BackendUnavailableError) as error:
        return str(error)
    return None


def _usable(environ: Mapping[str, str]) -> Implementation:
    return _first(environ, Implementation.probe)


def _first(environ: Mapping[str, str], probe: Callable[[Implementation], str | None]) -> Implementation:
    """Return the first implementation for which a probe has no reason against it."""
    reasons: list[str] = []
    asked_for = _asked_for(environ)
    if missing := _missing_library():
        raise BackendUnavailableError(missing)  # whatever is installed
    for implementation in asked_for:
        reason = probe(implementation)
        if reason is None:
            return implementation
        reasons.append(reason)
    raise BackendUnavailableError("; ".join(reasons))


def _asked_for(environ: Mapping[str, str]) -> tuple[Implementation, ...]:
    name = environ.get(VARIABLE)
    if not name:
        return IMPLEMENTATIONS
    if name not in NAMES:
        raise OptionError(f"{VARIABLE} is {name!r}, and there is no such way to call CUDA: use {' or '.join(NAMES)}")
    return tuple(implementation for implementation in IMPLEMENTATIONS if implementation.name == name)


def _is_installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the package that it lies in is missing
        return False


def _missing_library() -> str | None:
    """Return that the driver's library does not load, the same for every package; None where it does."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver is installed ({error})"
    return None


def _counted(devices: int) -> str:
    return "is 1" if devices == 1 else f"are {devices}"

"""What unetrt asks of CUDA: the few calls of the driver API that it makes, for one device.

Handles and addresses are plain integers. An implementation is thin: a method is a call. Who owns what, what is freed
and in which order, is written once, in `device`.

The packages through which CUDA is called, in the order in which they are tried; importing this imports none.
"""

import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import NamedTuple, Protocol, cast

from unetrt.runtime.errors import BackendUnavailableError, InferenceError, OptionError

Extent = tuple[int, int, int]


class DeviceProperties(NamedTuple):
    """What the driver says of a device without a context on it.

    Attributes
    ----------
    name
        Its name.
    capability
        Its compute capability, such as `8.9`.
    bus
        Its PCI bus, such as `0000:01:00.0`: the management library knows it by that.
    """

    name: str
    capability: str
    bus: str


class Rows(NamedTuple):
    """A block of rows in device memory.

    Attributes
    ----------
    address
        Of its first byte.
    pitch
        Bytes from one row to the next.
    """

    address: int
    pitch: int


class Driver(Protocol):
    """One CUDA device, through its primary context.

    All methods but `push` and `release` need that context to be current on the calling thread; every method may be
    called on any thread. What ends in "asynchronous" returns at once, and its memory must live until the stream is
    there. A call that fails raises CudaError, or OutOfMemoryError where memory ran out, and names itself.

    Attributes
    ----------
    implementation
        What is called, such as `pycuda 2026.1`.
    index
        The device's number, as CUDA counts.
    name
        The device's name.
    captures
        Whether streams can be captured into graphs.
    """

    implementation: str
    index: int
    name: str
    captures: bool

    def push(self) -> None:
        """Make the primary context current on this thread, above the one that is."""

    def pop(self) -> None:
        """Undo `push`: what was current before is current again."""

    def release(self) -> None:
        """Give the primary context back; the last who does so ends it. Nothing is called afterwards."""

    def memory(self) -> tuple[int, int]:
        """Return the device's free memory and all of it, in bytes."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes on the device, aligned to 256."""

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""

    def allocate_pinned(self, size: int) -> int:
        """Return the address of `size` bytes on the host that the device can copy from and to by itself."""

    def free_pinned(self, address: int) -> None:
        """Free what `allocate_pinned` returned."""

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy `size` bytes from host to device; asynchronous where the host's memory is pinned."""

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy `size` bytes from device to host; asynchronous where the host's memory is pinned."""

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int, stream: int) -> None:
        """Copy `height` rows of `width` bytes on the device; asynchronous."""

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Set `size` bytes on the device; asynchronous."""

    def create_stream(self) -> int:
        """Return a new stream that does not wait for the default stream."""

    def destroy_stream(self, stream: int) -> None:
        """Free a stream, once it has done its work."""

    def synchronize_stream(self, stream: int) -> None:
        """Block, without holding Python's lock, until the stream has done its work."""

    def create_event(self) -> int:
        """Return a new event that takes times, and on which a thread waits asleep."""

    def destroy_event(self, event: int) -> None:
        """Free an event."""

    def record(self, event: int, stream: int) -> None:
        """Record an event after the work that the stream has now; asynchronous.

        The stream may be another library's, by its handle; 1 is the legacy default stream. For others PyCUDA blocks.
        """

    def wait_for(self, stream: int, event: int) -> None:
        """Let the stream's further work wait for the last record of an event, of whatever stream; asynchronous."""

    def synchronize_event(self, event: int) -> None:
        """Block, without holding Python's lock, until the last record of an event has come to pass."""

    def elapsed(self, begin: int, end: int) -> float:
        """Return the seconds between two events that have come to pass."""

    def begin_capture(self, stream: int) -> None:
        """Collect what this thread now gives to the stream, instead of doing it."""

    def end_capture(self, stream: int) -> int:
        """Return what was collected since `begin_capture`, as a graph that can be launched."""

    def launch_graph(self, graph: int, stream: int) -> None:
        """Do what a graph holds; asynchronous."""

    def destroy_graph(self, graph: int) -> None:
        """Free a graph."""

    def load_module(self, ptx: bytes) -> int:
        """Return a module of kernels, compiled by the driver from PTX text."""

    def unload_module(self, module: int) -> None:
        """Free a module; its functions are gone."""

    def function(self, module: int, name: str) -> int:
        """Return a kernel of a module."""

    def launch(self, function: int, grid: Extent, block: Extent, argument: bytes, stream: int) -> None:
        """Run a kernel with `grid` blocks of `block` threads, (x, y, z); asynchronous.

        Its one parameter is a struct, given by its bytes, which may be freed at once.
        """


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

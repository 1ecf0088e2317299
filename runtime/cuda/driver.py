"""The CUDA driver API as unetrt uses it, and the table of Python bindings that implement it.

`Driver` is one device through its primary context. Handles and addresses are plain integers, and an implementation is
thin: a method is a call. Ownership, and the order of freeing, are written once, in `device`. `BINDINGS` is data:
importing this module imports no CUDA package::

    driver = open_driver(0, os.environ)
"""

import ctypes
import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from unetrt.runtime.candidates import first_usable, why_not_importable
from unetrt.runtime.errors import BackendUnavailableError, InferenceError, OptionError

Extent = tuple[int, int, int]


class DeviceProperties(NamedTuple):
    """Properties of a device that need no context on it.

    Attributes
    ----------
    name
        The device's name.
    capability
        Compute capability, such as `8.9`.
    bus
        PCI bus ID, such as `0000:01:00.0`, by which the management library identifies it.
    """

    name: str
    capability: str
    bus: str


class Rows(NamedTuple):
    """A block of rows in device memory.

    Attributes
    ----------
    address
        Address of the first byte.
    pitch
        Bytes from one row to the next.
    """

    address: int
    pitch: int


class Driver(Protocol):
    """One CUDA device, through its primary context.

    All methods except `push` and `release` need that context to be current on the calling thread; every method may be
    called on any thread. Methods marked asynchronous return at once, and the memory they use must live until the stream
    has executed them. A failed call raises CudaError, or OutOfMemoryError where memory ran out; the message names the
    call.

    Attributes
    ----------
    implementation
        The binding and its version, such as `pycuda 2026.1`.
    index
        CUDA's index of the device.
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
        """Push the primary context onto this thread's context stack."""

    def pop(self) -> None:
        """Undo `push`: the previous context is current again."""

    def release(self) -> None:
        """Release the primary context, which CUDA destroys with its last reference. No call may follow."""

    def memory(self) -> tuple[int, int]:
        """Return the device's free and total memory, in bytes."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory, aligned to 256."""

    def free(self, address: int) -> None:
        """Free what `allocate` returned."""

    def allocate_pinned(self, size: int) -> int:
        """Return the address of `size` bytes of page-locked host memory."""

    def free_pinned(self, address: int) -> None:
        """Free what `allocate_pinned` returned."""

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy `size` bytes from host to device; asynchronous for pinned memory."""

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy `size` bytes from device to host; asynchronous for pinned memory."""

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int, stream: int) -> None:
        """Copy `height` rows of `width` bytes on the device; asynchronous."""

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        """Set `size` bytes on the device; asynchronous."""

    def create_stream(self) -> int:
        """Return a new stream that does not synchronise with the default stream."""

    def destroy_stream(self, stream: int) -> None:
        """Free a stream after its work is complete."""

    def synchronize_stream(self, stream: int) -> None:
        """Block until the stream is idle, without the GIL."""

    def create_event(self) -> int:
        """Return a new timing event with blocking synchronisation."""

    def destroy_event(self, event: int) -> None:
        """Free an event."""

    def record(self, event: int, stream: int) -> None:
        """Record an event after the work enqueued on the stream so far; asynchronous.

        The stream may belong to another library; 1 is the legacy default stream. For other streams of other libraries
        PyCUDA blocks.
        """

    def wait_for(self, stream: int, event: int) -> None:
        """Make the stream's further work wait for the last record of an event, on any stream; asynchronous."""

    def synchronize_event(self, event: int) -> None:
        """Block until the last record of an event has completed, without the GIL."""

    def elapsed(self, begin: int, end: int) -> float:
        """Return the seconds between two completed events."""

    def begin_capture(self, stream: int) -> None:
        """Begin to capture the work that this thread enqueues on the stream, instead of executing it."""

    def end_capture(self, stream: int) -> int:
        """Return the work captured since `begin_capture`, as an executable graph."""

    def launch_graph(self, graph: int, stream: int) -> None:
        """Launch an executable graph; asynchronous."""

    def destroy_graph(self, graph: int) -> None:
        """Free a graph."""

    def load_module(self, ptx: bytes) -> int:
        """Return a module of kernels, which the driver compiles from PTX."""

    def unload_module(self, module: int) -> None:
        """Free a module and its functions."""

    def function(self, module: int, name: str) -> int:
        """Return a kernel of a module."""

    def launch(self, function: int, grid: Extent, block: Extent, argument: bytes, stream: int) -> None:
        """Launch a kernel with `grid` blocks of `block` threads, each (x, y, z); asynchronous.

        Its only parameter is a struct, given as bytes, which may be freed when the call returns.
        """


# Environment variable that names the binding to use, instead of the first usable one.
VARIABLE = "UNETRT_CUDA"


@dataclass(frozen=True)
class Binding:
    """A Python binding of the CUDA driver API.

    Attributes
    ----------
    name
        Name in `UNETRT_CUDA`, and of the package.
    package
        The Python module that is called.
    extra
        The extra of unetrt that installs it.
    module
        The module of unetrt that implements `Driver` with it: `devices()`, `cuda_version()`, `open_device(index)`.
    """

    name: str
    package: str
    extra: str
    module: str

    def probe(self) -> str | None:
        """Return None where it can be used, else one sentence that says why not; makes no context on any GPU."""
        if reason := self.why_not_loaded():
            return reason
        try:
            found = self.devices()
        except InferenceError as error:
            return f"{self.name} finds no GPU that it can use: {error}"
        return None if found else f"{self.name} finds no GPU"

    def why_not_loaded(self) -> str | None:
        """Return None where its package can be called, with or without a GPU, else one sentence that says why not."""
        return why_not_importable(self.package, self.name, self.extra)

    def devices(self) -> tuple[DeviceProperties, ...]:
        """Return CUDA's devices, in CUDA's order; raises CudaError."""
        return tuple(importlib.import_module(self.module).devices())

    def cuda_version(self) -> str:
        """Return the newest CUDA version that the driver supports, such as `13.0`; raises CudaError."""
        version = importlib.import_module(self.module).cuda_version()
        return f"{version // 1000}.{version % 1000 // 10}"

    def open(self, index: int) -> Driver:
        """Return the device with an index; raises OptionError if it does not exist, and CudaError."""
        found = self.devices()
        if not 0 <= index < len(found):
            known = ", ".join(f"{number} ({device.name})" for number, device in enumerate(found))
            count = "is 1" if len(found) == 1 else f"are {len(found)}"
            raise OptionError(f"there is no CUDA device {index}; there {count}: {known}")
        driver: Driver = importlib.import_module(self.module).open_device(index)
        return driver


# cuda-python first: it has graphs, and its wheels need no compiler.
BINDINGS = (
    Binding("cuda-python", "cuda.bindings.driver", "rtx", "unetrt.runtime.cuda.with_cuda_python"),
    Binding("pycuda", "pycuda.driver", "tensorrt", "unetrt.runtime.cuda.with_pycuda"),
)
NAMES = tuple(binding.name for binding in BINDINGS)


def open_driver(index: int, environ: Mapping[str, str]) -> Driver:
    """Return a CUDA device, with its primary context retained until `release`.

    Parameters
    ----------
    index
        CUDA's index of the device.
    environ
        The environment; `UNETRT_CUDA` in it names a binding.

    Raises
    ------
    OptionError
        There is no such binding, or no such device.
    BackendUnavailableError
        The named binding, or each, cannot be used here; the message says why.
    CudaError
        The device's context cannot be retained.
    """
    return _first(environ, Binding.probe).open(index)


def loaded_binding(environ: Mapping[str, str] = os.environ) -> Binding:
    """Return the first binding whose package can be called, with or without a GPU.

    Raises
    ------
    OptionError
        There is no binding of the name in `UNETRT_CUDA`.
    BackendUnavailableError
        None can be called, or there is no driver; the message says why.
    """
    return _first(environ, Binding.why_not_loaded)


def why_not(environ: Mapping[str, str] = os.environ) -> str | None:
    """Return None where `open_driver` has a usable binding, else one sentence that says why not."""
    if not environ.get(VARIABLE) and (missing := _missing_library()):
        return missing
    try:
        _first(environ, Binding.probe)
    except (OptionError, BackendUnavailableError) as error:
        return str(error)
    return None


def _first(environ: Mapping[str, str], probe: Callable[[Binding], str | None]) -> Binding:
    """Return the first binding that a probe accepts, of those that the environment allows."""
    name = environ.get(VARIABLE)
    if name and name not in NAMES:
        raise OptionError(f"{VARIABLE} is {name!r}, which is not a CUDA binding: use {' or '.join(NAMES)}")
    if missing := _missing_library():
        raise BackendUnavailableError(missing)  # no binding works without it
    return first_usable((binding for binding in BINDINGS if name in (None, "", binding.name)), probe)


def _missing_library() -> str | None:
    """Return one sentence where the driver's library does not load, else None."""
    try:
        ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError as error:
        return f"no NVIDIA driver is installed ({error})"
    return None

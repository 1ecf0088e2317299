"""What unetrt asks of CUDA: the few calls of the driver API that it makes, for one device.

Handles and addresses are plain integers. An implementation is thin: a method is a call. Who owns what, what is freed
and in which order, is written once, in `device`.
"""

from typing import NamedTuple, Protocol

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

"""`Driver` on `pycuda.driver`, 2024.1 and newer.

PyCUDA's streams, events and memory are objects that free themselves with their last reference; here they are kept by
handle until they are freed explicitly. PyCUDA prints errors at freeing instead of raising them.
"""

import ctypes
import importlib
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, NoReturn

from unetrt.runtime.cuda.driver import DeviceProperties, Driver, Extent, Rows
from unetrt.runtime.errors import CudaError, OutOfMemoryError

# CU_STREAM_NON_BLOCKING of cuda.h, which PyCUDA does not define.
NON_BLOCKING = 1
# CU_STREAM_LEGACY, the default stream.
LEGACY = 1


def devices() -> tuple[DeviceProperties, ...]:
    """Return CUDA's devices, in CUDA's order, without a context. Raises CudaError."""
    cuda = package()
    call(cuda.init)
    return tuple(_properties(call(cuda.Device, index)) for index in range(call(cuda.Device.count)))


def cuda_version() -> int:
    """Return the newest CUDA version that the driver supports: 13000 is 13.0. Raises CudaError."""
    return int(call(package().get_driver_version))


def open_device(index: int) -> Driver:
    """Return the device with that index in `devices`. Raises CudaError."""
    return PyCudaDriver(index)


class PyCudaDriver(Driver):
    """One CUDA device. Methods are documented in `Driver`.

    Parameters
    ----------
    index
        CUDA's index of the device.
    """

    captures = False

    def __init__(self, index: int) -> None:
        self._cuda = package()
        call(self._cuda.init)
        device = call(self._cuda.Device, index)
        self.implementation = f"pycuda {importlib.import_module('pycuda').VERSION_TEXT}"
        self.index = index
        self.name: str = call(device.name)
        self._streams: dict[int, Any] = {}
        self._events: dict[int, Any] = {}
        self._memory: dict[int, Any] = {}
        self._pinned: dict[int, Any] = {}
        self._modules: dict[int, Any] = {}
        self._functions: dict[int, Any] = {}
        self._context = call(device.retain_primary_context)
        self._leave = threading.Event()
        self._left: Future[None] = Future()
        given = (self._context, self._leave, self._left)
        threading.Thread(target=_release_on_request, args=given, name="unetrt-cuda-release", daemon=True).start()

    def push(self) -> None:
        call(self._context.push)

    def pop(self) -> None:
        call(self._cuda.Context.pop)

    def release(self) -> None:
        self._leave.set()
        call(self._left.result)

    def memory(self) -> tuple[int, int]:
        free, total = call(self._cuda.mem_get_info)
        return free, total

    def allocate(self, size: int) -> int:
        memory = call(self._cuda.mem_alloc, size)
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        call(self._memory.pop(address).free)

    def allocate_pinned(self, size: int) -> int:
        array = call(self._cuda.pagelocked_empty, size, "u1", mem_flags=self._cuda.host_alloc_flags.PORTABLE)
        address = int(array.ctypes.data)
        self._pinned[address] = array.base
        return address

    def free_pinned(self, address: int) -> None:
        call(self._pinned.pop(address).free)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        call(self._cuda.memcpy_htod_async, device, _host_bytes(host, size), self._streams[stream])

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        call(self._cuda.memcpy_dtoh_async, _host_bytes(host, size), device, self._streams[stream])

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int, stream: int) -> None:
        copy = self._cuda.Memcpy2D()
        copy.set_src_device(source.address)
        copy.src_pitch = source.pitch
        copy.set_dst_device(target.address)
        copy.dst_pitch = target.pitch
        copy.width_in_bytes, copy.height = width, height
        call(copy, self._streams[stream])

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        call(self._cuda.memset_d8_async, address, byte, size, self._streams[stream])

    def create_stream(self) -> int:
        stream = call(self._cuda.Stream, NON_BLOCKING)
        self._streams[stream.handle] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        del self._streams[stream]

    def synchronize_stream(self, stream: int) -> None:
        call(self._streams[stream].synchronize)

    def create_event(self) -> int:
        event = call(self._cuda.Event, self._cuda.event_flags.BLOCKING_SYNC)
        self._events[id(event)] = event  # PyCUDA does not expose the driver's handle
        return id(event)

    def destroy_event(self, event: int) -> None:
        del self._events[event]

    def record(self, event: int, stream: int) -> None:
        # PyCUDA cannot use the stream of another library: the context is synchronised instead.
        own = self._streams.get(stream)
        if own is None and stream != LEGACY:
            call(self._cuda.Context.synchronize)
        call(self._events[event].record, own)  # None: the legacy default stream

    def wait_for(self, stream: int, event: int) -> None:
        call(self._streams[stream].wait_for_event, self._events[event])

    def synchronize_event(self, event: int) -> None:
        call(self._events[event].synchronize)

    def elapsed(self, begin: int, end: int) -> float:
        return float(call(self._events[end].time_since, self._events[begin])) / 1e3

    def begin_capture(self, *_: int) -> NoReturn:
        raise CudaError(
            "pycuda has no CUDA graphs: use cuda-python (pip install 'unetrt[rtx]', UNETRT_CUDA=cuda-python)"
        )

    end_capture: Any = begin_capture
    launch_graph: Any = begin_capture
    destroy_graph: Any = begin_capture

    def load_module(self, ptx: bytes) -> int:
        module = call(self._cuda.module_from_buffer, ptx + b"\0")
        self._modules[id(module)] = module
        return id(module)

    def unload_module(self, module: int) -> None:
        for handle in [handle for handle, (owner, _) in self._functions.items() if owner == module]:
            del self._functions[handle]  # a function keeps its module alive
        del self._modules[module]

    def function(self, module: int, name: str) -> int:
        function = call(self._modules[module].get_function, name)
        self._functions[id(function)] = (module, function)
        return id(function)

    def launch(self, function: int, grid: Extent, block: Extent, argument: bytes, stream: int) -> None:
        _, kernel = self._functions[function]
        kernel.prepare([f"{len(argument)}s"])
        call(kernel.prepared_async_call, grid, block, self._streams[stream], argument)


def _properties(device: Any) -> DeviceProperties:
    major, minor = call(device.compute_capability)
    return DeviceProperties(call(device.name), f"{major}.{minor}", call(device.pci_bus_id))


def _release_on_request(context: Any, leave: threading.Event, left: "Future[None]") -> None:
    """Release the context on request, on a thread that does nothing else.

    PyCUDA releases only a context that is current, and leaves it current afterwards: on this thread that hides no other
    context. The thread starts early, as no thread can be started at interpreter exit.
    """
    leave.wait()
    try:
        context.push()
        context.detach()
    except package().Error as error:
        left.set_exception(error)
    else:
        left.set_result(None)


def _host_bytes(address: int, size: int) -> Any:
    return (ctypes.c_char * size).from_address(address)


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function of PyCUDA and translate its errors, whose messages name the driver's call.

    Raises
    ------
    OutOfMemoryError
        Memory ran out.
    CudaError
        It failed for another reason.
    """
    cuda = package()
    try:
        return function(*arguments, **named)
    except cuda.MemoryError as error:
        raise OutOfMemoryError(str(error)) from error
    except cuda.Error as error:
        raise CudaError(str(error)) from error


def package() -> Any:
    """Return `pycuda.driver`."""
    return importlib.import_module("pycuda.driver")

"""`Driver` on `cuda.bindings.driver` of NVIDIA's cuda-python, 12 and 13."""

import ctypes
import importlib
from typing import Any

from unetrt.runtime.cuda.driver import DeviceProperties, Driver, Extent, Rows
from unetrt.runtime.errors import CudaError, OutOfMemoryError


def devices() -> tuple[DeviceProperties, ...]:
    """Return CUDA's devices, in CUDA's order, without a context. Raises CudaError."""
    call("cuInit", 0)
    return tuple(_properties(call("cuDeviceGet", index)) for index in range(call("cuDeviceGetCount")))


def cuda_version() -> int:
    """Return the newest CUDA version that the driver supports: 13000 is 13.0. Raises CudaError."""
    return int(call("cuDriverGetVersion"))


def open_device(index: int) -> Driver:
    """Return the device with that index in `devices`. Raises CudaError."""
    return CudaPythonDriver(index)


class CudaPythonDriver(Driver):
    """One CUDA device. Methods are documented in `Driver`.

    Parameters
    ----------
    index
        CUDA's index of the device.
    """

    captures = True

    def __init__(self, index: int) -> None:
        call("cuInit", 0)
        self.implementation = f"cuda-python {importlib.import_module('cuda.bindings').__version__}"
        self.index = index
        self._device = call("cuDeviceGet", index)
        self.name = text_of(call("cuDeviceGetName", 256, self._device))
        self._context = call("cuDevicePrimaryCtxRetain", self._device)

    def push(self) -> None:
        call("cuCtxPushCurrent", self._context)

    def pop(self) -> None:
        call("cuCtxPopCurrent")

    def release(self) -> None:
        call("cuDevicePrimaryCtxRelease", self._device)

    def memory(self) -> tuple[int, int]:
        free, total = call("cuMemGetInfo")
        return int(free), int(total)

    def allocate(self, size: int) -> int:
        return int(call("cuMemAlloc", size))

    def free(self, address: int) -> None:
        call("cuMemFree", address)

    def allocate_pinned(self, size: int) -> int:
        return int(call("cuMemHostAlloc", size, package().CU_MEMHOSTALLOC_PORTABLE))

    def free_pinned(self, address: int) -> None:
        call("cuMemFreeHost", address)

    def copy_in(self, device: int, host: int, size: int, stream: int) -> None:
        call("cuMemcpyHtoDAsync", device, host, size, stream)

    def copy_out(self, host: int, device: int, size: int, stream: int) -> None:
        call("cuMemcpyDtoHAsync", host, device, size, stream)

    def copy_rows(self, target: Rows, source: Rows, width: int, height: int, stream: int) -> None:
        cuda = package()
        copy = cuda.CUDA_MEMCPY2D()
        copy.srcMemoryType = copy.dstMemoryType = cuda.CUmemorytype.CU_MEMORYTYPE_DEVICE
        copy.srcDevice, copy.srcPitch = cuda.CUdeviceptr(source.address), source.pitch
        copy.dstDevice, copy.dstPitch = cuda.CUdeviceptr(target.address), target.pitch
        copy.WidthInBytes, copy.Height = width, height
        call("cuMemcpy2DAsync", copy, stream)

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        call("cuMemsetD8Async", address, byte, size, stream)

    def create_stream(self) -> int:
        return int(call("cuStreamCreate", int(package().CUstream_flags.CU_STREAM_NON_BLOCKING)))

    def destroy_stream(self, stream: int) -> None:
        call("cuStreamDestroy", stream)

    def synchronize_stream(self, stream: int) -> None:
        call("cuStreamSynchronize", stream)

    def create_event(self) -> int:
        return int(call("cuEventCreate", int(package().CUevent_flags.CU_EVENT_BLOCKING_SYNC)))

    def destroy_event(self, event: int) -> None:
        call("cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        call("cuEventRecord", event, stream)

    def wait_for(self, stream: int, event: int) -> None:
        call("cuStreamWaitEvent", stream, event, 0)

    def synchronize_event(self, event: int) -> None:
        call("cuEventSynchronize", event)

    def elapsed(self, begin: int, end: int) -> float:
        return float(call("cuEventElapsedTime", begin, end)) / 1e3

    def begin_capture(self, stream: int) -> None:
        call("cuStreamBeginCapture", stream, package().CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        graph = call("cuStreamEndCapture", stream)
        try:
            return int(call("cuGraphInstantiate", graph, 0))
        finally:
            call("cuGraphDestroy", graph)

    def launch_graph(self, graph: int, stream: int) -> None:
        call("cuGraphLaunch", graph, stream)

    def destroy_graph(self, graph: int) -> None:
        call("cuGraphExecDestroy", graph)

    def load_module(self, ptx: bytes) -> int:
        return int(call("cuModuleLoadData", ptx + b"\0"))

    def unload_module(self, module: int) -> None:
        call("cuModuleUnload", module)

    def function(self, module: int, name: str) -> int:
        return int(call("cuModuleGetFunction", module, name.encode()))

    def launch(self, function: int, grid: Extent, block: Extent, argument: bytes, stream: int) -> None:
        struct = ctypes.create_string_buffer(argument, len(argument))
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(struct))
        call("cuLaunchKernel", function, *grid, *block, 0, stream, ctypes.addressof(parameters), 0)


def _properties(device: Any) -> DeviceProperties:
    kinds = package().CUdevice_attribute
    major = call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    minor = call("cuDeviceGetAttribute", kinds.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    name, bus = call("cuDeviceGetName", 256, device), call("cuDeviceGetPCIBusId", 32, device)
    return DeviceProperties(text_of(name), f"{major}.{minor}", text_of(bus))


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver API; return its value, a list of several values, or None.

    Raises
    ------
    OutOfMemoryError
        Memory ran out.
    CudaError
        It failed for another reason, or the installed driver does not have it.
    """
    cuda = package()
    try:
        status, *values = getattr(cuda, name)(*arguments)
    except RuntimeError as error:  # the driver is older than the bindings
        raise CudaError(f"{name} failed: {error}") from error
    if int(status) != 0:
        kind = OutOfMemoryError if status == cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY else CudaError
        raise kind(f"{name} failed: {_described(status)}")
    return values[0] if len(values) == 1 else values or None


def text_of(buffer: bytes) -> str:
    """Return the text in a buffer that the driver filled."""
    return buffer.split(b"\0")[0].decode()


def package() -> Any:
    """Return `cuda.bindings.driver`."""
    return importlib.import_module("cuda.bindings.driver")


def _described(status: Any) -> str:
    _, name = package().cuGetErrorName(status)
    _, text = package().cuGetErrorString(status)
    return f"{(name or str(int(status)).encode()).decode()} ({(text or b'unknown').decode()})"

"""A driver whose device memory is this process's: addresses of numpy arrays are device addresses."""

import ctypes

import numpy as np

from tests.runtime.cuda.fake_gpu.host_kernels import host_kernels
from unetrt.runtime.cuda.arrays import DeviceArray


class HostDriver:
    """The part of the contract that kernels need; everything is done at once."""

    def __init__(self) -> None:
        self.modules: dict[int, bytes] = {}
        self.launches: list[tuple[str, int]] = []
        self._names: list[str] = []

    def push(self) -> None: ...

    def pop(self) -> None: ...

    def release(self) -> None: ...

    def load_module(self, ptx: bytes) -> int:
        self.modules[1] = ptx
        return 1

    def unload_module(self, module: int) -> None:
        del self.modules[module]

    def function(self, module: int, name: str) -> int:
        assert f".entry {name}(".encode() in self.modules[module]
        self._names.append(name)
        return len(self._names) - 1

    def launch(self, function: int, grid, block, argument: bytes, stream: int) -> None:
        assert self.modules
        self.launches.append((self._names[function], stream))
        host_kernels().run(self._names[function], grid, block, argument)

    def fill(self, address: int, byte: int, size: int, stream: int) -> None:
        ctypes.memset(address, byte, size)


def on_device(array: np.ndarray) -> DeviceArray:
    """A numpy array as if it lay in device memory."""
    return DeviceArray(array.__array_interface__["data"][0], array.shape, array.strides, array.dtype, owner=array)

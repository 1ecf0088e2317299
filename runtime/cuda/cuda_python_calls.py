"""How functions of `cuda.bindings.driver` are called, and how they fail."""

import importlib
from typing import Any

from unetrt.runtime.errors import CudaError, OutOfMemoryError


def call(name: str, *arguments: Any) -> Any:
    """Call a function of the driver: return its one value, the list of them, or None where it has none.

    Raises
    ------
    OutOfMemoryError
        The driver says that memory ran out.
    CudaError
        It failed with anything else, or the installed driver does not have it.
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
    """Return the text that the driver wrote to a buffer."""
    return buffer.split(b"\0")[0].decode()


def package() -> Any:
    """Return `cuda.bindings.driver`."""
    return importlib.import_module("cuda.bindings.driver")


def _described(status: Any) -> str:
    _, name = package().cuGetErrorName(status)
    _, text = package().cuGetErrorString(status)
    return f"{(name or str(int(status)).encode()).decode()} ({(text or b'unknown').decode()})"

"""How functions of `pycuda.driver` are called, and how they fail."""

import importlib
from collections.abc import Callable
from typing import Any

from unetrt.runtime.errors import CudaError, OutOfMemoryError


def call(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call a function of PyCUDA; its errors, which name the driver's call, become ours.

    Raises
    ------
    OutOfMemoryError
        The driver says that memory ran out.
    CudaError
        It failed with anything else.
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

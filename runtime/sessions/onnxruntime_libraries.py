"""The libraries that ONNX Runtime's providers for GPUs need: finding them, and saying which is missing."""

import ctypes
import logging
import sys
from contextlib import redirect_stdout, suppress
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

log = logging.getLogger("unetrt")


def preload(package: str | None = None) -> None:
    """Let ONNX Runtime find CUDA and cuDNN where NVIDIA's wheels put them, which is no place that loaders look at.

    Parameters
    ----------
    package
        Another that loads libraries of its own when it is imported, if it is installed.
    """
    import onnxruntime

    if package:
        with suppress(ImportError, OSError):  # the provider then says what it misses
            import_module(package)
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        said = StringIO()
        with redirect_stdout(said):  # it prints what it does not find
            onnxruntime.preload_dlls()
        if said.getvalue():
            log.debug("ONNX Runtime: %s", said.getvalue().strip())


def why_not_loaded(library: str) -> str | None:
    """Return what the system says of a provider's library that ONNX Runtime could not load; None if it loads.

    ONNX Runtime itself tells this to its log alone. To be called after its own attempt, as the library asks for its
    host while it loads.

    Parameters
    ----------
    library
        The library's name without prefix and suffix, such as `onnxruntime_providers_cuda`.
    """
    import onnxruntime

    try:
        ctypes.CDLL(str(_file(onnxruntime, library)))
    except OSError as error:
        return str(error)
    return None


def _file(onnxruntime: Any, library: str) -> Path:
    name = f"{library}.dll" if sys.platform == "win32" else f"lib{library}.so"
    return Path(onnxruntime.__file__).parent / "capi" / name

"""Compiles runtime/segment/kernels.cu to runtime/segment/kernels.ptx, which is part of the package: run `make kernels`.

The compiler is NVRTC 12.0 from its wheel, which needs neither a GPU nor a driver. It emits PTX ISA 8.0, which drivers
from 525 on compile for their GPU; the target is compute capability 7.5, the oldest that TensorRT 10 supports.

python docs/kernels.py FOLDER      the folder into which nvidia-cuda-nvrtc-cu12 was installed
"""

import ctypes
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path

Call = Callable[..., int]
SOURCE = Path(__file__).parents[1] / "runtime" / "segment" / "kernels.cu"
OPTIONS = (b"--gpu-architecture=compute_75", b"--fmad=false")


def main(folder: Path) -> None:
    """Write the PTX beside its source, after a comment line with the source's SHA-256."""
    source = SOURCE.read_text(encoding="utf-8")
    line = f"// kernels.cu, SHA-256 {hashlib.sha256(source.encode()).hexdigest()}\n"
    ptx = compiled(_library(folder), source.encode())
    SOURCE.with_suffix(".ptx").write_text(line + ptx, encoding="utf-8", newline="\n")


def compiled(nvrtc: ctypes.CDLL, source: bytes) -> str:
    """Return the PTX of a source; raises RuntimeError with the compiler's log."""
    program = ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    failed = nvrtc.nvrtcCompileProgram(program, len(OPTIONS), (ctypes.c_char_p * len(OPTIONS))(*OPTIONS))
    if failed:
        raise RuntimeError(_text(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program))
    return _text(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program)


def _text(size_of: Call, text_of: Call, program: ctypes.c_void_p) -> str:
    size = ctypes.c_size_t()
    size_of(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    text_of(program, text)
    return text.value.decode()


def _library(folder: Path) -> ctypes.CDLL:
    # NVRTC finds its built-in headers by name among the loaded libraries.
    builtins, nvrtc = (
        next(folder.glob(f"nvidia/cuda_nvrtc/lib/{name}.so.12*")) for name in ("libnvrtc-builtins", "libnvrtc")
    )
    ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(nvrtc))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

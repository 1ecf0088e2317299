"""The real kernels.cu, compiled for this machine's processor and run on host memory: what no GPU is needed for."""

import ctypes
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests import requirements
from unetrt.runtime.cuda.driver import Extent

SOURCES = Path(__file__).parents[4] / "runtime" / "segment"
SHIM = Path(__file__).with_name("kernels_on_host.cpp")


class HostKernels:
    """Kernels by name, run as a launch would, one thread after another; safe to use from several threads."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def run(self, name: str, grid: Extent, block: Extent, argument: bytes) -> None:
        """Run a kernel over `grid` blocks of `block` threads, (x, y, z); its argument's bytes must be as many as it
        takes."""
        size = self._function(f"size_of_{name}", ctypes.c_size_t)()
        if len(argument) != size:
            raise ValueError(f"{name} takes {size} bytes, not {len(argument)}")
        triple = ctypes.c_uint * 3
        self._function(f"run_{name}", None)(triple(*grid), triple(*block), argument)

    def _function(self, name: str, returned):
        function = self._library[name]  # a new one each time: nothing is shared between threads
        function.restype = returned
        return function


@cache
def host_kernels() -> HostKernels:
    """The kernels, compiled once a process; the test is skipped where there is no C++ compiler."""
    with TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        options = ("-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC")
        subprocess.run([compiler(), *options, f'-DKERNELS="{SOURCES / "kernels.cu"}"', "-o", library, SHIM], check=True)
        return HostKernels(library)  # loaded, it outlives its file


def compiler() -> str:
    """The C++ compiler; skips the test where there is none."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip(requirements.CPP_COMPILER)
    return found

"""The fake libcuda, compiled once, and processes that find it where they look for the driver."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import compiled_library

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]


@pytest.fixture(scope="session")
def fake_libcuda(tmp_path_factory):
    """The folder with a `libcuda.so.1` that works in host memory."""
    library = tmp_path_factory.mktemp("libcuda") / "libcuda.so.1"
    sources = sorted((HERE / "fake_libcuda").glob("*.c"))
    flags = ["-std=gnu11", "-fvisibility=hidden", f"-Wl,-soname,{library.name}"]
    return compiled_library(library, *flags, *sources, "-ldl", "-lpthread").parent


@pytest.fixture
def broken_libcuda(tmp_path):
    """A folder with a `libcuda.so.1` that does not load, whatever driver this machine has."""
    (tmp_path / "libcuda.so.1").write_text("no library\n")
    return tmp_path


def python(*arguments, libcuda, **variables):
    """Run Python where the loader finds `libcuda` first; return the process once it has ended."""
    paths = [str(libcuda), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    environment = {**os.environ, "UNETRT_CUDA": "", "LD_LIBRARY_PATH": os.pathsep.join(paths)} | variables
    return subprocess.run(
        [sys.executable, *arguments], env=environment, cwd=REPOSITORY, capture_output=True, text=True, check=False
    )

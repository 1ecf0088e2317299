import os
import platform
import subprocess
import sys

import pytest

from unetrt.runtime.machine import free_memory

GIB = 2**30


@pytest.fixture
def meminfo(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text(f"MemTotal:       16777216 kB\nMemFree:  1 kB\nMemAvailable:   {8 * 2**20} kB\n")
    return path


def container(folder, limit, used, cached):
    folder.mkdir()
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {cached}\n")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
@pytest.mark.parametrize(
    ("limit", "expected"), [(4 * GIB, 2 * GIB), (64 * GIB, 8 * GIB), ("max", 8 * GIB), (2 * GIB, 0)]
)
def test_a_container_may_use_what_is_left_of_its_limit(tmp_path, meminfo, limit, expected):
    group = container(tmp_path / "group", limit, used=3 * GIB, cached=GIB)
    assert free_memory(meminfo, group) == expected


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_what_no_file_tells_is_unknown(tmp_path, meminfo):
    assert free_memory(meminfo, tmp_path / "nothing") == 8 * GIB
    assert free_memory(tmp_path / "nothing", tmp_path / "nothing") is None


@pytest.mark.skipif(sys.platform not in ("linux", "win32"), reason="other systems are not asked")
def test_this_machine_has_some():
    assert 2**20 < free_memory() < 2**50


HELD = """
import sys
import numpy as np
from pathlib import Path
from unetrt.runtime.machine import return_freed_memory
if sys.argv[1] == "returned":
    return_freed_memory()
largest = np.ones(31 * 2**20, np.uint8)
del largest  # arrays up to this size now go to the heap
freed, kept = [], []
for turn in range(20):
    freed.append(np.ones(6 * 2**20, np.uint8))
    kept.append(np.ones(2**14, np.uint8))
freed.clear()
print(Path("/proc/self/status").read_text().partition("VmRSS:")[2].split()[0])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to return freed memory")
def test_a_process_that_returns_freed_memory_holds_less():
    # A Dask cluster of another test leaves MALLOC_TRIM_THRESHOLD_ here, which has an effect of its own.
    usual = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}

    def held(how):
        run = [sys.executable, "-c", HELD, how]
        return int(subprocess.run(run, capture_output=True, check=True, env=usual).stdout)

    assert held("returned") < 0.6 * held("kept")

"""The machine that this process runs on: its GPU and driver, processor, cores and free memory.

`Machine` is part of what an engine depends on. Every function also works without a GPU.

>>> format_bytes(312 * 2**20)
'312 MiB'
"""

import ctypes
import os
import platform
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetrt.runtime.cuda.driver import loaded_binding, why_not
from unetrt.runtime.errors import BackendUnavailableError, InferenceError


@dataclass(frozen=True)
class Machine:
    """A machine on which engines are built or run.

    Attributes
    ----------
    gpu
        The driver's name of the GPU; empty without one.
    capability
        CUDA compute capability, such as `8.9`; empty without a GPU.
    driver
        Version of the driver, such as `580.82`; empty without a GPU.
    os
        System and processor architecture, such as `Linux x86_64`.
    """

    gpu: str = ""
    capability: str = ""
    driver: str = ""
    os: str = ""

    def __str__(self) -> str:
        gpu = (
            f"{self.gpu} (compute capability {self.capability}, driver {self.driver})" if self.gpu else "no NVIDIA GPU"
        )
        return f"{gpu}, {self.os}"


def this_machine(device: int = 0) -> Machine:
    """Return this machine with one GPU, by CUDA's index.

    Name and compute capability are those of CUDA's driver. The driver's version is that of NVIDIA's management library
    or, without the library, the newest version of CUDA that the driver supports, such as `CUDA 13.0`.
    """
    system = f"{platform.system()} {platform.machine()}"
    with suppress(BackendUnavailableError, InferenceError):
        cuda = loaded_binding()
        found = cuda.devices()
        if 0 <= device < len(found):
            driver = _driver_version() or f"CUDA {cuda.cuda_version()}"
            return Machine(found[device].name, found[device].capability, driver, system)
    return Machine(os=system)


def why_no_gpu() -> str:
    """Return why `this_machine` found no GPU."""
    return f"no GPU was found: {why_not() or 'CUDA has no device of that index'}"


def handle_of(nvml: Any, device: int) -> Any:
    """Return the management library's handle of a GPU by CUDA's index: the library orders GPUs differently."""
    with suppress(BackendUnavailableError, InferenceError, IndexError):
        return nvml.nvmlDeviceGetHandleByPciBusId(loaded_binding().devices()[device].bus)
    return nvml.nvmlDeviceGetHandleByIndex(device)


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, empty where the management library is missing or fails."""
    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            try:
                return str(pynvml.nvmlSystemGetDriverVersion())
            finally:
                pynvml.nvmlShutdown()
    return ""


def processor() -> str:
    """Return the name of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return the number of logical cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


MEMINFO = Path("/proc/meminfo")
# Memory of a container, in version 2 of Linux's control groups (kernel.org, cgroup-v2, "Memory").
GROUP = Path("/sys/fs/cgroup")


def free_memory(meminfo: Path = MEMINFO, group: Path = GROUP) -> int | None:
    """Return the free host memory in bytes, within a container's limit; None if unknown.

    Parameters
    ----------
    meminfo, group
        Linux's file about the machine's memory, and its folder about the container's.
    """
    if sys.platform == "win32":
        return _available_on_windows()
    known = [amount for amount in (_available(meminfo), _left_in_group(group)) if amount is not None]
    return min(known, default=None)


def _available(meminfo: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _left_in_group(group: Path) -> int | None:
    with suppress(OSError, ValueError, KeyError):
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        about = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(about["inactive_file"]))  # cached files are evicted
    return None


def _available_on_windows() -> int | None:
    import ctypes
    from ctypes import wintypes

    class Status(ctypes.Structure):
        """MEMORYSTATUSEX of sysinfoapi.h."""

        _fields_ = (
            ("length", wintypes.DWORD), ("load", wintypes.DWORD),
            *((name, ctypes.c_ulonglong) for name in ("total", "available", "pages", "free_pages", "room", "free_room",
                                                      "extended")),
        )  # fmt: skip

    status = Status(length=ctypes.sizeof(Status))
    if sys.platform == "win32" and ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return int(status.available)
    return None


# glibc's mallopt (malloc.h): the parameter, and the bytes from which an array is a mapping of its own.
M_MMAP_THRESHOLD, MAPPED = -3, 4 * 2**20


def return_freed_memory() -> None:
    """Let this process return freed arrays of at least 4 MiB to the system at once; has an effect with glibc only.

    By default glibc raises this threshold to the size of the largest array that was freed, up to 32 MiB, and then keeps
    most arrays in heaps of its threads, which grow for as long as arrays of different sizes alternate there.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED)


def format_bytes(size: int) -> str:
    """Format a number of bytes: `7 KiB`, `312 MiB`, `2.4 GiB`."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"

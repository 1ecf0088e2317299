"""What a machine is, as far as engines care: its GPU, its driver and its system.

The processor that this process computes on.

How much of the host's memory is free.

Numbers of bytes, for people.
"""

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
    """A machine that engines are built or run on.

    Attributes
    ----------
    gpu
        Name of the GPU, as the driver gives it; empty where there is none.
    capability
        Its CUDA compute capability, such as `8.9`; empty where there is none.
    driver
        Version of its driver, such as `580.82`; empty where there is no GPU.
    os
        System and processor, such as `Linux x86_64`.
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
    """Return what this machine is, with one GPU: by its number as CUDA counts, the first by default.

    The GPU is what CUDA's driver says; the version of the driver, NVIDIA's management library: where that is missing,
    the newest CUDA that the driver knows stands for it, such as `CUDA 13.0`.
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
    """Return why `this_machine` has no GPU."""
    return f"none is seen here: {why_not() or 'CUDA counts no device of that number'}"


def handle_of(nvml: Any, device: int) -> Any:
    """Return the management library's handle of the GPU that CUDA counts so; it counts them in another order."""
    with suppress(BackendUnavailableError, InferenceError, IndexError):
        return nvml.nvmlDeviceGetHandleByPciBusId(loaded_binding().devices()[device].bus)
    return nvml.nvmlDeviceGetHandleByIndex(device)


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, empty where the management library is missing or does not answer."""
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
    """Return the processor's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many logical cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


MEMINFO = Path("/proc/meminfo")
# The memory of a container, as the second version of Linux's control groups tells it (kernel.org, cgroup-v2, memory).
GROUP = Path("/sys/fs/cgroup")


def free_memory(meminfo: Path = MEMINFO, group: Path = GROUP) -> int | None:
    """Return the bytes that can be used without swapping, those of a container's limit at most; None if unknown.

    Parameters
    ----------
    meminfo, group
        Where Linux tells of the machine and of the container.
    """
    if sys.platform == "win32":
        return _windows()
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
        return max(0, limit - used + int(about["inactive_file"]))  # cached files give way
    return None


def _windows() -> int | None:
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
    if not ctypes.windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):  # type: ignore[attr-defined, unused-ignore]
        return None
    return int(status.available)


def shown(size: int) -> str:
    """Return a number of bytes as people read it: `7 KiB`, `312 MiB`, `2.4 GiB`."""
    if size >= 2**30:
        return f"{size / 2**30:.1f} GiB"
    return f"{size / 2**20:.0f} MiB" if size >= 2**20 else f"{size / 2**10:.0f} KiB"

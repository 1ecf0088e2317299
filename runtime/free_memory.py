"""How much of the host's memory is free."""

import sys
from contextlib import suppress
from pathlib import Path

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

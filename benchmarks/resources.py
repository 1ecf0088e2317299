"""What a run takes besides time: memory of this process at its peak, and energy, where the system tells."""

import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unetrt.runtime.machine import handle_of

# The Linux kernel's power capping framework: micro-joules of each processor since some start.
POWERCAP = Path("/sys/class/powercap")


def peak_memory() -> int | None:
    """Return the most bytes that this process had in memory at once; None where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            # Not getrusage: its peak outlives exec, so that a child begins with its parent's.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        usage: Any = import_module("resource")
        return int(usage.getrusage(usage.RUSAGE_SELF).ru_maxrss)
    if find_spec("psutil"):
        peak: int | None = getattr(import_module("psutil").Process().memory_info(), "peak_wset", None)
        return peak
    return None


def device_memory() -> int | None:
    """Return the bytes in use on the first GPU, by everyone; None where its driver does not tell."""
    used: int | None = _of_gpu(lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).used))
    return used


def joules(gpu: bool) -> float | None:
    """Return the energy used so far, since some start, by the processors or by the first GPU; None if nobody tells."""
    if gpu:
        so_far: float | None = _of_gpu(lambda nvml, device: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3)
        return so_far
    with suppress(OSError, ValueError):
        packages = [int((zone / "energy_uj").read_text()) for zone in _packages()]
        return sum(packages) / 1e6 if packages else None
    return None


def between(before: float | None, after: float | None) -> float | None:
    """Return the joules between two readings; None where one is missing, or a counter began anew between them."""
    if before is None or after is None:
        return None
    return after - before if after >= before else None


def _packages() -> list[Path]:
    """Return the processors' zones, without the parts inside them; a laptop tells of its one in a second way too."""
    return [zone for zone in sorted(POWERCAP.glob("intel-rapl:*")) if zone.name.count(":") == 1 and _is_package(zone)]


def _is_package(zone: Path) -> bool:
    with suppress(OSError):
        return (zone / "name").read_text().startswith("package")
    return False


def _of_gpu(ask: Callable[[Any, Any], Any]) -> Any:
    """Return what NVIDIA's management library says of the first GPU that CUDA counts, or None."""
    if not find_spec("pynvml"):
        return None
    nvml: Any = import_module("pynvml")
    with suppress(nvml.NVMLError):
        return ask(nvml, _first_gpu())
    return None


@cache
def _first_gpu() -> Any:
    """Open the management library, until the process ends, and return its handle of that GPU."""
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()
    return handle_of(nvml, 0)

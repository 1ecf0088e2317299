"""What decides a machine's figures: processor, clocks, threads, memory, load, versions."""

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unetrt.benchmarks.contenders import Device
from unetrt.runtime.machine import cores, processor

PACKAGES = ("unetrt", "torch", "onnxruntime", "openvino", "monai", "numpy")
# The Linux kernel's own files.
CPUS, NODES = Path("/sys/devices/system/cpu"), Path("/sys/devices/system/node")


def environment(device: Device = "cpu") -> dict[str, Any]:
    """Return what decides the figures; of a GPU too, where one computes."""
    about = {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "processors": cores(),
        "numa_nodes": len(list(NODES.glob("node[0-9]*"))) or None,
        "megahertz": megahertz(),
        "governor": _text(CPUS / "cpu0/cpufreq/scaling_governor"),
        "memory": _memory(),
        # How many processes wanted a processor in the last minute.
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }
    if device == "gpu":
        from unetrt.benchmarks.gpu_machine import gpu_environment, require_gpu, state

        gpu = require_gpu()
        about |= gpu_environment(gpu) | {"state": state(gpu)}
    return about


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those that are installed: of ONNX Runtime, each build is a package of its own."""
    known = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            known[package] = version(package)
    return known


def megahertz() -> float | None:
    """Return the first processor's clock now, in MHz, as far as the system tells."""
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2])
    return None


def _memory() -> int | None:
    """Return the machine's memory in bytes, as far as the system tells."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text().strip()
    return None

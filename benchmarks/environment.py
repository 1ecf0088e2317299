"""The machine behind a result: processor, GPU, clocks, threads, memory, load, versions."""

import os
import platform
import shutil
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unetrt.benchmarks.contenders import Device, torch_gpu
from unetrt.runtime.errors import BackendUnavailableError
from unetrt.runtime.machine import cores, processor

PACKAGES = ("unetrt", "torch", "onnxruntime", "openvino", "monai", "numpy", "scipy", "edt")
GPU_PACKAGES = (
    "triton",
    "onnx",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
    "pycuda",
)
# Fields of `nvidia-smi --help-query-gpu`, clocks in MHz, power in W.
QUERY = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.draw",
    "power.limit",
    "temperature.gpu",
    "clocks_event_reasons.active",
)
# Linux lists processors and NUMA nodes there.
CPUS, NODES = Path("/sys/devices/system/cpu"), Path("/sys/devices/system/node")


def environment(device: Device = "cpu") -> dict[str, Any]:
    """Return the facts that a CPU's figures depend on, and a GPU's too where that computes.

    Raises
    ------
    BackendUnavailableError
        The device is a GPU, and torch finds none.
    """
    if device == "gpu":
        gpu = require_gpu()
        return gpu_environment(gpu) | {"state": gpu_state(gpu)}
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "processors": cores(),
        "numa_nodes": len(list(NODES.glob("node[0-9]*"))) or None,
        "megahertz": _megahertz(),
        "governor": _text(CPUS / "cpu0/cpufreq/scaling_governor"),
        "memory": _memory(),
        # Processes that wanted a processor, averaged over the last minute.
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }


def gpu_environment(device: torch.device) -> dict[str, Any]:
    """Return the facts of `environment`, and the GPU's name, compute capability, memory and library versions."""
    about, found = torch.cuda.get_device_properties(device), environment()
    found["versions"] |= versions(GPU_PACKAGES) | {"CUDA of torch": torch.version.cuda}
    return {
        "gpu": about.name,
        "capability": f"{about.major}.{about.minor}",
        "gpu_memory": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        # FP32 convolutions use TF32 where the hardware has it: torch's default.
        "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32),
        **found,
    }


def require_gpu() -> torch.device:
    """Return torch's GPU; raises BackendUnavailableError if there is no GPU."""
    if reason := torch_gpu():
        raise BackendUnavailableError(f"this measures a GPU, and {reason}: nothing is measured")
    return torch.device("cuda", torch.cuda.current_device())


def gpu_state(device: torch.device) -> dict[str, str]:
    """Return the GPU's clocks, power and temperature now; empty without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    which = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [program, which, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:  # the figures are valid without the clocks
        return {"nvidia-smi": str(error)}
    return parse_state(done.stdout) if done.returncode == 0 else {"nvidia-smi": done.stdout.strip()}


def parse_state(line: str) -> dict[str, str]:
    """Return nvidia-smi's line of values by the fields of the query."""
    return dict(zip(QUERY, (value.strip() for value in line.split(",")), strict=False))


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of the installed packages; each build of ONNX Runtime is a separate package."""
    known = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            known[package] = version(package)
    return known


def _megahertz() -> float | None:
    """Return the first processor's present clock in MHz; None where the system does not report it."""
    for line in (_text(Path("/proc/cpuinfo")) or "").splitlines():
        if line.startswith("cpu MHz"):
            return float(line.partition(":")[2])
    return None


def _memory() -> int | None:
    """Return the machine's memory in bytes; None where the system does not report it."""
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return None


def _text(path: Path) -> str | None:
    with suppress(OSError):
        return path.read_text().strip()
    return None

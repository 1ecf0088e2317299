"""What decides a GPU's figures: the device, its driver and clocks, and the versions of all that takes part."""

import shutil
import subprocess
from typing import Any

import torch

from unetrt.benchmarks.environment import environment, versions
from unetrt.benchmarks.probes import torch_gpu
from unetrt.runtime.errors import BackendUnavailableError

# What nvidia-smi is asked; names as `nvidia-smi --help-query-gpu` lists them, clocks in MHz, power in W.
ASKED = (
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
PACKAGES = (
    "triton",
    "onnx",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "tensorrt-rtx-cu13-bindings",
    "cuda-bindings",
    "pycuda",
)


def require_gpu() -> torch.device:
    """Return torch's GPU; raises BackendUnavailableError where there is none."""
    if reason := torch_gpu():
        raise BackendUnavailableError(f"this measures a GPU, and {reason}: nothing is measured")
    return torch.device("cuda", torch.cuda.current_device())


def gpu_environment(device: torch.device) -> dict[str, Any]:
    """Return name, capability, memory and versions."""
    about = torch.cuda.get_device_properties(device)
    found = environment()
    found["versions"] |= versions(PACKAGES) | {"CUDA of torch": torch.version.cuda}
    return {
        "gpu": about.name,
        "capability": f"{about.major}.{about.minor}",
        "gpu_memory": about.total_memory,
        "multiprocessors": about.multi_processor_count,
        # Convolutions in FP32 use TF32 where the hardware has it, unless told otherwise: torch's own default.
        "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32),
        **found,
    }


def state(device: torch.device) -> dict[str, str]:
    """Return the device's clocks, power and temperature now; empty where there is no nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    which = f"--id=GPU-{torch.cuda.get_device_properties(device).uuid}"
    asked = [program, which, f"--query-gpu={','.join(ASKED)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:  # a figure is not worth less without its clocks
        return {"nvidia-smi": str(error)}
    return read_state(told.stdout) if told.returncode == 0 else {"nvidia-smi": told.stdout.strip()}


def read_state(line: str) -> dict[str, str]:
    """Return nvidia-smi's line by the names of what it was asked."""
    return dict(zip(ASKED, (value.strip() for value in line.split(",")), strict=False))

"""What a machine is, as far as engines care: its GPU, its driver and its system."""

import platform
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from unetrt.runtime.cuda.implementations import loaded_implementation, why_not
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
        cuda = loaded_implementation()
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
        return nvml.nvmlDeviceGetHandleByPciBusId(loaded_implementation().devices()[device].bus)
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

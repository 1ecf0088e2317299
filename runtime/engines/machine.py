"""What a machine is, as far as engines care: its GPU, its driver and its system."""

import platform
from contextlib import suppress
from dataclasses import dataclass


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
        Version of its driver; empty where there is none.
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
    """Return what this machine is, with its GPU number `device` in the order of NVIDIA's management library."""
    system = f"{platform.system()} {platform.machine()}"
    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(device)
                major, minor = pynvml.nvmlDeviceGetCudaComputeCapability(handle)
                gpu, driver = pynvml.nvmlDeviceGetName(handle), pynvml.nvmlSystemGetDriverVersion()
                return Machine(gpu, f"{major}.{minor}", driver, system)
            finally:
                pynvml.nvmlShutdown()
    return Machine(os=system)

"""What a machine is, as far as engines care: its GPU, its driver and its system."""

import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any


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
    """Return what this machine is, with one GPU: by its number as CUDA counts, the first unless told otherwise."""
    system = f"{platform.system()} {platform.machine()}"
    with suppress(ImportError):
        import pynvml

        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            try:
                return _with_gpu(pynvml, system, device)
            finally:
                pynvml.nvmlShutdown()
    return Machine(os=system)


def why_no_gpu() -> str:
    """Return why `this_machine` has no GPU."""
    if find_spec("pynvml") is None:
        return "none is seen without nvidia-ml-py: pip install nvidia-ml-py"
    return "there is none here"


def _with_gpu(nvml: Any, system: str, device: int) -> Machine:
    handle = handle_of(nvml, device)
    major, minor = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    gpu, driver = nvml.nvmlDeviceGetName(handle), nvml.nvmlSystemGetDriverVersion()
    return Machine(gpu, f"{major}.{minor}", driver, system)


def handle_of(nvml: Any, device: int) -> Any:
    """Return the management library's handle of the GPU that CUDA counts so."""
    bus = _bus_id(device)
    return nvml.nvmlDeviceGetHandleByPciBusId(bus) if bus else nvml.nvmlDeviceGetHandleByIndex(device)


def _bus_id(number: int) -> str | None:
    """Return the PCI bus of the GPU that CUDA counts so; None where no binding of CUDA is installed or works.

    The management library counts GPUs in another order, and does not know which of them CUDA_VISIBLE_DEVICES hides.
    """
    with suppress(ImportError, RuntimeError):  # RuntimeError: the driver's library is missing
        from cuda.bindings import driver

        if int(driver.cuInit(0)[0]) == 0:
            _, device = driver.cuDeviceGet(number)
            _, name = driver.cuDeviceGetPCIBusId(32, device)
            return str(name.split(b"\0")[0].decode())
    with suppress(ImportError):
        import pycuda.driver

        with suppress(pycuda.driver.Error):
            pycuda.driver.init()
            return str(pycuda.driver.Device(number).pci_bus_id())
    return None

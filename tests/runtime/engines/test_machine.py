import sys
from types import ModuleType

import pytest

from tests.runtime.cuda.conftest import fake_libcuda, python  # noqa: F401
from unetrt.runtime import machine as module
from unetrt.runtime.cuda.driver import DeviceProperties
from unetrt.runtime.errors import BackendUnavailableError, CudaError
from unetrt.runtime.machine import Machine, handle_of, this_machine, why_no_gpu

T4 = DeviceProperties("NVIDIA T4", "7.5", "0000:02:00.0")
RTX_4090 = DeviceProperties("NVIDIA RTX 4090", "8.9", "0000:01:00.0")


class FakeCuda:
    """An implementation that can be called: CUDA puts the T4 first, or hides it."""

    def __init__(self, *devices):
        self._devices = devices

    def devices(self):
        if not self._devices:
            raise CudaError("cuInit failed: CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)")
        return self._devices

    def cuda_version(self):
        return "13.0"


class FakeNvml(ModuleType):
    """NVIDIA's management library, which counts by the PCI bus: the RTX 4090 comes first."""

    class NVMLError(Exception): ...

    def __init__(self, works=True):
        super().__init__("pynvml")
        self.works, self.open = works, 0

    def nvmlInit(self):  # noqa: N802
        if not self.works:
            raise self.NVMLError
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        return ("RTX 4090", "T4")[index]

    def nvmlDeviceGetHandleByPciBusId(self, bus):  # noqa: N802
        return {RTX_4090.bus: "RTX 4090", T4.bus: "T4"}[bus]

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.82"


@pytest.fixture
def install(monkeypatch):
    def of(cuda, nvml):
        monkeypatch.setattr(module, "loaded_binding", lambda: cuda)
        monkeypatch.setitem(sys.modules, "pynvml", nvml)

    return of


def test_a_machine_is_the_gpu_that_cuda_counts_so(install):
    nvml = FakeNvml()
    install(FakeCuda(T4, RTX_4090), nvml)
    for device, said in enumerate(["NVIDIA T4 (compute capability 7.5", "NVIDIA RTX 4090 (compute capability 8.9"]):
        machine = this_machine(device)
        assert str(machine) == f"{said}, driver 580.82), {machine.os}"
    assert this_machine() == this_machine(0)
    assert nvml.open == 0


@pytest.mark.parametrize("nvml", [None, FakeNvml(works=False)], ids=["missing", "broken"])
def test_without_the_management_library_the_gpu_is_seen_all_the_same(install, nvml):
    install(FakeCuda(RTX_4090), nvml)
    machine = this_machine()
    assert machine == Machine("NVIDIA RTX 4090", "8.9", "CUDA 13.0", machine.os)


@pytest.mark.parametrize(("cuda", "device"), [(FakeCuda(), 0), (FakeCuda(T4), 1)], ids=["all hidden", "too few"])
def test_a_gpu_that_cuda_does_not_count_is_none(install, cuda, device):
    install(cuda, FakeNvml())
    machine = this_machine(device)
    assert machine == Machine(os=machine.os)
    assert str(machine) == f"no NVIDIA GPU, {machine.os}"
    assert len(machine.os.split()) == 2


def test_the_management_librarys_handle_is_that_of_the_same_gpu(install):
    nvml = FakeNvml()
    install(FakeCuda(T4, RTX_4090), nvml)
    assert [handle_of(nvml, 0), handle_of(nvml, 1)] == ["T4", "RTX 4090"]


def test_without_cuda_the_management_library_counts(install, monkeypatch):
    def missing():
        raise BackendUnavailableError("cuda-python is not installed")

    monkeypatch.setattr(module, "loaded_binding", missing)
    assert handle_of(FakeNvml(), 0) == "RTX 4090"
    assert this_machine().gpu == ""


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("no NVIDIA driver is installed", "no GPU was found: no NVIDIA driver is installed"),
        (None, "no GPU was found: CUDA has no device of that index"),
    ],
)
def test_why_there_is_no_gpu_is_what_cuda_says(monkeypatch, reason, said):
    monkeypatch.setattr(module, "why_not", lambda: reason)
    assert why_no_gpu() == said


def test_the_real_packages_name_each_gpu(fake_libcuda):  # noqa: F811
    pytest.importorskip("cuda.bindings.driver")
    code = "from unetrt.runtime.machine import *; print(this_machine(0).capability, this_machine(1).gpu)"
    done = python("-c", code, libcuda=fake_libcuda, FAKE_CUDA_CAPABILITY="9.0,8.9")
    assert (done.stdout, done.stderr) == ("9.0 Fake GPU B\n", "")

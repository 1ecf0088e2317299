import sys
from types import ModuleType

import pytest

from unetrt.runtime.engines.machine import Machine, this_machine


class FakeNvml(ModuleType):
    """NVIDIA's management library, as it answers where there is a GPU."""

    class NVMLError(Exception): ...

    def __init__(self, gpus):
        super().__init__("pynvml")
        self.gpus, self.open = gpus, 0

    def nvmlInit(self):  # noqa: N802
        self.open += 1

    def nvmlShutdown(self):  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetHandleByIndex(self, index):  # noqa: N802
        if index >= len(self.gpus):
            raise self.NVMLError
        return index

    def nvmlDeviceGetHandleByPciBusId(self, bus):  # noqa: N802
        return ["0000:01:00.0", "0000:02:00.0"].index(bus)

    def nvmlDeviceGetCudaComputeCapability(self, handle):  # noqa: N802
        return (8, 9)

    def nvmlDeviceGetName(self, handle):  # noqa: N802
        return self.gpus[handle]

    def nvmlSystemGetDriverVersion(self):  # noqa: N802
        return "580.82"


@pytest.mark.parametrize(
    ("gpus", "said"),
    [(["NVIDIA RTX 4090"], "NVIDIA RTX 4090 (compute capability 8.9, driver 580.82), "), ([], "no NVIDIA GPU, ")],
)
def test_a_machine_says_what_it_is(monkeypatch, gpus, said):
    library = FakeNvml(gpus)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    machine = this_machine()
    assert str(machine) == said + machine.os
    assert library.open == 0


class FakeDriver(ModuleType):
    """CUDA's driver behind cuda-python, where CUDA_VISIBLE_DEVICES hides the first of two GPUs."""

    def __init__(self):
        super().__init__("cuda.bindings.driver")

    def cuInit(self, flags):  # noqa: N802
        return (0,)

    def cuDeviceGet(self, ordinal):  # noqa: N802
        return 0, ordinal

    def cuDeviceGetPCIBusId(self, length, device):  # noqa: N802
        return 0, b"0000:02:00.0" + bytes(length - 12)


def test_the_gpu_is_the_one_that_cuda_takes_first(monkeypatch):
    bindings = ModuleType("cuda.bindings")
    bindings.driver = FakeDriver()
    monkeypatch.setitem(sys.modules, "cuda", ModuleType("cuda"))
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(["NVIDIA T4", "NVIDIA RTX 4090"]))
    assert this_machine().gpu == "NVIDIA RTX 4090"


def test_without_the_library_there_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = this_machine()
    assert machine == Machine(os=machine.os)
    assert len(machine.os.split()) == 2

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
    machine = this_machine()
    assert str(machine) == said + machine.os
    assert library.open == 0


def test_without_the_library_there_is_no_gpu(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    machine = this_machine()
    assert machine == Machine(os=machine.os)
    assert len(machine.os.split()) == 2

"""Runs the tests of this folder on a fake GPU: a plugin for pytest, `-p tests.gpu.fake_gpu`.

It shows that the tests expect what a working runtime answers. TensorRT is the fake that computes with ONNX Runtime, on
the fake driver, which executes late and out of order. Speed, processes and torch on the GPU still need a GPU.
"""

import gc

import onnxruntime
import pytest
import torch

from tests.runtime import fake_tensorrt
from tests.runtime.cuda.fake_driver import FakeDriver
from tests.runtime.engines.machines import ADA
from unetrt.runtime import machine
from unetrt.runtime.engines import cache, flavours
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of, write_engine
from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.onnx_file import read_spec

DRIVER = FakeDriver(seed=3, total=2**26)
TRT = fake_tensorrt.FakeTensorRt(DRIVER)
PATCH = pytest.MonkeyPatch()


def open_driver(index, environ):
    if index:
        raise OptionError(f"there is no CUDA device {index}; there is 1: 0 (Fake GPU)")
    DRIVER.opened += 1
    return DRIVER


def place(path, model, facts):
    write_engine(path, model.read_bytes(), facts, read_spec(model), model)


def obtained(folder):
    def engine(model, *_):
        facts = facts_of(model, read_spec(model), flavours.FLAVOURS[0], ADA, BuildOptions())
        path = folder / f"{facts.key}.engine"
        place(path, model, facts)
        return path

    return engine


def loaded_or_none(runtime, content):
    """As TensorRT refuses: log the error, and return None."""
    try:
        onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - whatever ONNX Runtime makes of a damaged file
        runtime.logger.log(1, f"the plan cannot be read: {type(error).__name__}")
        return None
    return fake_tensorrt.ICudaEngine(TRT, content, runtime.logger)


def pytest_configure():
    DRIVER.opened = 0
    PATCH.setattr(flavours.Flavour, "load", lambda flavour: TRT)
    PATCH.setattr(flavours, "usable_flavour", lambda name, machine: flavours.FLAVOURS[0])
    PATCH.setattr(machine, "this_machine", lambda device=0: ADA)
    PATCH.setattr(cache, "place", place)
    PATCH.setattr(fake_tensorrt.Runtime, "deserialize_cuda_engine", loaded_or_none)


@pytest.fixture(scope="session", autouse=True)
def fake_gpu(tmp_path_factory):
    from tests.gpu import engines
    from unetrt.runtime.sessions import tensorrt

    PATCH.setattr(tensorrt, "open_driver", open_driver)
    PATCH.setattr(tensorrt, "why_not", lambda: None)
    PATCH.setattr("unetrt.runtime.cuda.driver.why_not", lambda *_: None)
    PATCH.setattr(tensorrt, "is_installed", lambda name: True)
    PATCH.setattr(tensorrt, "_obtained", obtained(tmp_path_factory.mktemp("engines")))
    PATCH.setattr(engines, "open_driver", open_driver)
    PATCH.setattr(torch.cuda, "mem_get_info", lambda: (DRIVER.total - DRIVER.taken, DRIVER.total))
    yield
    PATCH.undo()
    for _ in range(2):  # what an error held, and then what that held
        gc.collect()
    assert DRIVER.violations == []
    assert DRIVER.live == {}
    assert DRIVER.released == DRIVER.opened


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef, request):
    """The fixture that skips everything where there is no GPU finds one."""
    if fixturedef.argname != "gpu":
        return None
    fixturedef.cached_result = (None, fixturedef.cache_key(request), None)
    return True

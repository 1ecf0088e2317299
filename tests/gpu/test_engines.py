"""Engines on a machine with a GPU: what no other can show."""

import importlib.util

import pytest

torch = pytest.importorskip("torch")

from unetrt.runtime.engines.build import TimingCache, build  # noqa: E402
from unetrt.runtime.engines.cache import EngineCache  # noqa: E402
from unetrt.runtime.engines.engine_file import (  # noqa: E402
    BuildOptions,
    facts_of,
    first_misfit,
)
from unetrt.runtime.engines.flavours import CAPABILITIES, FLAVOURS  # noqa: E402
from unetrt.runtime.machine import this_machine  # noqa: E402
from unetrt.runtime.model.onnx_file import read_spec  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

INSTALLED = [flavour for flavour in FLAVOURS if importlib.util.find_spec(flavour.module)]


def loaded(flavour, engine):
    trt = flavour.load()
    return trt.Runtime(trt.Logger()).deserialize_cuda_engine(engine)


def test_the_machine_is_the_one_that_torch_sees():
    machine = this_machine()
    assert machine.gpu == torch.cuda.get_device_name(0)
    assert machine.capability == ".".join(map(str, torch.cuda.get_device_capability(0)))
    assert machine.driver


@pytest.mark.parametrize("flavour", INSTALLED, ids=lambda flavour: flavour.name)
def test_what_is_said_to_fit_is_loaded_and_nothing_else(tiny_model, flavour):
    machine = this_machine()
    facts = facts_of(tiny_model, read_spec(tiny_model), flavour, machine, BuildOptions())
    engine = loaded(flavour, build(tiny_model, facts))
    misfit = first_misfit(facts, machine, flavour.version)
    assert (engine is not None) == (misfit is None), misfit


@pytest.mark.skipif(FLAVOURS[1] not in INSTALLED, reason="TensorRT for RTX is not installed")
@pytest.mark.parametrize("named", [(), *((capability,) for capability in CAPABILITIES), CAPABILITIES])
def test_what_tensorrt_for_rtx_says_of_an_engine_here_is_what_the_table_says(tiny_model, named):
    flavour, machine = FLAVOURS[1], this_machine()
    facts = facts_of(tiny_model, read_spec(tiny_model), flavour, machine, BuildOptions(capabilities=named))
    engine, trt = build(tiny_model, facts), flavour.load()
    torch.zeros(1, device="cuda")  # makes the device's context current
    validity, causes = trt.Runtime(trt.Logger()).get_engine_validity(engine)
    fits = first_misfit(facts, machine, flavour.version) is None
    assert (validity != trt.EngineValidity.INVALID) == fits
    assert bool(causes & int(trt.EngineInvalidityDiagnostics.UNSUPPORTED_CC)) != fits
    assert (loaded(flavour, engine) is not None) == fits


@pytest.mark.skipif(FLAVOURS[0] not in INSTALLED, reason="TensorRT is not installed")
@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(version_compatible=True),
        BuildOptions(hardware_compatible="ampere-plus"),
        BuildOptions(workspace=2**30),
    ],
)
def test_tensorrt_takes_its_options_and_keeps_its_times(tiny_model, tmp_path, options):
    flavour = FLAVOURS[0]
    facts = facts_of(tiny_model, read_spec(tiny_model), flavour, this_machine(), options)
    path, built = EngineCache(tmp_path).obtain(tiny_model, facts)
    assert built
    assert loaded(flavour, path.read_bytes()) is not None
    assert TimingCache(facts).path.stat().st_size > 0

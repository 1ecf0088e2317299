import os
import signal
import sys
import time
import traceback
from dataclasses import replace
from importlib.machinery import ModuleSpec
from types import ModuleType

import onnx
import pytest

from tests import requirements
from tests.conftest import editable
from tests.runtime.engines.machines import ADA, HOPPER, NONE, TURING
from unetrt.export.onnx_model import describe
from unetrt.runtime.engines.build import Progress, TimingCache, build, configure
from unetrt.runtime.engines.engine_file import BuildOptions, engine_tensors, facts_of
from unetrt.runtime.engines.flavours import CAPABILITIES, DEFAULT_CAPABILITIES, FLAVOURS, usable_flavour
from unetrt.runtime.errors import BackendUnavailableError, EngineError, ModelFileError, OptionError
from unetrt.runtime.model.onnx_file import read_spec

TENSORRT, RTX = FLAVOURS
trt = pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)


def facts_for(model, **options):
    return facts_of(model, read_spec(model), RTX, NONE, BuildOptions(**options))


@pytest.fixture
def facts(tiny_model):
    return facts_for(tiny_model)


def test_a_real_engine_is_built_and_every_phase_is_told(tiny_model, facts):
    phases = []
    engine = build(tiny_model, facts, Progress(phases.append))
    assert len(engine) > 100_000
    assert phases[0].name == "Building engine"
    assert phases[0].parent == ""
    last = {phase.name: phase for phase in phases}
    assert len(last) > 3
    assert all(phase.done == phase.steps for phase in last.values())
    assert all(phase.parent in last for phase in last.values() if phase.parent)


def test_what_is_asked_for_reaches_the_engine(tiny_model):
    one = len(build(tiny_model, facts_for(tiny_model, capabilities=("8.6",))))
    two = len(build(tiny_model, facts_for(tiny_model, capabilities=("7.5", "8.6"))))
    assert two > one


def test_the_builder_is_configured(tiny_model):
    config = trt.Builder(trt.Logger()).create_builder_config()
    configure(trt, config, BuildOptions())
    assert not config.get_flag(trt.BuilderFlag.TF32)
    options = BuildOptions(workspace=2**28, level=1, tf32=True, version_compatible=True, capabilities=("8.0", "12.0"))
    configure(trt, config, options)
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 2**28
    assert config.builder_optimization_level == 1
    assert config.get_flag(trt.BuilderFlag.TF32)
    assert config.get_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    asked = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
    assert asked == [trt.ComputeCapability.SM80, trt.ComputeCapability.SM120]


class FakeConfig:
    """A builder's configuration that only notes what it is given: the one of TensorRT for RTX has no such level."""

    def clear_flag(self, flag): ...


@pytest.mark.parametrize(
    ("asked", "level"), [("ampere-plus", "AMPERE_PLUS"), ("same-capability", "SAME_COMPUTE_CAPABILITY")]
)
def test_hardware_compatibility(asked, level):
    config = FakeConfig()
    configure(trt, config, BuildOptions(hardware_compatible=asked))
    assert config.hardware_compatibility_level == getattr(trt.HardwareCompatibilityLevel, level)


@pytest.mark.parametrize(
    ("options", "flavour", "message"),
    [
        ({"workspace": 0}, RTX, "use 1GiB"),
        ({"level": 6}, RTX, r"must be 0 to 5 \(got 6\)"),
        ({"version_compatible": True}, RTX, "use --capability"),
        ({"hardware_compatible": "ampere-plus"}, RTX, "use --capability"),
        ({"capabilities": ("8.6",)}, TENSORRT, "use --hardware-compatible ampere-plus"),
        ({"capabilities": ("9.0",)}, RTX, "capability 9.0: use 7.5, 8.0, 8.6, 8.9, 12.0, 12.1"),
    ],
)
def test_options_without_a_meaning(options, flavour, message):
    with pytest.raises(OptionError, match=message):
        BuildOptions(**options).require_for(flavour, ADA)


def test_what_runs_nowhere_unless_named_must_be_named_where_it_is_to_run():
    with pytest.raises(OptionError, match=r"capability 7.5 \(NVIDIA T4\) only where it is named: use --capability 7.5"):
        BuildOptions().require_for(RTX, TURING)
    for machine, options in (
        (TURING, BuildOptions(capabilities=("8.6",))),
        (NONE, BuildOptions()),
        (ADA, BuildOptions()),
    ):
        options.require_for(RTX, machine)
    BuildOptions().require_for(TENSORRT, TURING)
    assert BuildOptions.for_gpu(RTX, TURING) == BuildOptions(capabilities=("7.5",))
    assert BuildOptions.for_gpu(RTX, ADA) == BuildOptions.for_gpu(TENSORRT, TURING) == BuildOptions()


def test_every_capability_that_may_be_asked_for_is_known_to_tensorrt():
    known = {name.removeprefix("SM") for name in trt.ComputeCapability.__members__ if name.startswith("SM")}
    assert {capability.replace(".", "") for capability in CAPABILITIES} == known


def test_the_capabilities_of_an_engine_are_those_of_the_table(tiny_model):
    """A bit each in the engine's header, where the library looks for that of the GPU; the last is of what is newer."""

    def bits(*capabilities):
        return int.from_bytes(build(tiny_model, facts_for(tiny_model, capabilities=capabilities))[32:40], "little")

    each = {capability: bits(capability) for capability in CAPABILITIES}
    assert list(each.values()) == [1 << place for place in range(len(CAPABILITIES))]
    newer = 1 << len(CAPABILITIES)
    assert bits() == newer + sum(each[capability] for capability in DEFAULT_CAPABILITIES)


@pytest.mark.parametrize("dtype", ["float32", "uint8", "uint16"])
def test_what_a_uint16_engine_takes_is_the_memory_of_a_uint16_frame(dtype):
    from tests.conftest import small_spec
    from unetrt.runtime.pixels.normalisation import Normalisation

    spec = small_spec(input_dtype=dtype, normalisation=Normalisation("fixed", offset=(0.0,), scale=(1.0,)))
    assert engine_tensors(spec).input.nbytes == spec.new_input().nbytes


def test_an_error_in_the_callback_cancels_the_build_and_comes_out(tiny_model, facts):
    def fail(phase):
        raise RuntimeError("no more room on the screen")

    with pytest.raises(RuntimeError, match="no more room"):
        build(tiny_model, facts, Progress(fail))


def test_ctrl_c_cancels_the_build(tiny_model, facts):
    """The signal comes while TensorRT builds on its thread; the build must end there before the call returns."""
    seen = []

    def interrupt(phase):
        seen.append(phase)
        if len(seen) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            deadline = time.monotonic() + 10
            while not progress.cancelled and time.monotonic() < deadline:  # else a quick build may be through before
                time.sleep(0.001)

    progress = Progress(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            build(tiny_model, facts, progress)
    finally:
        assert progress.cancelled
    count = len(seen)
    assert len(build(tiny_model, facts)) > 0
    assert len(seen) == count


def without_an_operator(tiny_model, folder):
    model, path = editable(tiny_model), folder / "model.onnx"
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "BitShift"
    node.input.append(node.input[0])
    node.attribute.append(onnx.helper.make_attribute("direction", "LEFT"))
    onnx.save(model, path)
    return path


def test_a_graph_that_tensorrt_does_not_have_is_refused_with_its_reason(tiny_model, tmp_path):
    path = without_an_operator(tiny_model, tmp_path)
    with pytest.raises(EngineError, match=r"TensorRT for RTX cannot build .*model.onnx: at BitShift"):
        build(path, facts_for(path))


def test_an_error_keeps_nothing_of_tensorrts_alive(tiny_model, tmp_path):
    path = without_an_operator(tiny_model, tmp_path)
    with pytest.raises(EngineError) as caught:
        build(path, facts_for(path))
    frames = [frame for frame, _ in traceback.walk_tb(caught.value.__traceback__)]
    assert "run" in [frame.f_code.co_name for frame in frames]
    held = [type(value).__module__ for frame in frames for value in frame.f_locals.values()]
    assert not [module for module in held if module.startswith("tensorrt")]


def test_a_graph_that_is_not_what_its_spec_says(tiny_model, tmp_path):
    model, path = editable(tiny_model), tmp_path / "model.onnx"
    describe(model, replace(read_spec(tiny_model), batch=3))
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="its graph has .* its spec says .*export it again"):
        build(path, facts_for(path))


def test_a_model_with_data_outside_its_folder_is_not_read(tiny_model, tmp_path):
    model, folder = editable(tiny_model), tmp_path / "model"
    folder.mkdir()
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    facts = facts_for(folder / "model.onnx")
    (folder / "w.bin").rename(tmp_path / "w.bin")
    content = (folder / "model.onnx").read_bytes().replace(b"w.bin", b"../w.")
    (folder / "model.onnx").write_bytes(content)
    with pytest.raises(ModelFileError, match="w"):
        build(folder / "model.onnx", facts)


def test_external_data_is_built_in(tiny_model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(editable(tiny_model), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert len(build(path, facts_for(path))) == pytest.approx(len(build(tiny_model, facts_for(tiny_model))), rel=0.05)


@pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX")
@pytest.mark.parametrize("content", [None, b"", b"no timing cache" * 40])
def test_a_timing_cache_is_kept_and_a_damaged_one_costs_nothing(tiny_model, facts, content):
    times = TimingCache(replace(facts, version="of this test"))
    if content is not None:
        times.path.parent.mkdir(parents=True, exist_ok=True)
        times.path.write_bytes(content)
    config = trt.Builder(trt.Logger(trt.Logger.INTERNAL_ERROR)).create_builder_config()
    times.attach(config)
    times.keep(config)
    assert times.path.read_bytes() not in (b"", content)


def test_flavours_say_why_they_cannot_build(monkeypatch):
    assert usable_flavour("auto", NONE) is RTX
    with pytest.raises(BackendUnavailableError, match=r"TensorRT is not installed: pip install 'unetrt\[tensorrt\]'"):
        usable_flavour("tensorrt", NONE)
    with pytest.raises(OptionError, match="'tensorflow'.*use one of auto, tensorrt, tensorrt-rtx"):
        usable_flavour("tensorflow", NONE)
    needs_gpu = replace(RTX, portable=False)
    assert "the GPU that the engine is for, and " in needs_gpu.probe(NONE)
    assert needs_gpu.probe(replace(NONE, gpu="NVIDIA T4")) is None


@pytest.fixture
def fake_tensorrt_installed(monkeypatch):
    fake = ModuleType("tensorrt")
    fake.__spec__ = ModuleSpec("tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt", fake)


def test_where_tensorrt_for_rtx_does_not_run_tensorrt_builds(fake_tensorrt_installed):
    assert usable_flavour("auto", HOPPER) is TENSORRT
    assert usable_flavour("tensorrt", HOPPER) is TENSORRT


@pytest.mark.parametrize("name", ["auto", "tensorrt-rtx"])
def test_where_only_tensorrt_for_rtx_is_installed_that_does_not_run_it_says_what_does(name):
    with pytest.raises(BackendUnavailableError) as caught:
        usable_flavour(name, HOPPER)
    said = str(caught.value)
    assert "TensorRT for RTX does not run on compute capability 9.0 (NVIDIA H100 80GB HBM3), only on 7.5, 8.0" in said
    assert "use backend tensorrt with TensorRT (pip install 'unetrt[tensorrt]') or backend onnxruntime-cuda" in said
    assert "\n" not in said
    assert usable_flavour(name, HOPPER, ("8.6",)) is RTX

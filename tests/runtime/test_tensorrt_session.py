"""TensorRT's session: what it asks of TensorRT, on a fake of its runtime; real engines where none has to run."""

import gc
from contextlib import suppress
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from tests import requirements
from tests.runtime import fake_tensorrt
from tests.runtime.cuda.fake_driver import FakeDriver
from tests.runtime.engines.machines import ADA, HOPPER, NONE
from tests.runtime.fake_tensorrt import SCRATCH, FakeTensorRt
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of, read_sidecar, write_engine
from unetrt.runtime.engines.flavours import FLAVOURS, Flavour
from unetrt.runtime.errors import (
    EngineError,
    InferenceError,
    OptionError,
    OutOfMemoryError,
    SessionClosedError,
)
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import open_session, tensorrt

FREES = ("free", "free_pinned", "destroy_stream", "destroy_event", "destroy_graph")
KINDS = {"tensorrt": "10.13.3.9", "tensorrt-rtx": "1.7.1.116"}


class Bench:
    """A machine with a fake GPU and a fake TensorRT on it."""

    def __init__(self, monkeypatch, folder):
        self._patch, self.folder = monkeypatch, folder
        self.driver, self.trt = FakeDriver(), None
        self.driver.opened = 0
        monkeypatch.setattr(tensorrt, "open_driver", lambda index, *_: self._driver(index))
        monkeypatch.setattr(tensorrt, "why_not", lambda: None)
        monkeypatch.setattr("unetrt.runtime.cuda.driver.why_not", lambda *_: None)
        monkeypatch.setattr(tensorrt, "this_machine", lambda device: ADA)

    def install(self, name="tensorrt", flaws=()):
        self.trt = FakeTensorRt(self.driver, KINDS[name], name == "tensorrt-rtx", flaws)
        self._patch.setattr(Flavour, "load", lambda flavour: self.trt)

    def engine(self, model, name="tensorrt", machine=ADA):
        """An engine file whose content is the model, for the fake to compute."""
        flavour = next(one for one in FLAVOURS if one.name == name)
        facts = facts_of(model, read_spec(model), flavour, machine, BuildOptions())
        path = self.folder / f"{model.stem}-{name}.engine"
        write_engine(path, model.read_bytes(), facts, read_spec(model), model)
        return path

    def _driver(self, index):
        self.driver.index = index
        self.driver.opened += 1
        return self.driver

    def restart(self, seed, fail_at):
        self.driver = self.trt.driver = FakeDriver(seed)
        self.driver.opened, self.driver.fail_at = 0, fail_at

    def check(self):
        if self.driver.live or self.trt.live:
            gc.collect()  # a traceback may hold some still
        assert self.driver.violations == []
        assert self.driver.live == {}
        assert self.driver.released == self.driver.opened
        assert self.trt.live == []


@pytest.fixture
def bench(monkeypatch, tmp_path):
    return Bench(monkeypatch, tmp_path)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("lanes", [1, 3])
def test_an_engine_answers_as_onnxruntime_does(bench, tiny_model, name, lanes):
    frame = np.random.default_rng(0).random((101, 163), np.float32)
    with Segmenter(tiny_model, backend="onnxruntime") as segmenter:
        expected = segmenter.scores(frame)
    bench.install(name)
    with Segmenter(bench.engine(tiny_model, name), lanes=lanes) as segmenter:
        assert segmenter.session.name.endswith(f"{KINDS[name]} on Fake GPU (device 0, fake)")
        np.testing.assert_array_equal(segmenter.scores(frame), expected)
    bench.check()


@pytest.mark.parametrize("captures", [True, False])
def test_passes_are_captured_once_and_replayed(bench, tiny_model, captures):
    bench.driver.captures = captures
    bench.install()
    with Segmenter(bench.engine(tiny_model)) as segmenter:
        bench.driver.calls.clear()
        segmenter.scores(np.zeros((101, 163)))
        names = [call.name for call in bench.driver.calls]
    assert ("launch_graph" in names) == captures
    assert ("compute" in names) != captures
    bench.check()


def test_an_engine_that_cannot_be_captured_runs_all_the_same(bench, tiny_model, caplog):
    bench.install(flaws=["capture"])
    with caplog.at_level("INFO", "unetrt"), Segmenter(bench.engine(tiny_model)) as segmenter:
        assert segmenter.scores(np.zeros((20, 20))).shape == (2, 20, 20)
    assert "no CUDA graph: TensorRT did not start a pass: cannot be captured" in caplog.text
    bench.check()


def test_rtx_captures_by_itself_and_keeps_what_it_compiled(bench, tiny_model):
    bench.install("tensorrt-rtx")
    engine = bench.engine(tiny_model, "tensorrt-rtx", NONE)
    for compiled in (b"", b"compiled"):
        with open_session(engine) as session:
            assert bench.trt.compiled == compiled
            session.lanes(1)
        assert "begin_capture" not in [call.name for call in bench.driver.calls]
    bench.check()


def test_a_runtime_cache_of_no_use_is_replaced(bench, tiny_model, caplog):
    bench.install("tensorrt-rtx", flaws=["cache"])
    engine = bench.engine(tiny_model, "tensorrt-rtx", NONE)
    with open_session(engine) as session:
        session.lanes(1)
    with caplog.at_level("INFO", "unetrt"), open_session(engine) as session:
        session.lanes(1)
    assert "this TensorRT cannot use" in caplog.text


def test_segmenters_share_the_weights(bench, tiny_model):
    bench.install()
    engine = bench.engine(tiny_model)
    with Segmenter(engine) as one, Segmenter(engine) as other:
        assert bench.trt.loads == 1
        one.close()
        assert "engine" in bench.trt.live
        other.scores(np.zeros((20, 20)))
    bench.check()
    with Segmenter(engine):
        assert bench.trt.loads == 2


def test_the_same_engine_on_another_device_is_another(bench, tiny_model):
    bench.install()
    engine = bench.engine(tiny_model)
    with open_session(engine, device=0), open_session(engine, device=1) as session:
        assert session.device == 1
        assert bench.trt.loads == 2


@pytest.mark.parametrize(
    ("flaw", "error", "message"),
    [
        ("load", EngineError, r"TensorRT cannot load .*tiny-tensorrt.engine: the engine was built for another device; "
                              "rebuild it with `unetrt build"),
        ("context", InferenceError, "TensorRT cannot create an execution context: no room for a context"),
        ("address", InferenceError, "TensorRT rejects the address of tensor frame: no such tensor"),
        ("enqueue", InferenceError, "TensorRT did not start a pass: a kernel is missing"),
    ],
)  # fmt: skip
def test_what_tensorrt_refuses_is_said_in_its_words_and_nothing_stays(bench, tiny_model, flaw, error, message):
    bench.install(flaws=[flaw])
    engine = bench.engine(tiny_model)
    with pytest.raises(error, match=message):
        Segmenter(engine)
    bench.check()


@pytest.mark.parametrize(
    ("flaws", "error", "message"),
    [
        (["UNSUPPORTED_CC"], EngineError, "engine: it was built for other compute capabilities; rebuild it with"),
        (["OLD_CUDA_DRIVER", "VERSION_MISMATCH"], EngineError,
         r"engine: another version of .* built it; the NVIDIA driver is too old for it \(update the driver\); rebuild"),
        (["INSUFFICIENT_GPU_MEMORY"], OutOfMemoryError, "out of memory on the GPU; free some memory on Fake GPU"),
        (["validity"], EngineError, "engine: the GPU does not say what it is; rebuild"),
    ],
)  # fmt: skip
def test_an_engine_is_refused_by_its_header_before_its_weights_are_read(bench, tiny_model, flaws, error, message):
    bench.install("tensorrt-rtx", flaws)
    engine = bench.engine(tiny_model, "tensorrt-rtx", NONE)
    with pytest.raises(error, match=message) as caught:
        open_session(engine)
    assert "\n" not in str(caught.value)
    assert bench.trt.loads == 0
    del caught  # its traceback holds the device
    gc.collect()
    bench.check()


def test_an_engine_on_a_gpu_newer_than_tensorrt_for_rtx_runs_with_a_warning(bench, tiny_model, caplog):
    bench.install("tensorrt-rtx", ["suboptimal"])
    with open_session(bench.engine(tiny_model, "tensorrt-rtx", NONE)) as session:
        session.lanes(1)
    assert "may be slow: Fake GPU (device 0, fake) is newer than TensorRT for RTX 1.7.1.116; use a newer" in caplog.text


def test_the_real_library_refuses_a_header_in_one_line(bench, tiny_model):
    pytest.importorskip("tensorrt_rtx")
    engine = bench.engine(tiny_model, "tensorrt-rtx", NONE)  # its content is the model
    with pytest.raises(EngineError, match="engine: its header is not that of an engine; rebuild it with `unetrt build"):
        open_session(engine)


def test_weights_that_do_not_fit_are_refused_with_numbers(bench, tiny_model):
    bench.install()
    bench.driver.total = 2**14
    engine = bench.engine(tiny_model)
    with pytest.raises(OutOfMemoryError, match="holds .* KiB of weights, and 16 KiB of 16 KiB are free on Fake GPU"):
        open_session(engine)


def test_an_engine_whose_ends_are_not_its_specs_is_refused(bench, tiny_model, tmp_path):
    bench.install()
    engine = bench.engine(tiny_model)
    sidecar = read_sidecar(engine)
    write_engine(engine, engine.read_bytes(), sidecar.facts, replace(sidecar.spec, batch=2), tiny_model)
    with pytest.raises(EngineError, match="its spec says .* rebuild it with"):
        open_session(engine)
    bench.check()


def test_wrong_engines_say_what_differs(bench, tiny_model):
    bench.install()
    engine = bench.engine(tiny_model, machine=replace(ADA, capability="7.5"))
    with pytest.raises(EngineError, match=r"does not fit this machine: built with compute capability 7.5, here 8.9"):
        open_session(engine)
    engine = bench.engine(tiny_model)
    bench.trt.__version__ = "10.14.0.1"
    with pytest.raises(EngineError, match=r"built with TensorRT version 10.13.3.9, here 10.14.0.1"):
        open_session(engine)


def test_backends_that_run_no_engines_say_which_does(bench, tiny_model):
    bench.install()
    engine = bench.engine(tiny_model)
    with pytest.raises(OptionError, match="which onnxruntime does not run: use backend tensorrt"):
        open_session(engine, "onnxruntime")


def test_a_model_file_is_built_for_the_device_and_its_engine_kept(bench, tiny_model, monkeypatch):
    """TensorRT for RTX really builds here; only what the engine then runs on is missing."""
    with pytest.raises(EngineError, match="TensorRT for RTX cannot load .*\\.engine: .*CUDA driver version"):
        open_session(tiny_model, "tensorrt")
    assert bench.driver.live == {}


def test_without_tensorrt_or_a_driver_the_probe_says_what_helps(monkeypatch):
    monkeypatch.setattr(tensorrt, "why_not", lambda: "no driver")
    assert tensorrt.probe() == "no driver"
    monkeypatch.setattr(tensorrt, "is_installed", lambda name: False)
    assert tensorrt.probe() == "no TensorRT is installed: pip install 'unetrt[tensorrt]' or 'unetrt[rtx]'"


def test_where_tensorrt_for_rtx_does_not_run_it_is_not_to_be_installed(monkeypatch):
    monkeypatch.setattr(tensorrt, "why_not", lambda: None)
    monkeypatch.setattr(tensorrt, "is_installed", lambda name: False)
    monkeypatch.setattr(tensorrt, "this_machine", lambda device: (HOPPER, ADA)[device])
    assert tensorrt.probe(0) == "no TensorRT is installed: pip install 'unetrt[tensorrt]'"
    assert tensorrt.probe(1) == "no TensorRT is installed: pip install 'unetrt[tensorrt]' or 'unetrt[rtx]'"


@pytest.mark.parametrize(
    "name", ["Runtime", "RuntimeForRtx", "ICudaEngine", "IRuntimeConfig", "IRuntimeCache", "IExecutionContext"]
)
def test_the_fake_has_nothing_that_tensorrt_has_not(name):
    real = pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    offered = {member for member in vars(getattr(fake_tensorrt, name)) if not member.startswith("_")}
    assert offered
    assert offered <= set(dir(getattr(real, name.removesuffix("ForRtx"))))
    enums = ("ExecutionContextAllocationStrategy", "CudaGraphStrategy", "EngineValidity", "EngineInvalidityDiagnostics")
    for kind in enums:
        for member in getattr(FakeTensorRt, kind):
            assert int(getattr(getattr(real, kind), member.name)) == member.value


@pytest.mark.parametrize("name", KINDS)
def test_an_error_at_every_call_of_cuda_leaves_nothing(bench, tiny_model, name):
    bench.install(name)
    engine, frame = bench.engine(tiny_model, name), np.zeros((20, 20))
    failures = []
    for number in count():
        bench.restart(seed=number, fail_at=number)
        with suppress(InferenceError), Segmenter(engine) as segmenter:
            with suppress(InferenceError):
                segmenter.segment(frame)
            segmenter.segment(frame)
        if bench.driver.failed is None:
            break
        failures.append(bench.driver.failed)
        segmenter = None
        if bench.driver.failed not in FREES:
            bench.check()
    assert ("launch_graph" in failures) == (name == "tensorrt")
    assert len(failures) > 60


def test_a_closed_session_says_so(bench, tiny_model):
    bench.install()
    with open_session(bench.engine(tiny_model)) as session:
        pass
    with pytest.raises(SessionClosedError, match="open the model again"):
        session.lanes(1)


def test_scratch_memory_is_ours(bench, tiny_model):
    bench.install()
    with open_session(bench.engine(tiny_model)) as session:
        kept = session.lanes(2)
        taken = [call.arguments[0] for call in bench.driver.calls if call.name == "allocate"]
        assert taken.count(SCRATCH) == len(kept) == 2

"""ONNX Runtime on a GPU: real sessions of ours and a real engine, on a fake device and a fake build for GPUs."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.conftest import editable
from tests.runtime.fake_onnxruntime import Bench
from unetrt.export.exporter import Options, export
from unetrt.runtime.errors import (
    BackendUnavailableError,
    InferenceError,
    ModelFileError,
    OptionError,
    OutOfMemoryError,
)
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import KEY
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import chosen_backend, onnxruntime_gpu, open_session
from unetrt.trainer.drawn_cells import draw

CUDA = "onnxruntime-cuda"
SIZES = [(7, 5), (61, 43), (101, 163)]


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bench(monkeypatch)


VARIANTS = [
    ("float32", 1, "logits"),
    ("uint8", 4, "logits"),
    ("uint16", 1, "labels"),
    pytest.param(("float32", 4, "labels"), marks=pytest.mark.slow),
    pytest.param(("uint16", 4, "logits"), marks=pytest.mark.slow),
]


@pytest.fixture(scope="module", params=VARIANTS, ids=str)
def variant(request, tiny_checkpoint, tmp_path_factory):
    """A model of the tiny network for frames of a type, frames, and what the CPU makes of them."""
    dtype, batch, head = request.param
    depth = 1 if dtype == "uint16" else 256
    frames = [(draw((96, 110), seed=seed).frame // depth).astype(dtype)[None] for seed in range(3)]
    fixed = tiny_checkpoint.normalisation.frozen(frames)
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(
        replace(tiny_checkpoint, frames=tuple(frames), normalisation=fixed),
        path,
        Options(tile=(60, 76), batch=batch, head=head, input=dtype),
    )
    frames = [(draw(size, seed=9).frame // depth).astype(dtype) for size in SIZES]
    return path, frames, answers(path, frames, backend="onnxruntime")


def answers(path, frames, **place):
    """Labels and scores of frames."""
    with Segmenter(path, **place) as segmenter:
        results = [segmenter.segment(frame, probabilities=segmenter.spec.head != "labels") for frame in frames]
    return [(result.labels, result.probabilities) for result in results]


@pytest.mark.parametrize("lanes", [1, 3])
def test_the_gpu_answers_as_the_cpu_does(bench, variant, lanes):
    path, frames, expected = variant
    for result, wanted in zip(answers(path, frames, backend=CUDA, lanes=lanes), expected, strict=True):
        np.testing.assert_array_equal(result[0], wanted[0])
        np.testing.assert_array_equal(result[1], wanted[1])
    assert len({wanted[0].max() for wanted in expected} | {wanted[0].min() for wanted in expected}) == 2
    bench.check()


def test_each_lane_computes_in_its_own_stream_of_the_chosen_device(bench, tiny_model):
    with open_session(tiny_model, CUDA, device=1) as session:
        bench.build.loaded.clear()
        lanes = session.lanes(2)
        streams = [str(lane.place.stream.handle) for lane in lanes]
        assert [settings.get("user_compute_stream") for settings in bench.build.loaded] == streams
        assert {settings["device_id"] for settings in bench.build.loaded} == {"1"}
        assert len(bench.build.living) == 2
        assert session.name.endswith("on Fake GPU (device 1, fake)")
    del session, lanes
    bench.check()


def test_fp32_is_fp32_and_memory_is_what_was_asked_for(bench, tiny_model):
    open_session(tiny_model, CUDA).close()
    assert {settings["use_tf32"] for settings in bench.build.loaded} == {"0"}
    assert {settings["arena_extend_strategy"] for settings in bench.build.loaded} == {"kSameAsRequested"}


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("left to the CPU", r"CUDA provider does not load \(.*providers_cuda.*\): pip install "),
        ("silent", r"CUDA provider does not load \(.*providers_cuda.*\): pip install "),
        ("no kernel", r"cannot be computed with .*CUDA provider \(.*an implementation for Conv"),
    ],
)
def test_nothing_falls_back_to_the_cpu_in_silence(bench, tiny_model, flaw, message):
    bench.build.flaw = flaw
    with pytest.raises(BackendUnavailableError, match=message):
        open_session(tiny_model, CUDA)
    bench.check()


def test_a_graph_of_which_a_part_would_compute_on_the_cpu_is_refused(bench, tiny_model, monkeypatch):
    """The library loads; a library that comes with every build stands in for it."""
    bench.build.flaw = "left to the CPU"
    monkeypatch.setattr(onnxruntime_gpu, "LIBRARY", "onnxruntime_providers_shared")
    with pytest.raises(BackendUnavailableError, match=r"some of its operators would .*use another backend"):
        open_session(tiny_model, CUDA)
    bench.check()


@pytest.mark.parametrize(
    ("flaw", "error", "message"),
    [
        ("no memory", OutOfMemoryError, r"out of memory \(CUDA failure 2: out of memory\); use a smaller tile"),
        (
            "old driver",
            InferenceError,
            r"CUDA provider: CUDA failure 35: CUDA driver version is insufficient for CUDA run",
        ),
        ("no device", InferenceError, r"CUDA provider: CUDA failure 100: no CUDA-capable device is detected$"),
    ],
)
def test_what_fails_on_the_device_is_no_fault_of_the_file(bench, tiny_model, flaw, error, message):
    bench.build.flaw = flaw
    with pytest.raises(error, match=message):
        open_session(tiny_model, CUDA)
    bench.check()


@pytest.mark.parametrize(
    ("flaw", "error", "message"),
    [
        ("full arena", OutOfMemoryError, r"out of memory \(.*Failed to allocate .*\); .* or fewer lanes"),
        ("lost", InferenceError, r"^ONNX Runtime failed: CUDA failure 719: unspecified launch failure$"),
    ],
)
def test_a_pass_that_fails_says_why_and_the_lane_goes_on(bench, tiny_model, flaw, error, message):
    with open_session(tiny_model, CUDA) as session:
        (lane,) = session.lanes(1)
        bench.build.flaw = flaw
        with pytest.raises(error, match=message):
            lane.launch()
        bench.build.flaw = None
        lane.launch()
        lane.wait()
        bench.build.flaw = flaw
        with pytest.raises(error, match=message):
            session.lanes(2)
    del session, lane
    bench.check()


def test_a_graph_that_does_not_fit_its_spec_is_refused(bench, tiny_model, tmp_path):
    model, path = editable(tiny_model), tmp_path / "changed.onnx"
    onnx.helper.set_model_props(model, {KEY: replace(read_spec(tiny_model), batch=2).to_json()})
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="its spec says.*export it again"):
        open_session(path, CUDA)
    bench.check()


def test_a_file_that_onnxruntime_cannot_load_is_no_fault_of_the_device(bench, tiny_model, tmp_path):
    model, path = editable(tiny_model), tmp_path / "odd.onnx"
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("nosuch", 1))
    onnx.save(model, path)
    with pytest.raises(ModelFileError, match="not a model that ONNX Runtime can load"):
        open_session(path, CUDA)
    bench.check()


def test_what_onnxruntime_prints_of_libraries_goes_to_the_log(bench, tiny_model, capsys, caplog):
    with caplog.at_level("DEBUG", "unetrt"):
        open_session(tiny_model, CUDA).close()
    assert "Failed to load libcufft.so.12" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_probe_asks_for_the_build_then_for_the_gpu(bench, monkeypatch):
    assert onnxruntime_gpu.probe() is None
    monkeypatch.setattr(onnxruntime_gpu, "why_not", lambda: "there is no GPU")
    assert onnxruntime_gpu.probe() == "there is no GPU"


def test_the_build_for_cpus_has_no_such_provider():
    """Nothing is fake here: these tests run with the package for CPUs."""
    reason = onnxruntime_gpu.probe()
    assert reason.startswith("ONNX Runtime has no CUDAExecutionProvider here: pip uninstall onnxruntime, then pip ")


def test_the_real_onnxruntime_refuses_to_load_what_would_compute_on_the_cpu(tiny_model):
    """Nothing is fake here either."""
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(BackendUnavailableError, match=r"does not load \(.*onnxruntime_providers_cuda.*\): pip install"),
    ):
        onnxruntime_gpu.load(tiny_model, read_spec(tiny_model), {}, 0)


@pytest.mark.parametrize("name", ["onnxruntime-tensorrt", "onnxruntime-tensorrt-rtx"])
@pytest.mark.parametrize("asked", [lambda name: open_session("model.onnx", name), chosen_backend])
def test_backends_that_were_removed_name_their_successor(name, asked):
    with pytest.raises(
        OptionError, match=rf"'{name}' is unknown: use one of auto, .*; instead of {name}, use tensorrt$"
    ):
        asked(name)

import logging
import sys
import threading
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

from tests.conftest import editable
from tests.runtime.cuda.conftest import fake_libcuda, python  # noqa: F401
from tests.runtime.model_files import small_models
from unetrt.runtime import sessions
from unetrt.runtime.errors import BackendUnavailableError, FrameError, InferenceError, ModelFileError, OptionError
from unetrt.runtime.model.spec import KEY
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import BACKENDS, Backend, chosen_backend, open_session


def test_auto_takes_the_first_usable_backend_and_says_which(tiny_model, caplog):
    with caplog.at_level(logging.INFO, "unetrt"), open_session(tiny_model) as session:
        assert session.name == "openvino on the CPU, float32"
    assert "auto chose openvino on the CPU, float32" in caplog.text


def test_auto_takes_the_next_where_one_is_missing(tiny_model, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.INFO, "unetrt"), open_session(tiny_model) as session:
        assert session.name == "onnxruntime on the CPU"
    assert "auto passes over openvino: OpenVINO is not installed" in caplog.text


OPENED = """
import logging, sys
logging.basicConfig(format="%(message)s", level="INFO")
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.errors import UnetrtError
try:
    with Segmenter(sys.argv[1], backend=sys.argv[2], device=eval(sys.argv[3])) as segmenter:
        print("opened", segmenter.session.name)
except UnetrtError as error:
    print(type(error).__name__, error)
"""
REFUSED = "TensorRT for RTX does not run on compute capability 9.0"
WORKS = "use backend tensorrt with TensorRT (pip install 'unetrt[tensorrt]') or backend onnxruntime-cuda (pip install "


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX has no package for this platform")
@pytest.mark.skipif(find_spec("tensorrt") is not None, reason="TensorRT is installed")
@pytest.mark.skipif(find_spec("cuda") is None, reason="cuda-python is not installed")
@pytest.mark.parametrize(
    ("backend", "device", "capabilities", "answer", "builds"),
    [
        ("auto", None, "9.0", "opened openvino on the CPU", False),
        ("auto", None, "8.9,9.0", "opened openvino on the CPU", True),
        ("auto", 1, "8.9,9.0", "BackendUnavailableError no inference engine for GPU 1 is usable", False),
        ("tensorrt", None, "9.0", "BackendUnavailableError", False),
        ("tensorrt", 1, "8.9,9.0", "BackendUnavailableError", False),
        ("tensorrt", 1, "9.0,8.9", "EngineError", True),
    ],
)
def test_nothing_is_built_for_a_gpu_on_which_tensorrt_for_rtx_does_not_run(
    tiny_model,
    fake_libcuda,  # noqa: F811
    tmp_path,
    backend,
    device,
    capabilities,
    answer,
    builds,
):
    """The real packages, on a fake driver that says what the GPUs are; what is built does not run there."""
    arguments = ("-c", OPENED, str(tiny_model), backend, repr(device))
    variables = {"XDG_CACHE_HOME": str(tmp_path), "FAKE_CUDA_CAPABILITY": capabilities}
    done = python(*arguments, libcuda=fake_libcuda, **variables)
    assert done.stdout.startswith(answer), done.stdout + done.stderr
    assert ("an engine is built" in done.stderr) == builds
    assert (list((tmp_path / "unetrt" / "engines").glob("*.engine")) != []) == builds
    refusals = [line for line in (done.stdout + done.stderr).splitlines() if REFUSED in line]
    assert all(WORKS in line for line in refusals)
    assert (refusals == []) == builds


def test_auto_never_takes_the_reference(monkeypatch, tiny_model):
    monkeypatch.setattr(sessions, "BACKENDS", BACKENDS[-1:])
    with pytest.raises(BackendUnavailableError, match="no inference engine is usable"):
        open_session(tiny_model)


def test_a_missing_engine_says_what_to_install(monkeypatch, tiny_model):
    monkeypatch.setattr("unetrt.runtime.candidates.find_spec", lambda _: None)
    for backend in ("auto", "openvino", "onnxruntime"):
        with pytest.raises(BackendUnavailableError, match=r"not installed: pip install 'unetrt\[cpu\]'"):
            open_session(tiny_model, backend)


def test_an_engine_that_does_not_load_says_so(monkeypatch, tiny_model, tmp_path):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("onnxruntime", "openvino"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('DLL load failed')")
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(BackendUnavailableError, match=r"does not load \(DLL load failed\)"):
            open_session(tiny_model, name)


def test_an_unknown_backend_names_those_that_compute(tiny_model):
    with pytest.raises(OptionError, match="'tpu' is unknown: use one of auto, .*, onnxruntime$"):
        open_session(tiny_model, "tpu")


def test_the_reference_reads_the_spec_of_a_file(tiny_model):
    frame = np.random.default_rng(0).random((90, 70), np.float32)
    with Segmenter(tiny_model, backend="numpy") as segmenter:
        expected = segmenter.spec.normalisation(frame[None])[0]
        np.testing.assert_array_equal(segmenter.scores(frame)[0], expected)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_batch_runs_in_one_call(tiny_model, backend):
    with open_session(tiny_model, backend) as session:
        shape = session.spec.tensors().input.shape
        batch = np.random.default_rng(0).random(shape, np.float32)
        (lane,) = session.lanes(1)
        expected = lane.run(batch)
        np.testing.assert_array_equal(session.run(batch), expected)
        np.testing.assert_array_equal(session.run(batch[0]), expected)
        with pytest.raises(FrameError, match=r"shape \(2, 3\) does not fit: the model takes \(1, 1, 60, 76\), or"):
            session.run(batch[0, 0, :2, :3])


def test_closing_ends_the_worker_and_is_idempotent(tiny_model):
    before = threading.active_count()
    session = open_session(tiny_model)
    (lane,) = session.lanes(1)
    lane.launch()
    lane.wait()
    assert lane.passed.compute > 0
    session.close()
    session.close()
    assert threading.active_count() == before


def test_a_session_that_is_dropped_ends_its_worker(tiny_model):
    before = set(threading.enumerate())
    session = open_session(tiny_model)
    (lane,) = session.lanes(1)
    lane.launch()
    lane.wait()
    (worker,) = set(threading.enumerate()) - before
    del lane, session
    worker.join(timeout=10)
    assert not worker.is_alive()


@pytest.mark.parametrize("change", [{"tile": (44, 60)}, {"batch": 2}, {"head": "labels"}, {"classes": ("a", "b", "c")}])
def test_a_graph_that_does_not_fit_its_spec_is_refused(tiny_model, tmp_path, change):
    model, path = editable(tiny_model), tmp_path / "changed.onnx"
    spec = replace(open_session(tiny_model, "numpy").spec, **change)
    onnx.helper.set_model_props(model, {KEY: spec.to_json()})
    onnx.save(model, path)
    for backend in ("openvino", "onnxruntime"):
        with pytest.raises(ModelFileError, match="its spec says.*export it again"):
            open_session(path, backend)


@pytest.mark.parametrize(("backend", "name"), [("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime")])
def test_a_graph_that_an_engine_cannot_load_is_one_line(tmp_path, backend, name):
    nodes = [
        small_models.convolution(output="x"),
        onnx.helper.make_node("Resize", ["x", "", "scales"], ["scores"], mode="no such mode"),
    ]
    path = tmp_path / "odd.onnx"
    onnx.save(small_models.model(nodes, [small_models.weights(), small_models.tensor("scales", [1, 1, 1, 1])]), path)
    with pytest.raises(ModelFileError, match=f"not a model that {name} can load") as caught:
        open_session(path, backend)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "damaged", "message"),
    [
        (b"Conv", b"Co\xffv", "its Co\ufffdv '' is not an operator"),
        (b"nosuch", b"no\xffuch", "not a model that ONNX Runtime can load"),
        (b"scores", b"sc\xffres", "its graph has .*sc\ufffdres.*its spec says"),
    ],
)
def test_bytes_that_are_no_text_are_one_line_too(tmp_path, text, damaged, message):
    """ONNX Runtime may quote the file in its messages, which Python then cannot read."""
    nodes = [
        small_models.convolution(output="x"),
        onnx.helper.make_node("Resize", ["x", "", "s"], ["scores"], mode="nosuch"),
    ]
    stored = [small_models.weights(), small_models.tensor("s", [1, 1, 1, 1])]
    content = small_models.model(nodes, stored).SerializeToString()
    path = tmp_path / "odd.onnx"
    path.write_bytes(content.replace(text, damaged))
    with pytest.raises(ModelFileError, match=message):
        open_session(path, "onnxruntime")


def test_a_pass_that_fails_is_an_inference_error_and_the_lane_goes_on(tmp_path, monkeypatch):
    """Grey values are taken as places in a table of three: a frame with a 3 in it is out of bounds.

    Such a file is refused, here it is opened all the same.
    """
    monkeypatch.setattr("unetrt.runtime.sessions.onnxruntime.require_fitting", lambda *_: None)
    nodes = [
        onnx.helper.make_node("Cast", ["frame"], ["places"], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Gather", ["table", "places"], ["found"]),
        onnx.helper.make_node("Concat", ["found", "found"], ["scores"], axis=1),
    ]
    path = tmp_path / "table.onnx"
    onnx.save(small_models.model(nodes, [small_models.tensor("table", [10, 11, 12])]), path)
    with open_session(path, "onnxruntime") as session:
        (lane,) = session.lanes(1)
        for grey, fails in ((2, False), (3, True), (1, False)):
            lane.input[:] = grey
            lane.launch()
            with pytest.raises(InferenceError, match="ONNX Runtime failed: ") if fails else nullcontext():
                lane.wait()
        assert (lane.output == 11).all()


def test_a_backend_is_chosen_without_a_model(monkeypatch):
    unusable = Backend("unusable", "fake:nothing")
    monkeypatch.setattr(Backend, "probe", lambda self, device=None: "it is broken" if self is unusable else None)
    monkeypatch.setattr("unetrt.runtime.cuda.driver.why_not", lambda *_: None)
    monkeypatch.setattr(sessions, "BACKENDS", (unusable, *BACKENDS))
    assert chosen_backend() == BACKENDS[0]
    assert chosen_backend("onnxruntime").name == "onnxruntime"
    with pytest.raises(BackendUnavailableError, match="unusable: it is broken"):
        chosen_backend("unusable")


@pytest.mark.parametrize("name", ["numpy", "abacus"])
def test_an_unknown_backend_is_refused(name):
    with pytest.raises(OptionError, match=f"backend '{name}' is unknown: use one of auto, .*onnxruntime"):
        chosen_backend(name)

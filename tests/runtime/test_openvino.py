"""OpenVINO's CPU plugin, for real: what it computes in, and how it ends and fails. Kinds of files: test_variants."""

import gc
import os
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from unetrt.export.exporter import Options, export
from unetrt.export.gate import DEFAULTS
from unetrt.runtime.errors import InferenceError, OutOfMemoryError
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import open_session
from unetrt.runtime.sessions import openvino as session_module
from unetrt.runtime.sessions.openvino import OpenVinoSession

if reason := session_module.probe():
    pytest.skip(reason, allow_module_level=True)
HAS_BFLOAT16 = session_module.has_bfloat16() and "ONEDNN_MAX_CPU_ISA" not in os.environ
FRAME = np.random.default_rng(3).integers(0, 4096, (130, 150)).astype(np.uint16)


@pytest.fixture(scope="module")
def verified(settled_checkpoint, tmp_path_factory):
    """Precision -> a file of the same network with logits, exported and verified in it."""
    folder = tmp_path_factory.mktemp("precisions")
    files = {precision: folder / f"{precision}.onnx" for precision in ("fp32", "bf16")}
    for precision, file in files.items():
        export(settled_checkpoint, file, Options((60, 76), precision))
    return files


def scores_of(path):
    with OpenVinoSession(path) as session, Segmenter(session) as segmenter:
        return session.name, segmenter.scores(FRAME)


@pytest.mark.skipif(not HAS_BFLOAT16, reason="this processor has no bfloat16, or may not use it")
def test_bfloat16_is_for_files_that_were_verified_in_it(verified):
    with Segmenter(verified["fp32"], backend="onnxruntime") as segmenter:
        expected = segmenter.scores(FRAME)
    name, exact = scores_of(verified["fp32"])
    assert name == "openvino on the CPU, float32"
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    name, rounded = scores_of(verified["bf16"])
    assert name == "openvino on the CPU, bfloat16"
    assert np.abs(rounded - expected).max() > 1e-3, "as exact as float32: it is not bfloat16"
    assert (rounded.argmax(axis=0) != expected.argmax(axis=0)).mean() <= DEFAULTS["bf16"].flips


def test_a_processor_without_bfloat16_computes_such_a_file_in_float32(verified, monkeypatch):
    monkeypatch.setattr(session_module, "BFLOAT16", "no capability")
    name, scores = scores_of(verified["bf16"])
    assert name == "openvino on the CPU, float32"
    _, expected = scores_of(verified["fp32"])
    assert (scores.argmax(axis=0) != expected.argmax(axis=0)).mean() <= DEFAULTS["bf16"].flips


def test_where_onednn_may_not_use_bfloat16_such_a_file_is_computed_in_float32(verified):
    """The processor can, and says so; oneDNN's own variable keeps it from it, in a process of its own."""
    program = """
import sys
from unetrt.runtime.sessions import open_session
with open_session(sys.argv[1], "openvino") as session:
    print(session.name)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, verified["bf16"]],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "openvino on the CPU, float32\n"), done.stderr


def test_ctrl_c_after_models_were_closed_is_no_crash(tiny_model):
    """OpenVINO 2026.4, loaded twice and ended, leaves that thread with a stack for signals that is gone."""
    program = """
import faulthandler, signal, sys
faulthandler.enable()
from unetrt.runtime.sessions import open_session
one, other = (open_session(sys.argv[1], "openvino") for _ in range(2))
one.close()
other.close()
del one, other
try:
    signal.raise_signal(signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", program, tiny_model], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_nobody_is_told_of_it(tiny_model, tmp_path):
    """Imported by itself, OpenVINO 2026.4 starts a thread and a process that tell Google Analytics."""
    program = """
import os, sys, threading
forked = []
os.register_at_fork(before=lambda: forked.append(True))
from unetrt.runtime.sessions import open_session
with open_session(sys.argv[1], "openvino"):
    pass
print(len(forked), threading.active_count(), "openvino_telemetry" in sys.modules)
"""
    home = {**os.environ, "HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", program, tiny_model], env=home, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0 1 False\n"), done.stderr
    assert list(tmp_path.glob("[iI]ntel*")) == []


FORK = """
import os, signal, sys
import numpy as np
from unetrt import Segmenter, UnetrtError

model, closed, backend = sys.argv[1], sys.argv[2] == "closed", sys.argv[3]
segmenter = Segmenter(model, backend="openvino")
segmenter.segment(np.zeros((70, 80)))
if closed:
    segmenter.close()
child = os.fork()
if child:
    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
signal.alarm(60)
try:
    with Segmenter(model, backend=backend) as segmenter:
        segmenter.segment(np.zeros((70, 80)))
        print(segmenter.session.name, flush=True)
except UnetrtError as error:
    print(error, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("parents", ["closed", "open"])
@pytest.mark.parametrize(
    ("backend", "said"),
    [("openvino", "OpenVINO was used before this process was forked"), ("auto", "onnxruntime on the CPU")],
)
def test_a_forked_process_refuses_what_would_hang_in_it(tiny_model, parents, backend, said):
    done = subprocess.run(
        [sys.executable, "-c", FORK, tiny_model, parents, backend],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(said)


def test_several_threads_get_what_one_gets(verified):
    with OpenVinoSession(verified["fp32"]) as session, Segmenter(session) as segmenter:
        frames = [FRAME + number for number in range(8)]
        alone = [segmenter.segment(frame).labels for frame in frames]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda frame: segmenter.segment(frame).labels, frames))
    np.testing.assert_array_equal(alone, together)


def test_what_comes_is_written_to_the_lane_itself(verified):
    with OpenVinoSession(verified["fp32"]) as session:
        first, second = session.lanes(2)
        for lane, value in ((first, 0.0), (second, 1.0)):
            lane.input[...] = value
            lane.launch()
        for lane in (first, second):
            lane.wait()
            assert lane.passed.compute > 0
        kept = first.output.copy()
        second.launch()
        second.wait()
        np.testing.assert_array_equal(first.output, kept)
        assert np.abs(first.output - second.output).max() > 1e-3


def test_threads_can_be_counted_out(verified):
    with OpenVinoSession(verified["fp32"], threads=1) as session:
        assert session._request.get_compiled_model().get_property("INFERENCE_NUM_THREADS") == 1


def test_closing_frees_the_engine_and_ends_the_worker(verified):
    before = threading.active_count()
    session = OpenVinoSession(verified["fp32"])
    engine = weakref.ref(session._request)
    session.close()
    session.close()
    gc.collect()
    assert engine() is None
    assert threading.active_count() == before


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("Exception from src/x.cpp:1:\nCheck 'y' failed\nstd::bad_alloc\n", OutOfMemoryError),
        ("Exception from src/x.cpp:1:\ncould not create a primitive\n", InferenceError),
    ],
)
def test_a_pass_that_fails_is_one_line(verified, said, kind):
    class FakeRequest:
        def set_input_tensor(self, tensor):
            raise RuntimeError(said)

    with OpenVinoSession(verified["fp32"]) as session:
        session._request = FakeRequest()
        (lane,) = session.lanes(1)
        lane.launch()
        with pytest.raises(kind, match=r"^OpenVINO (ran out of memory: std::bad_alloc|failed: could not)") as caught:
            lane.wait()
    assert "\n" not in str(caught.value)


def test_a_pass_has_as_many_threads_as_a_backend_option_says(tiny_model):
    with open_session(tiny_model, "openvino", backend_options={"threads": 1}) as session:
        compiled = session._request.get_compiled_model()
        assert compiled.get_property("INFERENCE_NUM_THREADS") == 1

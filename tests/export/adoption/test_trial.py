"""Foreign networks that would end, fill or block the process that opens them are refused, and this process goes on."""

import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.export.adoption.test_adopt_refusals import BOTH, TWICE, choices, write
from unetrt.export.adoption import TrialLimits, adopt
from unetrt.runtime.errors import ModelFileError, OptionError, OutOfMemoryError

# A graph that computes with the shape of its image: it is opened by a child first.
OWN_SHAPE = f"s = Shape(image) x = Reshape(image, s) {TWICE}"
LARGE = f"c = ConstantOfShape(n) m = ReduceMax<keepdims = 0>(c) x = Add(image, m) {TWICE}"


@pytest.fixture
def onnxruntime_that(tmp_path, monkeypatch):
    """Put a module in front of ONNX Runtime, which child processes import; this one has imported the real one."""
    import onnxruntime  # noqa: F401

    def does(body):
        (tmp_path / "modules").mkdir()
        (tmp_path / "modules" / "onnxruntime.py").write_text(body)
        monkeypatch.syspath_prepend(tmp_path / "modules")

    return does


def out(tmp_path):
    return tmp_path / "new" / "model.onnx"


def test_a_crash_ends_the_child_only(tmp_path, onnxruntime_that):
    onnxruntime_that("import os\nos.abort()")
    path = write(tmp_path / "net.onnx", OWN_SHAPE)
    ending = "exit code" if sys.platform == "win32" else "SIGABRT"
    with pytest.raises(
        ModelFileError, match=rf"net.onnx ends the process that opens it \({ending}.*, perhaps by Shape:"
    ):
        adopt(path, out(tmp_path), choices())
    assert not out(tmp_path).parent.exists()


def test_what_never_returns_is_stopped(tmp_path, onnxruntime_that):
    onnxruntime_that("import time\ntime.sleep(1000)")
    path = write(tmp_path / "net.onnx", OWN_SHAPE)
    with pytest.raises(ModelFileError, match=r"is not open after 3 s, perhaps by Shape: raise --time-limit"):
        adopt(path, out(tmp_path), choices(), limits=TrialLimits(seconds=3))
    assert not out(tmp_path).parent.exists()


def test_a_name_that_is_not_text_is_refused(tmp_path):
    path = write(tmp_path / "net.onnx", BOTH)
    model = onnx.load(path)
    model.graph.node[0].name = "a name to damage"
    path.write_bytes(model.SerializeToString().replace(b"a name to damage", b"a name to \xffamage"))
    with pytest.raises(ModelFileError, match="net.onnx (has a name that is not UTF-8|is not an ONNX file)"):
        adopt(path, out(tmp_path), choices())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_child_ends_with_the_process_that_waits_for_it(tmp_path, onnxruntime_that):
    onnxruntime_that("import os, pathlib, time\npathlib.Path('child').write_text(str(os.getpid()))\ntime.sleep(1000)")
    path = write(tmp_path / "net.onnx", OWN_SHAPE)
    program = (
        "import sys\nsys.path.insert(0, sys.argv[1])\nfrom pathlib import Path\n"
        "from unetrt.export.adoption._trial import TrialLimits, require_survivable\n"
        "require_survivable(Path(sys.argv[2]), None, (64, 64), None, TrialLimits())"
    )
    command = [sys.executable, "-c", program, tmp_path / "modules", path]
    with subprocess.Popen(command, cwd=tmp_path) as parent:
        child = tmp_path / "child"
        assert waited_for(lambda: child.exists() and child.read_text())
        parent.kill()
    running = Path("/proc", child.read_text())
    assert waited_for(lambda: not running.exists() or "State:\tZ" in (running / "status").read_text())


def waited_for(happened):
    """Return whether something happens within a minute."""
    end = time.monotonic() + 60
    while not happened():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_a_network_whose_shapes_are_known_needs_no_child(tmp_path, onnxruntime_that):
    onnxruntime_that("import os\nos.abort()")
    adopt(write(tmp_path / "net.onnx", BOTH), out(tmp_path), choices())


def test_a_graph_that_computes_with_its_shape_is_adopted(tmp_path):
    assert adopt(write(tmp_path / "net.onnx", OWN_SHAPE), out(tmp_path), choices()).field.radius == 0


@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory are POSIX's")
def test_what_fills_the_memory_is_refused(tmp_path):
    path = write(tmp_path / "net.onnx", LARGE, n=np.array([40000, 40000], np.int64))
    with pytest.raises(OutOfMemoryError, match=r"net.onnx needs more memory than 2.0 GiB to be opened: raise --memory"):
        adopt(path, out(tmp_path), choices(), limits=TrialLimits(memory=2 << 30))
    assert not out(tmp_path).parent.exists()


def save(model, path):
    path.write_bytes(model.SerializeToString())
    return path


def image(name, channels):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", channels, "h", "w"])


def calling(levels, again=2):
    """Functions of which each calls the one before twice, or those that call themselves."""
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    last = ["Relu"] if again else [f"F{levels - 1}"]
    functions = []
    for level in range(levels):
        called, domain = (f"F{level - 1}", "own") if level else (last[0], "" if again else "own")
        values = ["x", *(f"x{number}" for number in range(1, again or 1)), "y"]
        body = [helper.make_node(called, [a], [b], domain=domain) for a, b in pairwise(values)]
        functions.append(helper.make_function("own", f"F{level}", ["x"], ["y"], body, opsets))
    nodes = [
        helper.make_node(f"F{levels - 1}", ["image"], ["x"], domain="own"),
        helper.make_node("Concat", ["x", "image"], ["mask"], axis=1),
    ]
    graph = helper.make_graph(nodes, "net", [image("image", 1)], [image("mask", 2)])
    return helper.make_model(graph, functions=functions, opset_imports=opsets, ir_version=10)


def looping(inside_function=False):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("v", "out")]
    count, go, on = (helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go", 9), ("on", 9)))
    body = helper.make_graph(
        [helper.make_node("Identity", ["go"], ["on"]), helper.make_node("Identity", ["v"], ["out"])],
        "body", [count, go, ends[0]], [on, ends[1]],
    )  # fmt: skip
    trips = helper.make_tensor("trips", TensorProto.INT64, [], [2**62])
    nodes = [
        helper.make_node("Constant", [], ["k"], value=trips),
        helper.make_node("Loop", ["k", "", "image"], ["x"], body=body),
    ]
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F", ["image"], ["x"], nodes, opsets)]
    call = [helper.make_node("F", ["image"], ["x"], domain="own")]
    last = helper.make_node("Concat", ["x", "image"], ["mask"], axis=1)
    graph = helper.make_graph(
        [*(call if inside_function else nodes), last], "net", [image("image", 1)], [image("mask", 2)]
    )
    return helper.make_model(graph, functions=functions * inside_function, opset_imports=opsets, ir_version=10)


ENDLESS = {
    "functions that double": (calling(40), "more than 131072 nodes with its functions inlined"),
    "functions that call themselves": (calling(2, again=0), "its functions call each other more than 100 deep"),
    "a loop": (looping(), "has a Loop, which computes for as long as a value says"),
    "a loop in a function": (looping(inside_function=True), "has a Loop, which computes for as long as a value says"),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_what_would_never_end_is_refused(tmp_path, name):
    model, message = ENDLESS[name]
    with pytest.raises(ModelFileError, match=message) as caught:
        adopt(save(model, tmp_path / "net.onnx"), out(tmp_path), choices())
    assert "\n" not in str(caught.value)
    assert not out(tmp_path).parent.exists()


def test_functions_are_inlined(tmp_path):
    adopt(save(calling(3), tmp_path / "net.onnx"), out(tmp_path), choices())
    assert {node.op_type for node in onnx.load(out(tmp_path)).graph.node} == {"Relu", "Concat", "Identity"}


@pytest.mark.parametrize("limits", [{"memory": 0}, {"memory": -1}, {"seconds": 0}, {"seconds": float("nan")}])
def test_limits_are_above_0(limits):
    with pytest.raises(OptionError, match="must be above 0"):
        TrialLimits(**limits)

"""Models that ONNX allows, and that crash an engine, fill the memory or never end: each is refused in one line.

They are opened with the real engines, in a process that a crash may end.
"""

import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from onnx import TensorProto, helper

from tests.runtime.model_files.small_models import constant, convolution, model, tensor, value, weights
from tests.runtime.model_files.test_damaged_models import loaded
from unetrt.runtime.errors import ModelFileError, OutOfMemoryError
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.sessions.onnxruntime import OnnxRuntimeSession
from unetrt.runtime.sessions.openvino import OpenVinoSession

FAR = 10**9
UNKNOWN = "is not an operator that unetrt exports or adopts"
LARGE = "more than 2147483647 values: use a smaller tile"
node = helper.make_node


def numbers(*values):
    return np.array(values, np.int64)


def after_a_convolution(*nodes, **constants):
    """A model whose nodes follow on x, (1, 2, 8, 8)."""
    stored = (tensor(name, array, np.asarray(array).dtype) for name, array in constants.items())
    return model([convolution(output="x"), *nodes], [weights(), *stored])


def reduced(operator, inputs, attributes=None, **constants):
    """An operator whose result, perhaps large, is reduced to one number that is added to the scores."""
    nodes = [
        node(operator, inputs, ["t"], **attributes or {}),
        node("Cast", ["t"], ["f"], to=TensorProto.FLOAT),
        node("ReduceMax", ["f"], ["m"], keepdims=0),
        node("Add", ["x", "m"], ["scores"]),
    ]
    return after_a_convolution(*nodes, **constants)


def loop():
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 8, 8]) for name in ("v", "out")]
    count, go, on = (helper.make_tensor_value_info(n, k, []) for n, k in (("i", 7), ("go", 9), ("on", 9)))
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Identity", ["v"], ["out"])], "b", [count, go, ends[0]], [on, ends[1]]
    )
    return after_a_convolution(node("Loop", ["k", "", "x"], ["scores"], body=body), k=np.int64(2**62))


def doubling(levels=40):
    """Functions of which each calls the one before twice: 2^39 nodes."""
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F0", ["x"], ["y"], [node("Relu", ["x"], ["y"])], opsets)]
    for level in range(1, levels):
        call = f"F{level - 1}"
        body = [node(call, ["x"], ["h"], domain="own"), node(call, ["h"], ["y"], domain="own")]
        functions.append(helper.make_function("own", f"F{level}", ["x"], ["y"], body, opsets))
    nodes = [convolution(output="x"), node(f"F{levels - 1}", ["x"], ["scores"], domain="own")]
    made = model(nodes, [weights()], functions=functions)
    made.opset_import.add(domain="own", version=1)
    return made


def branch():
    inner = helper.make_graph([node("Identity", ["frame"], ["out"])], "g", [], [value("scores")])
    inner.output[0].name = "out"
    return after_a_convolution(node("If", ["c"], ["scores"], then_branch=inner, else_branch=inner), c=np.bool_(True))


def sparse():
    made = model([convolution()])
    stored = helper.make_sparse_tensor(tensor("weights", [1.0, 2.0]), tensor("", [0, 1], np.int64), (2, 1, 1, 1))
    made.graph.sparse_initializer.append(stored)
    return made


def pooled(**attributes):
    return after_a_convolution(node("MaxPool", ["x"], ["scores"], **{"kernel_shape": [1, 1]} | attributes))


def convolved(**attributes):
    return model([node("Conv", ["frame", "weights"], ["scores"], **attributes)], [weights()])


def resized(*scales):
    return after_a_convolution(node("Resize", ["x", "", "s"], ["scores"]), s=np.array(scales, np.float32))


def sliced(step):
    bounds = {"a": numbers(0), "b": numbers(8), "c": numbers(2), "d": numbers(step)}
    return after_a_convolution(node("Slice", ["x", *bounds], ["scores"]), **bounds)


def divided(operator):
    nodes = [
        node("Cast", ["x"], ["c"], to=TensorProto.INT32),
        node(operator, ["c", "zero"], ["q"]),
        node("Cast", ["q"], ["scores"], to=TensorProto.FLOAT),
    ]
    return after_a_convolution(*nodes, zero=np.int32(0))


def looked_up():
    """Grey values are places in a table of three."""
    nodes = [node("Cast", ["x"], ["p"], to=TensorProto.INT64), node("Gather", ["table", "p"], ["scores"])]
    return after_a_convolution(*nodes, table=np.ones(3, np.float32))


def of_opset(version):
    made = model([convolution()], [weights()])
    made.opset_import[0].version = version
    return made


def doubled(times):
    """A Concat of a value with itself, again and again."""
    names = ["x", *(f"x{level}" for level in range(times))]
    nodes = [node("Concat", [one, one], [other], axis=2) for one, other in pairwise(names)]
    nodes += [node("ReduceMax", [names[-1]], ["m"]), node("Add", ["x", "m"], ["scores"])]
    return after_a_convolution(*nodes)


EVERYWHERE = np.full((1, 2, 8, 8), FAR, np.int64)
# Name -> model, and what the refusal says.
HARMFUL = {
    "gather nd": (
        after_a_convolution(node("GatherND", ["x", "i"], ["scores"]), i=np.full((1, 2, 8, 8, 4), FAR)),
        f"GatherND '' {UNKNOWN}",
    ),
    "gather": (
        after_a_convolution(node("Gather", ["x", "i"], ["scores"], axis=1), i=numbers(FAR, 0)),
        f"Gather '' takes element {FAR} of 2",
    ),
    "gather before the first": (
        after_a_convolution(node("Gather", ["x", "i"], ["scores"], axis=1), i=numbers(-3, 0)), "takes element -3 of 2",
    ),
    "gather by grey values": (looked_up(), "Gather '' takes places or lengths from 'p', which is not a constant"),
    "gather elements": (
        after_a_convolution(node("GatherElements", ["x", "i"], ["scores"], axis=1), i=EVERYWHERE), UNKNOWN,
    ),
    "scatter nd": (
        after_a_convolution(node("ScatterND", ["x", "i", "u"], ["scores"]), i=numbers([FAR] * 4), u=np.ones(1, "f")),
        UNKNOWN,
    ),
    "scatter elements": (
        after_a_convolution(node("ScatterElements", ["x", "i", "x"], ["scores"], axis=1), i=EVERYWHERE), UNKNOWN,
    ),
    "tile": (reduced("Tile", ["x", "r"], r=numbers(1, 1, 40000, 40000)), f"Tile '' has a result .* {LARGE}"),
    "tile of nothing": (reduced("Tile", ["x", "r"], r=numbers(1, 1, 0, 1)), "has a result of shape"),
    "expand": (reduced("Expand", ["one", "r"], r=numbers(90000, 90000), one=np.float32(1)), LARGE),
    "expand below 0": (reduced("Expand", ["one", "r"], r=numbers(-5), one=np.float32(1)), "has a result of shape"),
    "constant of shape": (reduced("ConstantOfShape", ["r"], r=numbers(90000, 90000)), UNKNOWN),
    "range": (reduced("Range", list("abc"), a=np.int64(0), b=np.int64(2**40), c=np.int64(1)), UNKNOWN),
    "one hot": (
        reduced("OneHot", ["i", "d", "v"], i=numbers(1, 2), d=np.int64(FAR), v=np.array([0, 1], np.float32)), UNKNOWN,
    ),
    "random": (reduced("RandomNormal", [], {"shape": [90000, 90000]}), UNKNOWN),
    "eye": (reduced("EyeLike", ["x"]), UNKNOWN),
    "non-zero": (reduced("NonZero", ["x"]), UNKNOWN),
    "non-maximum suppression": (
        reduced(
            "NonMaxSuppression", ["b", "s", "k"],
            b=np.ones((1, 5, 4), "f"), s=np.ones((1, 1, 5), "f"), k=np.int64(2**62),
        ),
        UNKNOWN,
    ),
    "pad": (reduced("Pad", ["x", "p"], p=numbers(0, 0, 90000, 90000, 0, 0, 0, 0)), LARGE),
    "pad and crop": (
        after_a_convolution(node("Pad", ["x", "p"], ["scores"]), p=numbers(0, 0, -FAR, FAR, 0, 0, FAR, -FAR)),
        "Pad '' crops -1000000000 and 1000000000 of 8 pixels",
    ),
    "mirror beyond the image": (
        reduced("Pad", ["x", "p"], {"mode": "reflect"}, p=numbers(0, 0, 8, 0, 0, 0, 0, 0)),
        "mirrors 8 and 0 of 8 pixels",
    ),
    "resize": (reduced("Resize", ["x", "", "s"], s=np.array([1, 1, 20000, 20000], np.float32)), LARGE),
    "resize by NaN": (resized(1, 1, np.nan, 1), "scales by NaN or infinity"),
    "resize by infinity": (resized(1, 1, np.inf, 1), "scales by NaN or infinity"),
    "resize to nothing": (resized(1, 1, 0, 1), "has a result of shape"),
    "resize below 0": (resized(1, 1, -1, 1), "has a result of shape"),
    "concatenate": (doubled(30), LARGE),
    "reshape": (
        after_a_convolution(node("Reshape", ["x", "s"], ["t"]), node("Relu", ["t"], ["scores"]), s=numbers(2**62, 4)),
        "Reshape '' makes shape",
    ),
    "group 0": (convolved(group=0), "in 0 groups"),
    "stride 0": (pooled(strides=[0, 0]), "has a kernel, stride or pad out of range"),
    "stride beyond 32 bits": (convolved(strides=[1, 2**40]), "is not 2 integers of 32 bits"),
    "pad below 0": (pooled(pads=[-1, -1, 1, 1]), "has a kernel, stride or pad out of range"),
    "pad of a convolution": (convolved(pads=[10**5, 10**5, 0, 0]), LARGE),
    "a pooling of hours": (pooled(kernel_shape=[10**5, 10**5], pads=[50000, 50000, 49999, 49999]), "steps, over"),
    "kernel larger than the image": (pooled(kernel_shape=[9, 9]), "has a kernel of 9 pixels, larger than"),
    "blocks of 0": (after_a_convolution(node("DepthToSpace", ["x"], ["scores"], blocksize=0)), "has blocksize 0"),
    "0 groups": (
        after_a_convolution(node("GroupNormalization", ["x", "g", "g"], ["scores"], num_groups=0), g=np.ones(2, "f")),
        "has 0 groups",
    ),
    "statistics of one channel": (
        after_a_convolution(node("BatchNormalization", ["x", *"gggg"], ["scores"]), g=np.ones(1, "f")),
        "other than one value a channel",
    ),
    "split": (
        after_a_convolution(
            node("Split", ["x", "s"], ["a", "b"], axis=1), node("Concat", ["a", "b"], ["scores"], axis=1),
            s=numbers(FAR, 2 - FAR),
        ),
        r"Split '' splits 2 as \[1000000000, -999999998\]",
    ),
    "step 0": (sliced(0), "has a step of 0, or beyond 32 bits"),
    "step of 64 bits": (sliced(-(2**63)), "has a step of 0, or beyond 32 bits"),
    "order of axes": (after_a_convolution(node("Transpose", ["x"], ["scores"], perm=[0, 1, 2, 99])), "order of axes"),
    "axis": (after_a_convolution(node("Softmax", ["x"], ["scores"], axis=99)), "Softmax '' names axis 99 of 4"),
    "division of integers by 0": (divided("Div"), "Div '' divides integers, perhaps by 0"),
    "remainder of integers by 0": (divided("Mod"), "Mod '' divides integers, perhaps by 0"),
    "text": (after_a_convolution(node("Cast", ["x"], ["scores"], to=TensorProto.STRING)), "results of data type 8"),
    "loop": (loop(), f"Loop '' {UNKNOWN}"),
    "if": (branch(), f"If '' {UNKNOWN}"),
    "functions that double": (doubling(), "it has functions: a model of unetrt has none"),
    "sparse weights": (sparse(), "it has sparse weights"),
    "operator of a lab": (model([node("Relu", ["frame"], ["scores"], domain="of.a.lab")]), UNKNOWN),
    "a value twice": (model([convolution(), convolution()], [weights()]), "two values of the name 'scores'"),
    "a value of nothing": (model([convolution("none")]), "Conv takes 'none', which nothing before it makes"),
    "an opset that does not exist": (of_opset(10**6), "version 1000000 of an operator set: 11 to 1000"),
    "an opset without bounds as inputs": (of_opset(9), "version 9 of an operator set: 11 to 1000"),
    "NaN": (after_a_convolution(node("Add", ["x", "n"], ["scores"]), n=np.float32(np.nan)), "tensor 'n' holds NaN"),
    "NaN of 16 bits": (
        after_a_convolution(
            node("Cast", ["n"], ["wide"], to=TensorProto.FLOAT), node("Add", ["x", "wide"], ["scores"]),
            n=np.array([np.nan], np.float16),
        ),
        "tensor 'n' holds NaN",
    ),
    "NaN of 16 bits in a field of integers": (
        model(
            [
                convolution(output="x"), node("Cast", ["n"], ["wide"], to=TensorProto.FLOAT),
                node("Add", ["x", "wide"], ["scores"]),
            ],
            [weights(), helper.make_tensor("n", TensorProto.FLOAT16, [], [np.nan])],
        ),
        "tensor 'n' holds NaN",
    ),
    "NaN in a field of floats": (
        model(
            [convolution(output="x"), node("Add", ["x", "n"], ["scores"])],
            [weights(), helper.make_tensor("n", TensorProto.FLOAT, [], [np.nan])],
        ),
        "tensor 'n' holds NaN",
    ),
    "NaN for a slope": (
        after_a_convolution(node("LeakyRelu", ["x"], ["scores"], alpha=float("nan"))), "has an attribute that is NaN",
    ),
    "drop-out in training": (
        after_a_convolution(node("Dropout", ["x", "", "t"], ["scores"]), t=np.bool_(True)), "drops values at random",
    ),
    "a chain of nodes": (
        after_a_convolution(*(node("Relu", [a], [b]) for a, b in pairwise(["x", *map(str, range(9000)), "scores"]))),
        "more than 8192 nodes",
    ),
    "a node that clears the screen": (
        after_a_convolution(node("Relu", ["x"], ["scores"], name="a\x1b[2J")),
        "node of the name .*: use printable names",
    ),
    "a value that clears the screen": (
        after_a_convolution(node("Relu", ["x"], ["\x1b[2J"]), node("Relu", ["\x1b[2J"], ["scores"])),
        "value of the name .*: use printable names",
    ),
    "a constant in text": (
        model([helper.make_node("Constant", [], ["c"], value_string="c"), convolution()], [weights()]), UNKNOWN,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("harmful")
    for number, (made, _) in enumerate(HARMFUL.values()):
        (folder / f"{number:02d}.onnx").write_bytes(made.SerializeToString())
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory and time are POSIX's")
@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_each_is_refused_before_an_engine_opens_it(folder, engine):
    results, crashes = loaded(folder, engine)
    assert crashes == {}
    said = dict(
        zip(HARMFUL, (line.get("errors", {}).get("open_session") or str(line) for line in results), strict=True)
    )
    wrong = {name: said[name] for name, (_, message) in HARMFUL.items() if not re.search(message, said[name])}
    assert wrong == {}
    assert not any("\n" in text for text in said.values())


@pytest.mark.parametrize("name", HARMFUL)
def test_the_file_and_the_rule_are_named(folder, name):
    path = folder / f"{list(HARMFUL).index(name):02d}.onnx"
    with pytest.raises(ModelFileError, match=HARMFUL[name][1]) as caught:
        require_safe(path)
    assert str(caught.value).startswith(f"{path}: it")
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("open_it", [OpenVinoSession, OnnxRuntimeSession])
def test_a_pass_larger_than_the_memory_is_refused(tmp_path, open_it):
    """Of 29 levels 18 are let through, and hold a value of 2^18 and one of 2^17 times 8 x 8 pixels."""
    path = tmp_path / "model.onnx"
    path.write_bytes(doubled(18).SerializeToString())
    with pytest.raises(OutOfMemoryError, match="a pass holds at least 1.* MiB at once, the limit .memory. is 100 MiB"):
        open_it(path, memory=100 << 20)
    with open_it(path, memory=1 << 30) as session:
        assert session.spec.tile == (8, 8)


def test_constants_may_be_nodes(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(model([constant("weights", weights()), convolution()]).SerializeToString())
    require_safe(path)

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from tests import requirements
from tests.runtime.model_files.small_models import network, tensor
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.byte_pairs import as_byte_pairs

SIDE = 256


def raw_model(nodes=(), dtype=TensorProto.UINT16, target=TensorProto.FLOAT, shape=(1, 1, SIDE, SIDE)):
    """Raw pixels to scores: a Cast and a normalisation with fixed constants, then what else reads them."""
    chain = [
        helper.make_node("Cast", ["frame"], ["pixels"], to=target, name="cast"),
        helper.make_node("Sub", ["pixels", "offset"], ["centred"]),
        helper.make_node("Mul", ["centred", "scale"], ["scores"]),
    ]
    frame = helper.make_tensor_value_info("frame", dtype, shape, "what a camera gives")
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, shape)
    constants = [tensor("offset", 1234.5), tensor("scale", 1 / 777)]
    graph = helper.make_graph([*chain, *nodes], "g", [frame], [scores], constants, value_info=[frame])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(made, {"unetrt": "{}"})
    return made


def raw_network():
    """A U-Net that torch exported, with a Cast in front."""
    made = network()
    info, graph = made.graph.input[0], made.graph
    for node in graph.node:
        node.input[:] = ["pixels" if name == "frame" else name for name in node.input]
    info.type.tensor_type.elem_type = TensorProto.UINT16
    graph.node.insert(0, helper.make_node("Cast", ["frame"], ["pixels"], to=TensorProto.FLOAT))
    return made


def run(content, frame):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (scores,) = session.run(["scores"], {"frame": frame})
    return scores


def pairs(frame):
    """uint16 (...) as the uint8 (..., 2) that lie in its memory."""
    return frame.astype("<u2").view(np.uint8).reshape(*frame.shape, 2)


def test_all_values_come_out_bitwise_the_same():
    frame = np.arange(1 << 16, dtype=np.uint16).reshape(1, 1, SIDE, SIDE)
    content = raw_model().SerializeToString()
    expected, given = run(content, frame), run(as_byte_pairs(content), pairs(frame))
    np.testing.assert_array_equal(expected.view(np.uint32), given.view(np.uint32))
    assert len(np.unique(given)) == 1 << 16


def test_a_network_answers_bitwise_the_same():
    content = raw_network().SerializeToString()
    shape = tuple(axis.dim_value for axis in onnx.load_from_string(content).graph.input[0].type.tensor_type.shape.dim)
    frame = np.random.default_rng(0).integers(0, 1 << 16, shape, np.uint16)
    expected = run(content, frame)
    np.testing.assert_array_equal(expected, run(as_byte_pairs(content), pairs(frame)))
    assert np.ptp(expected) > 0


@pytest.mark.parametrize("made", [raw_model, raw_network])
def test_nothing_but_the_input_changes(made):
    original = made()
    paired = onnx.load_from_string(as_byte_pairs(original.SerializeToString()))
    onnx.checker.check_model(paired, full_check=True)
    graph = paired.graph
    cast = next(number for number, node in enumerate(graph.node) if node.op_type == "Cast")
    einsum = graph.node.pop(cast + 1)
    assert einsum.op_type == "Einsum"
    assert graph.initializer.pop().name == einsum.input[1]
    graph.node[cast].output[:] = einsum.output
    for info in (*graph.input, *(info for info in graph.value_info if info.name == "frame")):
        kind = info.type.tensor_type
        assert (kind.elem_type, kind.shape.dim.pop().dim_value) == (TensorProto.UINT8, 2)
        kind.elem_type = TensorProto.UINT16
    assert paired.SerializeToString() == original.SerializeToString()


def test_what_it_does_not_know_stays_byte_for_byte():
    """A field of a later ONNX, and a length written with more bytes than it needs."""
    content = raw_model().SerializeToString()
    odd = b"\xfa\x3e\x83\x80\x00abc"
    paired = as_byte_pairs(odd + content)
    assert paired == odd + as_byte_pairs(content)


def test_names_that_are_taken_are_not_taken_again():
    nodes = [
        helper.make_node("Relu", ["pixels"], ["frame_bytes"]),
        helper.make_node("Relu", ["pixels"], ["frame_bytes_"]),
    ]
    paired = onnx.load_from_string(as_byte_pairs(raw_model(nodes).SerializeToString()))
    onnx.checker.check_model(paired, full_check=True)
    assert paired.graph.node[0].output == ["frame_bytes__"]


def _renamed():
    made = raw_model()
    made.graph.input[0].name = made.graph.value_info[0].name = made.graph.node[0].input[0] = "image"
    return made


def _read_in_a_subgraph():
    """A branch sees what is outside: it has no inputs of its own."""
    body = [helper.make_node("Cast", ["frame"], ["inner"], to=TensorProto.FLOAT)]
    shape = (1, 1, SIDE, SIDE)
    branch = helper.make_graph(body, "b", [], [helper.make_tensor_value_info("inner", TensorProto.FLOAT, shape)])
    return raw_model([helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch)])


def _given_out():
    made = raw_model()
    made.graph.output.append(made.graph.input[0])
    return made


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            raw_model(dtype=TensorProto.UINT8),
            "ONNX type 2 and 4 axes: only uint16.*TensorRT has float32 and uint8 inputs",
        ),
        (raw_model(dtype=TensorProto.FLOAT), "ONNX type 1"),
        (raw_model(shape=(1, SIDE, SIDE)), "ONNX type 4 and 3 axes"),
        (raw_model(target=TensorProto.FLOAT16), "read 1 times, 0 of them by a Cast to float32"),
        (raw_model([helper.make_node("Shape", ["frame"], ["s"])]), "read 2 times, 1 of them"),
        (raw_model([helper.make_node("Cast", ["frame"], ["t"], to=1)]), "read 2 times, 2 of them"),
        (raw_model([helper.make_node("Own", ["frame", "frame"], ["t"], domain="own")]), "read 3 times"),
        (_read_in_a_subgraph(), "read 3 times, 1 of them"),
        (_given_out(), "read 2 times, 1 of them"),
        (_renamed(), "no input 'frame'"),
        (b"<html>", "not a whole ONNX file"),
        (b"", "not a whole ONNX file: its field 7 is there 0 times"),
    ],
)
def test_what_cannot_be_given_bytes(content, message):
    content = content if isinstance(content, bytes) else content.SerializeToString()
    with pytest.raises(ModelFileError, match=message) as caught:
        as_byte_pairs(content)
    assert "\n" not in str(caught.value)


def test_a_model_cut_anywhere_is_refused():
    content = raw_network().SerializeToString()
    graph_ends = content.rindex(b"scores")
    for length in range(0, graph_ends, 17):
        with pytest.raises(ModelFileError):
            as_byte_pairs(content[:length])


def _parse(content):
    """A TensorRT for RTX network from ONNX: builder, network, whether it was understood. No GPU is needed."""
    rtx = pytest.importorskip("tensorrt_rtx", reason=requirements.RTX, exc_type=ImportError)
    log = rtx.Logger(rtx.Logger.INTERNAL_ERROR)
    builder = rtx.Builder(log)
    network = builder.create_network(1 << int(rtx.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = rtx.OnnxParser(network, log)
    understood = parser.parse(content)
    return builder, network, understood, [log, parser]


@pytest.mark.parametrize("made", [raw_model, raw_network])
def test_tensorrt_builds_an_engine_of_it(made):
    content = made().SerializeToString()
    assert not _parse(content)[2], "TensorRT takes uint16 by now: give it that"
    builder, network, understood, _alive = _parse(as_byte_pairs(content))
    assert understood
    assert (network.get_input(0).dtype.name, network.get_input(0).shape[-1]) == ("UINT8", 2)
    engine = builder.build_serialized_network(network, builder.create_builder_config())
    assert engine is not None
    assert engine.nbytes > 0

"""Every operator that is let through has a rule, and derives the shapes that onnx infers."""

import numpy as np
import onnx
import onnx.parser
import onnx.shape_inference
import pytest
from onnx import numpy_helper

from tests.runtime.model_files.small_models import convolution, model, weights
from unetrt.export.adoption import _footprint
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import Message
from unetrt.runtime.model.safety import FEWEST_INPUTS, RULES, Network, require_safe

POINTWISE = (
    "Abs Acos Asin Atan Ceil Celu Clip Cos Dropout Elu Erf Exp Floor Gelu HardSigmoid HardSwish Hardmax Identity "
    "LeakyRelu Log LogSoftmax LpNormalization Mish Neg Reciprocal Relu Round Selu Shrink "
    "Sigmoid Sign Sin Softmax Softplus Softsign Sqrt Tanh ThresholdedRelu"
)
REDUCTIONS = "L1 L2 LogSum LogSumExp Max Mean Min Prod Sum SumSquare"
ARITHMETIC, COMPARISONS = "Add Sub Mul Div Pow Max Min Mean", "Equal Greater GreaterOrEqual Less LessOrEqual"
WINDOW = "kernel_shape = [3, 2], strides = [2, 3], pads = [1, 0, 0, 1]"


def numbers(*values):
    return np.array(values, np.int64)


ONES = np.ones(4, np.float32)
# The image x is float (2, 4, 9, 12): the node after `y = `, and its constants.
CASES = [
    *((f"{name}(x)", {}) for name in POINTWISE.split()),
    *((f"Reduce{name}(x)", {}) for name in REDUCTIONS.split()),
    *((f"Reduce{name}<keepdims = 0>(x, a)", {"a": numbers(-1, 1)}) for name in REDUCTIONS.split()),
    *((f"{name}<axis = -3, keepdims = 0>(x)", {}) for name in ("ArgMax", "ArgMin")),
    *((f"Global{name}Pool(x)", {}) for name in ("Average", "Lp", "Max")),
    *((f"{name}(x, c)", {"c": np.ones((4, 1, 12), np.float32)}) for name in ARITHMETIC.split()),
    *((f"{name}(x, c)", {"c": np.float32(2)}) for name in COMPARISONS.split()),
    ("Sum(x, x, c)", {"c": ONES[:1]}),
    ("PRelu(x, c)", {"c": ONES[:, None, None]}),
    ("Mod<fmod = 1>(x, c)", {"c": ONES[0]}),
    ("ReduceSum<noop_with_empty_axes = 1>(x)", {}),
    ("Cast<to = 7>(x)", {}),
    ("CastLike(x, c)", {"c": np.int8(0)}),
    ("Softmax<axis = 3>(x)", {}),
    ("Swish(x)", {}),
    ("BatchNormalization(x, a, b, c, d)", dict.fromkeys("abcd", ONES)),
    ("InstanceNormalization(x, a, b)", dict.fromkeys("ab", ONES)),
    ("LayerNormalization<axis = -1>(x, a)", {"a": np.ones(12, np.float32)}),
    ("RMSNormalization<axis = -1>(x, a)", {"a": np.ones(12, np.float32)}),
    ("LRN<size = 3>(x)", {}),
    ("QuantizeLinear(x, s, z)", {"s": np.float32(0.5), "z": np.int8(0)}),
    ("QuantizeLinear<axis = 1>(x, s)", {"s": ONES}),
    ("DequantizeLinear(k, s, z)", {"k": np.ones((3, 4), np.int8), "s": np.float32(0.5), "z": np.int8(0)}),
    ("Conv(x, k, b)", {"k": np.ones((5, 4, 3, 2), np.float32), "b": np.ones(5, np.float32)}),
    (
        "Conv<group = 2, dilations = [2, 1], strides = [1, 3], pads = [4, 0, 0, 3]>(x, k)",
        {"k": np.ones((6, 2, 3, 2), np.float32)},
    ),
    ('Conv<auto_pad = "SAME_UPPER", strides = [2, 5]>(x, k)', {"k": np.ones((5, 4, 3, 2), np.float32)}),
    ('Conv<auto_pad = "VALID", strides = [2, 5]>(x, k)', {"k": np.ones((5, 4, 3, 2), np.float32)}),
    ("ConvTranspose<strides = [2, 2]>(x, k, b)", {"k": np.ones((4, 3, 2, 2), "f"), "b": np.ones(3, "f")}),
    (
        "ConvTranspose<strides = [2, 3], pads = [1, 1, 0, 2], output_padding = [1, 0], dilations = [2, 1], "
        "group = 2>(x, k)",
        {"k": np.ones((4, 3, 4, 4), np.float32)},
    ),
    ("ConvTranspose<strides = [2, 2], output_shape = [18, 25]>(x, k)", {"k": np.ones((4, 3, 3, 3), np.float32)}),
    ('ConvTranspose<strides = [2, 2], auto_pad = "SAME_LOWER">(x, k)', {"k": np.ones((4, 3, 3, 3), np.float32)}),
    *((f"{name}<{WINDOW}>(x)", {}) for name in ("AveragePool", "LpPool", "MaxPool")),
    (f"MaxPool<{WINDOW}, ceil_mode = 1>(x)", {}),
    ("MaxPool<kernel_shape = [2, 2], strides = [2, 5], ceil_mode = 1>(x)", {}),
    ('AveragePool<kernel_shape = [2, 2], strides = [2, 5], auto_pad = "SAME_LOWER">(x)', {}),
    ("Gemm<transB = 1>(f, k, b)", {"f": np.ones((3, 4), "f"), "k": np.ones((5, 4), "f"), "b": np.ones(5, "f")}),
    ("MatMul(x, k)", {"k": np.ones((4, 12, 7), np.float32)}),
    ("Resize(x, , s)", {"s": np.array([1, 1, 2, 1.5], np.float32)}),
    ("Resize(x, , , s)", {"s": numbers(2, 4, 7, 30)}),
    ("Resize<axes = [3, 2]>(x, , s)", {"s": np.array([0.1, 0.7], np.float32)}),
    (
        'Resize<mode = "linear", coordinate_transformation_mode = "half_pixel">(x, , s)',
        {"s": np.array([1, 1, 0.3, 3], np.float32)},
    ),
    ("Concat<axis = -3>(x, x, c)", {"c": np.ones((2, 1, 9, 12), np.float32)}),
    ("DepthToSpace<blocksize = 2>(x)", {}),
    ("SpaceToDepth<blocksize = 3>(x)", {}),
    ("Expand(x, s)", {"s": numbers(3, 1, 1, 1, 12)}),
    ("Tile(x, r)", {"r": numbers(1, 2, 1, 3)}),
    ("Flatten(x)", {}),
    ("Flatten<axis = 4>(x)", {}),
    ("Flatten<axis = -1>(x)", {}),
    ("Gather<axis = 1>(x, i)", {"i": np.array(-4, np.int64)}),
    ("Gather<axis = -1>(x, i)", {"i": np.array([[0, 11], [-12, 3]], np.int32)}),
    ("Reshape(x, s)", {"s": numbers(0, -1, 6)}),
    ("Reshape(x, s)", {"s": numbers(2 * 4 * 9 * 12)}),
    (
        "Slice(x, a, b, c, d)",
        {"a": numbers(-3, 10), "b": numbers(2**63 - 1, -100), "c": numbers(2, -1), "d": numbers(2, -3)},
    ),
    ("Slice(x, a, b)", {"a": numbers(1), "b": numbers(2)}),
    ("Split<axis = 1, num_outputs = 1>(x)", {}),
    ("Squeeze(x1, a)", {"x1": np.ones((1, 3, 1), np.float32), "a": numbers(-1)}),
    ("Squeeze(x1)", {"x1": np.ones((1, 3, 1), np.float32)}),
    ("Unsqueeze(x, a)", {"a": numbers(0, -1)}),
    ("Transpose<perm = [0, 2, 3, 1]>(x)", {}),
    ("Transpose(x)", {}),
    ("Pad(x, p)", {"p": numbers(0, 1, -2, 3, 0, 0, 1, -4)}),
    ('Pad<mode = "reflect">(x, p, , a)', {"p": numbers(8, 2, 0, 11), "a": numbers(2, 3)}),
    ('Pad<mode = "edge">(x, p, , a)', {"p": numbers(30, 2), "a": numbers(-1)}),
    ("Not(c)", {"c": np.ones((2, 3), bool)}),
    *((f"{name}(c, c)", {"c": np.ones((2, 3), bool)}) for name in ("And", "Or", "Xor")),
    ('BitShift<direction = "LEFT">(c, c)', {"c": np.ones((2, 3), np.uint8)}),
    ("Where(c, x, z)", {"c": np.ones((9, 1), bool), "z": np.float32(0)}),
]  # fmt: skip
# onnx infers nothing for these, which keep the shape.
NOT_INFERRED = {
    "GroupNormalization<num_groups = 2>(x, a, b)": dict.fromkeys("ab", ONES),
    "MeanVarianceNormalization(x)": {},
}


def graph(node, constants, opset=23):
    """A model of one node, given in onnx's text form."""
    text = f'<ir_version: 10, opset_import: ["": {opset}]> net (float[2, 4, 9, 12] x) => (float y) {{ y = {node} }}'
    made = onnx.parser.parse_model(text)
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items())
    made.graph.output[0].ClearField("type")
    return made


def derived(made, tmp_path, shape=(2, 4, 9, 12)):
    network = Network(Message.of(made.SerializeToString()), tmp_path)
    network.derive(shape)
    return network


@pytest.mark.parametrize(("node", "constants"), CASES, ids=[node for node, _ in CASES])
def test_shape_and_type_are_those_that_onnx_infers(tmp_path, node, constants):
    made = graph(node, constants, opset=24 if "Swish" in node else 23)
    inferred = onnx.shape_inference.infer_shapes(made, check_type=True, strict_mode=True, data_prop=True)
    expected = inferred.graph.output[0].type.tensor_type
    value = derived(made, tmp_path).values["y"]
    assert value.shape == tuple(dim.dim_value for dim in expected.shape.dim)
    assert value.data_type == expected.elem_type


@pytest.mark.parametrize("node", NOT_INFERRED)
def test_a_normalisation_keeps_the_shape(tmp_path, node):
    value = derived(graph(node, NOT_INFERRED[node]), tmp_path).values["y"]
    assert (value.shape, value.data_type) == ((2, 4, 9, 12), onnx.TensorProto.FLOAT)


def test_the_parts_of_a_split(tmp_path):
    made = graph("Split<axis = 1>(x, s)", {"s": numbers(1, 3)})
    made.graph.node[0].output[:] = ["y", "z"]
    values = derived(made, tmp_path).values
    assert (values["y"].shape, values["z"].shape) == ((2, 1, 9, 12), (2, 3, 9, 12))
    made = graph("Split<axis = -1, num_outputs = 3>(x)", {})
    made.graph.node[0].output[:] = ["y", "z", "w"]
    assert derived(made, tmp_path).values["w"].shape == (2, 4, 9, 4)


def test_every_operator_has_a_case():
    nodes = [*(node for node, _ in CASES), *NOT_INFERRED]
    assert {node.split("(")[0].split("<")[0] for node in nodes} == set(RULES)


def test_whatever_is_adopted_is_let_through():
    assert set(_footprint.RULES) <= set(RULES)


def test_the_fewest_inputs_are_those_of_onnx():
    """Of each operator the fewest inputs of any version."""
    fewest: dict[str, int] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.name in RULES:
            fewest[schema.name] = min(schema.min_input, fewest.get(schema.name, schema.min_input))
    assert {name: FEWEST_INPUTS.get(name, 1) for name in RULES} == fewest


def saved(made, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize("missing", ["output", "op_type"])
def test_a_node_without_operator_or_output_is_refused(tmp_path, missing):
    """TensorRT for RTX 1.7.1 takes the process with it where a node has no output."""
    made = model([convolution()], [weights()])
    made.graph.node[0].ClearField(missing)
    with pytest.raises(ModelFileError, match="a node without operator or output"):
        require_safe(saved(made, tmp_path))


@pytest.mark.parametrize(("inputs", "given"), [([], 0), (["frame"], 1), (["frame", ""], 1), (["", "weights"], 1)])
def test_a_node_with_too_few_inputs_is_refused(tmp_path, inputs, given):
    """OpenVINO 2026.4 takes the process with it where a convolution has no weights."""
    made = model([convolution()], [weights()])
    made.graph.node[0].input[:] = inputs
    with pytest.raises(ModelFileError, match=f"a Conv with {given} of the 2 inputs that it needs"):
        require_safe(saved(made, tmp_path))


def test_optional_inputs_may_be_left_out(tmp_path):
    nodes = [convolution(output="x"), onnx.helper.make_node("Clip", ["x", "", "most"], ["scores"])]
    require_safe(saved(model(nodes, [weights(), numpy_helper.from_array(np.float32(3), "most")]), tmp_path))


def test_a_pass_holds_what_lives_at_once(tmp_path):
    """8 x 8 pixels of 4 bytes: ReLU in place, then both branches and the frame, the sum in place of one branch."""
    helper, frame = onnx.helper, 4 * 8 * 8
    nodes = [
        helper.make_node("Relu", ["frame"], ["r"]),
        helper.make_node("Conv", ["r", "weights"], ["a"]),
        helper.make_node("Conv", ["r", "weights"], ["b"]),
        helper.make_node("Sum", ["a", "b"], ["scores"]),
    ]
    assert require_safe(saved(model(nodes, [weights()]), tmp_path)) == frame + 2 * (2 * frame)

"""How many inputs a node needs, by its operator: engines die of nodes that have fewer."""

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model_files.protobuf import Message

# NodeProto.
INPUT, OUTPUT, OP_TYPE, DOMAIN = 1, 2, 4, 7
# Names of ONNX's own set of operators.
ONNX = ("", "ai.onnx")
# Bytes of a name that is read; those of operators are shorter.
LONGEST = 1 << 16

# The fewest of any version, for operators of ONNX 1.23 (its docs/Operators.md) that do not need exactly one. Loop and
# Scan may leave their first ones empty.
_FEWEST = {
    0: "Constant Loop Optional OptionalHasElement RandomNormal RandomUniform Scan SequenceEmpty",
    2: "Add AffineGrid And BitShift BitwiseAnd BitwiseOr BitwiseXor CastLike CausalConvWithState CenterCropPad "
    "Compress Conv ConvInteger ConvTranspose CumProd CumSum DequantizeLinear Div Equal Expand Gather GatherElements "
    "GatherND Gemm Greater GreaterOrEqual GridSample LayerNormalization Less LessOrEqual MatMul MatMulInteger "
    "MaxRoiPool MaxUnpool Mod Mul NegativeLogLikelihoodLoss NonMaxSuppression Or PRelu Pow QuantizeLinear "
    "RMSNormalization ReverseSequence STFT SequenceAt SequenceInsert SoftmaxCrossEntropyLoss StringConcat Sub SwiGLU "
    "TensorScatter Tile Xor",
    3: "Attention Col2Im DeformConv GRU GroupNormalization InstanceNormalization LSTM LinearAttention OneHot RNN Range "
    "RoiAlign RotaryEmbedding Scatter ScatterElements ScatterND Where",
    5: "BatchNormalization MelWeightMatrix",
    8: "QLinearConv QLinearMatMul",
}
FEWEST_INPUTS = {operator: count for count, operators in _FEWEST.items() for operator in operators.split()}


def require_node(node: Message) -> None:
    """Refuse a node without operator or output (TensorRT for RTX 1.7 dies of one), or with too few inputs.

    Raises
    ------
    ModelFileError
        It is such a node. OpenVINO 2026.4 dies of a convolution without weights.
    WireError
        It is malformed.
    """
    fields = list(node.fields())
    if not {OUTPUT, OP_TYPE} <= {part.number for part in fields}:
        raise ModelFileError("it has a node without operator or output; export or copy it again")
    named = [part for part in fields if part.number in (OP_TYPE, DOMAIN)]
    texts = {part.number: node.read(part, LONGEST).decode(errors="replace") for part in named}
    needed = FEWEST_INPUTS.get(texts[OP_TYPE], 1) if texts.get(DOMAIN, "") in ONNX else 0
    given = [part.size > 0 for part in fields if part.number == INPUT]
    if len(given) < needed or not all(given[:needed]):
        raise ModelFileError(
            f"it has a {texts[OP_TYPE]} with {sum(given[:needed])} of the {needed} inputs that it needs; export or "
            "copy it again"
        )

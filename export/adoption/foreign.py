"""An ONNX file that is not ours, read and judged: one float image in, one answer out, nothing of unetrt in it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import onnx
import onnx.checker
import onnx.inliner
from onnx import TensorProto

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.onnx_file import read_metadata
from unetrt.runtime.model.safety import require_safe
from unetrt.runtime.model.spec import KEY, Precision

# `TensorProto.DataType` of onnx.proto, and what weights of that type are computed in.
FLOATS: dict[int, Precision] = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
# The first opset whose Slice takes its bounds as inputs and whose Resize says how coordinates map (both opset 11).
OLDEST_OPSET = 11
# The domain of the standard's operators, in both spellings.
STANDARD = ("", "ai.onnx")
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger")


@dataclass(frozen=True)
class Foreign:
    """A graph with one input (N, C, H, W) of floats and one output.

    Attributes
    ----------
    model
        The whole model, weights included, functions inlined.
    name
        The file's name, for messages.
    """

    model: onnx.ModelProto
    name: str

    @property
    def input(self) -> onnx.ValueInfoProto:
        """What the caller feeds: old files list the weights among the inputs too."""
        return _fed(self.model)[0]

    @property
    def channels(self) -> int:
        """Channels that the graph takes."""
        return int(self.input.type.tensor_type.shape.dim[1].dim_value)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that the file fixes, in pixels; None where one of them is open."""
        height, width = (int(dim.dim_value) for dim in self.input.type.tensor_type.shape.dim[2:])
        return (height, width) if height and width else None

    @cached_property
    def precision(self) -> Precision:
        """What the graph computes in: `int8` where it quantises, else the type that most of the weights have."""
        if any(node.op_type in QUANTISED for node in self.model.graph.node):
            return "int8"
        often: Counter[Precision] = Counter()
        for tensor in weights(self.model):
            if tensor.data_type in FLOATS:
                often[FLOATS[tensor.data_type]] += _size(tensor)
        return often.most_common(1)[0][0] if often else "fp32"

    def sha256(self) -> str:
        """Return the hash of all weights, in the graph's order, in hexadecimal."""
        digest = sha256()
        for tensor in weights(self.model):
            digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
        return digest.hexdigest()


def read_foreign(path: str | Path) -> Foreign:
    """Read and judge a file.

    Raises
    ------
    ModelFileError
        It is no ONNX file, is not whole, keeps weights outside its folder, is ours already, or is not of one image in
        and one answer out.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist: give the ONNX file of a trained network")
    require_safe(path)
    if KEY in read_metadata(path):
        raise ModelFileError(f"{path} is a model of unetrt already: nothing to adopt, `unetrt predict {path}` runs it")
    model = _load(path)
    _require_opset(model, path)
    _require_one_image(model, path)
    return Foreign(model, path.name)


def weights(model: onnx.ModelProto) -> Iterator[TensorProto]:
    """Iterate over the constants of a graph, wherever they are kept."""
    yield from model.graph.initializer
    for node in model.graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.name == "value")


def _load(path: Path) -> onnx.ModelProto:
    """Parse a file that somebody else wrote and that is safe to read, with its external data."""
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
        return onnx.inliner.inline_local_functions(model)
    # onnx raises protobuf's DecodeError, ValueError, its checker's ValidationError and OSErrors.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelFileError(f"{path} is not an ONNX file that can be read: {reason}") from error


def _require_opset(model: onnx.ModelProto, path: Path) -> None:
    for opset in model.opset_import:
        if opset.domain in STANDARD and opset.version < OLDEST_OPSET:
            raise ModelFileError(
                f"{path} is of opset {opset.version}, {OLDEST_OPSET} is the oldest that can be adopted: export it "
                "again, or raise it with onnx.version_converter.convert_version"
            )


def _require_one_image(model: onnx.ModelProto, path: Path) -> None:
    fed, answers = _fed(model), list(model.graph.output)
    for what, values in (("inputs", fed), ("outputs", answers)):
        if len(values) != 1:
            names = ", ".join(value.name for value in values) or "none"
            raise ModelFileError(
                f"{path} has {len(values)} {what} ({names}): export it with one image in, one answer out"
            )
    tensor = fed[0].type.tensor_type
    axes = [dim.dim_value or dim.dim_param or "?" for dim in tensor.shape.dim]
    if len(axes) != 4:
        raise ModelFileError(f"{path}: its input {fed[0].name} has axes {axes}: it must be (batch, channels, H, W)")
    if tensor.shape.dim[3].dim_value in (1, 3, 4) and tensor.shape.dim[1].dim_value not in (1, 3, 4):
        raise ModelFileError(
            f"{path}: its input has axes {axes}, its channels last: export it as (batch, channels, H, W)"
        )
    if not tensor.shape.dim[1].dim_value:
        raise ModelFileError(f"{path}: its input {fed[0].name} has axes {axes}: export it with a fixed channel count")
    if tensor.elem_type not in (TensorProto.FLOAT, TensorProto.FLOAT16):
        given = TensorProto.DataType.Name(tensor.elem_type).lower()
        raise ModelFileError(f"{path}: its input is {given}: export it for float32 or float16, normalised outside")


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    kept = {tensor.name for tensor in model.graph.initializer}
    return [value for value in model.graph.input if value.name not in kept]


def _size(tensor: TensorProto) -> int:
    size = 1
    for side in tensor.dims:
        size *= side
    return size

"""The ONNX graph: a fixed tile in, the head's answer out, the spec in the metadata."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from unetrt.runtime.model.spec import INPUT, KEY, OUTPUT, ModelSpec, Precision
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.unet import UNet

# An opset whose operators TensorRT 10, TensorRT for RTX and ONNX Runtime 1.20 all read; bfloat16 convolutions are part
# of the standard from 22 on (onnx's Changelog.md, Conv-22).
OPSET, OPSET_BFLOAT16 = 20, 22

# What the layers between input and head compute in. int8 is put around the FP32 graph's convolutions afterwards.
TYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
}


class Deployed(nn.Module):
    """A network with input, precision and head around it: FP32 at the input and in the head, whatever between.

    Parameters
    ----------
    net
        The network; converted in place where the precision is not fp32.
    spec
        What it takes, computes in and gives.
    """

    def __init__(self, net: UNet, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.dtype = spec, TYPES[spec.precision]
        if spec.precision == "bf16":
            net.up = nn.ModuleList(InFloat32(up) for up in net.up)
        self.net: nn.Module = net.to(self.dtype)
        self.normalise = Normalise(spec.normalisation) if spec.takes_raw else nn.Identity()

    def forward(self, frame: Tensor) -> Tensor:
        """Map (N, C, h, w) of the spec's input type to what the spec says of the head."""
        scores: Tensor = self.net(self.normalise(frame).to(self.dtype))
        if self.spec.head == "labels":
            return _best_class(scores)
        logits = scores.float()
        return logits.softmax(dim=1) if self.spec.head == "probabilities" else logits


def _best_class(scores: Tensor) -> Tensor:
    """Map scores (N, classes, h, w) to the index of the highest, uint8 (N, h, w), the lowest index where they tie."""
    if scores.shape[1] > 2:
        return scores.float().argmax(dim=1).to(torch.uint8)
    # Engines compare faster than they reduce over channels. Less, as OpenVINO 2026.4 calls NaN greater than anything;
    # cast behind the choice of a class, as TensorRT for RTX else writes all scores again as float32.
    background, foreground = scores[:, 0].float(), scores[:, 1].float()
    return (background < foreground).to(torch.uint8)


class Normalise(nn.Module):
    """The affine map of fixed normalisation, in the order of operations that the runtime has."""

    def __init__(self, normalisation: Normalisation) -> None:
        super().__init__()
        self.offset, self.scale = (
            nn.Buffer(torch.tensor(constants, dtype=torch.float32)[:, None, None])
            for constants in (normalisation.offset, normalisation.scale)
        )

    def forward(self, frame: Tensor) -> Tensor:
        """Map raw grey values (N, C, h, w), uint8 or uint16, to network input, float32."""
        normalised: Tensor = (frame.float() - self.offset) * self.scale
        return normalised


class InFloat32(nn.Module):
    """A layer kept out of a lower precision: TensorRT has no transposed convolution in bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def _apply(self, change: Callable[[Tensor], Tensor], recurse: bool = True) -> "InFloat32":  # noqa: ARG002
        """Stay as it is when the network around it is converted: its weights are not to be rounded."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map what the layer maps, in the type of `x`."""
        y: Tensor = self.layer(x.float()).to(x.dtype)
        return y


def build_graph(net: UNet, spec: ModelSpec) -> onnx.ModelProto:
    """Return the ONNX model of `net`, which it may convert, as `spec` describes it; int8 is still missing in it."""
    deployed = Deployed(net, spec).eval()
    tile = torch.from_numpy(spec.new_input())
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (tile,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET_BFLOAT16 if spec.precision == "bf16" else OPSET,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    _join_crops(model.graph)
    _name_layers(model)
    describe(model, spec)
    require_clean(model)
    return model


def describe(model: onnx.ModelProto, spec: ModelSpec) -> None:
    """Put the spec, and nothing else, into a model's metadata."""
    model.ClearField("metadata_props")
    onnx.helper.set_model_props(model, {KEY: spec.to_json()})


def require_clean(model: onnx.ModelProto) -> None:
    """Hold a model against the ONNX standard; every shape in it must follow, and be a number.

    Raises
    ------
    onnx.checker.ValidationError, onnx.shape_inference.InferenceError
        The exporter has a defect.
    """
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    for value in inferred.graph.value_info:
        if not all(axis.HasField("dim_value") for axis in value.type.tensor_type.shape.dim):
            raise onnx.checker.ValidationError(f"{value.name} has no static shape")


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the tracer noted for its own debugging: stack traces with this machine's paths."""
    model.graph.ClearField("metadata_props")
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def _join_crops(graph: onnx.GraphProto) -> None:
    """Cut both axes of a skip in one Slice: torch exports one an axis, and the first would write an intermediate."""
    made = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for columns in [node for node in graph.node if node.op_type == "Slice"]:
        rows = made.get(columns.input[0])
        # Exporters differ: what is written in another form stays as it is.
        if rows is None or rows.op_type != "Slice" or not len(rows.input) == len(columns.input) == 5:
            continue
        if not {*rows.input[1:], *columns.input[1:]} <= constants.keys():
            continue
        for place, part in enumerate(("starts", "ends", "axes", "steps"), start=1):
            of_both = [numpy_helper.to_array(constants[node.input[place]]) for node in (rows, columns)]
            columns.input[place] = f"{columns.output[0]}/{part}"
            graph.initializer.append(numpy_helper.from_array(np.concatenate(of_both), columns.input[place]))
        columns.input[0] = rows.input[0]
        graph.node.remove(rows)
    _forget_unused(graph)


def _forget_unused(graph: onnx.GraphProto) -> None:
    """Remove constants and declared shapes of what no node takes: engines warn of them."""
    taken = {name for node in graph.node for name in node.input}
    for declared in (graph.initializer, graph.value_info):
        for index in reversed(range(len(declared))):
            if declared[index].name not in taken:
                del declared[index]


def _name_layers(model: onnx.ModelProto) -> None:
    """Give every convolution the name that its layer has in the network, such as `contracting.0.0`."""
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            node.name = node.input[1].removesuffix(".weight").removesuffix(".layer").removeprefix("net.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's remarks about its own modules, and about a package we do not use, from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

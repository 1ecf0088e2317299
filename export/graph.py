"""The ONNX graph of a network: one tile of fixed shape in, the head's output out, the spec in the metadata.

`Deployed` puts normalisation, precision and head around a U-Net, torch traces it, and the graph is then reduced to what
engines need: one Slice for each crop, layers with the names they have in the network, no debugging notes. Only the
shapes of input and output depend on the tile.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from unetrt.export.onnx_model import describe, require_clean, strip
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec, Precision
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.unet import UNet

# The opset that TensorRT 10, TensorRT for RTX and ONNX Runtime 1.20 all read; bfloat16 convolutions are in the standard
# from opset 22 on (onnx's Changelog.md, Conv-22).
OPSET, OPSET_BFLOAT16 = 20, 22

# Type of the layers between input and head. INT8 is added to the FP32 graph afterwards, see `quantisation`.
TYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.float32,
}


class Deployed(nn.Module):
    """A network with input, precision and head as a spec says; input and head are FP32 in every precision.

    Parameters
    ----------
    net
        The network; converted in place where the precision is not fp32.
    spec
        Input dtype, normalisation, precision and head.
    """

    def __init__(self, net: UNet, spec: ModelSpec) -> None:
        super().__init__()
        self.spec, self.dtype = spec, TYPES[spec.precision]
        if spec.precision == "bf16":
            net.up = nn.ModuleList(InFloat32(up) for up in net.up)
        self.net: nn.Module = net.to(self.dtype)
        self.normalise = Normalise(spec.normalisation) if spec.takes_raw else nn.Identity()

    def forward(self, frame: Tensor) -> Tensor:
        """Map a batch (N, C, h, w) of the spec's input dtype to the output of the spec's head."""
        scores: Tensor = self.net(self.normalise(frame).to(self.dtype))
        if self.spec.head == "labels":
            return _best_class(scores)
        logits = scores.float()
        return logits.softmax(dim=1) if self.spec.head == "probabilities" else logits


def _best_class(scores: Tensor) -> Tensor:
    """Map scores (N, classes, h, w) to the index of the highest, uint8 (N, h, w); the lowest index wins a tie."""
    if scores.shape[1] > 2:
        return scores.float().argmax(dim=1).to(torch.uint8)
    # Engines compare two tensors faster than they reduce over channels. Less and not Greater, because OpenVINO 2026.4
    # calls NaN greater than any number. The cast follows the choice of a channel: in front of it, TensorRT for RTX
    # writes all scores once more, as float32.
    background, foreground = scores[:, 0].float(), scores[:, 1].float()
    return (background < foreground).to(torch.uint8)


class Normalise(nn.Module):
    """The affine map of fixed normalisation, with the runtime's order of operations."""

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
    """A layer that computes in FP32 inside a bfloat16 network: TensorRT has no transposed convolution in bfloat16."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def _apply(self, *_change: Any, **_options: Any) -> "InFloat32":
        """Keep the weights when the network is converted (torch calls this in `to`)."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Map `x` as the layer does; the result has the dtype of `x`."""
        y: Tensor = self.layer(x.float()).to(x.dtype)
        return y


def build_graph(net: UNet, spec: ModelSpec) -> onnx.ModelProto:
    """Return the ONNX model of a network as `spec` describes it; an INT8 one is still in FP32.

    `net` may be converted in place.
    """
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
    strip(model)
    _join_crops(model.graph)
    _name_layers(model)
    describe(model, spec)
    require_clean(model)
    return model


def _join_crops(graph: onnx.GraphProto) -> None:
    """Crop a skip with one Slice for both axes: torch exports one for each, and the first writes an intermediate."""
    made = {node.output[0]: node for node in graph.node}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for columns in [node for node in graph.node if node.op_type == "Slice"]:
        rows = made.get(columns.input[0])
        # Other versions of torch may write a crop in another form, which stays as it is.
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
    _remove_unused(graph)


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Remove constants and declared shapes that no node reads: engines warn of them."""
    read = {name for node in graph.node for name in node.input}
    for declared in (graph.initializer, graph.value_info):
        for index in reversed(range(len(declared))):
            if declared[index].name not in read:
                del declared[index]


def _name_layers(model: onnx.ModelProto) -> None:
    """Name every convolution as its layer in the network, such as `contracting.0.0`."""
    for node in model.graph.node:
        if node.op_type in ("Conv", "ConvTranspose"):
            node.name = node.input[1].removesuffix(".weight").removesuffix(".layer").removeprefix("net.")


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's remarks about its own modules and about a package that is not used here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)

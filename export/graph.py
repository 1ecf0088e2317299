"""The ONNX graph: a fixed tile in, the head's answer out, the spec in the metadata."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import Tensor, nn

from unetrt.runtime.spec import INPUT, KEY, OUTPUT, Head, ModelSpec, Precision
from unetrt.trainer.unet import UNet

# The first opset whose operators are what TensorRT 10, TensorRT for RTX and ONNX Runtime 1.18 all read.
OPSET = 20


class Deployed(nn.Module):
    """A network with precision and head around it: float32 at the input and in soft-max and argmax, whatever between.

    Parameters
    ----------
    net
        The network; converted in place where the precision is not fp32.
    precision
        What it computes in.
    head
        What comes out.
    """

    def __init__(self, net: UNet, precision: Precision, head: Head) -> None:
        super().__init__()
        self.net: nn.Module = net.half() if precision == "fp16" else net
        self.precision, self.head = precision, head

    def forward(self, frame: Tensor) -> Tensor:
        """Map (N, C, h, w) float32 to what the spec says of the head."""
        x = frame.half() if self.precision == "fp16" else frame
        logits: Tensor = self.net(x).float()
        if self.head == "logits":
            return logits
        if self.head == "probabilities":
            return logits.softmax(dim=1)
        return logits.argmax(dim=1).to(torch.uint8)


def build_graph(net: UNet, spec: ModelSpec) -> onnx.ModelProto:
    """Return the ONNX model of `net`, which it may convert, for the tile, batch, head and precision of `spec`."""
    deployed = Deployed(net, spec.precision, spec.head).eval()
    tile = torch.from_numpy(spec.new_input())
    with _quiet():
        program = torch.onnx.export(
            deployed,
            (tile,),
            dynamo=True,
            input_names=[INPUT],
            output_names=[OUTPUT],
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    onnx.helper.set_model_props(model, {KEY: spec.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def _strip(model: onnx.ModelProto) -> None:
    """Remove what the tracer noted for its own debugging: stack traces with this machine's paths."""
    model.graph.ClearField("metadata_props")
    for part in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


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

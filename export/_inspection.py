"""Looking into an exported graph: its input tiles, its scores, and the output of each of its layers.

The gate and the quantiser need values that a model file does not give. `tile_batches` cuts frames into what the network
is fed; `with_scores`, `in_float32` and `with_layers` return copies of a model with other outputs or another type; and
`first_explosion` compares every convolution with the network in torch, to name the first one that goes wrong.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper
from torch import nn

from unetrt.export.graph import OPSET
from unetrt.export.onnx_model import axes_of, copy_of, inferred
from unetrt.runtime.model.spec import INPUT, OUTPUT, ModelSpec, Precision

Array = NDArray[Any]

# Operators that pass values on unchanged, so that nothing is rounded in them.
MOVING = ("Relu", "MaxPool", "Slice", "Concat", "Gather", "Identity")
LOWER = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
EXACT, ROUNDED = ".exact", ".rounded"

# Relative error of a layer's output that rounding alone may cause: far above the unit roundoff, far below a defect.
USUAL: dict[Precision, float] = {"fp32": 1e-4, "fp16": 1e-2, "bf16": 5e-2, "int8": 0.2}
# Ratio of a layer's error to the largest one before it from which on the layer is called the cause.
JUMP = 5.0


def tile_batches(spec: ModelSpec, frames: Iterable[Array]) -> Iterator[Array]:
    """Iterate over the network's input for raw frames.

    Parameters
    ----------
    spec
        Tile, batch, border, input dtype and normalisation.
    frames
        Raw frames (C, H, W) of integers or floats.

    Yields
    ------
    Arrays as `spec.new_input()`: (batch, C, h, w) of the input dtype. The last batch of a frame is filled up with its
    last tile.
    """
    for frame in frames:
        affine = spec.normalisation.measure(frame)
        for tiles in spec.plan(frame.shape[-2:]).batches(spec.batch):
            batch = spec.new_input()
            for slot, tile in enumerate(tiles):
                tile.cut(frame, batch[slot])
            batch[len(tiles) :] = batch[len(tiles) - 1]
            yield batch if spec.takes_raw else affine.apply(batch)


def with_scores(model: ModelProto) -> ModelProto:
    """Return a copy of a model with a labels head whose output is the scores, float32 (N, classes, h, w).

    The scores are the last tensor with four axes: everything that a labels head computes from them is (N, h, w).
    """
    copy = copy_of(model)
    graph = copy.graph
    values = {value.name: value for value in inferred(copy).graph.value_info}
    made = {number: values[node.output[0]] for number, node in enumerate(graph.node) if node.output[0] in values}
    last = max(number for number, value in made.items() if len(axes_of(value)) == 4)
    scores = made[last]
    del graph.node[last + 1 :], graph.output[:]
    graph.node.append(helper.make_node("Identity", [scores.name], [OUTPUT]))
    scores.name = OUTPUT
    graph.output.append(scores)
    return copy


def in_float32(model: ModelProto) -> ModelProto:
    """Return a copy of an FP16 or bfloat16 model that computes in float32 and rounds the output of every operator.

    ONNX Runtime on the CPU has no bfloat16 convolutions, and it computes whole chains of float16 operators in float32,
    so that an activation beyond the range of float16 goes unnoticed. A GPU accumulates in float32 and rounds each sum,
    as this copy does.
    """
    copy = copy_of(model)
    lower = {
        value.name: value.type.tensor_type.elem_type
        for value in inferred(copy).graph.value_info
        if value.type.tensor_type.elem_type in LOWER
    }
    for tensor in copy.graph.initializer:
        if tensor.data_type in LOWER:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    nodes = [part for node in copy.graph.node for part in _rounding(node, lower)]
    del copy.graph.node[:], copy.graph.value_info[:]
    copy.graph.node.extend(nodes)
    for opset in copy.opset_import:
        # The meaning of float32 operators is the same in both opsets, and older ONNX Runtimes read this one.
        opset.version = min(opset.version, OPSET)
    return inferred(copy)


def _rounding(node: onnx.NodeProto, lower: Mapping[str, int]) -> list[onnx.NodeProto]:
    """Return the nodes that replace one: two casts that round follow where its output has a lower type."""
    name = node.output[0]
    if name not in lower or node.op_type in MOVING:
        return [node]
    if node.op_type == "Cast":
        exact, before = node.input[0], []
    else:
        exact, before = name + EXACT, [node]
        node.output[0] = exact
    return [
        *before,
        helper.make_node("Cast", [exact], [name + ROUNDED], to=lower[name]),
        helper.make_node("Cast", [name + ROUNDED], [name], to=TensorProto.FLOAT),
    ]


def with_layers(model: ModelProto) -> tuple[ModelProto, dict[str, str]]:
    """Return a copy with the (rounded) output of every convolution as an output, and these tensors' names by layer."""
    copy = copy_of(model)
    convolutions = [node for node in copy.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    layers = {node.name: node.output[0].removesuffix(EXACT) for node in convolutions}
    values = {value.name: value for value in inferred(copy).graph.value_info}
    outputs = {output.name for output in copy.graph.output}
    copy.graph.output.extend(values[name] for name in layers.values() if name not in outputs)
    return copy, layers


@dataclass(frozen=True)
class LayerError:
    """The error of one layer's output.

    Attributes
    ----------
    name
        The layer's name in the network, such as `contracting.0.0`.
    error
        Root mean square of the difference divided by that of the expected output; infinite where a value is not finite.
    """

    name: str
    error: float

    def __str__(self) -> str:
        off = "holds NaN or infinity" if not np.isfinite(self.error) else f"is off by {self.error:.2g} of its size"
        return f"{self.name}, whose output {off}"


def first_explosion(
    net: nn.Module, reference: ModelSpec, model: ModelProto, spec: ModelSpec, frame: Array
) -> LayerError | None:
    """Return the first layer of an export whose output is wrong on a frame; None if the error grows gradually.

    Parameters
    ----------
    net, reference
        The network in FP32 on the CPU, and the spec of its input.
    model, spec
        The export in a form that ONNX Runtime computes, and the spec of its input and precision.
    frame
        A raw frame (C, H, W) on which the export's output is wrong.
    """
    return exploding(_layer_errors(net, reference, model, spec, frame), USUAL[spec.precision])


def exploding(errors: Sequence[LayerError], usual: float) -> LayerError | None:
    """Return the first layer whose error is `JUMP` times `usual` and every error before it, if there is one."""
    before = usual
    for layer in errors:
        if not layer.error <= JUMP * before:
            return layer
        before = max(before, layer.error)
    return None


def _layer_errors(
    net: nn.Module, reference: ModelSpec, model: ModelProto, spec: ModelSpec, frame: Array
) -> list[LayerError]:
    """Return the error of every convolution in the order of the graph, each the largest over the frame's tiles."""
    import onnxruntime

    copy, layers = with_layers(model)
    session = onnxruntime.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    worst = dict.fromkeys(layers, 0.0)
    batches = zip(tile_batches(reference, [frame]), tile_batches(spec, [frame]), strict=True)
    for expected_input, given_input in batches:
        given = dict(zip(layers, session.run(list(layers.values()), {INPUT: given_input}), strict=True))
        with _recorded(net, layers) as expected, torch.inference_mode():
            net(torch.from_numpy(expected_input))
        for name, output in expected.items():
            worst[name] = max(worst[name], _relative(output, given[name]))
    return [LayerError(name, error) for name, error in worst.items()]


@contextmanager
def _recorded(net: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Array]]:
    """Yield a dict that receives the output of the named layers; copies, since the ReLU behind a layer is in place."""
    outputs: dict[str, Array] = {}

    def record(name: str) -> Any:
        return lambda _layer, _given, output: outputs.__setitem__(name, output.numpy().copy())

    hooks = [layer.register_forward_hook(record(name)) for name, layer in net.named_modules() if name in names]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def _relative(expected: Array, given: Array) -> float:
    if not np.isfinite(given).all():
        return float("inf")
    size = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    difference = float(np.sqrt(np.mean(np.square(given.astype(np.float64) - expected))))
    return difference / size if size else (difference and float("inf"))

"""Copies of an exported model that can be looked into where the model itself cannot."""

from collections.abc import Mapping

import onnx
from onnx import TensorProto, helper, numpy_helper

from unetrt.export.graph import OPSET
from unetrt.runtime.model.spec import OUTPUT

# Operators that hand on what they get: nothing is rounded in them.
MOVING = ("Relu", "MaxPool", "Slice", "Concat", "Gather", "Identity")
LOWER = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
EXACT, ROUNDED = ".exact", ".rounded"


def with_scores(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy whose output is the scores that a labels head compares; float32 (N, classes, h, w), as the model's.

    They are the last tensor with four axes: all that the head makes of them is (N, h, w), however it compares.
    """
    twin = _copy(model)
    graph = twin.graph
    values = {value.name: value for value in _inferred(twin).graph.value_info}
    made = {number: values[node.output[0]] for number, node in enumerate(graph.node) if node.output[0] in values}
    last = max(number for number, value in made.items() if len(value.type.tensor_type.shape.dim) == 4)
    scores = made[last]
    del graph.node[last + 1 :], graph.output[:]
    graph.node.append(helper.make_node("Identity", [scores.name], [OUTPUT]))
    scores.name = OUTPUT
    graph.output.append(scores)
    return twin


def in_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in float32 that rounds as the model's own type does: what each of its operators gives.

    ONNX Runtime on the CPU has no bfloat16 convolutions, and in float16 it computes whole chains of operators in
    float32: an activation that no float16 can hold passes there unseen. A GPU adds up in float32 and rounds the sum.
    """
    twin = _copy(model)
    lower = {name: kind for kind in LOWER for name in _tensors_of(twin, kind)}
    for tensor in twin.graph.initializer:
        if tensor.data_type in LOWER:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    nodes = [part for node in twin.graph.node for part in _rounding(node, lower)]
    del twin.graph.node[:], twin.graph.value_info[:]
    twin.graph.node.extend(nodes)
    for opset in twin.opset_import:
        # What float32 operators mean did not change since, and older ONNX Runtimes read it.
        opset.version = min(opset.version, OPSET)
    return _inferred(twin)


def with_layers(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, str]]:
    """Return a copy that gives the (rounded) output of every convolution too, and the tensors' names by layer."""
    twin = _copy(model)
    convolutions = [node for node in twin.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    layers = {node.name: node.output[0].removesuffix(EXACT) for node in convolutions}
    inferred = _inferred(twin)
    given = {output.name for output in twin.graph.output}
    twin.graph.output.extend(_value(inferred, name) for name in layers.values() if name not in given)
    return twin, layers


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    return twin


def _inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy in which the type and shape of every tensor between input and output stand."""
    return onnx.shape_inference.infer_shapes(model, strict_mode=True)


def _tensors_of(model: onnx.ModelProto, kind: int) -> set[str]:
    return {value.name for value in _inferred(model).graph.value_info if value.type.tensor_type.elem_type == kind}


def _rounding(node: onnx.NodeProto, lower: Mapping[str, int]) -> list[onnx.NodeProto]:
    """Return the nodes that stand for one: those that make a tensor of a lower type are followed by its rounding."""
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


def _value(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    found: onnx.ValueInfoProto = next(value for value in model.graph.value_info if value.name == name)
    return found

"""Small ONNX models, written with the onnx package: weights outside, subgraphs, sparse weights, functions."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import small_spec
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import KEY, ModelSpec

# A network without context: each pixel's scores are its grey value times two weights. Any tile is legal.
SPEC = ModelSpec(tile=(8, 8), halo=0, grid=1, written_by="a test")
SHAPES = {"frame": (1, 1, 8, 8), "scores": (1, 2, 8, 8)}


def tensor(name, values, dtype=np.float32):
    return numpy_helper.from_array(np.asarray(values, dtype), name)


def weights(values=(1.0, 2.0), name="weights"):
    return tensor(name, np.reshape(values, (2, 1, 1, 1)))


def outside(initializer, location, **entries):
    """The same tensor, its values elsewhere; entries such as offset and length are written as they are given."""
    moved = onnx.TensorProto()
    moved.CopyFrom(initializer)
    moved.ClearField("raw_data")
    moved.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        moved.external_data.add(key=key, value=str(value))
    return moved


def value(name, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, SHAPES[name])


def convolution(kernel="weights", output="scores"):
    return helper.make_node("Conv", ["frame", kernel], [output])


def constant(name, stored):
    return helper.make_node("Constant", [], [name], value=stored)


def model(nodes, initializers=(), frame=TensorProto.FLOAT, spec=SPEC, **fields):
    graph = helper.make_graph(nodes, "graph", [value("frame", frame)], [value("scores")], list(initializers))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10, **fields)
    helper.set_model_props(made, {KEY: spec.to_json()})
    return made


def branch(stored, name):
    """A subgraph that takes the frame from outside and has a constant tensor in an attribute."""
    nodes = [constant(f"{name}_weights", stored), convolution(f"{name}_weights", name)]
    output = helper.make_tensor_value_info(name, TensorProto.FLOAT, SHAPES["scores"])
    return helper.make_graph(nodes, name, [], [output])


def branching(then, otherwise):
    """A model with an If: bright frames through one branch, others through the other."""
    zero = tensor("zero", 0.0)
    nodes = [
        helper.make_node("ReduceMax", ["frame"], ["brightest"], keepdims=0),
        helper.make_node("Greater", ["brightest", "zero"], ["bright"]),
        helper.make_node("If", ["bright"], ["scores"], then_branch=then, else_branch=otherwise),
    ]
    return model(nodes, [zero])


def various():
    """Operators whose constants are lengths and places, as adopted networks have them."""
    node = helper.make_node
    places = {"pads": [0, 0, 1, -2, 0, 0, 3, 4], "starts": [0, 1], "ends": [99, -1], "axes": [2, 3], "steps": [2, 1]}
    places |= {"picked": [1, 0, -1], "shape": [1, 3, -1], "parts": [1, 2], "again": [1, 3, 8, 8]}
    nodes = [
        convolution(output="x"),
        node("Pad", ["x", "pads"], ["padded"]),
        node("Slice", ["padded", "starts", "ends", "axes", "steps"], ["sliced"]),
        node("Resize", ["sliced", "", "scales"], ["resized"]),
        node("MaxPool", ["resized"], ["pooled"], kernel_shape=[2, 2], strides=[1, 1], auto_pad="SAME_UPPER"),
        node("Gather", ["pooled", "picked"], ["gathered"], axis=1),
        node("Reshape", ["gathered", "shape"], ["flat"]),
        node("Transpose", ["flat"], ["turned"], perm=[0, 2, 1]),
        node("Transpose", ["turned"], ["back"], perm=[0, 2, 1]),
        node("ReduceMean", ["back"], ["mean"], keepdims=1),
        node("Expand", ["mean", "again"], ["wide"]),
        node("Split", ["wide", "parts"], ["first", "rest"], axis=1),
        node("Softmax", ["rest"], ["soft"], axis=1),
        node("Concat", ["first", "soft", "first"], ["joined"], axis=1),
        node("Tile", ["first", "repeats"], ["tiled"]),
        node("Add", ["tiled", "x"], ["scores"]),
    ]
    stored = [tensor(name, values, np.int64) for name, values in places.items()]
    return model(
        nodes, [weights(), *stored, tensor("scales", [1, 1, 2, 1.5]), tensor("repeats", [1, 2, 1, 1], np.int64)]
    )


def network():
    """A U-Net of depth 1, as torch exports it."""
    import torch

    from unetrt.export.graph import build_graph
    from unetrt.trainer.unet import UNet

    torch.manual_seed(0)
    shape = UNetShape(depth=1, base=2)
    side = shape.geometry.side_for(2)
    return build_graph(UNet(shape), small_spec(1, (side, side), network={"depth": 1, "base": 2}))

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


def network():
    """A U-Net of depth 1, as torch exports it."""
    import torch

    from unetrt.export.graph import build_graph
    from unetrt.trainer.unet import UNet

    torch.manual_seed(0)
    shape = UNetShape(depth=1, base=2)
    side = shape.geometry.side_for(2)
    return build_graph(UNet(shape), small_spec(1, (side, side), network={"depth": 1, "base": 2}))

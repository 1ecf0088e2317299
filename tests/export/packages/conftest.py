"""Exported files of every kind that can be packaged, from one tiny network."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.conftest import editable
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import INPUT, KEY, OUTPUT
from unetrt.runtime.pixels.normalisation import Normalisation

FIXED = Normalisation("fixed", offset=(400.0,), scale=(1 / 1500,))
# The files that `exports` holds.
EXPORTS = ("logits", "probabilities", "labels", "batch 3", "zscore", "fixed", "uint8", "uint16")


def said_otherwise(path, out, **changes):
    """Write a copy of an ONNX file with another spec."""
    model = editable(path)
    helper.set_model_props(model, {KEY: replace(read_spec(path), **changes).to_json()})
    onnx.save(model, out)
    return out


def raw_input(path, out, dtype):
    """Write a copy of an ONNX file that takes raw grey values and normalises them with constants."""
    model = onnx.load(said_otherwise(path, out, normalisation=FIXED, input_dtype=dtype))
    model.graph.input[0].type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for node in model.graph.node:
        node.input[:] = ["normalised" if name == INPUT else name for name in node.input]
    constants = {"offset": FIXED.offset, "scale": FIXED.scale}
    for name, values in constants.items():
        array = np.float32(values).reshape(1, -1, 1, 1)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    nodes = [
        helper.make_node("Cast", [INPUT], ["grey"], to=TensorProto.FLOAT),
        helper.make_node("Sub", ["grey", "offset"], ["shifted"]),
        helper.make_node("Mul", ["shifted", "scale"], ["normalised"]),
        *model.graph.node,
    ]
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    onnx.save(model, out)
    return out


def probabilities(path, out):
    """Write a copy of an ONNX file with a soft-max at its end."""
    model = onnx.load(said_otherwise(path, out, head="probabilities"))
    model.graph.node[-1].output[0] = "logits"
    model.graph.node.append(helper.make_node("Softmax", ["logits"], [OUTPUT], axis=1))
    onnx.save(model, out)
    return out


@pytest.fixture(scope="session")
def exports(tiny_checkpoint, tiny_model, tmp_path_factory):
    """Name of `EXPORTS` -> ONNX file."""
    from unetrt.export.exporter import Options, export

    folder = tmp_path_factory.mktemp("exports")
    files = {name: folder / f"{name.replace(' ', '-')}.onnx" for name in EXPORTS}
    files["logits"] = tiny_model
    export(tiny_checkpoint, files["labels"], Options((60, 76), head="labels"))
    export(tiny_checkpoint, files["batch 3"], Options((60, 76), "fp16", batch=3))
    probabilities(tiny_model, files["probabilities"])
    said_otherwise(tiny_model, files["zscore"], normalisation=Normalisation("zscore"))
    said_otherwise(tiny_model, files["fixed"], normalisation=FIXED)
    for dtype in ("uint8", "uint16"):
        raw_input(tiny_model, files[dtype], dtype)
    return files


@pytest.fixture(scope="session")
def frame(tiny_checkpoint):
    """A raw frame (1, H, W), uint16, of the network's validation set."""
    return tiny_checkpoint.frames[0]


def raw(frame, name):
    """The frame as the export of this name takes it."""
    return (frame >> 4).astype(np.uint8) if name == "uint8" else frame

"""A model that names files outside its folder: nothing is read or written there when it is converted or packaged."""

from itertools import product

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.export.adoption.test_adopt_refusals import choices
from tests.runtime.model_files.small_models import SPEC, convolution, model, outside, tensor, weights
from unetrt.export.adoption import adopt
from unetrt.export.onnx_model import copy_file, with_batch
from unetrt.export.packages import write
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.retiled import retiled

BESIDE = b"a file beside the folder"


def stored_at(location):
    """Weights whose values are in the model, and that say that they are elsewhere: onnx.save writes them there."""
    moved = outside(weights(), location)
    moved.raw_data = weights().raw_data
    return moved


def in_a_function(stored):
    body = [helper.make_node("Constant", [], ["w"], value=stored), helper.make_node("Conv", ["x", "w"], ["y"])]
    opsets = [helper.make_opsetid("", 20)]
    made = model([convolution()], [weights()], functions=[helper.make_function("own", "F", ["x"], ["y"], body, opsets)])
    made.opset_import.add(domain="own", version=1)
    return made


def in_training(stored):
    made = model([convolution()], [weights()])
    made.training_info.add().initialization.initializer.append(stored)
    return made


def in_a_sparse_tensor(stored):
    stored.dims[:] = [2]
    made = model([convolution()], [weights()])
    made.graph.sparse_initializer.append(helper.make_sparse_tensor(stored, tensor("", [0, 1], np.int64), (2, 1, 1, 1)))
    return made


HIDDEN = {
    "an initializer": lambda stored: model([convolution()], [stored]),
    "an attribute": lambda stored: model([helper.make_node("Constant", [], ["weights"], value=stored), convolution()]),
    "an unused list": lambda stored: model([helper.make_node("F", [], ["y"], domain="own", all=[stored])]),
    "a function": in_a_function,
    "training": in_training,
    "a sparse tensor": in_a_sparse_tensor,
}
SAVES = {
    "adopt": lambda path, out: adopt(path, out, choices()),
    "retile": lambda path, out: out.write_bytes(retiled(path, (16, 16), 1)),
    "another batch": lambda path, out: onnx.save(with_batch(path, 2), out),
    "copy": copy_file,
    "triton": lambda path, out: write("triton", path, out, name="cells"),
    "triton, one batch": lambda path, out: write("triton", path, out, name="cells", max_batch_size=0),
    "bioimageio": lambda path, out: write(
        "bioimageio", path, out.with_suffix(".zip"), [np.ones((1, 8, 8), np.float32)], name="cells", authors=("A",)
    ),
}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


LOCATIONS = ("../beside.bin", "inside.bin", "#/../../beside.bin")


@pytest.mark.parametrize(
    ("place", "save", "location"),
    [
        # Each place with each way to save, and each location; the other combinations are slow.
        pytest.param(*one, marks=[] if one[2] == LOCATIONS[0] or one[1] == "copy" else pytest.mark.slow)
        for one in product(HIDDEN, SAVES, LOCATIONS)
    ],
)
def test_nothing_is_written_where_a_model_says(tmp_path, place, save, location):
    folder = tmp_path / "models"
    folder.mkdir()
    (tmp_path / "beside.bin").write_bytes(BESIDE)
    made = HIDDEN[place](stored_at(location))
    if save == "adopt":
        del made.metadata_props[:]
    elif save == "retile":
        helper.set_model_props(
            made, {"unetrt": SPEC.to_json().replace('"network": {}', '"network": {"depth": 1, "base": 2}')}
        )
    (folder / "model.onnx").write_bytes(made.SerializeToString())
    before = contents(tmp_path)
    with pytest.raises(ModelFileError) as caught:
        SAVES[save](folder / "model.onnx", tmp_path / "new")
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_onnx_itself_writes_there(tmp_path):
    """The test above can fail."""
    onnx.save(model([convolution()], [stored_at("inside.bin")]), tmp_path / "model.onnx")
    assert (tmp_path / "inside.bin").read_bytes() == weights().raw_data

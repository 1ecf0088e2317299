import json
from dataclasses import replace

import numpy as np
import onnx
import pytest

from unetrt.export.exporter import Options, export, planned_tile
from unetrt.export.parity import Parity, Thresholds, require
from unetrt.runtime.errors import OptionError, ParityError, TileError
from unetrt.runtime.onnx_file import read_spec
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.spec import HEADS, KEY, PRECISIONS

TILE = (60, 76)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("head", HEADS)
def test_every_precision_and_head(tiny_checkpoint, tmp_path, precision, head):
    path = tmp_path / "model.onnx"
    parity = export(tiny_checkpoint, path, Options(TILE, precision, head, batch=2))
    assert parity.flips <= 2e-3
    assert (parity.max_error is None) == (head == "labels")
    assert list(tmp_path.iterdir()) == [path]
    spec = read_spec(path)
    assert (spec.tile, spec.precision, spec.head, spec.batch) == (TILE, precision, head, 2)
    assert spec.weights_sha256 == tiny_checkpoint.weights_sha256()
    weights = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in onnx.load(path).graph.initializer}
    assert ("FLOAT16" in weights) == (precision == "fp16")


def test_the_graph_is_clean_and_tells_nothing_of_this_machine(tiny_model):
    model = onnx.load(tiny_model)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) < 80
    assert {node.op_type for node in model.graph.node} == {
        "Conv",
        "Relu",
        "MaxPool",
        "ConvTranspose",
        "Slice",
        "Concat",
    }
    assert [entry.key for entry in model.metadata_props] == [KEY]
    assert b"/" + b"site-packages" not in tiny_model.read_bytes()
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_without_a_choice_the_tile_is_planned_for_the_training_frames(tiny_checkpoint):
    tile = planned_tile(tiny_checkpoint)
    assert all(tiny_checkpoint.shape.geometry.is_legal(side) for side in tile)
    large = planned_tile(tiny_checkpoint, [(700, 900)])
    assert large != tile
    with pytest.raises(OptionError, match="give --tile or --frame"):
        planned_tile(replace(tiny_checkpoint, frame_sizes=()))


def _half(net):
    """Spoil a network on its way into the graph: as if the exporter got a weight wrong."""
    with __import__("torch").no_grad():
        net.classify.bias[0] += 1
    return net


def test_a_wrong_export_is_refused_and_leaves_nothing(tiny_checkpoint, tmp_path, monkeypatch):
    from unetrt.export import exporter

    build = exporter.build_graph
    monkeypatch.setattr(exporter, "build_graph", lambda net, spec: build(_half(net), spec))
    with pytest.raises(ParityError, match="does not answer as the network.*a probability differs by") as caught:
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE))
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_that_overflow_in_fp16_are_refused(tiny_checkpoint, tmp_path):
    weights = dict(tiny_checkpoint.weights)
    weights["contracting.0.0.weight"] = weights["contracting.0.0.weight"] * np.float32(1e7)
    loud = replace(tiny_checkpoint, weights=weights)
    with pytest.raises(ParityError, match="fp16 export gives NaN or infinity.*--precision fp32"):
        export(loud, tmp_path / "model.onnx", Options(TILE, "fp16"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("parity", "message"),
    [
        (Parity(1, 100, 0.2, 0.1, 0.0, 1.0), r"differs by 0.2 \(at most 0.1\)$"),
        (Parity(1, 100, 0.0, 0.0, 0.02, 1.0), r"2.000% of the pixels change class \(at most 1.000%\)$"),
        (Parity(1, 100, None, None, 0.0, 0.5), r"IoU 0.5000 \(at least 0.9\)$"),
        (Parity(1, 100, float("nan"), 0.0, 0.0, 1.0), "differs by nan"),
    ],
)
def test_each_threshold_can_be_missed(parity, message):
    with pytest.raises(ParityError, match=message):
        require(parity, Thresholds(error=0.1, flips=0.01, iou=0.9), "it")


def test_an_illegal_tile_and_missing_frames(tiny_checkpoint, tmp_path):
    with pytest.raises(TileError, match="tile 61 is not legal.*use 60 or 64"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options((60, 61)))
    with pytest.raises(OptionError, match="--images"):
        export(replace(tiny_checkpoint, frames=()), tmp_path / "model.onnx", Options(TILE))
    assert list(tmp_path.iterdir()) == []


def test_the_same_raw_frame_gives_the_same_input_in_trainer_and_segmenter(tiny_checkpoint, tiny_model):
    """Bitwise: the trainer normalises whole frames, the segmenter the tiles that it cuts."""
    frame = tiny_checkpoint.frames[0]
    assert frame.dtype == np.uint16
    with Segmenter(tiny_model, backend="numpy") as segmenter:
        seen = segmenter.scores(frame[0])[0]
    np.testing.assert_array_equal(seen, tiny_checkpoint.normalisation(frame)[0])


def test_training_is_told_in_the_file(tiny_model):
    training = json.loads(read_spec(tiny_model).to_json())["training"]
    assert 1 <= training["steps"] <= 12
    assert training["recipe"]["depth"] == 2

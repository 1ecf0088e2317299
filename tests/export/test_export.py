import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from unetrt.export import exporter
from unetrt.export._inspection import tile_batches
from unetrt.export.exporter import Options, export, planned_tile
from unetrt.export.graph import build_graph
from unetrt.runtime.errors import OptionError, TileError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.integrity import DIGEST
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import INPUT, KEY, ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import WorkerSession
from unetrt.trainer.unet import UNet

TILE = (60, 76)


def test_the_graph_is_clean_and_holds_nothing_of_this_machine(tiny_model):
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
    assert [entry.key for entry in model.metadata_props] == [KEY, DIGEST]
    assert b"/" + b"site-packages" not in tiny_model.read_bytes()
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_without_a_choice_the_tile_is_planned_for_the_training_frames(tiny_checkpoint):
    tile = planned_tile(tiny_checkpoint)
    assert all(tiny_checkpoint.shape.geometry.is_legal(side) for side in tile)
    large = planned_tile(tiny_checkpoint, [(700, 900)])
    assert large != tile
    with pytest.raises(OptionError, match="give --tile or --frame"):
        planned_tile(replace(tiny_checkpoint, frame_sizes=()))


def test_an_illegal_tile_and_missing_frames(tiny_checkpoint, tmp_path):
    with pytest.raises(TileError, match="tile 61 is not legal.*use 60 or 64"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options((60, 61)))
    with pytest.raises(OptionError, match="--images"):
        export(replace(tiny_checkpoint, frames=()), tmp_path / "model.onnx", Options(TILE))
    with pytest.raises(OptionError, match=r"batch must be at least 1 \(got 0\)"):
        Options(TILE, batch=0)
    assert list(tmp_path.iterdir()) == []


class Recorder(WorkerSession):
    """A session that records the network's input."""

    def __init__(self, spec):
        super().__init__(spec, "a recorder")
        self.seen = []

    def compute(self, frames, scores):
        self.seen.extend(frames.copy())
        scores[...] = 0


def test_the_same_raw_frame_gives_the_same_input_everywhere(steady, tmp_path):
    """Bitwise in trainer, verification and Segmenter; within 1 ulp in a graph that normalises."""
    checkpoint = steady("uint16")
    export(checkpoint, tmp_path / "model.onnx", Options(TILE, input="uint16"))
    frame, raw = checkpoint.frames[0], read_spec(tmp_path / "model.onnx")
    assert frame.dtype == np.uint16
    spec = replace(raw, input_dtype="float32")

    trained = checkpoint.normalisation(frame)
    cut = [_cut(trained, tile, spec) for tile in spec.plan(frame.shape[-2:])]
    verified = [batch[0] for batch in tile_batches(spec, [frame])]
    with Recorder(spec) as recorder, Segmenter(recorder) as segmenter:
        segmenter.segment(frame[0])
    in_graph = _network_input(onnx.load(tmp_path / "model.onnx"), list(tile_batches(raw, [frame])))
    assert len(cut) > 4
    for expected, *same, graph in zip(cut, verified, recorder.seen, in_graph, strict=True):
        for other in same:
            assert expected.tobytes() == other.tobytes()
        np.testing.assert_array_max_ulp(graph, expected, maxulp=1)


def _cut(frame, tile, spec):
    out = np.empty((spec.channels, *spec.tile), np.float32)
    tile.cut(frame, out)
    return out


def _network_input(model, batches):
    """Return the input of the first convolution in a graph that takes raw pixels."""
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    (value,) = (value for value in model.graph.value_info if value.name == first.input[0])
    model.graph.output.append(value)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return [session.run([value.name], {INPUT: batch})[0][0] for batch in batches]


def test_the_spec_holds_a_summary_of_the_training(tiny_model):
    training = json.loads(read_spec(tiny_model).to_json())["training"]
    assert 1 <= training["steps"] <= 12
    assert training["recipe"]["depth"] == 2


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_the_graph_of_the_paper_has_under_80_nodes_and_static_shapes(precision):
    """With all that can be around the network: raw input, labels, types that are not the network's own."""
    shape = UNetShape(base=2)
    fixed = Normalisation("fixed", offset=(400.0,), scale=(0.001,))
    geometry = {"tile": (188, 204), "halo": shape.geometry.halo, "grid": shape.geometry.grid}
    spec = ModelSpec(**geometry, normalisation=fixed, precision=precision, input_dtype="uint16", head="labels", batch=2)
    model = build_graph(UNet(shape).eval(), spec)
    assert len(model.graph.node) < 80
    named = [node.name for node in model.graph.node if node.op_type in ("Conv", "ConvTranspose")]
    assert len(named) == 23 == len(set(named))
    assert {"contracting.4.2", "up.3", "expanding.0.0", "classify"} <= set(named)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    values = [*inferred.value_info, *inferred.input, *inferred.output]
    assert all(axis.HasField("dim_value") for value in values for axis in value.type.tensor_type.shape.dim)


def test_up_convolutions_keep_their_weights_in_bfloat16(settled_checkpoint):
    model = build_graph(settled_checkpoint.network(), exporter.spec_for(settled_checkpoint, Options(TILE, "bf16")))
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(kept["net.up.0.layer.weight"], settled_checkpoint.weights["up.0.weight"])

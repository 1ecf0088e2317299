import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.export.variants import ALL, PAIRWISE, REST, name, pairs
from unetrt.export import exporter, twins
from unetrt.export.exporter import export, planned_tile
from unetrt.export.graph import build_graph
from unetrt.export.layers import LayerError, exploding
from unetrt.export.options import Options
from unetrt.export.parity import DEFAULTS, Parity, Thresholds
from unetrt.export.quantisation import tile_batches
from unetrt.export.twins import in_float32, with_layers
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.engines.builder import build
from unetrt.runtime.engines.facts import facts_of
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.engines.machine import Machine
from unetrt.runtime.engines.options import BuildOptions
from unetrt.runtime.errors import BackendUnavailableError, FrameError, OptionError, ParityError, TileError
from unetrt.runtime.model_files.onnx_file import read_spec
from unetrt.runtime.normalisation import Normalisation
from unetrt.runtime.plan import TilePlan
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.sessions.worker import WorkerSession
from unetrt.runtime.spec import HEADS, INPUT, KEY, OUTPUT, ModelSpec
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.torch_session import TorchSession
from unetrt.trainer.unet import UNet

TILE = (60, 76)


LOWER = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8"}


@pytest.fixture(scope="session")
def steady(settled_checkpoint):
    """A network for frames of a type, with a normalisation that a graph can do."""

    def of(dtype):
        frames = [draw((96, 110), seed=seed).frame[None] for seed in (7, 8)]
        if dtype == "uint8":
            frames = [(frame // 256).astype(np.uint8) for frame in frames]
        fixed = settled_checkpoint.normalisation.frozen(frames)
        return replace(settled_checkpoint, frames=tuple(frames), normalisation=fixed)

    return of


@pytest.mark.parametrize("options", PAIRWISE, ids=name)
def test_every_pair_of_choices_is_exported_verified_and_built(steady, tmp_path, options):
    prove(steady(options.input), tmp_path, options)


@pytest.mark.slow
@pytest.mark.parametrize("options", REST, ids=name)
def test_every_other_variant_too(steady, tmp_path, options):
    prove(steady(options.input), tmp_path, options)


def prove(checkpoint, folder, options):
    """Export, hold the file against its spec and its network, build a real engine of it."""
    path = folder / "model.onnx"
    parity = export(checkpoint, path, options)
    assert list(folder.iterdir()) == [path]
    assert not parity.misses(DEFAULTS[options.precision])
    spec, model = read_spec(path), onnx.load(path)
    for choice in ("tile", "precision", "head", "batch"):
        assert getattr(spec, choice) == getattr(options, choice)
    assert spec.input_dtype == options.input
    assert spec.weights_sha256 == checkpoint.weights_sha256()
    types = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    assert types & set(LOWER.values()) == {LOWER.get(options.precision)} - {None}
    segment(path, spec, checkpoint)
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no package for this platform")
    facts = facts_of(path, spec, FLAVOURS[1], Machine(os="Linux x86_64"), BuildOptions())
    assert len(build(path, facts)) > 100_000


def segment(path, spec, checkpoint):
    """Use the file as its users do: with ONNX Runtime, where that has the type."""
    frame = checkpoint.frames[0][0]
    if spec.precision == "bf16":
        with pytest.raises(BackendUnavailableError, match="has no bfloat16 convolutions.*unetrt build"):
            Segmenter(path)
        return
    eager = TorchSession(checkpoint.network(), replace(spec, precision="fp32", head="logits", input_dtype="float32"))
    with Segmenter(path) as exported, Segmenter(eager) as network:
        changed = exported.segment(frame).labels != network.segment(frame).labels
    assert changed.mean() <= DEFAULTS[spec.precision].flips


def test_the_pairs_are_all_there():
    assert set().union(*map(pairs, PAIRWISE)) == set().union(*map(pairs, ALL))
    assert len(PAIRWISE) + len(REST) == len(ALL) == 144


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


@pytest.mark.parametrize("layer", ["contracting.0.0", "contracting.2.2", "up.0", "expanding.1.0", "classify"])
def test_a_wrong_weight_is_refused_and_its_layer_named(tiny_checkpoint, tmp_path, monkeypatch, layer):
    """As if the exporter got a layer wrong on its way into the graph."""
    build = exporter.build_graph

    def spoilt(net, spec):
        with torch.no_grad():
            net.get_submodule(layer).bias[0] += 1
        return build(net, spec)

    monkeypatch.setattr(exporter, "build_graph", spoilt)
    wrong = (
        f"does not answer as the network.*a probability differs by.*first layer to go wrong is {layer}, whose output is"
    )
    with pytest.raises(ParityError, match=wrong) as caught:
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE))
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


def loud(checkpoint, layer, following, factor):
    """A network that answers as the checkpoint's does, but with one layer's activations `factor` times as large."""
    weights = dict(checkpoint.weights)
    for part in ("weight", "bias"):
        weights[f"{layer}.{part}"] = weights[f"{layer}.{part}"] * np.float32(factor)
    weights[f"{following}.weight"] = weights[f"{following}.weight"] / np.float32(factor)
    assert max(np.abs(array).max() for array in weights.values()) < 65504  # it is the activations that overflow
    return replace(checkpoint, weights=weights)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("layer", "following", "factor"),
    [
        ("contracting.0.0", "contracting.0.2", 2.0**15),
        ("contracting.2.0", "contracting.2.2", 2.0**16),
        ("expanding.1.0", "expanding.1.2", 2.0**16),
    ],
)
def test_an_overflow_in_fp16_is_refused_and_its_layer_named_and_bf16_passes(
    tiny_checkpoint, tmp_path, layer, following, factor, head
):
    overflowing = loud(tiny_checkpoint, layer, following, factor)
    gone = f"fp16 export .*NaN or infinity at .*first layer to go wrong is {layer}, whose output holds NaN or infinity"
    with pytest.raises(ParityError, match=f"{gone}.*--precision bf16 or fp32 helps"):
        export(overflowing, tmp_path / "model.onnx", Options(TILE, "fp16", head))
    assert list(tmp_path.iterdir()) == []
    export(overflowing, tmp_path / "model.onnx", Options(TILE, "bf16", head))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_an_up_convolution_whose_output_overflows_is_named(tiny_checkpoint, tmp_path):
    weights = dict(tiny_checkpoint.weights)
    for part in ("weight", "bias"):
        weights[f"up.1.{part}"] = weights[f"up.1.{part}"] * np.float32(2.0**18)
    with pytest.raises(ParityError, match="first layer to go wrong is up.1, whose output holds NaN or infinity"):
        export(replace(tiny_checkpoint, weights=weights), tmp_path / "model.onnx", Options(TILE, "fp16"))


@pytest.mark.parametrize(
    ("errors", "named"),
    [
        ([1e-7, 2e-7, 3e-7], None),
        ([1e-4, 5e-4, 2e-3, 9e-3], None),
        ([1e-7, 0.5, 0.9], 1),
        ([1e-7, 1e-2, float("inf")], 1),
        ([1e-5, 1e-4, float("inf")], 2),
    ],
)
def test_the_layer_whose_error_explodes(errors, named):
    layers = [LayerError(str(index), error) for index, error in enumerate(errors)]
    assert exploding(layers, usual=1e-3) == (None if named is None else layers[named])


@pytest.mark.parametrize(
    ("parity", "misses"),
    [
        (Parity(1, 100, 0.1, 0.1, 0.01, 0.9), []),
        (Parity(1, 100, 0.2, 0.1, 0.0, 1.0), ["a probability differs by 0.2 (at most 0.1)"]),
        (Parity(1, 100, 0.0, 0.0, 0.02, 1.0), ["2.00% of the pixels change class (at most 0.01)"]),
        (Parity(1, 100, 0.0, 0.0, 0.0, 0.5), ["the worst class has IoU 0.5000 (at least 0.9)"]),
        (Parity(1, 100, float("nan"), 0.0, 0.0, 1.0), ["a probability differs by nan (at most 0.1)"]),
        (Parity(1, 100, float("nan"), 0.0, 0.0, 1.0, not_finite=7), ["it gives NaN or infinity at 7 of 100 pixels"]),
    ],
)
def test_each_threshold_can_be_missed(parity, misses):
    assert parity.misses(Thresholds(error=0.1, flips=0.01, iou=0.9)) == misses


def test_thresholds_are_those_of_the_precision_or_what_is_given(tiny_checkpoint, tmp_path):
    assert Thresholds.of("int8") == DEFAULTS["int8"]
    strict = Thresholds.of("fp16", max_error=1e-9)
    assert strict == replace(DEFAULTS["fp16"], error=1e-9)
    with pytest.raises(
        ParityError, match=r"differs by .* \(at most 1e-09\); no layer stands out, the error grows evenly"
    ):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE, "fp16"), thresholds=strict)
    for bad in ({"max_error": -1}, {"max_flips": 2}, {"min_iou": float("nan")}):
        with pytest.raises(OptionError, match="use a number from 0 to 1"):
            Thresholds.of("fp32", **bad)


def test_a_labels_head_that_names_another_class_than_its_scores_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    build = exporter.build_graph

    def spoilt(net, spec):
        model = build(net, spec)
        (argmax,) = (node for node in model.graph.node if node.op_type == "ArgMax")
        argmax.op_type = "ArgMin"
        return model

    monkeypatch.setattr(exporter, "build_graph", spoilt)
    monkeypatch.setattr(twins, "BEST", "ArgMin")
    with pytest.raises(ParityError, match="gives another class than its own scores at"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE, head="labels"))
    assert list(tmp_path.iterdir()) == []


def test_a_batch_whose_places_differ_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    """The frame is one tile, so that the other places of the batch hold nothing that is compared."""
    build = exporter.build_graph

    def spoilt(net, spec):
        model = build(net, spec)
        wrong = np.zeros((spec.batch, 1, 1, 1), np.float32)
        wrong[2] = 1
        last = next(node for node in model.graph.node if OUTPUT in node.output)
        last.output[0] = "right"
        model.graph.initializer.append(onnx.numpy_helper.from_array(wrong, "wrong"))
        model.graph.node.append(onnx.helper.make_node("Add", ["right", "wrong"], [OUTPUT]))
        return model

    monkeypatch.setattr(exporter, "build_graph", spoilt)
    one_tile = tiny_checkpoint.frames[0][:, :16, :16]
    with pytest.raises(ParityError, match="answers differently in place 2 of its batch than in place 0"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE, batch=3), frames=[one_tile])
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_says_something_else_of_itself_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    build = exporter.build_graph
    monkeypatch.setattr(exporter, "build_graph", lambda net, spec: build(net, replace(spec, separation_border=9)))
    with pytest.raises(ParityError, match="does not say of itself what it was exported with"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE))


@pytest.mark.parametrize("options", [Options(TILE, "bf16"), Options(TILE, head="labels")])
@pytest.mark.parametrize("called", ["float32.onnx", "scores.onnx", "copies"])
def test_no_name_of_a_file_is_mistaken_for_a_copy(tiny_checkpoint, tmp_path, options, called):
    export(tiny_checkpoint, tmp_path / called, options)
    spec = read_spec(tmp_path / called)
    assert (spec.precision, spec.head) == (options.precision, options.head)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_the_gate_rounds_what_every_operator_gives(settled_checkpoint, precision, dtype):
    spec = exporter.spec_for(settled_checkpoint, Options(TILE, precision))
    tile = next(tile_batches(spec, settled_checkpoint.frames))
    net = settled_checkpoint.network()
    twin, layers = with_layers(in_float32(build_graph(settled_checkpoint.network(), spec)))
    if precision == "bf16":
        layers = {layer: tensor for layer, tensor in layers.items() if not layer.startswith("up")}
    session = onnxruntime.InferenceSession(twin.SerializeToString())
    answers = dict(zip(layers, map(torch.from_numpy, session.run(list(layers.values()), {INPUT: tile})), strict=True))
    assert len(answers) >= 11
    for answer in answers.values():
        assert torch.equal(answer, answer.to(dtype).float())
    with torch.inference_mode():
        first = net.contracting[0][0].to(dtype)(torch.from_numpy(tile).to(dtype)).float()
    assert (answers["contracting.0.0"] == first).float().mean() > 0.95


def test_up_convolutions_keep_their_weights_in_bfloat16(settled_checkpoint):
    model = build_graph(settled_checkpoint.network(), exporter.spec_for(settled_checkpoint, Options(TILE, "bf16")))
    kept = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(kept["net.up.0.layer.weight"], settled_checkpoint.weights["up.0.weight"])


def test_frames_that_show_one_class_prove_nothing_of_what_is_measured_on_them(settled_checkpoint, tmp_path):
    dark = np.full((1, 90, 90), 420, np.uint16)
    dark[0, 0, :2] = 900
    with pytest.raises(OptionError, match="finds one class only|are too few"):
        export(settled_checkpoint, tmp_path / "model.onnx", Options(TILE, "int8"), frames=[dark, dark])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        ([], OptionError, "0 frames are too few to verify an export on: give 1 or more"),
        ([np.zeros((3, 90, 90), np.uint16)], FrameError, "this network takes 1 channels"),
    ],
)
def test_frames_that_do_not_fit(tiny_checkpoint, tmp_path, frames, error, message):
    with pytest.raises(error, match=message):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE), frames=frames)


def test_a_frozen_normalisation_is_not_blamed_for_a_layer(tiny_checkpoint, tmp_path):
    (frame, *_) = tiny_checkpoint.frames
    overflowing = loud(tiny_checkpoint, "contracting.0.0", "contracting.0.2", 2.0**15)
    with pytest.raises(ParityError, match="first layer to go wrong is contracting.0.0"):
        export(
            overflowing, tmp_path / "model.onnx", Options(TILE, "fp16", normalisation="fixed"), frames=[frame, frame]
        )


def test_raw_input_asks_for_constants_and_a_frozen_normalisation_must_pass_the_gate(tiny_checkpoint, tmp_path):
    out, raw = tmp_path / "model.onnx", Options(TILE, input="uint16")
    with pytest.raises(
        OptionError, match=r"--input uint16 .*\(percentile\) is measured on each whole frame: add --norm"
    ):
        export(tiny_checkpoint, out, raw)
    frozen = replace(raw, normalisation="fixed")
    (frame, *_) = tiny_checkpoint.frames
    dim = (frame // 3).astype(np.uint16)
    with pytest.raises(OptionError, match="1 frames are too few to verify on some of them what is measured.*give 2 or"):
        export(tiny_checkpoint, out, frozen, frames=[frame])
    with pytest.raises(OptionError, match="channel 0 of the frames has no contrast"):
        export(tiny_checkpoint, out, frozen, frames=[np.zeros_like(frame), frame])
    with pytest.raises(
        ParityError, match="its normalisation is frozen, which fits frames that are lit alike.*--input float"
    ):
        export(tiny_checkpoint, out, frozen, frames=[frame, dim])
    assert list(tmp_path.iterdir()) == []
    assert export(tiny_checkpoint, out, frozen, frames=[frame, frame[..., ::-1]]).flips == 0
    spec = read_spec(out)
    expected = tiny_checkpoint.normalisation.measure(frame)
    assert spec.normalisation.offset == tuple(expected.offset.tolist())
    assert spec.normalisation.scale == tuple(expected.scale.tolist())
    with pytest.raises(FrameError, match="the image is uint16: this model takes raw uint8 pixels"):
        export(tiny_checkpoint, out, replace(frozen, input="uint8"), frames=[frame, frame])


def test_an_illegal_tile_and_missing_frames(tiny_checkpoint, tmp_path):
    with pytest.raises(TileError, match="tile 61 is not legal.*use 60 or 64"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options((60, 61)))
    with pytest.raises(OptionError, match="--images"):
        export(replace(tiny_checkpoint, frames=()), tmp_path / "model.onnx", Options(TILE))
    with pytest.raises(OptionError, match="a batch of 0 tiles is none"):
        Options(TILE, batch=0)
    assert list(tmp_path.iterdir()) == []


class Recorder(WorkerSession):
    """A session that keeps what the network would be fed."""

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
    cut = [_cut(trained, tile, spec) for tile in TilePlan(frame.shape[-2:], spec.tile, spec.geometry, spec.border)]
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
    """What a graph that takes raw pixels feeds its first convolution."""
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    (value,) = (value for value in model.graph.value_info if value.name == first.input[0])
    model.graph.output.append(value)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return [session.run([value.name], {INPUT: batch})[0][0] for batch in batches]


def test_training_is_told_in_the_file(tiny_model):
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

"""The parity gate refuses a wrong export and names the layer that goes wrong."""

from dataclasses import replace
from datetime import UTC, date, datetime
from hashlib import sha256

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from unetrt._exit_codes import exit_code
from unetrt.export import exporter
from unetrt.export._inspection import LayerError, exploding, in_float32, tile_batches, with_layers
from unetrt.export.exporter import Options, export
from unetrt.export.gate import CEILINGS, DEFAULTS, Parity, Thresholds
from unetrt.export.graph import build_graph
from unetrt.runtime.errors import FrameError, OptionError, ParityError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import HEADS, INPUT, OUTPUT, Decoding

TILE = (60, 76)


@pytest.mark.parametrize(
    "layer",
    [
        "contracting.0.0",
        "up.0",
        "classify",
        pytest.param("contracting.2.2", marks=pytest.mark.slow),
        pytest.param("expanding.1.0", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_weight_is_refused_and_its_layer_named(tiny_checkpoint, tmp_path, monkeypatch, layer):
    """As if the exporter got a layer wrong on its way into the graph."""
    build = exporter.build_graph

    def spoilt(net, spec):
        with torch.no_grad():
            net.get_submodule(layer).bias[0] += 1
        return build(net, spec)

    monkeypatch.setattr(exporter, "build_graph", spoilt)
    wrong = f"differs from that of its network.*a probability differs by.*first wrong layer is {layer}, whose output is"
    with pytest.raises(ParityError, match=wrong) as caught:
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE))
    assert exit_code(caught.value) == 1
    assert list(tmp_path.iterdir()) == []


def loud(checkpoint, layer, following, channels=slice(None)):
    """A network that answers as the checkpoint's does, but with activations of one layer that no float16 can hold.

    Its weights are as large as float16 can hold, and those behind it, for these input channels, as much smaller.
    """
    weights = dict(checkpoint.weights)
    parts = [f"{layer}.weight", f"{layer}.bias"]
    factor = np.float32(65_000 / max(np.abs(weights[part]).max() for part in parts))
    weights |= {part: weights[part] * factor for part in parts}
    behind = weights[f"{following}.weight"].copy()
    behind[:, channels] /= factor
    return replace(checkpoint, weights={**weights, f"{following}.weight": behind})


OVERFLOWING = [
    ("contracting.0.0", "contracting.0.2", slice(None)),
    ("contracting.2.0", "contracting.2.2", slice(None)),
    ("expanding.1.0", "expanding.1.2", slice(None)),
    # Its output is the second half of the next layer's channels, behind the skip.
    ("up.1", "expanding.1.0", slice(4, None)),
]
QUICK_PAIRS = {("contracting.0.0", "logits"), ("up.1", "labels")}


@pytest.mark.parametrize(
    ("layer", "following", "channels", "head"),
    [
        # The first layer and the one before a join, and two heads; all other pairs take minutes.
        pytest.param(*layer, head, marks=[] if (layer[0], head) in QUICK_PAIRS else pytest.mark.slow)
        for layer in OVERFLOWING
        for head in HEADS
    ],
)
def test_an_overflow_in_fp16_is_refused_and_its_layer_named_and_bf16_passes(
    tiny_checkpoint, tmp_path, layer, following, channels, head
):
    overflowing = loud(tiny_checkpoint, layer, following, channels)
    gone = f"fp16 export .*NaN or infinite at .*first wrong layer is {layer}, whose output holds NaN or infinity"
    with pytest.raises(ParityError, match=f"{gone}.*use --precision bf16 or fp32"):
        export(overflowing, tmp_path / "model.onnx", Options(TILE, "fp16", head))
    assert list(tmp_path.iterdir()) == []
    export(overflowing, tmp_path / "model.onnx", Options(TILE, "bf16", head))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


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
        (
            Parity(1, 100, float("nan"), 0.0, 0.0, 1.0, not_finite=7),
            ["its output is NaN or infinite at 7 of 100 pixels"],
        ),
    ],
)
def test_each_threshold_can_be_missed(parity, misses):
    assert parity.misses(Thresholds(error=0.1, flips=0.01, iou=0.9)) == misses


def test_thresholds_are_those_of_the_precision_or_what_is_given(tiny_checkpoint, tmp_path):
    assert Thresholds.of("int8") == DEFAULTS["int8"]
    strict = Thresholds.of("fp16", max_error=1e-9)
    assert strict == replace(DEFAULTS["fp16"], error=1e-9)
    with pytest.raises(
        ParityError, match=r"differs by .* \(at most 1e-09\); no single layer causes the error, which grows gradually"
    ):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE, "fp16"), thresholds=strict)


@pytest.mark.parametrize(
    ("precision", "given", "message"),
    [
        ("fp32", {"max_error": 1}, "--max-error 1 is not a threshold of fp32: use a number from 0 to 0.05$"),
        ("fp32", {"max_flips": 1}, "--max-flips 1 is not a threshold of fp32: use a number from 0 to 0.002$"),
        ("fp32", {"min_iou": 0}, "--min-iou 0 is not a threshold of fp32: use a number from 0.99 to 1$"),
        ("fp16", {"max_error": 0.31}, "--max-error 0.31 .* fp16: use a number from 0 to 0.3$"),
        ("bf16", {"max_flips": 0.03}, "--max-flips 0.03 .* bf16: use a number from 0 to 0.02$"),
        ("int8", {"max_error": 1}, "--max-error 1 .* int8: use a number from 0 to 0.9$"),
        ("int8", {"min_iou": 0.89}, "--min-iou 0.89 .* int8: use a number from 0.9 to 1$"),
        ("int8", {"max_error": -1}, "--max-error -1 .* int8: use a number from 0 to 0.9$"),
        ("int8", {"max_flips": float("inf")}, "--max-flips inf .* int8: use a number from 0 to 0.05$"),
        ("int8", {"min_iou": float("nan")}, "--min-iou nan .* int8: use a number from 0.9 to 1$"),
        ("int8", {"min_iou": 1.1}, "--min-iou 1.1 .* int8: use a number from 0.9 to 1$"),
    ],
)
def test_thresholds_have_ceilings_and_nothing_is_exported_beyond_them(
    tiny_checkpoint, tmp_path, monkeypatch, precision, given, message
):
    monkeypatch.setattr(exporter, "build_graph", None)
    with pytest.raises(OptionError, match=message):
        Thresholds.of(precision, **given)
    short = {name.partition("_")[2]: value for name, value in given.items()}
    frames = [tiny_checkpoint.frames[0]] * 2
    with pytest.raises(OptionError, match=message):
        export(
            tiny_checkpoint,
            tmp_path / "model.onnx",
            Options(TILE, precision),
            frames=frames,
            thresholds=replace(DEFAULTS[precision], **short),
        )
    assert list(tmp_path.iterdir()) == []


def test_ceilings_are_laxer_than_the_defaults_and_never_off():
    for precision, defaults in DEFAULTS.items():
        ceilings = CEILINGS[precision]
        assert defaults.error < ceilings.error < 1
        assert defaults.flips < ceilings.flips < 1
        assert defaults.iou > ceilings.iou > 0


def test_the_file_says_how_it_was_verified(tiny_checkpoint, tmp_path):
    path, frame = tmp_path / "model.onnx", tiny_checkpoint.frames[0]
    lax = Thresholds.of("fp32", max_error=0.01)
    first = datetime.now(UTC).date()
    parity = export(tiny_checkpoint, path, Options(TILE), frames=[frame], thresholds=lax)
    found = read_spec(path).verification
    assert found.measured == {
        "max_error": parity.max_error,
        "mean_error": parity.mean_error,
        "flips": parity.flips,
        "iou": parity.iou,
    }
    assert found.thresholds == {"max_error": 0.01, "flips": 1e-4, "iou": 0.999}
    assert (found.frames, found.pixels) == (1, frame[0].size)
    assert found.frames_sha256 == sha256(f"{frame.shape} uint16".encode() + frame.tobytes()).hexdigest()
    assert first <= date.fromisoformat(found.date) <= datetime.now(UTC).date()
    changed = frame.copy()
    changed[0, 0, 0] += 1
    export(tiny_checkpoint, path, Options(TILE), frames=[changed])
    assert read_spec(path).verification.frames_sha256 != found.frames_sha256


def of_three_classes(checkpoint):
    """The same network with a class more, which is found where none of the others is sure."""
    weights = dict(checkpoint.weights)
    weights["classify.weight"] = np.concatenate([weights["classify.weight"], weights["classify.weight"][:1] / 2])
    weights["classify.bias"] = np.append(weights["classify.bias"], np.float32(0))
    shape, names = replace(checkpoint.shape, classes=3), (*checkpoint.class_names, "other")
    return replace(checkpoint, shape=shape, weights=weights, class_names=names)


@pytest.mark.parametrize(
    ("classes", "operator", "wrong"), [(2, "Less", "Greater"), (3, "ArgMax", "ArgMin")], ids=["two", "three"]
)
def test_a_labels_head_that_names_another_class_than_its_scores_is_refused(
    tiny_checkpoint, tmp_path, monkeypatch, classes, operator, wrong
):
    checkpoint = tiny_checkpoint if classes == 2 else of_three_classes(tiny_checkpoint)
    export(checkpoint, tmp_path / "model.onnx", Options(TILE, head="labels"))
    (tmp_path / "model.onnx").unlink()
    build = exporter.build_graph

    def spoilt(net, spec):
        model = build(net, spec)
        (compares,) = (node for node in model.graph.node if node.op_type == operator)
        compares.op_type = wrong
        return model

    monkeypatch.setattr(exporter, "build_graph", spoilt)
    with pytest.raises(ParityError, match="labels differ from the best class of its scores at"):
        export(checkpoint, tmp_path / "model.onnx", Options(TILE, head="labels"))
    assert list(tmp_path.iterdir()) == []


def test_a_batch_whose_slots_differ_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    """The frame is one tile, so that the other slots of the batch hold nothing that is compared."""
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
    with pytest.raises(ParityError, match="outputs for one tile differ between slot 2 and slot 0"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE, batch=3), frames=[one_tile])
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_another_spec_is_refused(tiny_checkpoint, tmp_path, monkeypatch):
    build = exporter.build_graph
    monkeypatch.setattr(
        exporter, "build_graph", lambda net, spec: build(net, replace(spec, decoding=Decoding("components", 9)))
    )
    with pytest.raises(ParityError, match="the exported file differs from that of the export in decoding"):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE))


@pytest.mark.parametrize(
    ("called", "options"),
    [
        ("float32.onnx", Options(TILE, "bf16")),
        ("scores.onnx", Options(TILE, head="labels")),
        ("copies", Options(TILE, "bf16")),
    ],
)
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


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"precision": "int8"},
        pytest.param({"precision": "fp16"}, marks=pytest.mark.slow),
        pytest.param({"precision": "bf16", "head": "labels"}, marks=pytest.mark.slow),
        pytest.param({"batch": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_constant_answer_is_refused_in_every_export(tiny_checkpoint, tmp_path, options):
    bias = np.array([1e3, 0], np.float32)
    constant = replace(tiny_checkpoint, weights={**tiny_checkpoint.weights, "classify.bias": bias})
    frames = [constant.frames[0], constant.frames[0][..., ::-1]]
    with pytest.raises(OptionError, match="finds a single class on these frames.*give frames that show more"):
        export(constant, tmp_path / "model.onnx", Options(TILE, **options), frames=frames)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("frames", "error", "message"),
    [
        ([], OptionError, "0 frames are too few to verify an export: give 1 or more"),
        ([np.zeros((3, 90, 90), np.uint16)], FrameError, "this network takes 1 channels"),
    ],
)
def test_frames_that_do_not_fit(tiny_checkpoint, tmp_path, frames, error, message):
    with pytest.raises(error, match=message):
        export(tiny_checkpoint, tmp_path / "model.onnx", Options(TILE), frames=frames)


def test_a_frozen_normalisation_is_not_blamed_for_a_layer(tiny_checkpoint, tmp_path):
    (frame, *_) = tiny_checkpoint.frames
    overflowing = loud(tiny_checkpoint, "contracting.0.0", "contracting.0.2")
    with pytest.raises(ParityError, match="first wrong layer is contracting.0.0"):
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
    with pytest.raises(OptionError, match="1 frames are too few to measure constants and verify them.*give 2 or"):
        export(tiny_checkpoint, out, frozen, frames=[frame])
    with pytest.raises(OptionError, match="channel 0 of the frames has no contrast"):
        export(tiny_checkpoint, out, frozen, frames=[np.zeros_like(frame), frame])
    with pytest.raises(
        ParityError, match="its normalisation is frozen, which suits frames of equal illumination.*--input float"
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

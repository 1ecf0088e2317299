"""What `adopt` takes an output for follows from its values, whatever operators compute them."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.export.adoption.foreign_nets import CASES, save
from tests.export.adoption.test_adopt import whole_pass
from tests.export.adoption.test_adopt_refusals import BOTH, MASK, TWICE, choices, write
from unetrt.export.adoption import adopt
from unetrt.runtime.errors import ModelFileError, OptionError
from unetrt.runtime.model.onnx_file import bundled_path, read_spec
from unetrt.runtime.model.spec import HEADS
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter

ONE, PLAIN = "float[n, 1, h, w] mask", "float[n, h, w] mask"
AXIS = {"one": np.array([1], np.int64)}
# 1 / (1 + exp(-z)), and the same through tanh: no operator is called Sigmoid.
BY_EXP = "m = Neg(z) e = Exp(m) d = Add(e, unit) p = Reciprocal(d)"
BY_TANH = "a = Mul(z, half) t = Tanh(a) b = Add(t, unit) p = Mul(b, half)"
UNIT = {"unit": np.float32(1)}
HALF = {**UNIT, "half": np.float32(0.5)}
TWO = (1, 2, 1, 1)
WEIGHTS = {"k": np.array([1, -0.3], np.float32).reshape(2, 1, 1, 1), "c": np.array([0.5, 0.1], np.float32)}
SIGMOIDS = "z = Conv(image, k, c) mask = Sigmoid(z)"
DISTANCES = {"k": np.ones((2, 1, 1, 1), np.float32), "c": np.array([9, 7], np.float32)}

# One output -> the head that is refused and why, and the head that is accepted (None: neither is).
JUDGED = {
    "float labels without an axis of channels": (
        {"body": "z = Conv(image, k, c) i = ArgMax<axis = 1, keepdims = 0>(z) mask = Cast<to = 1>(i)",
         "answer": PLAIN, **WEIGHTS}, "probabilities labels", {"logits": "use --head labels"},
    ),
    "scores without an axis of channels": (
        {"body": "mask = Squeeze(image, one)", "answer": PLAIN, **AXIS}, "logits",
        {"labels": "is one channel of scores, no labels: use --head logits", "probabilities": "use --head logits"},
    ),
    "probabilities without an axis of channels": (
        {"body": "p = Sigmoid(image) mask = Squeeze(p, one)", "answer": PLAIN, **AXIS}, "probabilities",
        {"labels": "is one channel of scores, no labels: use --head probabilities",
         "logits": "use --head probabilities"},
    ),
    "a sigmoid of exp": (
        {"body": f"z = Identity(image) {BY_EXP} mask = Identity(p)", "answer": ONE, **UNIT}, "probabilities",
        {"logits": "all lie between 0 and 1.*use --head probabilities", "labels": "use --head probabilities"},
    ),
    "a sigmoid of tanh": (
        {"body": f"z = Identity(image) {BY_TANH} mask = Identity(p)", "answer": ONE, **HALF}, "probabilities",
        {"logits": "use --head probabilities", "labels": "use --head probabilities"},
    ),
    "a mask of 0 and 1": (
        {"body": "z = Greater(image, low) mask = Cast<to = 1>(z)", "answer": ONE, "low": np.float32(0)},
        "labels probabilities", {"logits": "use --head labels or --head probabilities"},
    ),
    "a mask of 0 and 255": (
        {"body": "z = Greater(image, low) y = Cast<to = 1>(z) mask = Mul(y, most)", "answer": ONE,
         "low": np.float32(0), "most": np.float32(255)}, "",
        {"labels": "has label 255, 2 classes", "logits": "reaches from 0 to 255", "probabilities": "from 0 to 255"},
    ),
    "a tanh": (
        {"body": "mask = Tanh(image)", "answer": ONE}, "",
        {"logits": "lies between -1 and 1, as a tanh", "probabilities": "lies between -1 and 1, as a tanh"},
    ),
    "distances": (
        {"body": "mask = Relu(image)", "answer": ONE}, "",
        {"logits": "never negative", "probabilities": "never negative", "labels": "never negative"},
    ),
    "the logarithm of a sigmoid": (
        {"body": "p = Softplus(image) mask = Neg(p)", "answer": ONE}, "",
        {"logits": "never above 0, as logarithms of probabilities", "probabilities": "never above 0"},
    ),
    "what noise does not change": (
        {"body": "z = Sub(image, image) mask = Add(z, half)", "answer": ONE, "half": np.float32(0.5)}, "",
        dict.fromkeys(HEADS, "is 0.5 for every image.*cannot be told: .*--head labels.*--head logits or --head prob"),
    ),
    "two sigmoids": (
        {"body": SIGMOIDS, **WEIGHTS}, "",
        dict.fromkeys(HEADS, "each of its 2 channels lies between 0 and 1, and they do "
                      "not sum to 1.*before the sigmoid.*--head logits.*one channel.*--head probabilities"),
    ),
    "a probability and a distance": (
        {"body": "p = Sigmoid(image) x = Abs(image) mask = Concat<axis = 1>(p, image)"}, "",
        dict.fromkeys(HEADS, "channel 0 lies between 0 and 1, channel 1 reaches from "),
    ),
    "distances along rays": (
        {"body": "z = Conv(image, k, c) mask = Softplus(z)", **DISTANCES}, "",
        dict.fromkeys(HEADS, "never negative"),
    ),
    "the logarithm of a soft-max": (
        {"body": "z = Conv(image, k, c) mask = LogSoftmax<axis = 1>(z)", **WEIGHTS}, "logits labels",
        {"probabilities": "use --head logits"},
    ),
    "a soft-max": (
        {"body": "z = Conv(image, k, c) mask = Softmax<axis = 1>(z)", **WEIGHTS}, "probabilities labels",
        {"logits": "use --head probabilities"},
    ),
    "a soft-max by hand": (
        {"body": "z = Conv(image, k, c) m = ReduceMax(z, one) d = Sub(z, m) e = Exp(d) s = ReduceSum(e, one) "
         "mask = Div(e, s)", **WEIGHTS, **AXIS},
        "probabilities labels", {"logits": "use --head probabilities"},
    ),
    "negative labels": (
        {"body": "i = Cast<to = 7>(image) mask = Min(i, one)", "answer": "int64[n, 1, h, w] mask",
         "one": np.int64(1)}, "", {"labels": "has label -"},
    ),
    "a label that overflows a byte": (
        {"body": "i = Cast<to = 9>(image) j = Cast<to = 7>(i) mask = Mul(j, most)",
         "answer": "int64[n, 1, h, w] mask", "most": np.int64(256)}, "", {"labels": "has label 256"},
    ),
    "whole numbers in two channels": (
        {"body": f"b = {BOTH[7:]} mask = Cast<to = 7>(b)", "answer": "int64[n, 2, h, w] mask"}, "",
        {"labels": "has 2 channels of whole numbers", "logits": "has 2 channels of whole numbers"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", JUDGED)
def test_the_head_is_judged_by_values(tmp_path, name):
    graph, accepted, refused = JUDGED[name]
    path = write(tmp_path / "net.onnx", **graph)
    for head, message in refused.items():
        with pytest.raises(OptionError, match=message) as caught:
            adopt(path, tmp_path / "model.onnx", choices(head=head))
        assert "\n" not in str(caught.value)
        assert [left.name for left in tmp_path.iterdir()] == ["net.onnx"]
    for head in accepted.split()[:1]:
        assert adopt(path, tmp_path / "model.onnx", choices(head=head)).spec.head == head


@pytest.mark.slow
@pytest.mark.parametrize("name", JUDGED)
def test_other_heads_that_the_values_fit_are_accepted(tmp_path, name):
    graph, accepted, _ = JUDGED[name]
    path = write(tmp_path / "net.onnx", **graph)
    for head in accepted.split()[1:]:
        assert adopt(path, tmp_path / "model.onnx", choices(head=head)).spec.head == head


def test_scores_without_an_axis_of_channels_are_those_of_a_network_with_one(tmp_path):
    """(N, H, W) is one channel: the foreground's, and no label map."""

    class Squeezed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(CASES["bilinear"].network(), nn.Conv2d(2, 1, 1))

        def forward(self, x):
            return self.net(x)[:, 0]

    net = Squeezed().eval()
    image = np.random.default_rng(3).standard_normal((140, 116)).astype(np.float32)
    with torch.no_grad():
        net.net[1].bias -= net(torch.from_numpy(image[None, None])).median()
    adoption = adopt(save(net, tmp_path / "net.onnx"), tmp_path / "model.onnx", choices())
    with Segmenter(tmp_path / "model.onnx") as segmenter:
        labels, scores = segmenter.segment(image).labels, segmenter.scores(image)
    expected = whole_pass(net.net, image, adoption.spec.halo, CASES["bilinear"])
    np.testing.assert_allclose(scores[1] - scores[0], expected[0], rtol=0, atol=1e-5)
    assert 0.2 < (labels == 1).mean() < 0.8


RANDOM = {
    "dropout in training mode": (
        "x = Dropout(image, ratio, training)", {"ratio": np.float32(0.01), "training": np.array(True)}, "Dropout",
    ),
    "dropout with a seed": (
        "x = Dropout<seed = 3>(image, ratio, training)",
        {"ratio": np.float32(0.5), "training": np.array(True)}, "Dropout",
    ),
    "noise of the tile's size": (
        "n = RandomNormalLike<scale = 0.000001>(image) x = Add(image, n)", {}, "RandomNormalLike",
    ),
    "noise of one size": (
        "n = RandomNormal<shape = [1, 1, 64, 64], scale = 0.000001>() x = Add(image, n)", {}, "RandomNormal",
    ),
    "uniform noise": ("n = RandomUniformLike(image) x = Add(image, n)", {}, "RandomUniformLike"),
    "coins": ("p = Sigmoid(image) x = Bernoulli(p)", {}, "Bernoulli"),
    "noise in a branch": (
        "n = If(yes) <then_branch = t () => (float[1, 1, 64, 64] y) "
        "{ y = RandomNormal<shape = [1, 1, 64, 64], scale = 0.000001>() }, "
        "else_branch = e () => (float[1, 1, 64, 64] y) { y = RandomNormal<shape = [1, 1, 64, 64]>() }> "
        "x = Add(image, n)",
        {"yes": np.array(True)}, "RandomNormal",
    ),
    "drawn classes": (
        "s = Shape(image) f = Reshape(image, row) d = Multinomial<sample_size = 4096>(f) c = Cast<to = 1>(d) "
        "x = Reshape(c, s)", {"row": np.array([1, -1])}, "Multinomial",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "operator"), RANDOM.values(), ids=RANDOM)
def test_a_random_answer_is_refused(tmp_path, body, weights, operator):
    path = write(tmp_path / "net.onnx", f"{body} {TWICE}", **weights)
    with pytest.raises(ModelFileError, match=f"net.onnx: {operator} .*draws at random.*net.eval()"):
        adopt(path, tmp_path / "model.onnx", choices())
    assert [left.name for left in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("head", ["logits", "labels"])
def test_dropout_of_a_network_exported_in_training_mode_is_refused(tmp_path, head):
    net = nn.Sequential(CASES["fcn"].network(), nn.Dropout(0.5), nn.Conv2d(2, 2, 1)).train()
    with pytest.raises(ModelFileError, match="draws at random"):
        adopt(save(net, tmp_path / "net.onnx", training=True), tmp_path / "model.onnx", choices(head=head))
    assert adopt(save(net.eval(), tmp_path / "net.onnx"), tmp_path / "model.onnx", choices(head=head))


@pytest.mark.parametrize("channels", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_logits_of_a_network_that_has_learnt_are_accepted(tmp_path, channels):
    """What a trained network answers to noise and to constants is far from random weights: mostly background."""
    model, spec = onnx.load(bundled_path("nuclei")), read_spec(bundled_path("nuclei"))
    del model.metadata_props[:]
    classes = spec.classes
    if channels == 1:
        core_over_background = np.array([-1, 0, 1], np.float32).reshape(1, 3, 1, 1)
        model.graph.initializer.append(onnx.numpy_helper.from_array(core_over_background, "weights"))
        model.graph.node.append(onnx.helper.make_node("Conv", [model.graph.output[0].name, "weights"], ["logit"]))
        del model.graph.output[:]
        model.graph.output.append(onnx.helper.make_tensor_value_info("logit", 1, ["n", 1, "h", "w"]))
        classes = ("background", "nuclei")
    onnx.save(model, tmp_path / "net.onnx")
    chosen = choices(classes=classes, normalisation=spec.normalisation, tile=(124, 124))
    assert adopt(tmp_path / "net.onnx", tmp_path / "model.onnx", chosen).spec.head == "logits"


def test_the_noise_that_judges_a_network_of_probabilities_does_not_overflow_it(tmp_path):
    """A soft-max by hand is NaN for large values: frames that the network cannot compute are left out."""
    body = "z = Mul(image, half) e = Exp(z) r = Reciprocal(e) s = Add(e, r) a = Div(e, s) b = Div(r, s) "
    path = write(
        tmp_path / "net.onnx", f"{body} mask = Concat<axis = 1>(b, a)", answer=MASK, half=np.float32(0.5),
    )  # fmt: skip
    chosen = choices(head="probabilities", normalisation=Normalisation("zscore"))
    assert adopt(path, tmp_path / "model.onnx", chosen).spec.head == "probabilities"

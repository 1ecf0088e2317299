"""Refusals of `adopt`, each shown by the smallest graph that causes it."""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from tests.export.adoption.foreign_nets import CASES, save
from unetrt.export.adoption import Choices, adopt
from unetrt.runtime.errors import (
    ModelFileError,
    OptionError,
    OutputError,
    ParityError,
    TileError,
    UnetrtError,
)
from unetrt.runtime.pixels.normalisation import Normalisation

IMAGE, MASK = "float[n, 1, h, w] image", "float[n, 2, h, w] mask"


def write(path: Path, body: str, given: str = IMAGE, answer: str = MASK, opset: int = 18, **weights) -> Path:
    """Write a graph given in onnx's text form; `weights` become its constants."""
    text = f'<ir_version: 8, opset_import: ["": {opset}]> net ({given}) => ({answer}) {{ {body} }}'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items())
    onnx.save(model, path)
    return path


def choices(**changed) -> Choices:
    fixed = Normalisation("fixed", offset=(0,), scale=(1,))
    defaults = {"classes": ("background", "cell"), "normalisation": fixed, "head": "logits", "tile": (64, 64)}
    return Choices(**defaults | changed)


TWICE = "mask = Concat<axis = 1>(x, image)"
ONES = np.ones((1, 1, 3, 3), np.float32)
# What sees the whole image: graph, constants, the operator that is named.
GLOBAL = {
    "instance norm": ("x = InstanceNormalization(image, s, s)", {"s": np.ones(1, np.float32)}, "InstanceNormalization"),
    "squeeze and excite": (
        "p = GlobalAveragePool(image) c = Conv(p, k) s = Sigmoid(c) x = Mul(image, s)",
        {"k": ONES[..., :1, :1]},
        "GlobalAveragePool",
    ),
    "a mean over space": (
        "p = ReduceMean(image, a) x = Sub(image, p)", {"a": np.array([2, 3])}, "ReduceMean",
    ),
    "attention": (
        "q = Reshape(image, s) t = Transpose<perm = [0, 2, 1]>(q) a = MatMul(t, q) b = Softmax(a) "
        "v = MatMul(b, t) u = Transpose<perm = [0, 2, 1]>(v) n = Shape(image) x = Reshape(u, n)",
        {"s": np.array([0, 1, -1])},
        "Softmax",
    ),
    "a soft-max over rows": ("x = Softmax<axis = 2>(image)", {}, "Softmax"),
    "group norm": (
        "i = InstanceNormalization(image, s, s) x = Relu(i)", {"s": np.ones(1, np.float32)}, "InstanceNormalization",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "weights", "operator"), GLOBAL.values(), ids=GLOBAL)
def test_what_sees_the_whole_image_is_refused_by_name(tmp_path, body, weights, operator):
    path = write(tmp_path / "net.onnx", f"{body} {TWICE}", **weights)
    with pytest.raises(
        ModelFileError, match=f"net.onnx: {operator} .* sees the whole image.* no halo makes tiles exact"
    ):
        adopt(path, tmp_path / "model.onnx", choices())
    assert list(tmp_path.iterdir()) == [path]


def test_normalisation_over_channels_sees_one_pixel(tmp_path):
    body = (
        "a = Abs(image) c = Concat<axis = 1>(image, a) t = Transpose<perm = [0, 2, 3, 1]>(c) "
        "l = LayerNormalization<axis = -1>(t, s) mask = Transpose<perm = [0, 3, 1, 2]>(l)"
    )
    path = write(tmp_path / "net.onnx", body, s=np.ones(2, np.float32))
    field = adopt(path, tmp_path / "model.onnx", choices()).field
    assert (field.radius, field.grid) == (0, 1)


def kernel(*weights: float) -> np.ndarray:
    return np.array(weights, np.float32).reshape(1, 1, 1, -1)


# A kernel of 7 columns and what follows it -> the radius that noise would not show.
HIDDEN = {
    "a dead ReLU": (kernel(1, 1, 1, 1, 1, 1, 1), "b = Sub(c, big) x = Relu(b)", 3),
    "a tiny weight at the rim": (kernel(1e-30, 0, 0, 1, 0, 0, 0), "x = Identity(c)", 3),
    "channels that cancel": (kernel(1, 1, 1, 1, 1, 1, 1), "t = Concat<axis = 1>(c, c) x = Conv(t, against)", 3),
    "weights that are zero": (kernel(0, 0, 1, 1, 0, 0, 0), "x = Identity(c)", 1),
    "a cubic upsampling": (
        kernel(0, 0, 0, 1, 0, 0, 0),
        "d = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(c) "
        'x = Resize<mode = "cubic", coordinate_transformation_mode = "half_pixel">(d, , two)',
        4,  # an output pixel at 2i reads i - 2 ... i + 1 of the half image, from 2i - 4 on
    ),
}


@pytest.mark.parametrize(("weights", "rest", "radius"), HIDDEN.values(), ids=HIDDEN)
def test_what_noise_does_not_show_is_measured(tmp_path, weights, rest, radius):
    constants = {"big": np.float32(1e9), "two": np.array([1, 1, 2, 2], np.float32)}
    constants["against"] = np.array([1, -1], np.float32).reshape(1, 2, 1, 1)
    used = {name: array for name, array in constants.items() if name in rest}
    body = f"c = Conv<pads = [0, 3, 0, 3]>(image, k) {rest} {TWICE}"
    path = write(tmp_path / "net.onnx", body, k=weights, **used)
    assert adopt(path, tmp_path / "model.onnx", choices()).field.radius == radius


BOTH = "mask = Concat<axis = 1>(image, image)"
SPOILT = {
    "two inputs": (
        {"body": "mask = Concat<axis = 1>(image, b)", "given": f"{IMAGE}, float[n, 1, h, w] b"}, {},
        ModelFileError, r"has 2 inputs \(image, b\): export it with one image as input",
    ),
    "two outputs": (
        {"body": f"{BOTH} deep = Relu(mask)", "answer": f"{MASK}, float[n, 2, h, w] deep"}, {},
        ModelFileError, r"has 2 outputs \(mask \(n, 2, h, w\), deep \(n, 2, h, w\)\): choose one with --output mask",
    ),
    "three axes": (
        {"body": "mask = Relu(image)", "given": "float[1, h, w] image", "answer": "float[1, h, w] mask"}, {},
        ModelFileError, r"its input image has axes \[1, 'h', 'w'\]: it must be \(batch, channels, H, W\)",
    ),
    "an output that does not exist": (
        {"body": BOTH}, {"output": "deep"},
        OptionError, r"has no output 'deep': choose one of mask \(n, 2, h, w\)",
    ),
    "integers in": (
        {"body": f"f = Cast<to = 1>(image) {BOTH.replace('image', 'f')}", "given": "int32[n, 1, h, w] image"}, {},
        ModelFileError, "its input is int32: export it for float32 or float16, normalised outside, or for raw uint8",
    ),
    "bytes in, normalised to less than one": (
        {"body": f"f = Cast<to = 1>(image) {BOTH.replace('image', 'f')}", "given": "uint8[n, 1, h, w] image"},
        {"normalisation": Normalisation("percentile")},
        OptionError, "takes grey values as whole numbers from 0 to 255, but normalisation percentile .*use fixed:0:1",
    ),
    "an open channel count": (
        {"body": BOTH, "given": "float[n, c, h, w] image"}, {}, ModelFileError, "export it with a fixed channel count",
    ),
    "an old opset": ({"body": BOTH, "opset": 9}, {}, ModelFileError, "is of opset 9, 11 is the oldest"),
    "an operator of unknown reach": (
        {"body": f"x = CumSum(image, a) {TWICE}", "a": np.int64(2)}, {},
        ModelFileError, "CumSum .* is not among the operators whose reach is known here",
    ),
    "corners that are aligned": (
        {
            "body": "d = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(image) x = Resize<mode = "
            f'"linear", coordinate_transformation_mode = "align_corners">(d, , two) {TWICE}',
            "two": np.array([1, 1, 2, 2], np.float32),
        }, {}, ModelFileError, "Resize .* samples with align_corners.*align_corners=False",
    ),
    "half the size": (
        {"body": f"x = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(image) {BOTH.replace('image', 'x')}",
         "answer": "float[n, 2, a, b] mask"}, {},
        ModelFileError, "outputs 64x64 px for 128x128 px: the output must be as large as the input",
    ),
    "an odd margin": (
        {"body": f"x = MaxPool<kernel_shape = [2, 2]>(image) {BOTH.replace('image', 'x')}",
         "answer": "float[n, 2, a, b] mask"}, {}, ModelFileError, "outputs 63x63 px for 64x64 px",
    ),
    "three classes for two": (
        {"body": BOTH}, {"classes": ("a", "b", "c")},
        OptionError, "3 classes are named, the output has 2 channels: name 2, background first",
    ),
    "three classes for one": (
        {"body": "mask = Relu(image)", "answer": "float[n, 1, h, w] mask"}, {"classes": ("a", "b", "c")},
        OptionError, "3 classes are named, the output has 1 channels: name two, background first, for one",
    ),
    "labels that are scores": (
        {"body": "mask = Identity(image)", "answer": "float[n, 1, h, w] mask"}, {"head": "labels"},
        OptionError, "is one channel of scores, no labels",
    ),
    "scores that are labels": (
        {"body": f"s = {BOTH[7:]} mask = ArgMax<axis = 1>(s)", "answer": "int64[n, 1, h, w] mask"}, {},
        OptionError, "has one label a pixel, no scores: use --head labels",
    ),
    "logits that are probabilities": (
        {"body": "a = Abs(image) s = Concat<axis = 1>(image, a) mask = Softmax<axis = 1>(s)"}, {},
        OptionError, "is probabilities, which sum to 1 at each pixel: use --head probabilities",
    ),
    "probabilities that are logits": (
        {"body": BOTH}, {"head": "probabilities"}, OptionError, "do not sum to 1 at each pixel; use --head logits",
    ),
    "a label that is not named": (
        {"body": "i = Cast<to = 7>(image) a = Abs(i) mask = Min(a, nine)", "answer": "int64[n, 1, h, w] mask",
         "nine": np.int64(9)}, {"head": "labels"}, OptionError, "has label 9, 2 classes are named: name all",
    ),
    "scores that never change": (
        {"body": f"x = Mul(image, zero) {BOTH.replace('image', 'x')}", "zero": np.float32(0)}, {},
        OptionError, "the output is 0 for every image of noise, so its head cannot be told",
    ),
    "labels that never change": (
        {"body": "i = Cast<to = 7>(image) mask = Mul(i, zero)", "answer": "int64[n, 1, h, w] mask",
         "zero": np.int64(0)}, {"head": "labels"}, ParityError, "same at every pixel.*whose output is the scores",
    ),
    "no tile": ({"body": BOTH}, {"tile": None}, OptionError, "takes images of any size: choose one with --tile"),
    "a grid that is half the period": (
        {"body": f"d = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(image) x = Resize(d, , four) {TWICE}",
         "four": np.array([1, 1, 4, 4], np.float32)}, {"grid": 2},
        OptionError, "grid 2 is not a period of this network, whose lattice repeats every 4 px: use --grid 4",
    ),
    "a grid that is not a multiple": (
        {"body": f"d = MaxPool<kernel_shape = [4, 4], strides = [4, 4]>(image) x = Resize(d, , four) {TWICE}",
         "four": np.array([1, 1, 4, 4], np.float32)}, {"grid": 3},
        OptionError, "grid 3 is not a period .*: use --grid 4",
    ),
    "constants as large as the tile": (
        {"body": f"x = Add(image, p) {TWICE}", "p": np.random.default_rng(0).random((1, 1, 64, 64), np.float32)},
        {"grid": 4}, ParityError, "tiles differ by .* constants of the tile",
    ),
    "one size and no grid": (
        {"body": f"x = Add(image, p) {TWICE}", "p": np.zeros((1, 1, 64, 64), np.float32)}, {},
        OptionError, "runs on one size only, so that its grid cannot be measured: give --grid",
    ),
    "one size, another tile": (
        {"body": f"x = Add(image, p) {TWICE}", "p": np.zeros((1, 1, 64, 64), np.float32),
         "given": "float[1, 1, 64, 64] image", "answer": "float[1, 2, 64, 64] mask"}, {"tile": (96, 96)},
        TileError, "does not run on 1 x 96x96 px: .*the file is fixed to 64x64: use --tile 64x64",
    ),
    "a core that shows nothing": (
        {"body": f"x = Add(image, p) {TWICE}", "p": np.zeros((1, 1, 64, 64), np.float32)}, {"grid": 16, "halo": 24},
        TileError, "is too small: cores of tiles 16 px apart do not overlap",
    ),
    "one size and a grid that is too large": (
        {"body": f"x = Add(image, p) {TWICE}", "p": np.zeros((1, 1, 64, 64), np.float32)}, {"grid": 64},
        TileError, "runs on 64x64 px only, too small to see where the influence of a pixel ends",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("graph", "changed", "kind", "message"), SPOILT.values(), ids=SPOILT)
def test_one_line_says_why_and_nothing_is_left(tmp_path, graph, changed, kind, message):
    path = write(tmp_path / "net.onnx", **graph)
    with pytest.raises(kind, match=message) as caught:
        adopt(path, tmp_path / "new" / "model.onnx", choices(**changed))
    assert isinstance(caught.value, UnetrtError)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_of_one_size_is_compared_with_itself(tmp_path):
    """Where no larger image can be computed, neighbouring tiles must agree with each other."""
    path = write(
        tmp_path / "net.onnx", f"c = Conv<pads = [1, 1, 1, 1]>(image, k) x = Add(c, p) {TWICE}",
        k=ONES, p=np.zeros((1, 1, 64, 64), np.float32),
    )  # fmt: skip
    adoption = adopt(path, tmp_path / "model.onnx", choices(grid=1))
    assert (adoption.field.radius, adoption.reference) == (1, "each other")


def test_weights_stored_quantised(tmp_path):
    constants = {"k": np.ones((2, 1, 3, 3), np.int8), "s": np.float32(0.1), "z": np.int8(0)}
    body = (
        "w = DequantizeLinear(k, s, z) q = QuantizeLinear(image, s, z) x = DequantizeLinear(q, s, z) "
        "mask = Conv<pads = [1, 1, 1, 1]>(x, w)"
    )
    path = write(tmp_path / "net.onnx", body, opset=17, **constants)
    adoption = adopt(path, tmp_path / "model.onnx", choices())
    assert (adoption.spec.precision, adoption.field.radius) == ("int8", 1)


def test_external_data_are_read_from_the_files_folder_only(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside.onnx"
    inside.mkdir()
    model = onnx.load(save(CASES["fcn"].network(), outside))
    onnx.save(model, inside / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert (inside / "net.data").stat().st_size
    spec = adopt(inside / "net.onnx", inside / "model.onnx", choices()).spec
    assert spec.weights_sha256 == adopt(outside, inside / "whole.onnx", choices()).spec.weights_sha256
    (inside / "net.data").rename(tmp_path / "net.data")
    with pytest.raises(ModelFileError, match="net.onnx: tensor .*net.data, which cannot be read"):
        adopt(inside / "net.onnx", inside / "model.onnx", choices())
    evil = onnx.load(inside / "net.onnx", load_external_data=False)
    for tensor in evil.graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../net.data" if entry.key == "location" else entry.value
    (inside / "evil.onnx").write_bytes(evil.SerializeToString())
    with pytest.raises(ModelFileError, match="evil.onnx: tensor .*net.data"):
        adopt(inside / "evil.onnx", inside / "model.onnx", choices())


def test_files_that_are_no_foreign_network(tmp_path):
    foreign, ours = write(tmp_path / "foreign.onnx", BOTH), tmp_path / "ours.onnx"
    adopt(foreign, ours, choices())
    with pytest.raises(ModelFileError, match="ours.onnx is a model of unetrt already: nothing to adopt"):
        adopt(ours, tmp_path / "model.onnx", choices())
    with pytest.raises(ModelFileError, match="none.onnx does not exist"):
        adopt(tmp_path / "none.onnx", tmp_path / "model.onnx", choices())
    (tmp_path / "text.onnx").write_text("no network")
    with pytest.raises(ModelFileError, match="text.onnx is not a whole ONNX file"):
        adopt(tmp_path / "text.onnx", tmp_path / "model.onnx", choices())
    path = write(tmp_path / "net.onnx", BOTH)
    with pytest.raises(OutputError, match="net.onnx is read for this, and would be overwritten"):
        adopt(path, path, choices())


class Drifting(nn.Module):
    """A constant that grows along the tile: little over one grid period, much over a core."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 2, 3, padding=1)
        self.register_buffer("drift", share * torch.linspace(-1, 1, 64)[None, None, :, None])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.01 * (self.layer(x) + torch.cat([self.drift, -self.drift], 1))


@pytest.mark.parametrize("share", [0.003, 0.1])
def test_a_constant_as_large_as_the_tile_is_seen_however_small_the_answers_are(tmp_path, share):
    path = save(Drifting(share).eval(), tmp_path / "net.onnx", open_axes=False)
    with pytest.raises(ParityError, match="tiles differ by .* of the output's range"):
        adopt(path, tmp_path / "model.onnx", choices(grid=1))
    assert [left.name for left in tmp_path.iterdir()] == ["net.onnx"]


TO_SIZE = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
WINDOWS = (
    "s = Shape(image) h = Slice(s, two, three) w = Slice(s, three, four) hb = Div(h, win) wb = Div(w, win) "
    "t = Concat<axis = 0>(one, one, hb, win, wb, win) r = Reshape(image, t) m = ReduceMean(r, ax) d = Sub(r, m) "
    "x = Reshape(d, s) mask = Concat<axis = 1>(x, image)"
)
WINDOWS_OF_8 = {
    name: np.array(value, np.int64)
    for name, value in {"one": [1], "two": [2], "three": [3], "four": [4], "win": [8], "ax": [3, 5]}.items()
}
# Networks whose inner axes do not show their lattice, or hardly: body, weights, tile, grid, radius.
LATTICES = {
    "windows of 8": (WINDOWS, WINDOWS_OF_8, (128, 128), 8, 7),
    "stride 3, back to the size": (
        "p = AveragePool<kernel_shape = [3, 3], strides = [3, 3]>(image) s = Shape(image) "
        f"a = Resize<{TO_SIZE}>(p, , , s) mask = Concat<axis = 1>(a, image)",
        {}, (192, 192), 3, 3,
    ),
    "stride 128, back to the size": (
        "p = AveragePool<kernel_shape = [128, 128], strides = [128, 128]>(image) s = Shape(image) "
        f"a = Resize<{TO_SIZE}>(p, , , s) mask = Concat<axis = 1>(a, image)",
        {}, (640, 640), 128, 127,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LATTICES)
def test_the_lattice_is_found_where_axes_do_not_tell_it(tmp_path, name):
    body, constants, tile, grid, radius = LATTICES[name]
    path = write(tmp_path / "net.onnx", body, opset=18, **constants)
    adoption = adopt(path, tmp_path / "model.onnx", choices(tile=tile))
    assert (adoption.field.grid, adoption.field.radius) == (grid, radius)


RAMP = np.linspace(-1, 1, 64, dtype=np.float32)[None, None, :, None].repeat(64, 3)
HIDDEN = {
    "the rest of the batch": (
        "m = ReduceMean(image, zero) h = Mul(m, half) x = Sub(image, h) mask = Concat<axis = 1>(x, image)",
        {"zero": np.array([0], np.int64), "half": np.float32(0.5)}, {"batch": 2}, "or on the other tiles of the batch",
    ),
    "what only grey values wake": (
        "a = Sub(image, dark) r = Relu(a) y = Mul(r, ramp) x = Add(y, image) mask = Concat<axis = 1>(x, image)",
        {"dark": np.float32(200), "ramp": RAMP}, {"grid": 1}, "tiles differ by",
    ),
    "labels that noise leaves alone": (
        "y = Add(image, ramp) a = Sub(y, bright) z = Sub(image, image) mask = Concat<axis = 1>(z, a)",
        {"bright": np.float32(1e6), "ramp": 1e5 * RAMP}, {"grid": 1, "head": "labels"}, "tiles differ by",
    ),
    "a sigmoid behind a cast": (
        "h = Cast<to = 10>(image) g = Sigmoid(h) mask = Cast<to = 1>(g)", {}, {}, "use --head probabilities",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HIDDEN)
def test_what_is_easily_overlooked_is_refused(tmp_path, name):
    body, constants, changed, message = HIDDEN[name]
    answer = MASK if constants else "float[n, 1, h, w] mask"
    path = write(tmp_path / "net.onnx", body, answer=answer, opset=18, **constants)
    with pytest.raises((ParityError, OptionError), match=message):
        adopt(path, tmp_path / "model.onnx", choices(**changed))
    assert [left.name for left in tmp_path.iterdir()] == ["net.onnx"]


def test_an_answer_that_lies_beside_its_place_is_refused(tmp_path):
    body = "x = Conv<kernel_shape = [3, 5], pads = [0, 2, 0, 0]>(image, w) mask = Concat<axis = 1>(x, x)"
    path = write(tmp_path / "net.onnx", body, opset=18, w=np.ones((1, 1, 3, 5), np.float32))
    with pytest.raises(ModelFileError, match="crops 2 px unevenly at both ends of an axis: its output lies -?1 px off"):
        adopt(path, tmp_path / "model.onnx", choices())

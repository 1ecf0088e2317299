"""Networks that see the whole image: refused, unless the user accepts tiles that differ, of which each load warns."""

import json
import logging

import numpy as np
import onnx
import pytest
import tifffile
import torch
from torch import nn

from tests.export.adoption.foreign_nets import CASES, PaddedUNet, save
from tests.export.adoption.test_adopt_refusals import TWICE, choices, write
from unetrt.__main__ import main
from unetrt.export.adoption import adopt
from unetrt.runtime.errors import ModelFileError, OptionError, TileError, UnetrtError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import Approximation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import open_session


class Squeezed(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018) of the grey values in front of a network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.excite = net, nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.net(x * torch.sigmoid(self.excite(x.mean((2, 3), keepdim=True))))


def instance_normalised() -> nn.Module:
    net = CASES["transposed"].network()
    net.first[1] = nn.InstanceNorm2d(4, affine=True)  # the default of nnU-Net and MONAI
    return net


def aligned() -> nn.Module:
    torch.manual_seed(1)
    return PaddedUNet(lambda _: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)).eval()


# Network, and the cause that the spec holds.
NETWORKS = {
    "instance norm": (instance_normalised, "InstanceNormalization '.*' sees the whole image"),
    "squeeze and excite": (lambda: Squeezed(CASES["bilinear"].network()), "'.*' sees the whole image"),
    "aligned corners": (aligned, "Resize '.*' samples with align_corners"),
}


def frame(height: int = 140, width: int = 116) -> np.ndarray:
    """A frame that is brighter on the right, so that statistics of a tile are not those of the frame."""
    random = np.random.default_rng(5).standard_normal((1, height, width))
    return (random + 3 * np.linspace(0, 1, width) ** 2).astype(np.float32)


def balanced(net: nn.Module) -> nn.Module:
    """Return the network with a bias for which half of the frame's pixels are foreground."""
    last = [layer for layer in net.modules() if isinstance(layer, nn.Conv2d) and layer.out_channels == 2][-1]
    with torch.no_grad():
        scores = net(torch.from_numpy(frame()[None]))[0]
        last.bias[1] -= (scores[1] - scores[0]).median()
    return net.eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_disagreement_with_one_pass_is_measured_and_stored(tmp_path, name, caplog):
    make, cause = NETWORKS[name]
    net, image = balanced(make()), frame()
    path = save(net, tmp_path / "net.onnx")
    with pytest.raises(ModelFileError, match=f"net.onnx: .*{cause}.*no halo makes tiles exact.*--approximate OVERLAP$"):
        adopt(path, tmp_path / "model.onnx", choices())
    adoption = adopt(path, tmp_path / "model.onnx", choices(approximate=16, batch=2), lambda _channels: [image, image])
    spec = read_spec(tmp_path / "model.onnx")
    assert spec == adoption.spec
    assert (spec.halo, spec.grid, spec.core, spec.approximate.frames) == (16, 4, (32, 32), 2)
    assert adoption.field is None
    with Segmenter(tmp_path / "model.onnx") as segmenter, torch.no_grad():
        tiled = segmenter.segment(image[0]).labels
    with torch.no_grad():  # the frame's sides are multiples of the grid: one pass needs no mirrored pixel
        whole = net(torch.from_numpy(image[None]))[0].argmax(0).numpy()
    assert 0.001 < (tiled != whole).mean() < 0.5
    assert spec.approximate.disagreement == pytest.approx((tiled != whole).mean(), abs=2 / whole.size)
    (warned,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert f"model.onnx: tiles are approximate, as {spec.approximate.cause}: " in warned
    assert [left.name for left in tmp_path.iterdir() if left.suffix != ".onnx"] == []


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    """A file whose network sees the whole image."""
    return save(balanced(instance_normalised()), tmp_path_factory.mktemp("foreign") / "net.onnx")


def large(_channels):
    return [frame()]


REFUSED = {
    "no images": ({"approximate": 16}, None, OptionError, "is measured on raw frames: give some with --images"),
    "images alone": ({}, large, OptionError, "--images are for --approximate OVERLAP"),
    "a halo too": ({"approximate": 16, "halo": 8}, large, OptionError, "--approximate 16 takes the place of --halo 8"),
    "off the lattice": (
        {"approximate": 18}, large, OptionError,
        "overlap 18 puts tiles off the lattice.*lattice of 4 px.*use --approximate 16 or 20",
    ),
    "images within a core": (
        {"approximate": 16}, lambda _channels: [frame(32, 20)], OptionError,
        "show no seam, as each fits into one tile's core of 32x32 px: give larger --images, or use a smaller --tile",
    ),
    "no image": ({"approximate": 16}, lambda _channels: [], OptionError, "show no seam"),
    "no core": ({"approximate": 32}, large, TileError, "tile 64 is not legal for halo 32"),
    "another grid": ({"approximate": 18, "grid": 6}, large, OptionError, "grid 6 is not a period"),
    "another head": (
        {"approximate": 16, "head": "probabilities"}, large, OptionError, "use --head logits",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("changed", "frames", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_one_line_says_why_and_nothing_is_left(net, tmp_path, changed, frames, kind, message):
    with pytest.raises(kind, match=message) as caught:
        adopt(net, tmp_path / "model.onnx", choices(**changed), frames)
    assert isinstance(caught.value, UnetrtError)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_can_be_exact_is_never_approximate(tmp_path):
    path = save(CASES["fcn"].network(), tmp_path / "net.onnx")
    with pytest.raises(OptionError, match="net.onnx is tiled exactly with halo 12: leave out --approximate"):
        adopt(path, tmp_path / "model.onnx", choices(approximate=8), large)
    spec = adopt(path, tmp_path / "model.onnx", choices()).spec
    assert spec.approximate is None
    assert "approximate" not in json.loads(spec.to_json())


def test_a_network_of_one_size_cannot_be_compared(tmp_path):
    body = f"p = GlobalAveragePool(image) c = Sub(image, p) x = Add(c, tile) {TWICE}"
    path = write(tmp_path / "net.onnx", body, tile=np.zeros((1, 1, 64, 64), np.float32))
    with pytest.raises(TileError, match="net.onnx runs on one size only, so its tiles cannot be compared"):
        adopt(path, tmp_path / "model.onnx", choices(approximate=16, grid=1), large)


def test_every_command_says_that_tiles_are_approximate(net, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    tifffile.imwrite("images/a.tif", frame()[0])
    options = "--tile 64 --normalisation fixed:0:1 --classes background,cell --head logits"
    told = ["adopt", str(net), *options.split(), "--approximate", "16"]
    assert main([*told, "--images", "none"]) == 2
    assert "none does not exist" in capfd.readouterr().err
    assert not (tmp_path / "model.onnx").exists()
    assert main([*told, "--images", "images"]) == 0
    sentence = str(read_spec("model.onnx").approximate)
    assert f"the grid is 4 px; {sentence}\n" in capfd.readouterr().out
    assert "% of the pixels of 1 frame had another class in tiles than in one pass" in sentence
    assert main(["info", "model.onnx"]) == 0
    assert f"warning            {sentence}\n" in capfd.readouterr().out
    assert main(["info", "model.onnx", "--json"]) == 0
    stored = json.loads(capfd.readouterr().out)
    assert (stored["warning"], stored["approximate"]["frames"]) == (sentence, 1)


def test_each_session_that_is_opened_warns(net, tmp_path, caplog):
    adopt(net, tmp_path / "model.onnx", choices(approximate=16), large)
    for backend in ("auto", "onnxruntime", "numpy"):
        caplog.clear()
        open_session(tmp_path / "model.onnx", backend).close()
        assert "tiles are approximate" in caplog.text


def test_what_a_file_says_of_its_tiles_is_checked(net, tmp_path):
    adopt(net, tmp_path / "model.onnx", choices(approximate=16), large)
    model = onnx.load(tmp_path / "model.onnx")
    for name, value, message in (
        ("disagreement", 1.5, "approximate.disagreement: expected `float` <= 1"),
        ("frames", 0, "approximate.frames: expected `int` >= 1"),
        ("cause", "\x1b[31m", "invalid cause '.x1b"),
    ):
        stored = json.loads(model.metadata_props[0].value)
        stored["approximate"][name] = value
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        changed.metadata_props[0].value = json.dumps(stored)
        onnx.save(changed, tmp_path / "changed.onnx")
        with pytest.raises(ModelFileError, match=message):
            read_spec(tmp_path / "changed.onnx")
    with pytest.raises(OptionError, match=r"disagreement must be 0 to 1 \(got nan\)"):
        Approximation("x", float("nan"), 1)


def test_a_network_without_padding_is_compared_with_one_pass_over_the_mirrored_frame(tmp_path):
    """Its output is smaller than its input, so that one pass over the frame needs mirrored pixels around it."""
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(1, 4, 5), nn.InstanceNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 5)).eval()
    path, image = save(net, tmp_path / "net.onnx"), frame()
    with pytest.raises(OptionError, match=r"the network crops 4 px .*: use --approximate 4$"):
        adopt(path, tmp_path / "model.onnx", choices(approximate=2), large)
    spec = adopt(path, tmp_path / "model.onnx", choices(approximate=8), large).spec
    with Segmenter(tmp_path / "model.onnx") as segmenter, torch.no_grad():
        tiled = segmenter.segment(image[0]).labels
        whole = net(torch.from_numpy(np.pad(image[None], ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")))[0]
    expected = (tiled != whole.argmax(0).numpy()).mean()
    assert 0 < expected == pytest.approx(spec.approximate.disagreement, abs=2 / tiled.size)

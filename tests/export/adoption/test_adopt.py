"""A foreign network, adopted, is tiled exactly: measured radius, refused halos, stitched against one pass."""

import json

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.export.adoption.foreign_nets import CASES, Case, save
from unetrt.export.adoption import Choices, _foreign, adopt
from unetrt.export.adoption._foreign import read_foreign
from unetrt.runtime.errors import OptionError, TileError
from unetrt.runtime.model.integrity import is_intact
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter

IDENTITY = Normalisation("fixed", offset=(0,), scale=(1,))
CLASSES = ("background", "cell")
FRAME = (140, 116)  # more than two tiles, a multiple of every grid


def choices(**changed) -> Choices:
    defaults = {"classes": CLASSES, "normalisation": IDENTITY, "head": "logits", "tile": (64, 80)}
    return Choices(**defaults | changed)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


def scores(net: nn.Module, image: np.ndarray) -> np.ndarray:
    """Return the network's scores (classes, h, w) for one image (H, W), in one pass."""
    with torch.no_grad():
        return net(torch.from_numpy(image[None, None]).to(next(net.parameters()).dtype))[0].float().numpy()


def whole_pass(net: nn.Module, image: np.ndarray, halo: int, case: Case, border: str = "reflect") -> np.ndarray:
    """One pass over an image with its borders mirrored by hand, cut to the image."""
    more = -(2 * halo) % case.grid  # so that the mirrored image is legal too
    answer = scores(net, np.pad(image, (halo, halo + more), mode=border))
    first = halo - case.margin // 2
    return answer[:, first : first + image.shape[0], first : first + image.shape[1]]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """All networks, exported."""
    folder = tmp_path_factory.mktemp("foreign")
    return {name: save(case.network(), folder / f"{name}.onnx") for name, case in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_the_measured_radius_is_the_derived_one_and_one_less_is_refused(files, tmp_path, name):
    case = CASES[name]
    adoption = adopt(files[name], tmp_path / "model.onnx", choices())
    assert (adoption.field.radius, adoption.field.grid) == (case.radius, case.grid)
    assert adoption.field.margin == (case.margin, case.margin)
    assert adoption.spec.halo == adoption.field.halo >= case.radius
    assert adoption.reference == "one pass over a larger image"
    before = (tmp_path / "model.onnx").read_bytes()
    small = f"halo {case.radius - 1} is too small: .* up to {case.radius} px away; use --halo {adoption.field.halo}$"
    with pytest.raises(OptionError, match=small):
        adopt(files[name], tmp_path / "model.onnx", choices(halo=case.radius - 1))
    assert (tmp_path / "model.onnx").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize(
    ("name", "aligned"),
    [
        *((name, True) for name in CASES),
        *((name, False) for name in ("bilinear", "unpadded")),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in CASES if name not in ("bilinear", "unpadded")),
    ],
)
def test_stitched_tiles_are_one_pass_over_the_whole_frame(files, tmp_path, name, aligned):
    case, image = CASES[name], noise(*FRAME)
    adoption = adopt(files[name], tmp_path / "model.onnx", choices(halo=None if aligned else case.radius, batch=2))
    with Segmenter(tmp_path / "model.onnx") as segmenter:
        stitched = segmenter.scores(image)
    net = case.network()
    np.testing.assert_allclose(stitched, whole_pass(net, image, adoption.spec.halo, case), rtol=0, atol=1e-5)
    if aligned and not case.margin:
        bare = scores(net, image)
        inside = (slice(None), *(slice(case.radius, -case.radius),) * 2)
        np.testing.assert_allclose(stitched[inside], bare[inside], rtol=0, atol=1e-5)
        assert np.abs(stitched - bare).max() > 1e-3  # zeros beyond the frame are no mirror


def test_the_graph_for_a_size_is_made_once_and_given_as_a_copy(files, monkeypatch):
    foreign = read_foreign(files["fcn"])
    first = foreign.at((64, 80))
    made = first.SerializeToString()
    del first.graph.node[:]
    monkeypatch.setattr(_foreign, "_folded", None)
    assert foreign.at((64, 80)).SerializeToString() == made


@pytest.mark.parametrize("name", CASES)
def test_noise_reaches_as_far_as_the_footprint(name):
    """The radius is not too large: pixels that far away do change the answer, in float64."""
    case = CASES[name]
    net, middle, side = case.network().double(), 64, 128
    random = torch.Generator().manual_seed(0)
    farthest = 0
    for line in range(middle, middle + case.grid):
        image = torch.randn(8, 1, side, 32, generator=random, dtype=torch.float64)
        other = image.clone()
        other[:, :, line] += torch.randn(8, 1, 32, generator=random, dtype=torch.float64)
        with torch.no_grad():
            changed = (net(image) != net(other)).any(dim=(0, 1, 3)).nonzero()[:, 0] + case.margin // 2
        farthest = max(farthest, int((changed - line).abs().max()))
    assert farthest == case.radius


def test_a_sigmoid_of_one_channel_becomes_two_classes(tmp_path):
    case = CASES["bilinear"]
    net = nn.Sequential(case.network(), nn.Conv2d(2, 1, 1), nn.Sigmoid()).eval()
    image = noise(*FRAME)
    net[1].bias.data -= float(np.median(scores(net[:2], image)))
    path = save(net, tmp_path / "foreign.onnx")
    with pytest.raises(OptionError, match="between 0 and 1, as probabilities: use --head probabilities"):
        adopt(path, tmp_path / "p.onnx", choices())
    adoption = adopt(path, tmp_path / "p.onnx", choices(head="probabilities", border="symmetric"))
    with Segmenter(tmp_path / "p.onnx") as segmenter:
        result = segmenter.segment(image, probabilities=True)
    expected = whole_pass(net, image, adoption.spec.halo, case, "symmetric")[0]
    np.testing.assert_allclose(result.probabilities[1], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, rtol=0, atol=1e-6)
    assert set(np.unique(result.labels)) == {0, 1}

    logits = save(net[:2], tmp_path / "logits.onnx")
    adopt(logits, tmp_path / "z.onnx", choices(border="symmetric"))
    with Segmenter(tmp_path / "z.onnx") as segmenter:
        same = segmenter.segment(image, probabilities=True)
    np.testing.assert_allclose(same.probabilities, result.probabilities, rtol=0, atol=1e-5)


def test_labels_are_the_best_of_the_scores(tmp_path):
    case, image = CASES["fcn"], noise(*FRAME)
    net = case.network()
    path = save(net, tmp_path / "foreign.onnx")
    spec = adopt(path, tmp_path / "best.onnx", choices(head="labels")).spec
    expected = whole_pass(net, image, spec.halo, case).argmax(axis=0)
    with Segmenter(tmp_path / "best.onnx") as segmenter:
        assert (segmenter.segment(image).labels == expected).mean() > 0.9999
    assert heads(tmp_path / "best.onnx") == {"Less"}

    class Argmax(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x).argmax(dim=1)

    adopt(save(Argmax(), tmp_path / "argmax.onnx"), tmp_path / "labels.onnx", choices(head="labels"))
    with Segmenter(tmp_path / "labels.onnx") as segmenter:
        assert (segmenter.segment(image).labels == expected).mean() > 0.9999


def heads(path):
    """What compares the classes in a file."""
    return {node.op_type for node in onnx.load(path).graph.node} & {"ArgMax", "Less"}


def test_labels_of_three_classes_are_the_best_of_the_scores(tmp_path):
    case, image, names = CASES["fcn"], noise(*FRAME), (*CLASSES, "rim")
    net = nn.Sequential(case.network(), nn.Conv2d(2, 3, 1)).eval()
    net[1].bias.data -= torch.from_numpy(scores(net, image).mean(axis=(1, 2)))
    spec = adopt(save(net, tmp_path / "f.onnx"), tmp_path / "m.onnx", choices(head="labels", classes=names)).spec
    assert heads(tmp_path / "m.onnx") == {"ArgMax"}
    with Segmenter(tmp_path / "m.onnx") as segmenter:
        labels = segmenter.segment(image).labels
    assert (labels == whole_pass(net, image, spec.halo, case).argmax(axis=0)).mean() > 0.9999
    assert set(np.unique(labels)) == {0, 1, 2}


def test_fp16_is_fed_and_answers_in_float32(tmp_path):
    case, image = CASES["fcn"], noise(*FRAME)
    net = case.network().half()
    spec = adopt(save(net, tmp_path / "half.onnx"), tmp_path / "model.onnx", choices()).spec
    assert spec.precision == "fp16"
    with Segmenter(tmp_path / "model.onnx") as segmenter:
        stitched = segmenter.scores(image)
    np.testing.assert_allclose(stitched, whole_pass(net.float(), image, spec.halo, case), rtol=0, atol=2e-3)


def test_a_file_fixed_to_its_size(tmp_path):
    """Exporters fix the size unless axes are declared open; the graph is still measured on other sizes."""
    path = save(CASES["transposed"].network(), tmp_path / "fixed.onnx", open_axes=False)
    adoption = adopt(path, tmp_path / "model.onnx", choices(tile=None))
    assert adoption.spec.tile == (64, 64)
    assert adoption.field.radius == CASES["transposed"].radius


def test_the_spec_holds_the_choices(files, tmp_path):
    spec = adopt(
        files["fcn"], tmp_path / "model.onnx",
        choices(batch=3, border="symmetric", annotation="classes", separation_border=2, normalisation=Normalisation()),
    ).spec  # fmt: skip
    assert read_spec(tmp_path / "model.onnx") == spec
    assert (spec.batch, spec.border, spec.annotation, spec.decoding.reach) == (3, "symmetric", "classes", 2)
    assert (spec.normalisation, spec.precision, spec.network) == (Normalisation(), "fp32", {})
    assert spec.training == {"adopted_from": "fcn.onnx"}
    assert len(spec.weights_sha256) == 64
    model = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.key for entry in model.metadata_props] == ["unetrt", "unetrt_sha256"]
    assert is_intact(tmp_path / "model.onnx")
    found = spec.verification
    assert (found.reference, found.thresholds) == ("one pass over a larger image", {"difference": 1e-4})
    assert 0 <= found.measured["difference"] <= 1e-4
    assert not any(node.doc_string for node in model.graph.node)
    assert str(tmp_path) not in json.dumps(json.loads(spec.to_json()))


def test_remarks_on_halos_that_could_be_better(files, tmp_path):
    case = CASES["fcn"]
    assert adopt(files["fcn"], tmp_path / "m.onnx", choices()).remarks == ()
    (larger,) = adopt(files["fcn"], tmp_path / "m.onnx", choices(halo=20)).remarks
    assert "halo 20 is larger than needed: --halo 12 is exact too" in larger
    assert case.radius % case.grid
    (off,) = adopt(files["fcn"], tmp_path / "m.onnx", choices(halo=case.radius)).remarks
    assert "equals that pass only with --halo 12" in off


def test_a_tile_that_is_too_small_for_the_halo_names_the_next(files, tmp_path):
    with pytest.raises(TileError, match=r"tile 24 is not legal for halo 12 and grid 4 .*: use 28"):
        adopt(files["fcn"], tmp_path / "model.onnx", choices(tile=(24, 24)))
    with pytest.raises(TileError, match=r"tile 66x66 does not run \(multiples of 4 are legal\): use --tile 68x68"):
        adopt(files["bilinear"], tmp_path / "model.onnx", choices(tile=(66, 66)))
    assert list(tmp_path.iterdir()) == []


def test_several_channels_share_or_name_their_constants(tmp_path):
    net = nn.Conv2d(3, 2, 3, padding=1)
    path = save(net, tmp_path / "rgb.onnx", channels=3)
    one = adopt(
        path, tmp_path / "model.onnx", choices(normalisation=Normalisation("fixed", offset=(5,), scale=(2,)))
    ).spec
    assert (one.normalisation.offset, one.normalisation.scale) == ((5, 5, 5), (2, 2, 2))
    with pytest.raises(OptionError, match="2 offsets, the network 3 channels: give one each"):
        adopt(path, tmp_path / "m.onnx", choices(normalisation=Normalisation("fixed", offset=(5, 6), scale=(2, 2))))

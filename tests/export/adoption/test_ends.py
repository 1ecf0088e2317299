"""Networks with other ends than one (N, C, H, W) of floats each: several outputs, channels last, raw grey values."""

import warnings

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.export.adoption.foreign_nets import CASES
from tests.export.adoption.test_adopt import noise, whole_pass
from tests.export.adoption.test_adopt_refusals import IMAGE, choices, write
from unetrt.export.adoption import adopt
from unetrt.runtime.errors import OptionError, TileError
from unetrt.runtime.segment.segmenter import Segmenter

CASE = CASES["bilinear"]


def save(net, path, given, outputs=("mask",), last=False):
    """Export with all axes but the channels open."""
    places = {0: "n", 1: "h", 2: "w"} if last else {0: "n", 2: "h", 3: "w"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (given,), path, input_names=["image"], output_names=list(outputs), dynamo=False, opset_version=17,
            dynamic_axes=dict.fromkeys(("image", *outputs), places),
        )  # fmt: skip
    return path


class ChannelsLast(nn.Module):
    """Takes (N, H, W, C), as networks of Keras do; the output has channels last, or not."""

    def __init__(self, turned: bool) -> None:
        super().__init__()
        self.net, self.turned = CASE.network(), turned

    def forward(self, x):
        answer = self.net(x.permute(0, 3, 1, 2))
        return answer.permute(0, 2, 3, 1) if self.turned else answer


@pytest.mark.parametrize(
    ("turned", "open_axes"),
    [
        (True, False),
        (False, True),
        pytest.param(True, True, marks=pytest.mark.slow),
        pytest.param(False, False, marks=pytest.mark.slow),
    ],
)
def test_channels_that_come_last_are_turned_in_the_graph(tmp_path, turned, open_axes):
    image = noise(140, 116)
    path = save(ChannelsLast(turned).eval(), tmp_path / "net.onnx", torch.zeros(1, 64, 64, 1), last=True)
    if not open_axes:
        model = onnx.load(path)
        for dim in model.graph.input[0].type.tensor_type.shape.dim[1:3]:
            dim.dim_value = 64
        onnx.save(model, path)
    adoption = adopt(path, tmp_path / "model.onnx", choices(tile=(64, 80), batch=2))
    assert adoption.field.radius == CASE.radius
    with Segmenter(tmp_path / "model.onnx") as segmenter:
        stitched = segmenter.scores(image)
    expected = whole_pass(CASE.network(), image, adoption.spec.halo, CASE)
    np.testing.assert_allclose(stitched, expected, rtol=0, atol=1e-5)


class Raw(nn.Module):
    """Takes grey values as they are stored, and normalises them itself."""

    def __init__(self, rest: nn.Module) -> None:
        super().__init__()
        self.rest = rest

    def forward(self, x):
        return self.rest(x.float() / 255 - 0.5)


@pytest.mark.parametrize("by_cast", [True, False])
def test_raw_grey_values_are_taken_as_the_frame_has_them(tmp_path, by_cast):
    """Frames of 8 bits enter as they are; those of 16 bits are scaled, rounded and clipped, and never wrap around."""
    net = nn.Conv2d(1, 2, 1)
    given = torch.zeros(1, 1, 64, 64, dtype=torch.uint8)
    path = save(Raw(net).eval(), tmp_path / "net.onnx", given)
    if not by_cast:  # the raw values take another way than through a cast alone
        model = onnx.load(path)
        (cast,) = (node for node in model.graph.node if node.op_type == "Cast")
        cast.input[0] = "same"
        model.graph.node.insert(0, onnx.helper.make_node("Identity", ["image"], ["same"]))
        onnx.save(model, path)
    adopt(path, tmp_path / "model.onnx", choices())
    casts = [node for node in onnx.load(tmp_path / "model.onnx").graph.node if node.op_type == "Cast"]
    assert [cast.attribute[0].i for cast in casts if cast.attribute[0].i == 2] == ([] if by_cast else [2])
    random = np.random.default_rng(0)
    for frame in (random.integers(0, 256, (70, 90), np.uint8), random.integers(0, 4096, (70, 90), np.uint16)):
        with Segmenter(tmp_path / "model.onnx") as segmenter, torch.no_grad():
            expected = net(torch.from_numpy(frame.clip(0, 255)[None, None].astype(np.float32)) / 255 - 0.5)[0].numpy()
            np.testing.assert_allclose(segmenter.scores(frame), expected, rtol=0, atol=1e-6)


def test_raw_grey_values_with_channels_last(tmp_path):
    """Three colours of 8 bits, as networks of Keras take them."""

    class Colours(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Conv2d(3, 2, 3, padding=1)

        def forward(self, x):
            return self.net(x.float().permute(0, 3, 1, 2) / 255).permute(0, 2, 3, 1)

    net, given = Colours(), torch.zeros(1, 64, 64, 3, dtype=torch.uint8)
    spec = adopt(save(net, tmp_path / "net.onnx", given, last=True), tmp_path / "model.onnx", choices()).spec
    assert (spec.channels, spec.halo, len(spec.normalisation.offset)) == (3, 1, 3)
    frame = np.random.default_rng(0).integers(0, 256, (3, 70, 90), np.uint8)
    with Segmenter(tmp_path / "model.onnx") as segmenter, torch.no_grad():
        expected = net(torch.from_numpy(frame[None].transpose(0, 2, 3, 1)))[0].permute(2, 0, 1).numpy()
        inside = (slice(None), slice(1, -1), slice(1, -1))
        np.testing.assert_allclose(segmenter.scores(frame)[inside], expected[inside], rtol=0, atol=1e-6)


class TwoOutputs(nn.Module):
    """The mask behind another output, which is made from it."""

    def __init__(self) -> None:
        super().__init__()
        self.mask, self.rest = CASE.network(), nn.InstanceNorm2d(2)

    def forward(self, x):
        mask = self.mask(x)
        return self.rest(mask), mask


def test_one_of_several_outputs_is_chosen_and_the_rest_is_left_out(tmp_path):
    """What the other output needs, here an operator that sees the whole image, does not matter."""
    image = noise(140, 116)
    path = save(TwoOutputs().eval(), tmp_path / "net.onnx", torch.zeros(1, 1, 64, 64), ("deep", "mask"))
    adoption = adopt(path, tmp_path / "model.onnx", choices(output="mask"))
    assert "InstanceNormalization" not in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    with Segmenter(tmp_path / "model.onnx") as segmenter:
        stitched = segmenter.scores(image)
    np.testing.assert_allclose(stitched, whole_pass(CASE.network(), image, adoption.spec.halo, CASE), rtol=0, atol=1e-5)
    with pytest.raises(OptionError, match=r"has no output 'masks': choose one of deep \(n, 2, h, w\), mask \(n, 2, h"):
        adopt(path, tmp_path / "m.onnx", choices(output="masks"))


def test_an_input_of_another_output_only_does_not_matter(tmp_path):
    path = write(
        tmp_path / "net.onnx", "mask = Concat<axis = 1>(image, image) deep = Relu(b)",
        given=f"{IMAGE}, float[n, 1, h, w] b", answer="float[n, 2, h, w] mask, float[n, 1, h, w] deep",
    )  # fmt: skip
    assert adopt(path, tmp_path / "model.onnx", choices(output="mask")).field.radius == 0


@pytest.mark.parametrize(("factor", "tile", "near"), [(3, 64, 66), (7, 64, 70), (6, 64, 66), (4, 66, 68)])
def test_any_grid_is_found_and_advised(tmp_path, factor, tile, near):
    """A network whose sides must be a multiple of any number, not only of a power of two."""
    body = (
        f"d = AveragePool<kernel_shape = [{factor}, {factor}], strides = [{factor}, {factor}]>(image) "
        "u = Resize(d, , factors) x = Add(u, image) mask = Concat<axis = 1>(x, image)"
    )
    path = write(tmp_path / "net.onnx", body, factors=np.array([1, 1, factor, factor], np.float32))
    rule = rf"tile {tile}x{tile} does not run \(multiples of {factor} are legal\): use --tile {near}x{near}"
    with pytest.raises(TileError, match=rule):
        adopt(path, tmp_path / "model.onnx", choices(tile=(tile, tile)))
    adoption = adopt(path, tmp_path / "model.onnx", choices(tile=(near, near)))
    assert (adoption.field.grid, adoption.reference) == (factor, "one pass over a larger image")

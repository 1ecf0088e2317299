"""The claim that everything rests on: stitched tiles are the whole-image pass."""

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.conftest import small_spec
from unetrt.runtime.geometry.plan import BORDERS, Geometry
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.trainer.torch_session import TorchSession
from unetrt.trainer.unet import UNet

CLOSE = 1e-4


@st.composite
def cases(draw):
    depth = draw(st.integers(1, 4))
    geometry = Geometry.unet(depth)
    usable = geometry.side_for(geometry.grid)
    tile = tuple(usable + geometry.grid * draw(st.integers(0, 4)) for _ in range(2))
    size = tuple(draw(st.integers(1, 3 * geometry.core(side) + 7)) for side in tile)
    return {
        "depth": depth,
        "base": draw(st.integers(1, 6)),
        "tile": tile,
        "size": size,
        "border": draw(st.sampled_from(BORDERS)),
        "batch": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 99)),
    }


@contextmanager
def segmenter(case, tile, **fields):
    """A segmenter with a random network in torch, for a tile."""
    shape = UNetShape(case["depth"], case["base"])
    net = UNet(shape).initialise(torch.Generator().manual_seed(case["seed"])).eval()
    spec = small_spec(case["depth"], tile, border=case["border"], **fields)
    with TorchSession(net, spec) as session, Segmenter(session) as opened:
        yield opened


def whole_image_scores(case, frame):
    geometry = Geometry.unet(case["depth"])
    tile = tuple(geometry.side_for(length) for length in case["size"])
    with segmenter(case, tile) as one_tile:
        return one_tile.scores(frame)


def noise(case):
    return np.random.default_rng(case["seed"]).integers(0, 4096, case["size"]).astype(np.uint16)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(cases())
@example({"depth": 4, "base": 2, "tile": (204, 220), "size": (1, 1), "border": "reflect", "batch": 1, "seed": 0})
@example({"depth": 3, "base": 3, "tile": (100, 116), "size": (2, 61), "border": "symmetric", "batch": 2, "seed": 1})
def test_stitched_tiles_are_the_whole_image_pass(case):
    frame = noise(case)
    whole = whole_image_scores(case, frame)
    with segmenter(case, case["tile"], batch=case["batch"]) as tiled:
        scores, labels = tiled.scores(frame), tiled.segment(frame).labels
    assert np.abs(scores - whole).max() <= CLOSE
    clear = np.abs(whole[1] - whole[0]) > CLOSE
    np.testing.assert_array_equal(labels[clear], whole.argmax(axis=0)[clear])


def test_the_natural_stride_would_fail():
    """Tiles laid at the core's own size pool on lattices of their own: many pixels get another class."""
    case = {"depth": 4, "base": 2, "size": (300, 300), "border": "reflect", "batch": 1, "seed": 3}
    frame, tile = noise(case), (284, 284)
    whole = whole_image_scores(case, frame)
    with segmenter(case, tile) as ours:
        on_the_lattice = np.abs(ours.scores(frame) - whole).max()
        assert ours.spec.geometry.stride(284) == 96
        # A network that claims to have no lattice is laid at its core.
        ours.spec = replace(ours.spec, grid=1)
        assert ours.spec.geometry.stride(284) == 100
        natural = ours.scores(frame)
    changed = (natural.argmax(axis=0) != whole.argmax(axis=0)).mean()
    assert on_the_lattice <= CLOSE
    assert changed > 0.01


@pytest.fixture(scope="module", params=["logits", "probabilities", "labels"])
def exported(request, tiny_checkpoint, tmp_path_factory):
    """A head, and an exported file with it."""
    from unetrt.export.exporter import Options, export

    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export(tiny_checkpoint, path, Options((60, 44), head=request.param, batch=2))
    return request.param, path


@pytest.mark.parametrize("size", [(1, 1), (50, 31), (131, 200)])
def test_an_exported_file_is_exact_too(tiny_checkpoint, exported, size):
    """The same through the engines of a CPU, against torch over the whole image."""
    from unetrt.trainer.validation import whole_frame_scores

    head, path = exported
    frame = np.random.default_rng(5).integers(0, 4096, size).astype(np.uint16)
    whole = whole_frame_scores(tiny_checkpoint, frame)
    clear = np.abs(whole[1] - whole[0]) > CLOSE
    for backend in ("openvino", "onnxruntime"):
        with Segmenter(path, backend=backend) as tiled:
            labels = tiled.segment(frame).labels
            if head == "logits":
                assert np.abs(tiled.scores(frame) - whole).max() <= CLOSE
        np.testing.assert_array_equal(labels[clear], whole.argmax(axis=0)[clear])

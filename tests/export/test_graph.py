"""The form of the graph: its crops, its head, and that only the shapes of input and output depend on the tile."""

from dataclasses import replace
from itertools import product

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.export import earlier_file
from unetrt.export.graph import build_graph
from unetrt.runtime.engines.build import build
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import Machine
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.scores import best_class
from unetrt.runtime.sessions import open_session
from unetrt.trainer.unet import UNet

ENGINES = ("onnxruntime", "openvino")
SMALL = UNetShape(depth=2, base=2)


def spec_of(shape, tile, **fields):
    classes = tuple(map(str, range(shape.classes)))
    fixed = Normalisation("fixed", offset=(400.0,), scale=(0.001,))
    return ModelSpec(tile, shape.geometry.halo, shape.geometry.grid, classes=classes, normalisation=fixed, **fields)


def network_of(shape):
    return UNet(shape).initialise(torch.Generator().manual_seed(0)).eval()


def operators(model):
    return [node.op_type for node in model.graph.node]


def answer(path, engine, frame):
    with open_session(path, engine) as session:
        return session.run(frame)


def saved(model, path):
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(("classes", "reduces"), [(2, False), (3, True)])
def test_two_classes_are_compared_and_more_are_reduced(classes, reduces):
    shape = replace(SMALL, classes=classes)
    model = build_graph(network_of(shape), spec_of(shape, (60, 76), head="labels"))
    assert ("ArgMax" in operators(model), "Less" in operators(model)) == (reduces, not reduces)


# Scores that tie, zeros of both signs, infinities, and NaN.
SPECIAL = (-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan)
PAIRS = np.array(list(product(SPECIAL, SPECIAL)), np.float32).T


def hands_on():
    """The frame is the scores."""
    return nn.Identity()


def convolves():
    """So are they here, in the layout in which an engine has what a convolution gives."""
    net = nn.Conv2d(2, 2, kernel_size=1, groups=2)
    nn.init.ones_(net.weight)
    nn.init.zeros_(net.bias)
    return net


def argmax_for_less(model):
    """Return a copy with the head that earlier versions gave to files of two classes."""
    earlier = onnx.ModelProto()
    earlier.CopyFrom(model)
    made = {node.output[0]: node for node in earlier.graph.node}
    (less,) = (node for node in earlier.graph.node if node.op_type == "Less")
    scores = made[less.input[0]].input[0]
    best = onnx.helper.make_node("ArgMax", [scores], list(less.output), axis=1, keepdims=0)
    less.CopyFrom(best)
    earlier.graph.ClearField("value_info")  # a bool was there, an int64 is
    return earlier


@pytest.mark.parametrize("tile", [(7, 7), (65, 67)], ids=str)
@pytest.mark.parametrize("net", [hands_on, convolves])
@pytest.mark.parametrize("engine", ENGINES)
def test_of_scores_that_tie_or_are_no_numbers_the_background_wins_as_with_argmax(tmp_path, engine, net, tile):
    """In torch and numpy argmax chooses NaN; ONNX's engines never do, and neither do these graphs."""
    spec = ModelSpec(tile, halo=0, grid=1, channels=2, head="labels")
    scores = np.resize(PAIRS.T, (tile[0] * tile[1], 2)).T.reshape(1, 2, *tile)
    model = build_graph(net(), spec)
    labels = answer(saved(model, tmp_path / "less.onnx"), engine, scores)
    np.testing.assert_array_equal(labels[0], best_class(scores[0]))
    assert 0 < labels.mean() < 1
    earlier = answer(saved(argmax_for_less(model), tmp_path / "argmax.onnx"), engine, scores)
    np.testing.assert_array_equal(labels, earlier)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_lower_types_are_compared_in_float32_but_not_cast_before_the_classes_are_apart(precision):
    model = build_graph(network_of(SMALL), spec_of(SMALL, (60, 76), head="labels", precision=precision))
    made = {node.output[0]: node for node in model.graph.node}
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    (less,) = (node for node in model.graph.node if node.op_type == "Less")
    for name in less.input:
        assert types[name] == onnx.TensorProto.FLOAT
        cast = made[name]
        assert (cast.op_type, made[cast.input[0]].op_type) == ("Cast", "Gather")


def test_one_slice_crops_a_skip_on_both_axes_as_far_from_either_end():
    """Two would write an intermediate, as wide as the skip."""
    shape = UNetShape(base=2)
    model = build_graph(network_of(shape), spec_of(shape, (204, 220)))
    constants = {one.name: onnx.numpy_helper.to_array(one).tolist() for one in model.graph.initializer}
    crops = [node for node in model.graph.node if node.op_type == "Slice"]
    borders = [4, 16, 40, 88]  # what the levels below lose on each side, from the deepest skip to the first
    assert [[constants[name] for name in node.input[1:4]] for node in crops] == [
        [[border] * 2, [-border] * 2, [2, 3]] for border in borders
    ]
    joins = [node for node in model.graph.node if node.op_type == "Concat"]
    assert [node.output[0] for node in crops] == [node.input[0] for node in joins]


@pytest.mark.parametrize(
    ("classes", "fields"),
    [
        (2, {"precision": "fp16", "head": "labels", "input_dtype": "uint16"}),
        (3, {"precision": "bf16", "head": "labels", "input_dtype": "uint8", "batch": 2}),
        pytest.param(2, {"precision": "fp32", "head": "logits", "batch": 2}, marks=pytest.mark.slow),
        pytest.param(3, {"precision": "fp32", "head": "probabilities"}, marks=pytest.mark.slow),
    ],
)
def test_the_tile_is_in_the_shapes_of_a_file_and_nowhere_else(classes, fields):
    shape = replace(SMALL, classes=classes)
    files = [build_graph(network_of(shape), spec_of(shape, tile, **fields)) for tile in ((60, 76), (92, 44))]
    one, other = (without_shapes(model).SerializeToString(deterministic=True) for model in files)
    assert (one == other) is True  # without its difference, which is long


def without_shapes(model):
    """Return a model without its metadata, the shapes of its ends and those that follow from them."""
    del model.graph.value_info[:], model.metadata_props[:]
    for value in (*model.graph.input, *model.graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_value > 0
        value.type.tensor_type.ClearField("shape")
    return model


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A labels file as earlier versions wrote it, and one of the same network as it is written now."""
    folder, net = tmp_path_factory.mktemp("earlier"), network_of(earlier_file.SHAPE)
    net.classify.bias.data[1] += 0.7  # so that both classes are found
    old, new = earlier_file.earlier_model(net), build_graph(net, earlier_file.SPEC)
    onnx.checker.check_model(old, full_check=True)
    assert (operators(old).count("Slice"), operators(new).count("Slice")) == (2, 1)
    return saved(old, folder / "old.onnx"), saved(new, folder / "new.onnx")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_file_of_an_earlier_version_gives_the_labels_of_one_of_today(earlier, engine):
    frame = np.random.default_rng(5).standard_normal(earlier_file.SPEC.new_input().shape, np.float32)
    old, new = (answer(path, engine, frame) for path in earlier)
    assert len(np.unique(old)) == 2
    np.testing.assert_array_equal(old, new)


def test_an_engine_is_built_of_a_file_of_an_earlier_version(earlier):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT for RTX has no package for this platform")
    facts = facts_of(earlier[0], read_spec(earlier[0]), FLAVOURS[1], Machine(os="Linux x86_64"), BuildOptions())
    assert len(build(earlier[0], facts)) > 50_000

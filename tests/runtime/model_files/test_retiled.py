from dataclasses import replace

import numpy as np
import onnx
import pytest

from tests.conftest import editable
from tests.export.earlier_file import SHAPE as EARLIER_SHAPE
from tests.export.earlier_file import SPEC, earlier_model
from unetrt.export.exporter import Options, spec_for
from unetrt.export.graph import build_graph
from unetrt.export.onnx_model import describe, require_clean
from unetrt.runtime.errors import ModelFileError, TileError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.retiled import retiled
from unetrt.runtime.sessions import open_session
from unetrt.trainer.checkpoint import untrained_checkpoint

SHAPE = UNetShape(2, 4, channels=2, classes=3)
TILE, OTHER = (44, 60), (76, 52)


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp16"}, {"head": "labels", "batch": 3}],
    ids=str,
)
def test_a_retiled_model_is_the_exported_one(tmp_path, options):
    checkpoint = untrained_checkpoint(SHAPE)
    source, expected, found = (tmp_path / name for name in ("source.onnx", "expected.onnx", "found.onnx"))
    write(checkpoint, source, Options(TILE, **{**options, "batch": 1}))
    write(checkpoint, expected, Options(OTHER, **options))
    found.write_bytes(retiled(source, OTHER, options.get("batch", 1)))
    require_clean(onnx.load(found))
    assert read_spec(found) == read_spec(expected)
    ours, theirs = outputs(found), outputs(expected)
    np.testing.assert_array_equal(ours, theirs)
    assert theirs.any()


def write(checkpoint, path, options):
    onnx.save(build_graph(checkpoint.network(), spec_for(checkpoint, options)), path)


def outputs(path):
    """The output for the top left of one random image."""
    with open_session(path, "onnxruntime") as session:
        tile = session.spec.new_input()
        tile[...] = np.random.default_rng(0).standard_normal((100, 100))[: tile.shape[-2], : tile.shape[-1]]
        return session.run(tile)


def test_a_file_of_an_earlier_version_whose_crops_know_the_tile(tmp_path):
    """The core of a larger tile holds the core of a smaller one at a distance on the grid."""
    net = untrained_checkpoint(EARLIER_SHAPE, seed=6).network()
    model = earlier_model(net)
    for stored in model.graph.initializer:  # as the exporter of that version stored them
        stored.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(stored), stored.name))
    describe(model, replace(SPEC, network={"depth": EARLIER_SHAPE.depth, "base": EARLIER_SHAPE.base}))
    source, other = tmp_path / "earlier.onnx", tmp_path / "other.onnx"
    onnx.save(model, source)
    other.write_bytes(retiled(source, (28, 36), 1))
    small, large = outputs(source), outputs(other)
    np.testing.assert_array_equal(small, large[:, :4, :8])
    assert 0 < large.mean() < 1


def test_an_illegal_tile_is_refused(tiny_model):
    with pytest.raises(TileError, match="tile 61 is not legal"):
        retiled(tiny_model, (61, 60), 1)


def test_weights_in_other_files_are_refused(tiny_model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(editable(tiny_model), path, save_as_external_data=True, location="weights", size_threshold=0)
    with pytest.raises(ModelFileError, match="keeps weights in other files: export it again"):
        retiled(path, (60, 60), 1)

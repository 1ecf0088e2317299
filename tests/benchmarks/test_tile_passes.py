import numpy as np
import onnx
import pytest

from unetrt.benchmarks import tile_passes
from unetrt.benchmarks.networks import untrained_of
from unetrt.benchmarks.tile_models import TileModels
from unetrt.benchmarks.tile_passes import Place, Wanted, pass_seconds, settled, time_passes
from unetrt.export.exporter import Options, spec_for
from unetrt.export.graph import build_graph
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.sessions import open_session

SHAPE = UNetShape(2, 4, channels=2, classes=3)
TILES = [(44, 60), (76, 52)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    models = TileModels(untrained_of(SHAPE), "fp32", 2, tmp_path_factory.mktemp("models"))
    return [models.write(tile) for tile in TILES]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_retiled_model_is_bitwise_the_exported_one(tmp_path, precision):
    checkpoint = untrained_of(SHAPE)
    models = TileModels(checkpoint, precision, 1, tmp_path)
    models.write(TILES[0])
    exported = tmp_path / "exported.onnx"
    spec = spec_for(checkpoint, Options(TILES[1], precision=precision))
    onnx.save(build_graph(checkpoint.network(), spec), exported)
    ours, theirs = scores(models.write(TILES[1])), scores(exported)
    assert ours.shape == (1, 3, *spec.core)
    np.testing.assert_array_equal(ours, theirs)
    assert theirs.std() > 0


def scores(path):
    with open_session(path, "onnxruntime") as session:
        (lane,) = session.lanes(1)
        lane.input[...] = np.random.default_rng(0).standard_normal(lane.input.shape)
        lane.launch()
        lane.wait()
        return lane.output.copy()


def test_files_have_their_tile_and_batch(models):
    for path, tile in zip(models, TILES, strict=True):
        with open_session(path, "onnxruntime") as session:
            assert (session.spec.tile, session.spec.batch, session.spec.shape) == (tile, 2, SHAPE)


def test_a_pass_takes_less_than_the_passes_around_it(models):
    assert 0 < pass_seconds(models[0], Place("onnxruntime")) < 5


def test_rounds_go_on_until_all_have_settled(models, monkeypatch):
    given = {models[0]: iter([3.0, 1.0, 2.0, 1.01]), models[1]: iter([1.0, 1.0, 1.0])}
    monkeypatch.setattr(tile_passes, "pass_seconds", lambda model, _: next(given[model]))
    steps = []
    times = time_passes(models, Place("onnxruntime"), lambda done, total: steps.append((done, total)))
    assert times == [[3.0, 1.0, 2.0, 1.01], [1.0, 1.0, 1.0]]
    assert [done for done, _ in steps] == list(range(1, 8))
    assert all(done <= total for done, total in steps)


def test_rounds_end_although_nothing_settles(models, monkeypatch):
    monkeypatch.setattr(tile_passes, "PATIENCE", 0)
    doubling = iter(2.0**number for number in range(100))
    monkeypatch.setattr(tile_passes, "pass_seconds", lambda *_: next(doubling))
    assert [len(times) for times in time_passes(models, Place("onnxruntime"))] == [tile_passes.ROUNDS] * 2


@pytest.mark.parametrize(
    ("rounds", "expected"), [([1.0, 1.04], True), ([1.0, 9.0, 1.04], True), ([1.0, 1.06], False), ([1.0], False)]
)
def test_settled_is_when_the_two_fastest_agree(rounds, expected):
    assert settled(rounds) == expected


@pytest.mark.parametrize(("wanted", "passes"), [(Wanted(0, 3, 9), 3), (Wanted(1e9, 1, 4), 4)])
def test_as_many_passes_as_wanted(models, wanted, passes):
    with open_session(models[0], "onnxruntime") as session:
        (lane,) = session.lanes(1)
        assert len(tile_passes._passes(lane, wanted)) == passes

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from unetrt.benchmarks import training_cases as module
from unetrt.benchmarks.__main__ import main
from unetrt.benchmarks.cases import measure
from unetrt.benchmarks.history import read
from unetrt.benchmarks.journal import Patience
from unetrt.benchmarks.result import CaseResult
from unetrt.benchmarks.training_cases import (
    ALLOWED_WEIGHTS,
    ORDERS,
    AugmentedTiles,
    SplineTiles,
    TrainingSteps,
    WeightMap,
    for_each_object,
    require_equal_tiles,
    require_equal_weights,
    sample_of,
    spline_displacements,
)
from unetrt.runtime.errors import ParityError
from unetrt.trainer.augmentation import NONE, Augmentation, displacements
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.recipe import RECIPES
from unetrt.trainer.targets import separation_weights

MODERN = RECIPES["modern"]
CELLS = draw((96, 80), 0).labels


@pytest.fixture
def nothing_is_timed(monkeypatch):
    monkeypatch.setattr("unetrt.benchmarks.cases.fresh", lambda *_: pytest.fail("timed all the same"))


def test_the_other_way_is_the_formula():
    """d1 and d2 by looking at every pixel of every object."""
    objects = draw((40, 40), 1).labels
    places = np.stack(np.indices(objects.shape), axis=-1).reshape(-1, 2)
    each = [places[(objects == number).ravel()] for number in range(1, objects.max() + 1)]
    assert len(each) >= 2
    distances = [np.sqrt(((places[:, None] - own[None]) ** 2).sum(axis=-1)).min(axis=1) for own in each]
    d1, d2 = np.sort(distances, axis=0)[:2]
    expected = 10 * np.exp(-((d1 + d2) ** 2) / 50)
    np.testing.assert_allclose(for_each_object(objects).ravel(), expected, rtol=1e-9, atol=1e-12)


def test_both_ways_agree_on_the_background():
    require_equal_weights(CELLS)
    ours, others = separation_weights(CELLS), for_each_object(CELLS)
    outside = CELLS == 0
    assert np.abs(ours - others)[outside].max() <= ALLOWED_WEIGHTS
    assert others[outside].max() > 5
    # The one difference that is meant: inside an object, its own border is as far as it is.
    assert np.abs(ours - others)[~outside].max() > 0.1


@pytest.mark.usefixtures("nothing_is_timed")
def test_no_weight_map_is_timed_where_they_differ(monkeypatch):
    monkeypatch.setattr(module, "separation_weights", lambda *given: 1.01 * separation_weights(*given))
    with pytest.raises(ParityError, match=r"differ by up to 0\.0\d+: 0\.0001 is allowed"):
        measure(WeightMap((96,)), 1)


@pytest.mark.slow
def test_figures_of_weight_maps_follow_from_their_rounds(tmp_path):
    path = tmp_path / "weight-map.json"
    arguments = ["weight-map", "--side", "64", "--side", "520", "--rounds", "2", "--json", str(path)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = CaseResult.load(path)
    ours, one = record["64: unetrt"], record["64: one transform"]
    assert len(ours.rounds) == 2
    assert record["64: unetrt, rate"].rounds == pytest.approx([64 * 64 / 1e6 / seconds for seconds in ours.rounds])
    ratios = [other / mine for other, mine in zip(one.rounds, ours.rounds, strict=True)]
    assert record["64: unetrt against one transform"].rounds == pytest.approx(ratios)
    # A transform an object is taken up to 512 only.
    assert {figure.name for figure in record.figures if "an object" in figure.name} == {
        "64: a transform an object",
        "64: unetrt against a transform an object",
    }
    assert record["520: unetrt"].median > 0
    (run,) = read(tmp_path / "history.jsonl")
    assert [figure.median for figure in run.figures] == [figure.median for figure in record.figures]
    assert "520: unetrt, rate" in done.output


@pytest.fixture(scope="module")
def sample():
    return sample_of(draw((150, 130), 0), MODERN)


def test_tiles_of_both_are_alike_at_the_same_coordinates(sample):
    for seed in range(3):
        require_equal_tiles(sample, MODERN, seed)


@pytest.mark.parametrize("shift", [0.01, 2.0])
def test_a_shift_is_found(sample, monkeypatch, shift):
    read_there = SplineTiles.read
    monkeypatch.setattr(SplineTiles, "read", lambda tiles, at: read_there(tiles, at + np.float32(shift)))
    with pytest.raises(ParityError, match="SciPy, linear: pixels are off by"):
        require_equal_tiles(sample, MODERN)


def test_other_classes_are_found(sample, monkeypatch):
    read_there = SplineTiles.read
    monkeypatch.setattr(SplineTiles, "read", lambda *given: (read_there(*given)[0], read_there(*given)[1] + 1))
    with pytest.raises(ParityError, match="classes at 1"):
        require_equal_tiles(sample, MODERN)


@pytest.mark.usefixtures("nothing_is_timed")
def test_no_tile_is_timed_where_they_differ(monkeypatch):
    monkeypatch.setattr(module, "ALLOWED_PIXELS", {1: 0.0, 3: 0.0})
    with pytest.raises(ParityError, match="nothing is timed"):
        measure(AugmentedTiles(("modern",), 150), 1)


def test_splines_go_through_the_vectors_as_ours_do():
    """At the vectors' own places both fields are the vectors; in between they are other curves through them."""
    side, how = 41, Augmentation()
    ours = displacements((side, side), how, torch.Generator().manual_seed(3)).permute(2, 0, 1).numpy()
    knots = np.linspace(0, side - 1, how.coarse).astype(int)
    vectors = ours[:, knots[:, None], knots]
    splines = spline_displacements(vectors, side)
    np.testing.assert_allclose(splines[:, knots[:, None], knots], vectors, atol=1e-4)
    # Both bend by as much as the vectors differ, so that between those they are never far apart.
    assert 0 < np.abs(splines - ours).max() < 0.5 * np.ptp(vectors)


def test_a_tile_without_variation_is_cut_from_the_frame(sample):
    plain = replace(RECIPES["paper"].with_options(depth=2, tile=60), augmentation=NONE)
    tiles = SplineTiles(replace(sample, annotated=torch.tensor([75 * 130 + 65])), plain, 3)
    at = tiles.coordinates(np.array([75.5, 60.5], np.float32), np.random.default_rng(0))
    image, target = tiles.read(at)
    np.testing.assert_allclose(image, sample.frame[0, 46:106, 31:91], atol=1e-4)
    np.testing.assert_array_equal(target, sample.target[:, 66:86, 51:71])
    tile, drawn = tiles.draw(0)
    assert tile.shape == (1, 60, 60)
    assert drawn.shape == (2, 20, 20)


@pytest.mark.slow
def test_figures_of_tiles_follow_from_their_rounds(tmp_path):
    path = tmp_path / "augmentation.json"
    arguments = ["augmentation", "--recipe", "modern", "--side", "150", "--rounds", "2", "--json", str(path)]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record, side = CaseResult.load(path), MODERN.legal_tile()
    ours = record[f"{side}: unetrt"]
    assert len(ours.rounds) == 2
    assert record[f"{side}: unetrt, rate"].median == pytest.approx(ours.median * side * side / 1e6)
    for name in ORDERS.values():
        ratios = np.divide(ours.rounds, record[f"{side}: {name}"].rounds)
        assert record[f"{side}: unetrt against {name}"].rounds == pytest.approx(ratios)
    assert f"{side}: SciPy, cubic" in done.output
    assert read(tmp_path / "history.jsonl")[0].name == "augmentation"


SMALL = RECIPES["paper"].with_options(depth=1, base=2, tile=60)
BOTH = ("eager", "eager, 16 bits")


@pytest.fixture
def little(monkeypatch):
    """One small image to train on."""
    monkeypatch.setattr(module, "IMAGES", 1)
    monkeypatch.setattr(module, "SIDE", 120)


@pytest.mark.alone
def test_rounds_of_training_are_stored_one_by_one_and_not_measured_twice(little, monkeypatch, tmp_path):
    path = tmp_path / "training.json"
    real, stored = module.WarmTraining.round, []

    def looking(training, steps):
        stored.append(len(json.loads(path.read_text())["results"]) if path.exists() else 0)
        return real(training, steps)

    monkeypatch.setattr(module.WarmTraining, "round", looking)
    case = TrainingSteps(SMALL, 1, BOTH)
    first = measure(case, 1, path)
    assert stored == [0, 1]
    assert CaseResult.load(path).detail == json.loads(json.dumps(first.detail))
    more = measure(case, 2, path, Patience(resume=True))
    assert stored == [0, 1, 2, 3]
    assert (more.detail["recipe"]["base"], more.detail["device"]) == (2, "cpu")
    assert more.detail["ways"]["eager"]["dtype"] == "float32"
    for way in BOTH:
        figure = more.detail["ways"][way]
        assert figure["seconds"]["rounds"] == more[f"{way}: new tiles"].rounds
        assert figure["seconds"]["rounds"][:1] == first[f"{way}: new tiles"].rounds
        assert (len(figure["seconds"]["rounds"]), figure["seconds"]["low"] > 0) == (2, True)
        assert 0 <= figure["waiting"] < 1
        assert 0 < figure["share"] < 1
        assert figure["limit"] == more[f"{way}: matrix product"].median
        assert (figure["validation"]["steps"], figure["validation"]["times"]) == (400, 10)
    over = measure(case, 3, path, Patience(seconds=1e-9, resume=True))
    assert over.missing == ("round 3: eager", "round 3: eager, 16 bits")


@pytest.mark.alone
def test_tiles_that_take_long_are_seen_as_waiting(little, monkeypatch):
    draw_batch = module.Sampler.batch

    def slow(self, step, indices=None):
        for _ in range(120):  # many times the duration of a step, whatever the processor
            batch = draw_batch(self, step, indices)
        return batch

    monkeypatch.setattr(module.Sampler, "batch", slow)
    result = measure(TrainingSteps(SMALL, 3, ("eager",)), 1)
    assert result.detail["ways"]["eager"]["waiting"] > 0.5


@pytest.mark.alone
@pytest.mark.slow
def test_the_command_times_all_three_ways_of_training(capsys, tmp_path):
    from unetrt.__main__ import main

    arguments = ["bench", "--training", "--depth", "1", "--base", "2", "--tile", "60", "--rounds", "1"]
    assert main([*arguments, "--json", str(tmp_path / "a.json")]) == 0
    out = capsys.readouterr().out
    assert [out.count(part) for part in ("steps/s", "GFLOP/s", "a validation of")] == [3, 3, 3]
    assert len(CaseResult.load(tmp_path / "a.json").detail["ways"]) == 3

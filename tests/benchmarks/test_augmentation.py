from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from unetrt.benchmarks import augmentation as module
from unetrt.benchmarks.augmentation import ORDERS, TILES, augmentation, command, require_alike
from unetrt.benchmarks.fresh import store_drawn
from unetrt.benchmarks.history import read
from unetrt.benchmarks.record import Record
from unetrt.benchmarks.spline_tiles import SplineTiles, spline_displacements
from unetrt.runtime.errors import ParityError
from unetrt.trainer.augmentation import NONE, Augmentation, displacements
from unetrt.trainer.recipe import RECIPES

MODERN = RECIPES["modern"]


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    store_drawn(folder, (150, 130), 1)
    return module._sample(folder, MODERN)


def test_tiles_of_both_are_alike_at_the_same_coordinates(sample):
    for seed in range(3):
        require_alike(sample, MODERN, seed)


@pytest.mark.parametrize("shift", [0.01, 2.0])
def test_a_shift_is_found(sample, monkeypatch, shift):
    read_there = SplineTiles.read
    monkeypatch.setattr(SplineTiles, "read", lambda tiles, at: read_there(tiles, at + np.float32(shift)))
    with pytest.raises(ParityError, match="SciPy, linear: pixels are off by"):
        require_alike(sample, MODERN)


def test_other_classes_are_found(sample, monkeypatch):
    read_there = SplineTiles.read
    monkeypatch.setattr(SplineTiles, "read", lambda *given: (read_there(*given)[0], read_there(*given)[1] + 1))
    with pytest.raises(ParityError, match="classes at 1"):
        require_alike(sample, MODERN)


def test_nothing_is_timed_where_they_differ(monkeypatch):
    monkeypatch.setattr(module, "ALLOWED", {1: 0.0, 3: 0.0})
    monkeypatch.setattr(module, "fresh", lambda *_: pytest.fail("timed all the same"))
    with pytest.raises(ParityError, match="nothing is timed"):
        augmentation(("modern",), 1, side=150)


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
    tiles = SplineTiles(replace(sample, annotated=torch.tensor([75 * 130 + 65])), 60, 20, NONE, 3)
    at = tiles.coordinates(np.array([75.5, 60.5], np.float32), np.random.default_rng(0))
    image, target = tiles.read(at)
    np.testing.assert_allclose(image, sample.frame[0, 46:106, 31:91], atol=1e-4)
    np.testing.assert_array_equal(target, sample.target[:, 66:86, 51:71])
    tile, drawn = tiles.draw(0)
    assert tile.shape == (1, 60, 60)
    assert drawn.shape == (2, 20, 20)


@pytest.mark.slow
def test_figures_follow_from_their_rounds(tmp_path):
    path = tmp_path / "augmentation.json"
    arguments = ["--recipe", "modern", "--side", "150", "--rounds", "2", "--json", str(path)]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record, side = Record.load(path), MODERN.legal_tile()
    ours = record[f"{side}: unetrt"]
    assert len(ours.rounds) == 2
    assert record[f"{side}: unetrt, rate"].median == pytest.approx(ours.median * side * side / 1e6)
    for name in ORDERS.values():
        ratios = np.divide(ours.rounds, record[f"{side}: {name}"].rounds)
        assert record[f"{side}: unetrt against {name}"].rounds == pytest.approx(ratios)
    assert f"{side}: SciPy, cubic" in done.output
    assert read(tmp_path / "history.jsonl")[0].name == "augmentation"


def test_all_tiles_of_a_measurement_are_drawn(sample):
    steps = []
    module._several(steps.append)
    assert steps == list(range(TILES))

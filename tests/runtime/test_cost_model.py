import numpy as np
import pytest

from unetrt.runtime.cost_model import CostModel, TileSeconds
from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.planner import Budget, best_tile, candidates, cost_of

SHAPE = UNetShape(base=16)
TRUE = CostModel(per_tile=2e-3, per_mac=1e-11, per_value=8e-10)
MEASURED = [(204, 204), (300, 428), (892, 300), (524, 620), (300, 2236), (1292, 1084), (2236, 2236)]
OTHERS = [(252, 620), (300, 1084), (892, 892), (2236, 892)]


def timings(seconds, tiles=MEASURED):
    return [TileSeconds(tile, seconds(tile)) for tile in tiles]


def test_the_fit_finds_what_made_the_timings():
    fitted = CostModel.fit(timings(lambda tile: TRUE.seconds(tile, SHAPE)), SHAPE)
    for term in ("per_tile", "per_mac", "per_value"):
        assert getattr(fitted, term) == pytest.approx(getattr(TRUE, term), rel=1e-6)


def test_seconds_are_those_of_the_layers():
    tile = (524, 620)
    layers = list(SHAPE.layers(*tile))
    uncached = sum(layer.outputs - 2**20 for layer in layers if layer.outputs > 2**20)
    assert uncached > 0
    expected = 2e-3 + 1e-11 * SHAPE.macs(*tile) + 8e-10 * uncached
    assert TRUE.seconds(tile, SHAPE) == pytest.approx(expected)


def test_noise_of_small_and_of_large_tiles_counts_alike():
    noise = np.random.default_rng(0)
    fitted = CostModel.fit(timings(lambda tile: TRUE.seconds(tile, SHAPE) * noise.uniform(0.97, 1.03)), SHAPE)
    for tile in OTHERS:
        assert fitted.seconds(tile, SHAPE) == pytest.approx(TRUE.seconds(tile, SHAPE), rel=0.06)


def test_a_machine_of_another_kind_is_not_explained():
    """One whose tiles take as long as their longer side: the error on other tiles says so."""
    fitted = CostModel.fit(timings(lambda tile: max(tile) * 1e-4), SHAPE)
    errors = [fitted.seconds(tile, SHAPE) / (max(tile) * 1e-4) - 1 for tile in OTHERS]
    assert max(map(abs, errors)) > 0.3


def test_tiles_that_a_cache_holds_are_fitted_without_memory():
    shape = UNetShape(2, 4)
    truth = CostModel(1e-4, 3e-11, 0)
    tiles = [(44, 44), (64, 100), (140, 140)]
    fitted = CostModel.fit(timings(lambda tile: truth.seconds(tile, shape), tiles), shape)
    assert (fitted.per_mac, fitted.per_value) == (pytest.approx(3e-11), 0)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_what_took_no_time_is_refused(seconds):
    with pytest.raises(OptionError, match="took no time"):
        CostModel.fit([*timings(lambda _: 1.0), TileSeconds((364, 364), seconds)], SHAPE)


def test_two_tiles_are_too_few():
    with pytest.raises(OptionError, match="2 tiles do not make a model of 3 unknowns"):
        CostModel.fit(timings(lambda _: 1.0)[:2], SHAPE)


@pytest.mark.parametrize("terms", [(-1e-3, 1e-11, 0), (0, float("nan"), 0), (0, 0, 0)])
def test_a_model_without_a_meaning_is_refused(terms):
    with pytest.raises(OptionError, match="none is negative"):
        CostModel(*terms)


def test_with_a_model_the_planner_ranks_by_seconds():
    costly = CostModel(per_tile=0, per_mac=1e-11, per_value=1e-8)  # a machine of slow memory: small tiles win
    by_arithmetic, by_time = (best_tile([(2048, 2048)], SHAPE, model=model) for model in (None, costly))
    assert by_arithmetic.seconds is None
    assert by_time.macs > by_arithmetic.macs
    seconds = [one.seconds for one in candidates([(2048, 2048)], SHAPE, model=costly)]
    assert seconds == sorted(seconds)
    assert by_time.seconds == seconds[0] < cost_of(by_arithmetic.tile, [(2048, 2048)], SHAPE, model=costly).seconds


def test_tiles_that_fill_a_batch_take_time_too():
    frames = [(500, 500), (500, 500)]
    planned = cost_of((572, 572), frames, SHAPE, Budget(batch=3), TRUE)
    assert planned.passes == 12
    assert planned.seconds == pytest.approx(12 * TRUE.seconds((572, 572), SHAPE))

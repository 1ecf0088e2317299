import json

import pytest

from unetrt.benchmarks import training_speed as module
from unetrt.benchmarks.training_speed import training_speed
from unetrt.trainer.recipe import RECIPES

pytestmark = pytest.mark.alone


def test_what_is_measured(monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 1)
    monkeypatch.setattr(module, "SIDE", 120)
    recipe = RECIPES["paper"].with_options(depth=1, base=2, tile=60)
    result = training_speed(recipe, steps=3, rounds=2, ways=("eager", "eager, 16 bits"))
    assert json.loads(json.dumps(result))["recipe"]["base"] == 2
    for figure in result["ways"].values():
        assert len(figure["seconds"]["rounds"]) == 2
        assert figure["seconds"]["low"] > 0
        assert 0 <= figure["waiting"] < 1
    assert result["ways"]["eager"]["dtype"] == "float32"
    assert result["device"]


def test_tiles_that_take_long_are_seen_as_waiting(monkeypatch):
    monkeypatch.setattr(module, "IMAGES", 1)
    monkeypatch.setattr(module, "SIDE", 120)
    draw = module.Sampler.batch

    def slow(self, step, indices=None):
        for _ in range(120):  # many times what a step takes, whatever the processor
            batch = draw(self, step, indices)
        return batch

    monkeypatch.setattr(module.Sampler, "batch", slow)
    recipe = RECIPES["paper"].with_options(depth=1, base=2, tile=60)
    result = training_speed(recipe, steps=3, rounds=1, ways=("eager",))
    assert result["ways"]["eager"]["waiting"] > 0.5


@pytest.mark.slow
def test_the_command_times_all_three_ways(capsys, tmp_path):
    from unetrt.__main__ import main

    arguments = ["bench", "--training", "--depth", "1", "--base", "2", "--tile", "60", "--rounds", "1"]
    assert main([*arguments, "--json", str(tmp_path / "a.json")]) == 0
    assert capsys.readouterr().out.count("steps/s") == 3
    assert len(json.loads((tmp_path / "a.json").read_text())["ways"]) == 3

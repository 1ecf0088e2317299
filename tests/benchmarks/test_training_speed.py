import json

import pytest

from unetrt.benchmarks import training_speed as module
from unetrt.benchmarks.journal import Patience
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


def test_rounds_are_stored_one_by_one_and_not_measured_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "IMAGES", 1)
    monkeypatch.setattr(module, "SIDE", 120)
    path, recipe = tmp_path / "training.json", RECIPES["paper"].with_options(depth=1, base=2, tile=60)
    ways = ("eager", "eager, 16 bits")
    real, stored = module._Run.round, []

    def looking(run, steps):
        stored.append(len(json.loads(path.read_text())["results"]) if path.exists() else 0)
        return real(run, steps)

    monkeypatch.setattr(module._Run, "round", looking)
    first = training_speed(recipe, 1, 1, ways, path)
    assert stored == [0, 1]
    assert json.loads(path.read_text()) == json.loads(json.dumps(first))
    more = training_speed(recipe, 1, 2, ways, path, Patience(resume=True))
    assert stored == [0, 1, 2, 3]
    for way in ways:
        rounds = more["ways"][way]["seconds"]["rounds"]
        assert rounds[:1] == first["ways"][way]["seconds"]["rounds"]
        assert len(rounds) == 2
    over = training_speed(recipe, 1, 3, ways, path, Patience(seconds=1e-9, resume=True))
    assert over["missing"] == ["round 3: eager", "round 3: eager, 16 bits"]


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

"""The arithmetic behind a GPU's figures."""

import re
from pathlib import Path

import pytest

from tests.conftest import small_spec
from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.gpu_goals import BUSY, COMPILED, EAGER, GOALS, MATMUL, frame_flops, rates, useful_flops, verdicts
from unetrt.runtime.geometry.unet_shape import UNetShape

PAPER = UNetShape()
PAGE = Path(__file__).parents[2] / "docs" / "gpu-check.md"


def spec_of(tile):
    return small_spec(4, tile)


def test_the_goals_are_those_that_were_set():
    assert [(goal.least, goal.unit) for goal in GOALS] == [(0.97, "%"), (0.60, "%"), (8.0, "x"), (1.0, "x")]


def test_operations_of_a_frame_are_those_of_its_tiles():
    """One layer by hand: the first convolution of the paper's 572-tile is 570 x 570 x 64 x 9 multiply-accumulates."""
    first = next(PAPER.layers(572, 572))
    assert first.macs == 570 * 570 * 64 * 9
    spec, frame = spec_of((572, 572)), (1000, 500)
    tiles = len(spec.plan(frame))
    assert tiles == 6
    assert frame_flops(spec, PAPER, frame) == 6 * 2 * sum(layer.macs for layer in PAPER.layers(572, 572))


@pytest.mark.parametrize(("tile", "useful"), [((572, 572), 0.570), ((1212, 1212), 0.883), ((2236, 2236), 0.939)])
def test_useful_operations_are_fewer_the_smaller_the_tile(tile, useful):
    frame = (2048, 2048)
    share = useful_flops(PAPER, frame) / frame_flops(spec_of(tile), PAPER, frame)
    assert share == pytest.approx(useful, abs=0.02)


def test_rates_follow_from_the_median():
    told = rates(Figure.of([0.01, 0.02, 0.5]), flops=2 * 10**12, frame=(1000, 2000))
    assert told == pytest.approx({"frames": 50, "megapixels": 100, "teraflops": 100})


def test_a_miss_is_a_miss():
    told = verdicts({BUSY: 0.9699, MATMUL: 0.6, EAGER: 7.99})
    assert [verdict.met for verdict in told] == [False, True, False, False]
    assert str(told[0]).endswith("97.0 % (goal 97.0 %): MISSED")
    assert str(told[1]) == "share of the dense FP16 matmul rate: 60.0 % (goal 60.0 %): met"
    assert str(told[2]).endswith("7.99 x (goal 8.00 x): MISSED")
    assert str(told[3]).endswith("not measured (goal 1.00 x)")
    assert told[3].to_dict() == {"goal": COMPILED.name, "least": 1.0, "value": None, "met": False}


def test_the_page_names_the_goals_and_claims_no_figure():
    rows = re.findall(r"^\| (.+) \| ([\d.]+ [%x]) \|$", PAGE.read_text(), flags=re.MULTILINE)
    assert rows == [(goal.name, goal.shown(goal.least)) for goal in GOALS]
    measured = (PAGE.parents[1] / "benchmarks" / "results" / "runtime-gpu.json").exists()
    assert ("**Not measured on a GPU yet.**" in PAGE.read_text()) != measured

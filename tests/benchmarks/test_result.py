"""Figures, and results as JSON."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.results_of_bench import RESULT
from unetrt.benchmarks.environment import environment
from unetrt.benchmarks.figures import Figure, shown
from unetrt.benchmarks.result import SEGMENT, BenchResult, CaseResult, Measure, load, now
from unetrt.benchmarks.terminal import goal
from unetrt.runtime.errors import OptionError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
FIGURE = Figure.of([2.0, 1.0, 4.0])
SECONDS = Measure.of("a frame", "s", FIGURE, goal=3.0)
OF_CASE = CaseResult(
    now(), environment(), "some", "Something.", (SECONDS, Measure.of("b", "x", FIGURE)), {"frame": [4, 5]}
)


@pytest.mark.parametrize(
    ("count", "low", "high", "sure"), [(1, 0, 0, 0), (3, 0, 2, 0.75), (6, 0, 5, 0.96875), (9, 1, 7, 0.9609375)]
)
def test_the_interval_is_the_narrowest_that_holds_the_median_often_enough(count, low, high, sure):
    figure = Figure.of(list(range(count))[::-1])
    assert (figure.low, figure.high, figure.coverage) == (low, high, sure)


def test_ratios_and_products_are_taken_round_by_round():
    assert (Figure.of([4.0, 8.0, 6.0]) / Figure.of([1.0, 2.0, 1.0])).rounds == (4.0, 4.0, 6.0)
    assert (Figure.of([4.0, 8.0, 6.0]) * Figure.of([1.0, 2.0, 1.0])).rounds == (4.0, 16.0, 6.0)
    assert (8.0 / FIGURE).rounds == (4.0, 8.0, 2.0)


@pytest.mark.parametrize("result", [RESULT, OF_CASE], ids=["bench", "case"])
def test_a_result_comes_back_from_its_file(tmp_path, result):
    result.save(tmp_path / "a.json")
    assert type(result).load(tmp_path / "a.json") == result


def test_a_result_names_its_contenders_figures_and_machine():
    assert RESULT["torch"] is RESULT.contenders[0]
    assert OF_CASE["a frame"] is SECONDS
    assert {"unetrt", "numpy", "torch", "scipy", "edt"} <= OF_CASE.environment["versions"].keys()
    assert OF_CASE.when.endswith("+00:00")


def kept(stored, read):
    """Whether all that is stored was read; what is new since then has its default."""
    if isinstance(stored, dict):
        return all(kept(value, read[name]) for name, value in stored.items())
    if isinstance(stored, list):
        return all(map(kept, stored, read)) and len(stored) == len(read)
    return stored == read


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.json")), ids=lambda path: path.name)
def test_files_written_before_are_read_whole(path):
    stored = json.loads(path.read_text(encoding="utf-8"))
    for kind in (BenchResult, CaseResult):
        if stored.get("kind") == kind.KIND:
            assert kept(stored, json.loads(json.dumps(kind.load(path).to_dict())))


BENCH, CASE = "`unetrt bench --json`", "`make bench`"


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        (BenchResult, "no JSON", "is not a JSON object"),
        (BenchResult, "[]", "is not a JSON object"),
        (BenchResult, "{}", "holds schema None of None, not 2 of unetrt bench"),
        (BenchResult, '{"kind": "unetrt bench", "schema": 2}', "is invalid: object missing required field `when`"),
        (BenchResult, '{"kind": "unetrt bench", "schema": 9}', "holds schema 9 of unetrt bench"),
        (BenchResult, json.dumps(OF_CASE.to_dict()), "holds schema 1 of unetrt repository benchmark"),
        (CaseResult, json.dumps(RESULT.to_dict()), "holds schema 2 of unetrt bench, not 1 of unetrt repository"),
        (CaseResult, json.dumps(OF_CASE.to_dict() | {"figures": [{"name": "a"}]}), r"is invalid: figures\[0\]: "),
        (CaseResult, json.dumps(OF_CASE.to_dict() | {"when": 3}), "is invalid: when: expected `str`"),
    ],
)
def test_other_files_are_refused(kind, text, found, tmp_path):
    advice = f"give a file that {kind.WRITTEN_BY} wrote"
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OptionError, match=f"a.json {found}.*: {advice}"):
        kind.load(tmp_path / "a.json")
    with pytest.raises(OptionError, match=f"cannot be read .*: {advice}"):
        kind.load(tmp_path / "none.json")


def test_bench_results_have_a_reader():
    assert load(RESULTS / "cpu.json").reference == "torch"


@pytest.mark.parametrize(
    ("unit", "least", "met"),
    [("s", 3.0, True), ("s", 1.9, False), ("x", 1.9, True), ("x", 3.0, False), ("x", None, None)],
)
def test_seconds_stay_below_a_goal_and_rates_above(unit, least, met):
    assert Measure.of("a", unit, FIGURE, least).met is met


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.3708, "s", "2.37 s"),
        (0.0493, "s", "49.3 ms"),
        (0.000137, "s", "137 µs"),
        (6591.4, "Mpixel/s", "6591 Mpixel/s"),
        (99.96, "tiles/s", "100 tiles/s"),
        (0.255, "x", "0.255 x"),
    ],
)
def test_values_have_three_digits(value, unit, text):
    assert shown(value, unit) == text


def test_a_goal_is_shown_with_its_verdict():
    assert goal(SECONDS) == "3.00 s, met"
    assert goal(replace(SECONDS, goal=1.0)) == "1.00 s, MISSED"
    assert goal(replace(SECONDS, goal=None)) == ""


@pytest.mark.parametrize("median", [0, -1.0, 1e300])
def test_a_file_with_a_time_that_is_none_is_refused(tmp_path, median):
    RESULT.save(tmp_path / "a.json")
    stored = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    stored["contenders"][0]["seconds"][SEGMENT]["median"] = median
    (tmp_path / "a.json").write_text(json.dumps(stored), encoding="utf-8")
    with pytest.raises(OptionError, match=r"a\.json is invalid: contenders\[0\]\.seconds.*expected `float` [<>]="):
        load(tmp_path / "a.json")

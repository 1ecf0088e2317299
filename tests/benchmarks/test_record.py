import json
from dataclasses import asdict

import pytest

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.record import Measure, Record
from unetrt.benchmarks.terminal import ends, shown, table, verdict
from unetrt.runtime.errors import OptionError

FIGURE = asdict(Figure.of([2.0, 1.0, 4.0]))
SECONDS = Measure.of("a frame", "s", FIGURE, goal=3.0)
RECORD = Record.now("some", "Something.", (SECONDS, Measure.of("b", "x", FIGURE)), {"frame": [4, 5]})


def test_a_record_comes_back_from_its_file(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(RECORD.to_dict()))
    assert Record.load(tmp_path / "a.json") == RECORD
    assert RECORD["a frame"] is SECONDS
    assert {"unetrt", "numpy", "torch", "scipy", "edt"} <= RECORD.environment["versions"].keys()
    assert RECORD.when.endswith("+00:00")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no JSON", "no result of a benchmark"),
        ("[]", "no result of a benchmark"),
        ('{"schema": 1, "frame": [1, 1]}', "no result of a benchmark"),
        (json.dumps(RECORD.to_dict() | {"schema": 9}), "not of schema 1"),
        (json.dumps(RECORD.to_dict() | {"figures": [{"name": "a"}]}), "no result of a benchmark"),
    ],
)
def test_other_files_are_refused(text, found, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OptionError, match=f"a.json is {found}.*make bench"):
        Record.load(tmp_path / "a.json")
    with pytest.raises(OptionError, match="cannot be read"):
        Record.load(tmp_path / "none.json")


def test_a_rate_is_the_amount_divided_by_its_seconds():
    rate = Measure.rate("a", "tiles/s", 8.0, FIGURE)
    assert (rate.median, rate.low, rate.high, rate.rounds) == (4.0, 2.0, 8.0, (4.0, 8.0, 2.0))
    assert rate.coverage == FIGURE["coverage"] == 0.75


@pytest.mark.parametrize(
    ("unit", "goal", "met"),
    [("s", 3.0, True), ("s", 1.9, False), ("x", 1.9, True), ("x", 3.0, False), ("x", None, None)],
)
def test_seconds_stay_below_a_goal_and_rates_above(unit, goal, met):
    assert Measure.of("a", unit, FIGURE, goal).met is met


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (2.3708, "s", "2.37 s"),
        (0.0493, "s", "49.3 ms"),
        (0.000137, "s", "0.137 ms"),
        (6591.4, "Mpixel/s", "6591 Mpixel/s"),
        (99.96, "tiles/s", "100 tiles/s"),
        (0.255, "x", "0.255 x"),
    ],
)
def test_values_have_three_digits(value, unit, text):
    assert shown(value, unit) == text


def test_the_table_tells_interval_and_goal():
    assert ends(SECONDS) == ("1.00 s", "4.00 s")
    assert ends(Measure("a", "s", 1.0, None, None, None, 1)) == ("", "")
    assert verdict(SECONDS) == "3.00 s, met"
    assert verdict(Measure.of("a", "s", FIGURE, goal=1.0)) == "1.00 s, MISSED"
    assert list(table(RECORD).columns[0].cells) == ["a frame", "b"]

"""docs/benchmarks.md is what its script makes of benchmarks/results."""

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.results_of_bench import RESULT
from unetrt.benchmarks.environment import environment
from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.history import HistoryEntry, add, keep, read
from unetrt.benchmarks.result import CaseResult, Measure, now
from unetrt.runtime.errors import OptionError

ROOT = Path(__file__).parents[1]
PROGRAM = runpy.run_path(str(ROOT / "docs" / "benchmarks.py"), run_name="benchmarks")
changed, history, interval, LAST = (PROGRAM[name] for name in ("changed", "history", "interval", "LAST"))
SECONDS = Measure.of("512: unetrt", "s", Figure.of([2.0, 1.0, 4.0]))
RECORD = CaseResult(now(), environment(), "weight-map", "It measures something.", (SECONDS,))


def measure(low, median, high, unit="s", coverage=0.95):
    return Measure("a", unit, median, low, high, coverage, 9)


def parts(text):
    """The page's sections by their titles."""
    return dict(part.split("\n", 1) for part in text.split("\n## ")[1:])


def test_the_page_is_made_of_the_results_that_lie_there():
    assert PROGRAM["PAGE"].read_text(encoding="utf-8") == PROGRAM["page"]()


def test_the_history_has_every_result_that_lies_there():
    """Lines can be added and results replaced, but not one without the other."""
    runs = read(ROOT / "benchmarks" / "results" / "history.jsonl")
    known = {(run.name, run.when): run for run in runs}
    assert len(known) == len(runs)
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        if told.get("kind") == "unetrt repository benchmark":
            record = CaseResult.load(path)
            figures = tuple(replace(figure, rounds=()) for figure in record.figures)
            assert known[record.name, record.when].figures == figures
        elif told.get("kind") == "unetrt bench":
            assert (path.stem, told["when"]) in known


def test_without_results_nothing_is_measured(tmp_path):
    told = parts(PROGRAM["page"](tmp_path))
    targets = re.findall(r"^(bench-\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for name, body in told.items():
        assert "Not measured" in body, name
        if name != "GPU":
            (target,) = re.findall("`make ([\\w-]+)`", body)
            assert target in targets
    assert "Not measured on a GPU yet" in told["GPU"]


def test_files_of_another_schema_are_not_shown(tmp_path):
    for name in ("weight-map", "host", "live", "cpu"):
        (tmp_path / f"{name}.json").write_text('{"schema": 1, "figures": {}}')
    assert PROGRAM["page"](tmp_path).count("Not measured yet with the present command") == 10


def test_a_section_shows_figures_machine_and_command(tmp_path):
    keep(RECORD, tmp_path / "weight-map.json")
    told = parts(PROGRAM["page"](tmp_path))["Weight map"]
    assert "It measures something." in told
    assert "| 512: unetrt | 2.00 s | 1.00 to 4.00 s |  |" in told
    assert RECORD.environment["processor"] in told
    assert "`make bench-weights`" in told
    assert RECORD.environment["versions"]["unetrt"] in told
    assert told.count("512: unetrt") == 2  # the history's too


def test_contenders_are_shown_with_what_was_left_out(tmp_path):
    RESULT.save(tmp_path / "cpu.json")
    told = parts(PROGRAM["page"](tmp_path))["Contenders on a CPU"]
    assert (
        "| another way | fp32 | 36 of 572 x 572 | 1.00 s | 500 ms to 2.00 s | 2.00 x (2.00 to 2.00) |  | 0.00 % |"
        in told
    )
    assert "| 25.0 % of matmul fp32 | 5.00 % |" in told
    assert "MONAI was left out: it is not installed" in told
    assert "2026-01-01 00:00 UTC, P, 2 threads" in told


def test_a_result_of_a_gpu_is_linked(tmp_path):
    (tmp_path / "runtime-gpu.json").write_text("{}")
    told = parts(PROGRAM["page"](tmp_path))["GPU"]
    assert "[runtime-gpu.json](../benchmarks/results/runtime-gpu.json)" in told
    assert "Not measured" not in told


def test_a_damaged_history_is_told(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"na')
    with pytest.raises(OptionError, match="cut off"):
        PROGRAM["page"](tmp_path)


@pytest.mark.parametrize(
    ("before", "now", "text"),
    [
        (measure(1.9, 2.0, 2.1), measure(1.0, 1.5, 1.89), "**-25.0 %, better**"),
        (measure(1.9, 2.0, 2.1), measure(2.2, 3.0, 4.0), "**+50.0 %, worse**"),
        (measure(1.9, 2.0, 2.1, "x"), measure(2.2, 3.0, 4.0, "x"), "**+50.0 %, better**"),
        (measure(1.9, 2.0, 2.1), measure(2.1, 3.0, 4.0), "+50.0 %"),
        (measure(None, 2.0, None), measure(2.2, 3.0, 4.0), "+50.0 %"),
        (None, measure(2.2, 3.0, 4.0), ""),
    ],
)
def test_a_change_is_bold_where_it_is_outside_the_noise(before, now, text):
    assert changed(before, now) == text


@pytest.mark.parametrize(
    ("figure", "text"),
    [
        (measure(0.0484, 0.05, 0.0503), "48.4 to 50.3 ms"),
        (measure(0.5, 0.9, 1.5), "500 ms to 1.50 s"),
        (measure(4.0, 5.0, 6.0, "Mpixel/s", coverage=None), "4.00 to 6.00 Mpixel/s (range)"),
        (measure(None, 5.0, None), "one round"),
    ],
)
def test_an_interval_says_what_it_is(figure, text):
    assert interval(figure) == text


def test_the_history_shows_the_last_runs_and_compares_one_machine_with_itself(tmp_path):
    path = tmp_path / "history.jsonl"
    for number in range(LAST + 1):
        figure = replace(SECONDS, median=1.0 + number, low=0.9 + number, high=1.1 + number)
        add(HistoryEntry("some", f"2026-01-0{number + 1}T10:00:00+00:00", "1", None, "P", (figure,)), path)
    _, told = history(read(path))
    assert told.splitlines()[0] == "|  | " + " | ".join(f"2026-01-0{n} 10:00, 1" for n in (2, 3, 4, 5)) + " | change |"
    assert told.splitlines()[2] == "| 512: unetrt | 2.00 s | 3.00 s | 4.00 s | 5.00 s | **+25.0 %, worse** |"
    add(HistoryEntry("some", "later", "1", "abc", "Q", (figure, replace(figure, name="new"))), path)
    _, told = history(read(path))
    assert told.splitlines()[2].endswith("| 5.00 s | 5.00 s |  |")
    assert told.splitlines()[3] == "| new |  |  |  | 5.00 s |  |"

"""Figures, and results as JSON."""

import json
from pathlib import Path

import pytest

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.result import SEGMENT, LeftOut, Limit, Measured, Result, load
from unetrt.runtime.errors import OptionError

SECONDS = Figure.of([2.0, 1.0, 4.0])
MEASURED = Measured(
    name="torch", title="the usual loop", device="cpu", precision="fp32", tile=(572, 572), tiles=36, flops=10**12,
    pixels_off=0.05, checked="its first tile", seconds={SEGMENT: SECONDS}, speedup=SECONDS / SECONDS,
    latencies=(1.0, 2.0), phases={"cut": 0.1}, limit="matmul fp32", share=0.5 / SECONDS, host_memory=2**30,
)  # fmt: skip
RESULT = Result(
    when="2026-01-01T00:00:00+00:00", frame=(2048, 2048), network={"depth": 4}, reference="torch",
    contenders=(MEASURED,), left_out=(LeftOut("monai", "MONAI", "it is not installed"),),
    limits=(Limit("matmul fp32", "FLOP/s", SECONDS),), environment={"threads": 2},
)  # fmt: skip


@pytest.mark.parametrize(
    ("count", "low", "high", "sure"), [(1, 0, 0, 0), (3, 0, 2, 0.75), (6, 0, 5, 0.96875), (9, 1, 7, 0.9609375)]
)
def test_the_interval_is_the_narrowest_that_holds_the_median_often_enough(
    count: int, low: int, high: int, sure: float
) -> None:
    figure = Figure.of(list(range(count))[::-1])
    assert (figure.low, figure.high, figure.coverage) == (low, high, sure)


def test_ratios_are_taken_round_by_round() -> None:
    assert (Figure.of([4.0, 8.0, 6.0]) / Figure.of([1.0, 2.0, 1.0])).rounds == (4.0, 4.0, 6.0)
    assert (8.0 / SECONDS).rounds == (4.0, 8.0, 2.0)


def test_a_result_comes_back_from_its_file(tmp_path: Path) -> None:
    RESULT.save(tmp_path / "a.json")
    assert load(tmp_path / "a.json") == RESULT
    assert RESULT["torch"] is MEASURED


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("no JSON", "something else"),
        ("[]", "something else"),
        ("{}", "something else"),
        (json.dumps({"kind": "unetrt bench", "schema": 2}), "something else"),
        (json.dumps({"kind": "unetrt bench", "schema": 9}), "schema 9 of unetrt bench"),
    ],
)
def test_other_files_are_refused(text: str, found: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(OptionError, match=f"a.json holds {found}: give a file of `unetrt bench --json`, schema 2"):
        load(tmp_path / "a.json")
    with pytest.raises(OptionError, match="cannot be read"):
        load(tmp_path / "none.json")

"""Benchmarks in Micro-Manager's real core: few frames, and what the figures are made of."""

import pytest
from click.testing import CliRunner

from tests import requirements
from unetrt.benchmarks.__main__ import main
from unetrt.benchmarks.acquisition_cases import (
    RANKS,
    WAYS,
    Decision,
    DecisionLoop,
    FramesAccounted,
    demo_core,
)
from unetrt.benchmarks.acquisition_cases import _require_accounted as require_accounted
from unetrt.benchmarks.cases import measure
from unetrt.benchmarks.result import CaseResult
from unetrt.runtime.errors import InferenceError, ParityError

pytestmark = pytest.mark.alone


@pytest.fixture(autouse=True)
def micro_manager():
    pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)


@pytest.mark.parametrize("way", WAYS)
def test_the_parts_of_a_decision_add_up(tiny_model, way):
    with demo_core(64) as core:
        decisions = DecisionLoop(tiny_model, 64, 6).run(core, way)
    assert len(decisions) == 6
    for one in decisions:
        assert min(one) > 0
        computed = one.network + one.numbering + one.table
        assert one.whole == pytest.approx(one.readout + one.handover + computed + one.ours)
        assert one.ours_with_objects == pytest.approx(one.ours + one.numbering + one.table)


def test_a_decision_that_fails_ends_the_acquisition(tiny_model, monkeypatch):
    monkeypatch.setattr("unetrt.runtime.live.worker.object_columns", lambda *_: 1 / 0)
    with demo_core(64) as core, pytest.raises(InferenceError, match="after 0 decisions: division by zero"):
        DecisionLoop(tiny_model, 64, 6).run(core, "slot")


def test_the_command_writes_ranks_of_both_ways(tiny_model, tmp_path):
    path = tmp_path / "decision.json"
    few = ["--side", "64", "--count", "4", "--rounds", "1", "--json", str(path)]
    done = CliRunner().invoke(main, ["decision", str(tiny_model), *few], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = CaseResult.load(path)
    for way in WAYS:
        for title in ("frame to decision", "all but network and objects", "all but the network"):
            ranks = [result[f"{way}: {title}, {rank}"].median for rank in RANKS]
            assert 0 < ranks[0] <= ranks[1] <= ranks[2]
        assert result[f"{way}: all but network and objects, p99"].goal == 5e-3
    names = {f"{way}, {part}: {rank}" for way in WAYS for part in Decision._fields for rank in RANKS}
    assert set(result.detail["seconds"]) == names
    assert (result.detail["frame"], result.detail["count"]) == ([64, 64], 4)


def test_frames_of_hardware_sequences_are_accounted_for(tiny_model):
    result = measure(FramesAccounted(tiny_model, 64, count=500, per=200), rounds=1)
    counts = result.detail["counts"]
    assert {counts[name] for name in ("submitted", "announced", "numbered")} == {500}
    assert counts["done"] + counts["dropped"] == 500
    assert counts["results delivered"] == counts["done"] > 0
    assert (counts["dropped, in notices"], counts["failed"], counts["missed"]) == (counts["dropped"], 0, 0)
    assert result["a frame of the camera"].median > 0


COUNTS = {
    "submitted": 9, "done": 5, "dropped": 3, "failed": 1, "pending": 0, "missed": 0, "announced": 9, "numbered": 9,
    "results delivered": 6, "dropped, in notices": 3,
}  # fmt: skip


def test_counts_that_do_not_add_up_are_no_result():
    require_accounted(9, COUNTS, in_order=True)
    for name, count in COUNTS.items():
        with pytest.raises(ParityError, match="9 frames were asked for, and the counts do not add up"):
            require_accounted(9, {**COUNTS, name: count + 1}, in_order=True)
    with pytest.raises(ParityError, match="do not add up"):
        require_accounted(10, COUNTS, in_order=True)
    with pytest.raises(ParityError, match="are not in order"):
        require_accounted(9, COUNTS, in_order=False)

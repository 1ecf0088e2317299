"""Benchmarks of a live segmenter: what they time, with a tiny model and few frames."""

from itertools import chain

from click.testing import CliRunner

from unetrt.benchmarks.__main__ import main
from unetrt.benchmarks.cases import measure
from unetrt.benchmarks.history import read
from unetrt.benchmarks.live_cases import PASSED, POLICIES, LiveThroughput
from unetrt.benchmarks.result import CaseResult


def test_each_policy_is_timed_while_the_model_computes(tiny_model, tmp_path):
    path = tmp_path / "live.json"
    # Faster than the model can segment.
    pace = ["--side", "256", "--rounds", "2", "--count", "60", "--fps", "1000"]
    done = CliRunner().invoke(main, ["live", str(tiny_model), *pace, "--json", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = CaseResult.load(path)
    assert len(result.detail["cases"]) == 2
    for cases in result.detail["cases"]:
        assert [(case["policy"], case["frame"]) for case in cases] == [
            (str(policy), passed) for policy in POLICIES for passed in PASSED
        ]
    for case in chain(*result.detail["cases"]):
        assert case["submitted"] == 110 == sum(case[name] for name in ("done", "dropped", "failed", "pending"))
        assert case["pending"] > 0
        assert case["failed"] == 0
        assert 0 < case["submit"]["p50"] <= case["submit"]["p99"] <= case["submit"]["highest"]
    for figure in result.figures:
        name, rank = figure.name.split(": ")
        (index,) = (at for at, case in enumerate(cases) if f"{case['policy']}, {case['frame']}" == name)
        assert figure.rounds == tuple(of_round[index]["submit"][rank] for of_round in result.detail["cases"])
        assert figure.goal == (1e-3 if rank == "p99" else None)
    assert [run.figures[0].median for run in read(tmp_path / "history.jsonl")] == [result.figures[0].median]


def test_a_frame_is_timed_live_and_its_parts_alone(tiny_model):
    result = measure(LiveThroughput(tiny_model, 128, count=5), rounds=2)
    alone = [result[f"{part}, alone"] for part in ("network", "objects")]
    assert result["one after another"].rounds == tuple(map(sum, zip(*(one.rounds for one in alone), strict=True)))
    assert result["the longer of both"].rounds == tuple(map(max, zip(*(one.rounds for one in alone), strict=True)))
    ratios = zip(result["one after another"].rounds, result["a frame, live"].rounds, strict=True)
    assert result["live against one after another"].rounds == tuple(one / other for one, other in ratios)
    assert min(figure.median for figure in result.figures) > 0
    assert len(result.detail["objects"]) == 5
    assert (result.detail["frame"], result.detail["engine"]) == ([128, 128], result.detail["engine"])

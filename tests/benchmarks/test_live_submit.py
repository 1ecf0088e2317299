from itertools import chain

from click.testing import CliRunner

from unetrt.benchmarks.history import read
from unetrt.benchmarks.live_submit import POLICIES, WAYS, command
from unetrt.benchmarks.record import Record


def test_each_policy_and_way_is_timed_while_the_model_computes(tiny_model, tmp_path):
    path = tmp_path / "live.json"
    # So fast that the model is never through.
    pace = ["--side", "256", "--rounds", "2", "--count", "60", "--fps", "1000"]
    done = CliRunner().invoke(command, [str(tiny_model), *pace, "--json", str(path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = Record.load(path)
    assert len(record.detail["cases"]) == 2
    for cases in record.detail["cases"]:
        assert [(case["policy"], case["frame"]) for case in cases] == [
            (str(policy), way) for policy in POLICIES for way in WAYS
        ]
    for case in chain(*record.detail["cases"]):
        assert case["submitted"] == 110 == sum(case[name] for name in ("done", "dropped", "failed", "pending"))
        assert case["pending"] > 0
        assert case["failed"] == 0
        assert 0 < case["submit"]["p50"] <= case["submit"]["p99"] <= case["submit"]["highest"]
    assert record.environment
    for figure in record.figures:
        name, rank = figure.name.split(": ")
        (index,) = (at for at, case in enumerate(cases) if f"{case['policy']}, {case['frame']}" == name)
        assert figure.rounds == tuple(of_round[index]["submit"][rank] for of_round in record.detail["cases"])
        assert figure.goal == (1e-3 if rank == "p99" else None)
    worst = max(figure.median for figure in record.figures if figure.name.endswith("p99"))
    assert f"the slowest p99 is {1e3 * worst:.3f} ms" in done.output
    assert [run.figures[0].median for run in read(tmp_path / "history.jsonl")] == [record.figures[0].median]


def test_a_place_that_cannot_be_written_to_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(command, ["none.onnx", "--json", str(tmp_path / "file" / "live.json")])
    assert done.exit_code == 2
    assert "is not a folder" in done.output

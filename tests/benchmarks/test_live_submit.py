import json

from click.testing import CliRunner

from unetrt.benchmarks.live_submit import POLICIES, WAYS, command


def test_each_policy_and_way_is_timed_while_the_model_computes(tiny_model, tmp_path):
    path = tmp_path / "live.json"
    # So fast that the model is never through.
    arguments = [str(tiny_model), "--side", "256", "--count", "60", "--fps", "1000", "--json", str(path)]
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    result = json.loads(path.read_text())
    assert {(case["policy"], case["frame"]) for case in result["cases"]} == {
        (str(policy), way) for policy in POLICIES for way in WAYS
    }
    for case in result["cases"]:
        assert case["submitted"] == 110 == sum(case[name] for name in ("done", "dropped", "failed", "pending"))
        assert case["pending"] > 0
        assert case["failed"] == 0
        assert 0 < case["submit"]["p50"] <= case["submit"]["p99"] <= case["submit"]["highest"]
    assert result["environment"]
    worst = max(case["submit"]["p99"] for case in result["cases"])
    assert f"the slowest p99 is {1e3 * worst:.3f} ms" in done.output


def test_a_place_that_cannot_be_written_to_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(command, ["none.onnx", "--json", str(tmp_path / "file" / "live.json")])
    assert "is not a folder" in str(done.exception)

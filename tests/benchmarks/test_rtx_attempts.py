"""What is tried of TensorRT for RTX; here all attempts end where a GPU is needed."""

import json

import pytest
from click.testing import CliRunner

from tests import requirements
from unetrt.benchmarks import rtx_attempts as module
from unetrt.benchmarks.journal import Patience
from unetrt.benchmarks.rtx_attempts import (
    ATTEMPTS,
    UNNAMED,
    AttemptOutcome,
    attempts,
    command,
    in_a_child,
    in_one_line,
    result_path,
)
from unetrt.runtime.machine import Machine

HOPPER = Machine("NVIDIA H100 80GB HBM3", "9.0", "580.1", "Linux x86_64")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    module.write_model(path)
    return path


@pytest.mark.skipif(module.this_machine().gpu != "", reason="there is a GPU")
@pytest.mark.parametrize("capability", [UNNAMED, "CURRENT", "SM80", "SM90"])
def test_an_attempt_gets_as_far_as_it_can(model, capability):
    """Really built; CURRENT needs the device to build already, and there is no SM90 to ask for."""
    pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    outcome = in_a_child(model, capability)
    if capability in (UNNAMED, "SM80"):
        assert set(outcome.seconds) == {"build"}
        assert outcome.failed == "deserialise"
    else:
        assert outcome.failed == "build"
    assert outcome.messages
    assert in_one_line(outcome).startswith(f"{capability}: failed ({outcome.failed}): ")


def test_a_child_that_dies_is_an_outcome(tmp_path):
    outcome = in_a_child(tmp_path / "none.onnx", UNNAMED)
    assert outcome.failed == "process"
    assert "FileNotFoundError" in outcome.messages[0]


@pytest.fixture
def tried(monkeypatch):
    """The capabilities that were tried, in order; all of them run."""
    names = []

    def one(model, capability):
        names.append(capability)
        return AttemptOutcome(capability)

    monkeypatch.setattr(module, "in_a_child", one)
    return names


def test_they_are_tried_in_order_and_each_is_stored_before_the_next(tried, monkeypatch, tmp_path):
    path = result_path(tmp_path, HOPPER)
    assert path.name == "tensorrt-rtx-on-nvidia-h100-80gb-hbm3.json"
    stored, one = [], module.in_a_child

    def looking(model, capability):
        stored.append(len(json.loads(path.read_text())["results"]) if path.exists() else 0)
        return one(model, capability)

    monkeypatch.setattr(module, "in_a_child", looking)
    outcomes = attempts(path, tmp_path, HOPPER, "1.7.1.116")
    assert tried == list(outcomes) == list(ATTEMPTS)
    assert ATTEMPTS[:4] == (UNNAMED, "CURRENT", "SM75", "SM80")
    assert stored == list(range(len(ATTEMPTS)))
    assert in_one_line(outcomes[UNNAMED]) == "none named: runs"


def test_results_of_other_versions_are_kept_and_those_of_this_one_on_request(tried, tmp_path):
    path = result_path(tmp_path, HOPPER)
    attempts(path, tmp_path, HOPPER, "1.4.0.76")
    attempts(path, tmp_path, HOPPER, "1.7.1.116")
    attempts(path, tmp_path, HOPPER, "1.7.1.116", Patience(resume=True))
    assert len(tried) == 2 * len(ATTEMPTS)
    attempts(path, tmp_path, HOPPER, "1.7.1.116")
    assert len(tried) == 3 * len(ATTEMPTS)
    whole = json.loads(path.read_text())
    assert whole["about"] == {"device": HOPPER.gpu, "capability": "9.0"}
    assert len(whole["results"]) == 2 * len(ATTEMPTS)


def test_no_attempt_begins_when_the_time_is_up(tried, tmp_path):
    path = result_path(tmp_path, HOPPER)
    assert attempts(path, tmp_path, HOPPER, "1.7.1.116", Patience(seconds=1e-9)) == {}
    assert tried == []
    assert len(json.loads(path.read_text())["missing"]) == len(ATTEMPTS)


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "this_machine", Machine)
    result = CliRunner().invoke(command)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "these attempts need a GPU" in result.stderr


def test_the_command_writes_what_it_says(monkeypatch, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    monkeypatch.setattr(module, "this_machine", lambda: HOPPER)
    monkeypatch.setattr(
        module, "in_a_child", lambda model, name: AttemptOutcome(name, failed="context", messages=["no\nway"])
    )
    result = CliRunner().invoke(command, ["--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "SM80: failed (context): no way" in result.stdout
    assert json.loads(result_path(tmp_path, HOPPER).read_text())["about"]["device"] == HOPPER.gpu

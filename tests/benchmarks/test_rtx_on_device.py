"""What is tried of TensorRT for RTX; here all attempts end where a GPU is needed."""

import json

import pytest
from click.testing import CliRunner

from tests import requirements
from unetrt.benchmarks import rtx_on_device as module
from unetrt.benchmarks.rtx_attempt import UNNAMED, Outcome
from unetrt.benchmarks.rtx_on_device import CAPABILITIES, attempts, command, in_a_child, merged, result_path, told
from unetrt.runtime.engines.machine import Machine

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
    assert told(outcome).startswith(f"{capability}: failed ({outcome.failed}): ")


def test_a_child_that_dies_is_an_outcome(tmp_path):
    outcome = in_a_child(tmp_path / "none.onnx", UNNAMED)
    assert outcome.failed == "process"
    assert "FileNotFoundError" in outcome.messages[0]


def test_they_are_tried_in_order(tmp_path):
    tried = attempts(tmp_path, lambda model, capability: Outcome(capability))
    assert [outcome.capability for outcome in tried] == list(CAPABILITIES)
    assert CAPABILITIES[:3] == (UNNAMED, "CURRENT", "SM80")
    assert told(tried[0]) == "none named: runs"


def test_results_are_kept_by_device_and_version(tmp_path):
    path = result_path(tmp_path, HOPPER)
    assert path.name == "tensorrt-rtx-on-nvidia-h100-80gb-hbm3.json"
    path.write_text(json.dumps(merged(path, HOPPER, "1.4.0.76", [Outcome("SM80", failed="context")])))
    both = merged(path, HOPPER, "1.7.1.116", [Outcome("SM80", {"build": 0.1})])
    assert {version: tried["attempts"][0]["failed"] for version, tried in both["versions"].items()} == {
        "1.4.0.76": "context",
        "1.7.1.116": "",
    }
    assert both["capability"] == "9.0"


def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(module, "this_machine", Machine)
    result = CliRunner().invoke(command)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert "these attempts need a GPU" in result.stderr


def test_the_command_writes_what_it_says(monkeypatch, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    monkeypatch.setattr(module, "this_machine", lambda: HOPPER)
    monkeypatch.setattr(module, "attempts", lambda model: [Outcome("SM80", failed="context", messages=["no\nway"])])
    result = CliRunner().invoke(command, ["--folder", str(tmp_path)])
    assert result.exit_code == 0, result.output
    assert "SM80: failed (context): no way" in result.stdout
    assert json.loads(result_path(tmp_path, HOPPER).read_text())["device"] == HOPPER.gpu

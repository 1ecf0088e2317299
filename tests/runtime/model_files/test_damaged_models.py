"""A model file may be damaged, or made to harm: whatever it holds, it works or is refused in one line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.model_files.mutations import mutant
from tests.runtime.model_files.small_models import convolution, model, network, outside, various, weights

# How many: in `make test`, and in `make test-slow`.
FEW, MUTANTS = 300, 1000
CANARY = 1234.5677

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of memory and time are POSIX's")


def damageable():
    """Three small models: with external data, with many operators, and a U-Net of ours."""
    external = model([convolution()], [outside(weights(), "in/w.bin", offset=0, length=8)])
    return [made.SerializeToString() for made in (external, various(), network())]


def loaded(folder, engine="onnxruntime"):
    """What a process of its own says of each model, started again after each model that kills it."""
    models, results, crashes = sorted(folder.glob("*.onnx")), [], {}
    while len(results) + len(crashes) < len(models):
        command = [
            sys.executable,
            "-m",
            "tests.runtime.model_files.loading_child",
            str(folder),
            engine,
            str(len(results) + len(crashes)),
        ]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[3], capture_output=True, text=True, errors="replace", check=False
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines, done.stderr
        results += [line for line in lines if "begins" not in line]
        if "begins" in lines[-1]:
            crashes[lines[-1]["name"]] = done.returncode
    return results, crashes


@pytest.fixture
def folder(tmp_path):
    """A folder for models with in/w.bin, the weights; its parent has other weights, and ln leads there."""
    inner = tmp_path.resolve() / "models"
    (inner / "in").mkdir(parents=True)
    (inner / "in" / "w.bin").write_bytes(np.float32([1, 2]).tobytes())
    (tmp_path / "w.bin").write_bytes(np.float32([CANARY, CANARY]).tobytes())
    (inner / "ln").symlink_to(tmp_path)
    return inner


@pytest.mark.parametrize("count", [FEW, pytest.param(MUTANTS, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("engine", "name"), [("openvino", "OpenVINO"), ("onnxruntime", "ONNX Runtime")])
def test_damaged_models_are_refused_in_one_line(folder, engine, name, count):
    originals = damageable()
    for number in range(count):
        (folder / f"{number:04d}.onnx").write_bytes(mutant(originals[number % len(originals)], number))
    results, crashes = loaded(folder, engine)
    assert crashes == {}
    assert [line for line in results if "defect" in line] == []
    assert [line for line in results if line["outside"] or line["canary"]] == []
    errors = [error for line in results for error in line["errors"].values() if error]
    assert [error for error in errors if "\n" in error] == []
    # Damage that everything survives, or nothing, would prove little.
    for step in ("read_spec", "external_files", "open_session"):
        refused = sum(line["errors"][step] is not None for line in results)
        assert count / 10 < refused < count * 95 / 100, step
    assert sum(f"that {name} can load" in error for error in errors) > 5 * count / MUTANTS


def test_crashes_canaries_and_reads_outside_are_seen(folder):
    """The test above can fail: what it looks for is found where it is."""
    data = damageable()[0]
    for name in ("control-canary", "control-crash", "control-read", "last"):
        (folder / f"{name}.onnx").write_bytes(data)
    (folder / "in" / "w.bin").write_bytes((folder.parent / "w.bin").read_bytes())
    results, crashes = loaded(folder)
    assert list(crashes) == ["control-crash.onnx"]
    assert [line["canary"] for line in results] == [True, True, True]
    assert [bool(line["outside"]) for line in results] == [False, True, False]

"""Commands under a small address space: one line that says so, and no traceback."""

import os
import subprocess
import sys

import numpy as np
import pytest

resource = pytest.importorskip("resource", reason="a system without limits of the address space")
if sys.platform != "linux":
    pytest.skip("needs the limits of Linux", allow_module_level=True)

# Runs a command once, and then with as much address space as it has, and so many MiB more.
AGAIN = """
import os
import resource, sys
from pathlib import Path
from unetrt.__main__ import main

def commands(number):
    return [word.replace("OUT", f"out{number}") for word in sys.argv[3:]]

main([word.replace("large", "small") for word in commands("")])
for number, more in enumerate(map(int, sys.argv[1].split(","))):
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more * 2**20, resource.RLIM_INFINITY))
    status = main(commands(number))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(f"status {status}", file=sys.stderr)
"""
COMMANDS = {
    "predict": "predict model.onnx large.npy -o OUT --tile model --backend onnxruntime",
    "predict, openvino": "predict model.onnx large.npy -o OUT --tile model --backend openvino",
    "eval": "eval large.npy large.npy",
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_memory_that_runs_out_in_a_command_is_one_line(tmp_path, tiny_model, command):
    (tmp_path / "model.onnx").write_bytes(tiny_model.read_bytes())
    np.save(tmp_path / "small.npy", np.eye(64, dtype=np.uint8))
    np.save(tmp_path / "large.npy", np.zeros((9000, 9000), np.uint8))
    limits = "1,20,100"
    run = [sys.executable, "-c", AGAIN, limits, "--", *command.split()]
    ended = subprocess.run(run, capture_output=True, text=True, cwd=tmp_path, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    failed = [number for number, line in enumerate(lines) if line in ("status 1", "status 2")]
    assert len(failed) == 3, ended.stderr
    for number in failed:
        assert lines[number - 1].startswith("Error: "), ended.stderr
        assert "memory" in lines[number - 1], ended.stderr


@pytest.mark.parametrize("mebibytes", [120, 145])
@pytest.mark.parametrize("command", ["predict model.onnx small.npy -o out", "eval small.npy small.npy"])
def test_memory_that_runs_out_in_an_import_is_one_line(tmp_path, tiny_model, command, mebibytes):
    (tmp_path / "model.onnx").write_bytes(tiny_model.read_bytes())
    np.save(tmp_path / "small.npy", np.eye(64, dtype=np.uint8))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({mebibytes} * 2**20,) * 2)"
    run = [sys.executable, "-c", f"{limit}; from unetrt.__main__ import main; raise SystemExit(main())"]
    ended = subprocess.run(
        [*run, *command.split()], capture_output=True, text=True, cwd=tmp_path, timeout=100, check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # its memory is then the same on each machine
    )  # fmt: skip
    assert ended.returncode != 0
    if "without exception set" in ended.stderr:
        pytest.skip("CPython lost the error of the memory that ran out in its own code")
    assert "Traceback" not in ended.stderr
    # A library that cannot be initialised ends the process by itself.
    assert ended.stderr.startswith(("Error: memory ran out (", "OpenBLAS error: ")), ended.stderr

"""The tests that need a GPU: without one they can be collected, and on a fake one they pass."""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from tests import requirements
from tests.gpu.child_cases import DONE, READY
from tests.gpu.children import REPOSITORY, child, said, started
from tests.gpu.engines import COPIES
from tests.runtime.cuda.conftest import fake_libcuda  # noqa: F401

CASES = "tests.gpu.child_cases"
# What a GPU's host may lack.
WITHOUT = ("hypothesis", "pytest_timeout")
PYTEST = f"""
import sys
sys.modules.update(dict.fromkeys({WITHOUT}))
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
# What the fake GPU cannot show: time, processes, another library's memory, types that ONNX Runtime lacks on the CPU.
BEYOND_A_FAKE = ("bf16", "ten_thousand", "share_their_weights", "the_driver_says", "onnxruntime", "rtx")
ON_A_FAKE = ("parity", "exactness", "lanes", "live", "graphs", "wrong_engines", "memory")


def run(*arguments, **variables):
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, cwd=REPOSITORY, env=os.environ | variables, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "collect", [pytest.param(["--collect-only"], marks=pytest.mark.slow), []], ids=["collected", "skipped"]
)
def test_they_need_no_more_than_they_say(collect):
    import torch

    if torch.cuda.is_available() and not collect:
        pytest.skip("there is a GPU")
    done = run("-c", PYTEST, "-m", "gpu", "-q", *collect, "tests/gpu", PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == 0, done.stdout
    assert done.stderr == ""
    if not collect:
        assert " skipped" in done.stdout
        assert "passed" not in done.stdout


@pytest.mark.parametrize("case", ["left_open", "first_frame"])
def test_cases_of_processes_run_on_the_fake_driver(fake_libcuda, case):  # noqa: F811
    done = child(CASES, case, COPIES, "none", LD_LIBRARY_PATH=str(fake_libcuda), UNETRT_CUDA="")
    assert (done.returncode, done.stderr) == (0, "")


def test_ctrl_c_reaches_a_call_on_the_fake_driver(fake_libcuda):  # noqa: F811
    process = started(CASES, "interrupted", COPIES, "none", LD_LIBRARY_PATH=str(fake_libcuda), UNETRT_CUDA="")
    assert process.stdout.readline() == f"{READY}\n", process.communicate()[1]
    process.send_signal(signal.SIGINT)
    out, error = said(process, 60)
    assert (process.returncode, out, error) == (0, f"{DONE}\n", "")


def test_ctrl_c_that_nobody_catches_on_the_fake_driver(fake_libcuda):  # noqa: F811
    process = started(CASES, "interrupted_and_gone", COPIES, "none", LD_LIBRARY_PATH=str(fake_libcuda), UNETRT_CUDA="")
    assert process.stdout.readline() == f"{READY}\n", process.communicate()[1]
    process.send_signal(signal.SIGINT)
    _, error = said(process, 60)
    assert process.returncode == -signal.SIGINT
    assert error.splitlines()[-1] == "KeyboardInterrupt"
    assert error.count("Traceback") == 1


@pytest.mark.skipif(shutil.which("make") is None or os.name == "nt", reason=requirements.MAKE)
@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ([], ""),
        (["SECONDS=265", "STEPS=facts ptx", "OUT=/a"], " --seconds 265 --out /a facts ptx"),
        (["RESUME=1"], " --resume"),
    ],
)
def test_make_hands_the_check_what_it_is_given(tmp_path, given, asked):
    """The Python that it is given notes what it is asked for."""
    fake_python, noted = tmp_path / "fake_python", tmp_path / "noted"
    fake_python.write_text(f'#!/bin/sh\necho "$*" > {noted}\nexit 1\n')
    fake_python.chmod(0o755)
    command = ["make", "gpu-check", f"PYTHON={fake_python}", *given]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert noted.read_text().split() == f"-m unetrt.benchmarks.gpu_check{asked}".split()
    assert done.returncode != 0


@pytest.mark.slow
def test_they_pass_on_a_fake_gpu():
    files = [f"tests/gpu/test_{name}.py" for name in ON_A_FAKE]
    chosen = " and ".join(f"not {name}" for name in BEYOND_A_FAKE)
    done = run("-m", "pytest", "-p", "tests.gpu.fake_gpu", "-m", "gpu", "-q", "-rs", "-k", chosen, *files)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert "SKIPPED" not in done.stdout, done.stdout

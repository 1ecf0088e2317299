"""A whole process: torch in it, its other GPUs, Ctrl-C, and its end."""

import signal
import sys
import time

import pytest

from tests.gpu.child_cases import CASES as OTHERS
from tests.gpu.child_cases import DONE, READY
from tests.gpu.children import child, said, started
from tests.gpu.torch_cases import CASES as TORCH
from unetrt.runtime.cuda.driver import BINDINGS

pytestmark = pytest.mark.gpu


@pytest.fixture(params=BINDINGS, ids=lambda one: one.name)
def cuda(request):
    if reason := request.param.probe():
        pytest.skip(reason)
    return request.param.name


def run(module, case, backend, model, *arguments, **variables):
    done = child(f"tests.gpu.{module}", case.__name__, backend, model, *arguments, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("case", TORCH.values(), ids=TORCH)
def test_torch_lives_on(backend, plain, cuda, case):
    run("torch_cases", case, backend, plain, UNETRT_CUDA=cuda)


def test_what_is_left_open_is_freed_in_silence(backend, plain, cuda):
    run("child_cases", OTHERS["left_open"], backend, plain, UNETRT_CUDA=cuda)


def test_another_gpu_is_left_alone(backend, plain, cuda):
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    for device in (0, 1):
        run("child_cases", OTHERS["one_device"], backend, plain, device, UNETRT_CUDA=cuda)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches a process group there, this one included")
@pytest.mark.parametrize("pause", [0, 0.02])
def test_ctrl_c_ends_a_call_and_the_next_frame_works(backend, plain, pause):
    process = ready("interrupted", backend, plain)
    signal_after(process, pause)
    out, error = said(process)
    assert (process.returncode, error) == (0, "")
    assert out.splitlines()[-1:] == [DONE]


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C reaches a process group there, this one included")
def test_ctrl_c_that_nobody_catches_ends_the_process(backend, plain):
    process = ready("interrupted_and_gone", backend, plain)
    signal_after(process, 0.02)
    _, error = said(process)
    assert process.returncode == -signal.SIGINT
    assert error.startswith("Traceback")
    assert error.splitlines()[-1] == "KeyboardInterrupt"
    assert error.count("Traceback") == 1


def ready(case, backend, model):
    process = started("tests.gpu.child_cases", case, backend, model)
    assert process.stdout.readline() == f"{READY}\n", process.communicate()[1]
    return process


def signal_after(process, pause):
    time.sleep(pause)
    process.send_signal(signal.SIGINT)

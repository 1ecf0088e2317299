"""Runs one case of torch in the same process: python -m tests.gpu.torch_cases CASE BACKEND MODEL."""

import ctypes
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tests.gpu.child_cases import FRAME
from tests.gpu.engines import opened
from unetrt.runtime.segment.segmenter import Segmenter


class Torch:
    """What torch has on the GPU, and what it computes there all the while."""

    def __init__(self):
        import torch

        self.torch = torch
        self.kept = torch.arange(1 << 20, device="cuda", dtype=torch.int32)
        self.matrix = torch.eye(1024, device="cuda") * 2
        self.device, self.stream = torch.cuda.current_device(), torch.cuda.current_stream()
        self.context = current_context()
        self.check()

    def check(self):
        """Device, stream and context are as they were, and so is all else."""
        torch = self.torch
        assert torch.cuda.current_device() == self.device
        assert torch.cuda.current_stream() == self.stream
        assert current_context() == self.context
        self.compute()

    def compute(self):
        """Values are as they were, and a product is right."""
        torch = self.torch
        assert torch.equal(self.kept.cpu(), torch.arange(1 << 20, dtype=torch.int32))
        assert torch.equal((self.matrix @ self.matrix).cpu(), 4 * torch.eye(1024))


def current_context():
    context = ctypes.c_void_p()
    assert ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)) == 0
    return context.value


def segment(segmenter, expected=None):
    scores = segmenter.scores(FRAME)
    assert expected is None or np.array_equal(scores, expected)
    return scores


def before_during_and_after(backend, model):
    torch = Torch()
    session = opened(backend, model)
    torch.check()
    with session, Segmenter(session) as segmenter:
        expected = segment(segmenter)
        for _ in range(20):
            busy = torch.matrix @ torch.matrix  # in flight while the lanes compute
            segment(segmenter, expected)
            torch.check()
            del busy
    torch.check()
    torch.torch.cuda.empty_cache()
    torch.check()


def after_us(backend, model):
    """Torch comes when the session is there, and is there when it goes."""
    session = opened(backend, model)
    with session, Segmenter(session) as segmenter:
        expected = segment(segmenter)
        torch = Torch()
        segment(segmenter, expected)
        torch.check()
    torch.check()


def in_a_thread(backend, model):
    """Both at once, from two threads."""
    torch, stop = Torch(), threading.Event()

    def work():
        while not stop.is_set():
            torch.compute()

    with opened(backend, model) as session, Segmenter(session, lanes=3) as segmenter, ThreadPoolExecutor(1) as threads:
        expected = segment(segmenter)
        working = threads.submit(work)
        for _ in range(50):
            segment(segmenter, expected)
        stop.set()
        working.result()
    torch.check()


CASES = {case.__name__: case for case in (before_during_and_after, after_us, in_a_thread)}

if __name__ == "__main__":
    CASES[sys.argv[1]](*sys.argv[2:])

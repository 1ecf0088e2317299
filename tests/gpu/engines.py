"""What runs on the GPU in these tests: copies alone, which need no engine, and the engines."""

import os

import numpy as np

from tests.conftest import small_spec
from tests.runtime.cuda.copy_session import CopySession
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.cuda.driver import open_driver
from unetrt.runtime.errors import BackendUnavailableError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import BACKENDS, open_session

TENSORRT = "tensorrt"
ENGINES = (TENSORRT, "onnxruntime-cuda")
COPIES = "copies"
AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


def opened(backend, model=None, device=0):
    """A session; of copies where nothing else is asked for."""
    if backend == COPIES:
        return copies(device)
    return open_session(model, backend, device)


def copies(device=0, scratch=1000, **fields):
    spec = small_spec(normalisation=AS_IT_IS, **fields)
    return CopySession(spec, CudaDevice(open_driver(device, os.environ)), scratch)


def why_unusable(backend, model):
    """Why a backend cannot be tested here: not installed, or not for this device."""
    if backend == COPIES:
        return None
    (known,) = (one for one in BACKENDS if one.name == backend)
    if reason := known.probe():
        return reason
    if backend != TENSORRT:
        return None
    try:
        with Segmenter(model, backend=backend) as segmenter:
            segmenter.segment(np.zeros((60, 60), np.uint16))
    except BackendUnavailableError as error:
        return str(error)
    return None


def used():
    """Bytes of the device that are taken, by whomever."""
    import torch

    free, total = torch.cuda.mem_get_info()
    return total - free

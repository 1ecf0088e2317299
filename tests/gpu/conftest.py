"""A GPU, models exported once, and each engine that runs on it. Without a GPU all of it is skipped."""

from functools import cache, partial
from importlib.util import find_spec

import numpy as np
import pytest

from tests.export.conftest import steady  # noqa: F401
from tests.export.variants import name
from unetrt.export.exporter import Options

PLAIN = Options((60, 76))


@pytest.fixture(scope="session", autouse=True)
def gpu():
    if find_spec("torch") is None:
        pytest.skip("torch is not installed")
    import torch

    if not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")


@pytest.fixture(scope="session")
def exported(gpu, steady, tmp_path_factory):  # noqa: F811
    """Exports each kind of file once, of a network for frames of a type (by default that of its input)."""
    return cache(partial(_export, steady, tmp_path_factory.mktemp("models")))


def _export(steady, folder, options, frames=None):  # noqa: F811
    from unetrt.export.exporter import export

    frames = frames or options.input
    path = folder / f"{name(options)}-of-{frames}.onnx"
    export(steady(frames), path, options)
    return path


@pytest.fixture(scope="session")
def plain(exported):
    """A model file with default options."""
    return exported(PLAIN)


@pytest.fixture(scope="session", params=["tensorrt", "onnxruntime-cuda"])
def engine(request, plain):
    """The name of an engine that computes."""
    return _usable(request.param, plain)


@pytest.fixture(scope="session", params=["copies", "tensorrt", "onnxruntime-cuda"])
def backend(request, plain):
    """The same, and copies alone."""
    return _usable(request.param, plain)


@pytest.fixture(scope="session")
def tensorrt(plain):
    return _usable("tensorrt", plain)


@cache
def _reason(backend, model):
    from tests.gpu.engines import why_unusable

    return why_unusable(backend, model)


def _usable(backend, model):
    if reason := _reason(backend, model):
        pytest.skip(reason)
    return backend


@pytest.fixture(scope="session")
def frames():
    """Returns a stack of different synthetic frames (N, H, W) of a dtype."""
    from unetrt.trainer.drawn_cells import draw

    @cache
    def of(count, size, dtype="uint16"):
        whole = np.stack([draw((max(size[0], 96), max(size[1], 96)), seed=30 + seed).frame for seed in range(count)])
        cut = whole[:, : size[0], : size[1]]
        cut = (cut // 256).astype(np.uint8) if dtype == "uint8" else cut.astype(dtype)
        cut.flags.writeable = False
        return cut

    return of

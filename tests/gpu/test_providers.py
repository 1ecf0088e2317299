"""ONNX Runtime's providers for GPUs that are not chosen by themselves, where they are installed."""

import numpy as np
import pytest

from unetrt.export.options import Options
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.sessions import BACKENDS

pytestmark = pytest.mark.gpu

PROVIDERS = [backend for backend in BACKENDS if backend.name.startswith("onnxruntime-tensorrt")]


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda one: one.name)
def test_it_answers_as_the_cpu_does(provider, exported, frames):
    if reason := provider.probe():
        pytest.skip(reason)
    model, frame = exported(Options((60, 76), head="probabilities")), frames(1, (101, 163))[0]
    with Segmenter(model, backend="onnxruntime") as segmenter:
        expected = segmenter.segment(frame, probabilities=True).probabilities
    with Segmenter(model, backend=provider.name, lanes=3) as segmenter:
        given = segmenter.segment(frame, probabilities=True).probabilities
    np.testing.assert_allclose(given, expected, atol=1e-3)

"""Engines on the GPU answer as the network in FP32 does with ONNX Runtime on the CPU, as closely as the gate asks."""

from dataclasses import replace

import numpy as np
import pytest

from tests.export.variants import PAIRWISE, name
from unetrt.export.exporter import Options
from unetrt.export.gate import DEFAULTS, compare
from unetrt.runtime.errors import UnetrtError
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import open_session

pytestmark = pytest.mark.gpu

# Smaller than the halo, than a tile, one tile, many; odd and even.
SIZES = ((7, 5), (33, 301), (60, 60), (96, 110), (101, 163), (211, 97))
# What ONNX Runtime's providers for GPUs may lack; TensorRT has all.
OPTIONAL = ("bf16", "int8")


def all_sizes(frames, dtype):
    return [frames(1, size, dtype)[0] for size in SIZES]


def truth_of(exported, options):
    """The same network and tile in FP32, with scores, on the CPU."""
    plain = replace(options, precision="fp32", head="logits", input="float32")
    return open_session(exported(plain, options.input), "onnxruntime")


def opened(model, engine, precision):
    try:
        return open_session(model, engine, 0)
    except UnetrtError as error:
        if engine == "tensorrt" or precision not in OPTIONAL:
            raise
        pytest.skip(f"{engine} has no {precision}: {error}")


@pytest.mark.parametrize("options", PAIRWISE, ids=name)
def test_every_kind_of_file(engine, exported, frames, options):
    shown = all_sizes(frames, "uint8" if options.input == "uint8" else "uint16")
    limits = DEFAULTS[options.precision]
    model = exported(options)
    with truth_of(exported, options) as truth, opened(model, engine, options.precision) as session:
        if options.head == "labels":
            changed = [different(truth, session, frame) for frame in shown]
            assert sum(changed) <= limits.flips * sum(frame.size for frame in shown)
        else:
            parity = compare(truth, session, [frame[None] for frame in shown])
            assert parity.misses(limits) == [], str(parity)
            assert parity.classes == 2


def different(truth, session, frame):
    with Segmenter(truth) as one, Segmenter(session) as other:
        return int((one.segment(frame).labels != other.segment(frame).labels).sum())


@pytest.mark.parametrize("size", SIZES)
def test_fp32_is_fp32(engine, exported, frames, size):
    """Closer than TF32, with its 11 bits, could be."""
    options = Options((60, 76), head="probabilities")
    frame = frames(1, size)[0]
    with truth_of(exported, options) as truth, open_session(exported(options), engine, 0) as session:
        with Segmenter(session) as segmenter:
            given = segmenter.segment(frame, probabilities=True).probabilities
        with Segmenter(truth) as segmenter:
            expected = segmenter.segment(frame, probabilities=True).probabilities
    np.testing.assert_allclose(given, expected, atol=1e-3)
    assert np.abs(given - expected).mean() < 1e-5

"""Results for tests of outputs, without a live segmenter."""

import numpy as np

from unetrt.runtime.live.results import LiveResult, Outcome

NOISE = np.random.default_rng(0).integers(1, 60000, (400, 400)).astype(np.int32)


def frames(*shapes):
    return [np.random.default_rng(number).integers(1, 7, shape, np.uint16) for number, shape in enumerate(shapes)]


def result_with(labels, number=0, index=None, **fields):
    fields = {"meta": {}, "sequence": None, "frame": None, **fields}
    return LiveResult(Outcome.DONE, number, index, labels=labels, **fields)


def failed(number, index=None, **fields):
    fields = {"meta": {}, "sequence": None, "frame": None, **fields}
    return LiveResult(Outcome.FAILED, number, index, error=ValueError("it failed"), **fields)

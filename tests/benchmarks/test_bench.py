"""`unetrt bench`, with contenders that only sleep: what is checked, timed, left out, and made of it."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.benchmarks.sleepers import contender
from unetrt.benchmarks.bench import Bench
from unetrt.benchmarks.contenders import REFERENCE
from unetrt.benchmarks.limits import BYTES, COPY, FLOPS
from unetrt.benchmarks.networks import undecided
from unetrt.benchmarks.result import PREDICT, SEGMENT, Result
from unetrt.runtime.errors import InferenceError, OptionError, ParityError

pytestmark = pytest.mark.alone

SIZE, SIDE = (96, 130), 64


@pytest.fixture(scope="module")
def checkpoint():
    return undecided(base=1, depth=1)


def bench(checkpoint, *others, first=REFERENCE, **fields):
    """One that sleeps in the place of the usual loop, and others."""
    reference = replace(contender(first), name=REFERENCE, title="the usual sleeper", module=contender(first).module)
    return Bench(checkpoint, SIZE, sides=(SIDE,), contenders=(reference, *others), **{"rounds": 1} | fields)


def test_all_that_was_measured_is_told(checkpoint):
    missing = contender("missing", probe=lambda: "nobody has it")
    others = (contender("sleeper"), contender("failure"), contender("stranger"), missing)
    told = []
    measuring = bench(checkpoint, *others, rounds=2)
    result = measuring.measure(told.append)
    assert [one.name for one in result.contenders] == [REFERENCE, "sleeper"]
    reasons = {one.name: one.reason for one in result.left_out}
    assert reasons["missing"] == "nobody has it"
    assert "ZeroDivisionError" in reasons["failure"]
    assert "FileNotFoundError" in reasons["stranger"]
    assert told[0] == "exporting"
    assert told.count("timing: what the machine can do") == 2
    assert len(told) == measuring.steps() - 2 * 3, "three of five are left out, and so in both rounds"
    slept = result["sleeper"]
    assert [len(figure.rounds) for figure in slept.seconds.values()] == [2, 2]
    assert slept.seconds[SEGMENT].median >= 0.02
    assert slept.seconds[PREDICT].median >= 0.2
    assert slept.seconds[SEGMENT].rounds[0] == np.median(slept.latencies[: len(slept.latencies) // 2])
    usual, own = (result[name].seconds[SEGMENT].rounds for name in (REFERENCE, "sleeper"))
    assert slept.speedup.rounds == tuple(a / b for a, b in zip(usual, own, strict=True))
    assert slept.phases == {"cut": 0.5}
    limits = {one.name: one for one in result.limits}
    assert {name: one.unit for name, one in limits.items()} == {slept.limit: FLOPS, COPY: BYTES}
    assert math.isclose(
        slept.share.rounds[1], slept.flops / slept.seconds[SEGMENT].rounds[1] / limits[slept.limit].rate.rounds[1]
    )
    assert result.environment["versions"]["unetrt"]
    assert Result.from_dict(result.to_dict()).contenders == result.contenders


def test_the_labels_of_another_network_are_not_timed(checkpoint):
    with pytest.raises(ParityError, match="of the labels of the liar are not those of one FP32 pass.*nothing is timed"):
        bench(checkpoint, contender("liar", backend="onnxruntime")).measure()


def test_one_that_fails_while_it_is_timed_is_left_out(checkpoint):
    result = bench(checkpoint, contender("mortal"), rounds=2).measure()
    assert [one.name for one in result.contenders] == [REFERENCE]
    assert [one.name for one in result.left_out] == ["mortal"]
    assert "its process died" in result.left_out[0].reason
    assert len(result[REFERENCE].seconds[SEGMENT].rounds) == 2


def test_the_wrong_labels_of_others_leave_them_out(checkpoint):
    result = bench(checkpoint, contender("liar")).measure()
    assert "are not those of one FP32 pass" in result.left_out[0].reason


def test_without_the_usual_loop_there_is_nothing_to_hold_anything_against(checkpoint):
    gone = replace(contender("stranger"), name=REFERENCE, module="no.such.module", title="the usual loop")
    with pytest.raises(InferenceError, match="the usual loop: ModuleNotFoundError"):
        Bench(checkpoint, SIZE, 1, sides=(SIDE,), contenders=(gone,)).measure()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rounds": 0}, "0 rounds measure nothing: use 1 or more"),
        ({"only": ["torhc"]}, "there is no contender 'torhc': the contenders are torch, sleeper"),
    ],
)
def test_what_cannot_be_measured_is_refused(checkpoint, fields, message):
    with pytest.raises(OptionError, match=message):
        bench(checkpoint, contender("sleeper"), **fields)


def test_the_usual_loop_is_always_among_those_that_were_asked_for(checkpoint):
    asked = bench(checkpoint, contender("sleeper"), contender("dead"), only=["dead"])
    assert [one.name for one in asked.wanted()] == [REFERENCE, "dead"]

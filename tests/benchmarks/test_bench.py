"""`unetrt bench`, with contenders that only sleep: what is checked, timed, left out, and made of it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.benchmarks.sleepers import contender
from unetrt.benchmarks.bench import Bench
from unetrt.benchmarks.contenders import REFERENCE
from unetrt.benchmarks.journal import Patience
from unetrt.benchmarks.limits import BYTES, COPY, FLOPS
from unetrt.benchmarks.networks import undecided
from unetrt.benchmarks.result import PREDICT, SEGMENT, load
from unetrt.runtime.errors import InferenceError, OptionError, ParityError

SIZE, SIDE = (96, 130), 64


def silent(step):
    """Not interested in steps."""


@pytest.fixture(scope="module")
def checkpoint():
    return undecided(base=1, depth=1)


def bench(checkpoint, *others, first=REFERENCE, **fields):
    """One that sleeps in the place of the usual loop, and others."""
    reference = replace(contender(first), name=REFERENCE, title="the usual sleeper", module=contender(first).module)
    fields = {"rounds": 1, "enough": 0.3, "sides": (SIDE,)} | fields
    return Bench(checkpoint, SIZE, contenders=(reference, *others), **fields)


@pytest.fixture(scope="module")
def run(checkpoint):
    """Two rounds of one that sleeps, of those that cannot be timed, and of one that dies at its second frame."""
    missing = contender("missing", probe=lambda: "nobody has it")
    others = [contender(name) for name in ("sleeper", "failure", "stranger", "liar", "mortal")]
    told = []
    measuring = bench(checkpoint, *others, missing, rounds=2)
    return measuring, measuring.measure(told.append), told


def test_all_that_was_measured_is_told(run):
    _, result, _ = run
    assert [one.name for one in result.contenders] == [REFERENCE, "sleeper"]
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


def test_whoever_cannot_be_timed_is_left_out_with_the_reason(run):
    reasons = {one.name: one.reason for one in run[1].left_out}
    assert reasons.pop("missing") == "nobody has it"
    expected = {
        "failure": "ZeroDivisionError",
        "stranger": "FileNotFoundError",
        "liar": "are not those of one FP32 pass",
        "mortal": "its process died",
    }
    assert {name: text for name, text in expected.items() if text in reasons[name]} == expected
    assert set(reasons) == set(expected)


def test_each_step_is_told_of(run):
    measuring, _, told = run
    assert told[0] == "exporting"
    assert told.count("timing: what the machine can do") == 2
    # Four of seven are left out before the first round, and one after it.
    assert len(told) == measuring.steps - 2 * 4 - 1


def test_the_labels_of_another_network_are_not_timed(checkpoint):
    with pytest.raises(ParityError, match="of the labels of the liar are not those of one FP32 pass.*nothing is timed"):
        bench(checkpoint, contender("liar", backend="onnxruntime")).measure()


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


@pytest.mark.slow
def test_what_was_measured_is_on_disk_before_the_next_step_and_is_not_measured_again(checkpoint, tmp_path):
    """A run that is ended at its second round, and one that goes on from there."""
    path = tmp_path / "bench.json"
    measuring = bench(checkpoint, contender("quick"), contender("failure"), rounds=2)

    def ended(step):
        if step == "timing: the quick" and "round 2: torch" in path.read_text():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measuring.measure(ended, path)
    unfinished = load(path)
    assert [len(one.seconds[SEGMENT].rounds) for one in unfinished.contenders] == [1, 1]
    assert [one.name for one in unfinished.left_out] == ["failure"]
    told = []
    result = measuring.measure(told.append, path, Patience(resume=True))
    assert told == ["exporting", "checking: the failure", "timing: the quick"]
    assert [len(one.seconds[SEGMENT].rounds) for one in result.contenders] == [2, 2]
    assert result["torch"].seconds[SEGMENT].rounds[0] == unfinished["torch"].seconds[SEGMENT].rounds[0]
    more = replace(measuring, rounds=3).measure(silent, path, Patience(resume=True))
    assert more["quick"].seconds[SEGMENT].rounds[:2] == result["quick"].seconds[SEGMENT].rounds
    assert len(more["quick"].seconds[SEGMENT].rounds) == 3


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("check: torch", None),
        ("check: torch", {}),
        ("check: torch", {"about": None, "pixels_off": 0.0}),
        ("check: torch", [1]),
        ("round 1: torch", {}),
        ("round 1: torch", {"seconds": 3, "phases": {}}),
        ("round 1: the machine's limits", "fast"),
    ],
)
def test_damaged_results_are_not_taken_up(measured_once, tmp_path, name, damage):
    measuring, stored = measured_once
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({**stored, "results": {**stored["results"], name: damage}}))
    with pytest.raises(OptionError, match="holds no results to continue from: leave --resume out"):
        measuring.measure(silent, path, Patience(resume=True))


@pytest.fixture(scope="module")
def measured_once(checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("measured") / "bench.json"
    measuring = bench(checkpoint, contender("quick"))
    measuring.measure(silent, path)
    return measuring, json.loads(path.read_text())


def test_when_the_time_is_up_nothing_new_begins(checkpoint, tmp_path):
    path = tmp_path / "bench.json"
    measuring = bench(checkpoint, contender("quick"), contender("dead"))
    assert measuring.measure(silent, path, Patience(seconds=1e-9)) is None
    assert json.loads(path.read_text())["missing"][0] == "check: torch"
    with pytest.raises(OptionError, match="is invalid: "):
        load(path)  # there is no figure yet

    class UntilTheQuick(Patience):
        """Over once the usual loop has been timed."""

        is_over = property(lambda self: path.exists() and "round 1: torch" in path.read_text())

    result = measuring.measure(silent, path, UntilTheQuick(resume=True))
    assert [one.name for one in result.contenders] == [REFERENCE]
    assert {one.name: one.reason for one in result.left_out}["quick"] == "not measured: the time was up"
    assert result.missing == ("round 1: quick",)
    assert load(path) == result
    done = measuring.measure(silent, path, Patience(resume=True))
    assert (done.missing, [one.name for one in done.contenders]) == ((), [REFERENCE, "quick"])
    done.save(path)
    with pytest.raises(OptionError, match="is finished: leave --resume out"):
        measuring.measure(silent, path, Patience(resume=True))


def test_the_usual_loop_is_always_among_those_that_were_asked_for(checkpoint):
    asked = bench(checkpoint, contender("sleeper"), contender("dead"), only=["dead"])
    assert [one.name for one in asked.chosen] == [REFERENCE, "dead"]

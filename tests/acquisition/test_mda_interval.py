"""The camera never waits: a timed acquisition keeps its interval, whatever the outcome of its frames."""

import time
from contextlib import contextmanager

import numpy as np
import pytest
import useq

from tests.acquisition.slow_model import adds_up, slow_segmenter
from unetrt.runtime import LiveSegmenter

pytestmark = pytest.mark.alone

INTERVAL, FRAMES = 0.1, 11
# Twice the interval: the camera gives twice what can be segmented.
SLOW = 0.2
# A shared machine can pause for longer than 5 % of a second: the best of several runs counts.
ATTEMPTS = 3


@contextmanager
def as_output(core, live):
    yield {"output": [live]}


@contextmanager
def as_slot(core, live):
    events = core.mda.events
    pairs = [
        (getattr(events, name), getattr(live, name)) for name in ("sequenceStarted", "frameReady", "sequenceFinished")
    ]
    for signal, slot in pairs:
        signal.connect(slot)
    yield {}
    for signal, slot in pairs:
        signal.disconnect(slot)


class Blocking:
    """A handler that works on the calling thread."""

    def sequenceStarted(self, sequence, meta):  # noqa: N802
        pass

    def sequenceFinished(self, sequence):  # noqa: N802
        pass

    def frameReady(self, frame, event, meta):  # noqa: N802
        time.sleep(SLOW)


def interval(core, **run):
    """The mean interval of a timed acquisition, in ms, by the engine's own clock."""
    times = []

    def note(frame, event, meta):
        times.append(meta["runner_time_ms"])

    core.mda.events.frameReady.connect(note)
    core.mda.run(useq.MDASequence(time_plan={"interval": INTERVAL, "loops": FRAMES}), **run)
    core.mda.events.frameReady.disconnect(note)
    assert len(times) == FRAMES
    return np.diff(times).mean()


def longer(core, connected, handler, attempts=ATTEMPTS):
    """The relative increase of the interval by a handler, against a run without just before; the best of attempts."""
    parts = []
    while not parts or (abs(parts[-1]) > 0.05 and len(parts) < attempts):
        without = interval(core)
        with connected(core, handler) as run:
            parts.append(interval(core, **run) / without - 1)
    return min(parts, key=abs)


@pytest.mark.parametrize(
    ("connected", "policy", "capacity"),
    [
        (as_output, "latest", 1),
        (as_slot, "drop_oldest", 2),
        pytest.param(as_output, "drop_oldest", 2, marks=pytest.mark.slow),
        pytest.param(as_slot, "latest", 1, marks=pytest.mark.slow),
    ],
)
def test_a_segmenter_slower_than_the_camera_does_not_slow_it(core, policy, capacity, connected):
    with slow_segmenter(SLOW) as segmenter, LiveSegmenter(segmenter, policy=policy, capacity=capacity) as live:
        assert abs(longer(core, connected, live)) < 0.05
        live.flush()
        status = live.status()
        assert status.submitted % FRAMES == 0
        assert adds_up(status)
        # 200 ms for each frame that comes after 100 ms: it was saturated.
        assert status.dropped > FRAMES // 4
        assert status.done >= FRAMES // 3


@pytest.mark.parametrize("connected", [as_output, pytest.param(as_slot, marks=pytest.mark.slow)])
def test_a_real_network_does_not_slow_the_camera(core, tiny_model, connected):
    with LiveSegmenter(tiny_model) as live:
        assert abs(longer(core, connected, live)) < 0.05
        live.flush()
        assert live.status().done > 0
        assert live.status().failed == 0


def test_an_output_with_the_policy_block_does_not_slow_the_camera(core):
    with slow_segmenter(SLOW) as segmenter, LiveSegmenter(segmenter, policy="block", capacity=1) as live:
        assert abs(longer(core, as_output, live)) < 0.05
        live.flush()
        assert live.status().done > 0


@pytest.mark.parametrize("what", ["a handler that blocks", "the policy block"])
def test_a_slot_that_blocks_slows_the_camera(core, what):
    """The failure that the tests above would detect."""
    with slow_segmenter(SLOW) as segmenter, LiveSegmenter(segmenter, policy="block", capacity=1) as live:
        handler = live if what == "the policy block" else Blocking()
        assert longer(core, as_slot, handler, attempts=1) > 0.5

import random
import threading
from math import inf

import pytest

from unetrt.runtime.errors import OptionError
from unetrt.runtime.live.frame_queue import FrameQueue, WaitingFrame
from unetrt.runtime.live.results import Outcome


def frame(name):
    return WaitingFrame(name, name, {})


def names(items):
    return [item.frame for item in items]


@pytest.mark.parametrize(
    ("policy", "capacity", "dropped", "kept"),
    [
        ("latest", None, [[], ["a"], ["b"], ["c"]], ["d"]),
        ("drop_oldest", 2, [[], [], ["a"], ["b"]], ["c", "d"]),
        ("drop_oldest", None, [[], [], [], []], ["a", "b", "c", "d"]),
    ],
)
def test_the_policy_decides_which_frames_are_dropped(policy, capacity, dropped, kept):
    queue = FrameQueue(policy, capacity)
    assert [names(queue.put(frame(name))) for name in "abcd"] == dropped
    assert [queue.take().frame for _ in kept] == kept


def test_block_waits_for_room():
    queue = FrameQueue("block", 1)
    queue.put(frame("a"))
    second = threading.Thread(target=queue.put, args=(frame("b"),))
    second.start()
    second.join(0.1)
    assert second.is_alive()
    assert queue.counts().submitted == 1
    assert queue.take().frame == "a"
    second.join(10)
    assert not second.is_alive()
    assert queue.take().frame == "b"


def test_closing_the_queue_releases_a_blocked_producer():
    queue, dropped = FrameQueue("block", 1), []
    queue.put(frame("a"))
    second = threading.Thread(target=lambda: dropped.extend(queue.put(frame("b"))))
    second.start()
    queue.close(drain=True)
    second.join(10)
    assert names(dropped) == ["b"]
    assert queue.take().frame == "a"
    assert queue.take() is None


def test_notices_keep_their_order_and_are_never_dropped():
    queue, told = FrameQueue("latest"), []
    queue.put(frame("a"))
    queue.begin("plan", {}, None, told.append)
    queue.put(frame("b"))
    queue.end(lambda sequence: told.append((sequence, "over")))
    notice = queue.take()
    notice.deliver(notice.sequence)
    (sequence,) = told
    assert (sequence.number, sequence.plan, sequence.first) == (0, "plan", 1)
    item = queue.take()
    assert (item.frame, item.sequence) == ("b", sequence)
    notice = queue.take()
    notice.deliver(notice.sequence)
    assert (notice.number, told[1:]) == (2, [(sequence, "over")])
    queue.put(frame("c"))
    assert queue.take().sequence is None


def test_closing_drops_or_drains():
    queue = FrameQueue("drop_oldest")
    for name in "abc":
        queue.put(frame(name))
    queue.close(drain=True)
    assert not queue.abandoned
    first = queue.take()
    assert first.frame == "a"
    assert names(queue.close(drain=False)) == ["b", "c"]
    assert queue.abandoned
    assert names(queue.put(frame("d"))) == ["d"]
    queue.settle(first, Outcome.DONE)
    assert queue.take() is None
    counts = queue.counts()
    assert (counts.submitted, counts.done, counts.dropped, counts.pending) == (4, 1, 3, 0)


def ranges(queue, before):
    return [
        (frames.first, frames.last, frames.sequence and frames.sequence.plan) for frames in queue.take_dropped(before)
    ]


def test_dropped_frames_are_ranges_however_many_they_are():
    queue = FrameQueue("latest")
    for name in range(5000):
        queue.put(frame(name))
    (frames,) = queue.take_dropped(4999)
    assert (frames.first, frames.last, frames.count, frames.sequence) == (0, 4998, 4999, None)
    assert queue.take_dropped(inf) == []


def test_a_range_ends_with_its_sequence():
    queue = FrameQueue("latest")
    for plan in (None, "first", "second"):
        if plan:
            queue.begin(plan, {}, None, print)
        for name in "abc":
            queue.put(frame(name))
    queue.end(print)
    queue.put(frame("d"))
    assert ranges(queue, inf) == [(0, 2, None), (3, 5, "first"), (6, 8, "second")]


def test_a_range_does_not_cross_a_sequence_without_frames():
    queue = FrameQueue("latest")
    queue.put(frame("a"))
    queue.begin("empty", {}, None, print)
    queue.end(print)
    for name in "bc":
        queue.put(frame(name))
    assert ranges(queue, 1) == [(0, 0, None)]
    assert ranges(queue, 2) == [(1, 1, None)]


def test_frames_dropped_in_flight_join_those_of_the_queue():
    """Cancelled or abandoned: they are counted after later frames were dropped."""
    queue = FrameQueue("drop_oldest", 3)
    for name in "abc":
        queue.put(frame(name))
    first, second, third = (queue.take() for _ in range(3))
    for name in "defgh":
        queue.put(frame(name))
    queue.settle(first, Outcome.DONE)
    queue.settle(third, Outcome.DROPPED)
    queue.settle(second, Outcome.DROPPED)
    assert queue.counts().dropped == 4
    assert ranges(queue, inf) == [(1, 4, None)]


class Closes(int):
    """A bound whose comparison closes a queue on the thread that holds its lock, as a finalizer can."""

    def __gt__(self, number):
        self.queue.close(drain=True)
        return int(self) > number


def test_a_queue_can_be_closed_by_the_thread_that_takes_dropped_frames():
    queue = FrameQueue("drop_oldest", 1)
    for name in "abc":
        queue.put(frame(name))
    bound = Closes(2)
    bound.queue = queue
    found = []
    thread = threading.Thread(target=lambda: found.extend(queue.take_dropped(bound)), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert [(frames.first, frames.last) for frames in found] == [(0, 1)]


@pytest.mark.parametrize("policy", ["latest", "drop_oldest", "block"])
def test_the_counts_add_up_at_every_moment(policy):
    """Several cameras, one worker, and a thread that reads counts continuously."""
    queue, stop, wrong = FrameQueue(policy, None if policy == "latest" else 3), threading.Event(), []

    def work():
        while (item := queue.take()) is not None:
            queue.settle(item, random.Random(item.number).choice([Outcome.DONE, Outcome.FAILED]))

    def look():
        while not stop.is_set():
            seen = queue.counts()
            if seen.submitted != seen.done + seen.dropped + seen.failed + seen.pending:
                wrong.append(seen)

    cameras = [threading.Thread(target=lambda: [queue.put(frame(n)) for n in range(500)]) for _ in range(3)]
    others = [threading.Thread(target=work), threading.Thread(target=look)]
    for thread in cameras + others:
        thread.start()
    for thread in cameras:
        thread.join(30)
    assert queue.wait_idle(30)
    stop.set()
    queue.close(drain=True)
    for thread in others:
        thread.join(30)
    counts = queue.counts()
    assert not wrong
    assert counts.submitted == 1500 == counts.done + counts.dropped + counts.failed
    assert counts.pending == 0
    assert (counts.dropped == 0) == (policy == "block")


@pytest.mark.parametrize(
    ("policy", "capacity", "message"),
    [
        ("newest", None, "policy 'newest' is unknown: use one of latest, drop_oldest, block"),
        ("block", 0, "invalid queue capacity 0: use a whole number of frames, 1 or more"),
        ("block", 1.5, "invalid queue capacity 1.5"),
        ("latest", 4, "policy latest queues 1 frame, not 4: use drop_oldest"),
    ],
)
def test_invalid_queue_options_are_refused(policy, capacity, message):
    with pytest.raises(OptionError, match=message):
        FrameQueue(policy, capacity)

import random
import threading

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
    queue.take().deliver()
    (sequence,) = told
    assert (sequence.number, sequence.plan, sequence.first) == (0, "plan", 1)
    item = queue.take()
    assert (item.frame, item.sequence) == ("b", sequence)
    notice = queue.take()
    notice.deliver()
    assert (notice.number, told[1:]) == (2, [(sequence, "over")])
    queue.put(frame("c"))
    assert queue.take().sequence is None


def test_closing_drops_or_drains():
    queue = FrameQueue("drop_oldest")
    for name in "abc":
        queue.put(frame(name))
    queue.close(drain=True)
    assert not queue.abandoned
    assert queue.take().frame == "a"
    assert names(queue.close(drain=False)) == ["b", "c"]
    assert queue.abandoned
    assert names(queue.put(frame("d"))) == ["d"]
    queue.settle(Outcome.DONE)
    assert queue.take() is None
    counts = queue.counts()
    assert (counts.submitted, counts.done, counts.dropped, counts.pending) == (4, 1, 3, 0)


class Closes(int):
    """A bound whose comparison closes a queue on the thread that holds its lock, as a finalizer can."""

    def __gt__(self, number):
        self.queue.close(drain=False)
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
    assert [result.index for result in found] == ["a", "b"]
    assert [result.index for result in queue.take_dropped(3)] == ["c"]


@pytest.mark.parametrize("policy", ["latest", "drop_oldest", "block"])
def test_the_counts_add_up_at_every_moment(policy):
    """Several cameras, one worker, and a thread that reads counts continuously."""
    queue, stop, wrong = FrameQueue(policy, None if policy == "latest" else 3), threading.Event(), []

    def work():
        while (item := queue.take()) is not None:
            queue.settle(random.Random(item.number).choice([Outcome.DONE, Outcome.FAILED]))

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

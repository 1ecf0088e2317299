import threading

import pytest

from unetrt.runtime.errors import OptionError
from unetrt.runtime.live.results import ResultStream


def test_buffered_results_can_be_fetched_after_the_end():
    stream = ResultStream(2)
    for result in "abc":
        stream.offer(result)
    stream.close()
    stream.offer("d")
    assert (list(stream), stream.missed) == (["b", "c"], 1)
    assert stream.get() is None


def test_get_waits_for_its_timeout():
    stream = ResultStream(1)
    assert stream.get(timeout=0.01) is None
    threading.Timer(0.05, stream.offer, "a").start()
    assert stream.get(timeout=30) == "a"


def test_closing_wakes_waiting_threads():
    stream = ResultStream(1)
    threading.Timer(0.05, stream.close).start()
    assert list(stream) == []


def test_a_stream_needs_a_capacity():
    with pytest.raises(OptionError, match="invalid stream capacity 0: use a whole number of results, 1 or more"):
        ResultStream(0)

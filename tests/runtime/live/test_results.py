import threading

import pytest

from unetrt.runtime.errors import OptionError
from unetrt.runtime.live.results import ResultStream, decimal, frequency


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


@pytest.mark.parametrize(
    ("times", "now", "rate"),
    [
        ([], 0, 0),
        ([0], 1, 0),
        ([0, 8, 16], 16, 1 / 8),
        ([0, 8, 16], 23.9, 1 / 8),  # the next is not overdue
        ([0, 8, 16], 32, 1 / 16),
        ([0, 3, 6], 8, 1 / 3),
        ([n / 100 for n in range(1001)], 10, 100),
        ([n / 100 for n in range(1001)], 12.5, 50),  # stopped half a window ago
        ([n / 100 for n in range(1001)], 20, 0.1),
        ([n / 100 for n in range(1001)], 3610, 1 / 3600),
        ([1, 1], 1, 0),
    ],
)
def test_a_rate_is_that_of_the_window_or_of_the_last_two(times, now, rate):
    assert frequency(list(enumerate(times)), now, 5) == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize(
    ("rate", "shown"), [(0, "0.0"), (123.45, "123.5"), (1, "1.0"), (0.125, "0.12"), (0.033, "0.033")]
)
def test_slow_rates_do_not_read_zero(rate, shown):
    assert decimal(rate) == shown

from contextlib import contextmanager
from functools import partial

from unetrt.benchmarks.measure import interleaved, ratio, summary


def test_rounds_are_interleaved_and_each_starts_anew_and_warms_up():
    calls = []

    @contextmanager
    def side(*names):
        calls.append("start")
        yield {name: partial(run, name) for name in names}
        calls.append("end")

    def run(name):
        calls.append(name)
        return float(len(calls))

    figures = interleaved([partial(side, "a"), partial(side, "b", "c")], rounds=2)
    once = ["start", "a", "a", "a", "end", "start", "b", "c", "b", "c", "b", "c", "end"]
    assert calls == 2 * once
    assert figures["a"].rounds == (3, 4, 16, 17)
    assert figures["c"].rounds == (10, 12, 23, 25)


def test_a_ratio_is_taken_round_by_round():
    """The machine's speed doubles half-way: both sides drift, their ratio does not."""
    slow, fast = summary([4, 4, 2, 2]), summary([2, 2, 1, 1])
    assert ratio(slow, fast).rounds == (2, 2, 2, 2)


def test_the_median_and_the_range():
    figure = summary([5, 1, 4, 2, 3])
    assert (figure.median, figure.low, figure.high, figure.rounds) == (3, 1, 5, (5, 1, 4, 2, 3))

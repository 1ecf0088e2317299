import pytest
from unetrt.benchmarks.measure import WARM_UP, interleaved, ratio, summary


def test_rounds_are_interleaved_after_a_warm_up():
    calls = []

    def contender(name):
        return lambda: calls.append(name) or float(len(calls))

    figures = interleaved({"a": contender("a"), "b": contender("b")}, rounds=3)
    assert calls == ["a", "b"] * (3 + WARM_UP)
    assert figures["a"].rounds == (5, 7, 9)
    assert figures["b"].rounds == (6, 8, 10)


def test_a_ratio_is_taken_round_by_round():
    """The machine's speed doubles half-way: both sides drift, their ratio does not."""
    slow, fast = summary([4, 4, 2, 2]), summary([2, 2, 1, 1])
    assert ratio(slow, fast).rounds == (2, 2, 2, 2)


def test_the_median_and_its_interval():
    figure = summary([5, 1, 4, 2, 3])
    assert (figure.median, figure.rounds) == (3, (5, 1, 4, 2, 3))
    assert figure.low <= 2
    assert figure.high >= 4
    wide, narrow = summary(range(10)), summary([n / 10 for n in range(1000)])
    assert (wide.low, wide.high) == (1, 8)
    assert narrow.high - narrow.low == pytest.approx(6.2, abs=0.3)

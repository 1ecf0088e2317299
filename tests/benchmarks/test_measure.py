from functools import partial

from unetrt.benchmarks.measure import interleaved


def test_contenders_run_in_turn_and_each_round_warms_up():
    calls = []

    def run(name):
        calls.append(name)
        return float(len(calls))

    figures = interleaved({name: partial(run, name) for name in "ab"}, rounds=2)
    assert calls == 6 * ["a", "b"]
    assert figures["a"].rounds == (4, 10)
    assert figures["b"].rounds == (5, 11)

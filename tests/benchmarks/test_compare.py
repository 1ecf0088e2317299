from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from tests.benchmarks.invented_results import HOSTILE, around, contender, limits, on_gpu, result
from unetrt.benchmarks.compare import ChangeVerdict, Shift, compare, faster
from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.result import PREDICT, SEGMENT, SESSION, LeftOut
from unetrt.benchmarks.terminal import compare_table
from unetrt.runtime.errors import OptionError

ONNX = "unetrt-onnxruntime"


def scaled(one, factor):
    seconds = {way: Figure.of([second * factor for second in told.rounds]) for way, told in one.seconds.items()}
    return replace(one, seconds=seconds)


def with_times(what, factor, names=None):
    return replace(
        what,
        contenders=tuple(scaled(one, factor) if not names or one.name in names else one for one in what.contenders),
    )


def of(comparison, name, way=SEGMENT):
    return next(change for change in comparison.changes if (change.name, change.way) == (name, way))


def shown(comparison, width=100):
    console = Console(width=width, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(compare_table(comparison))
    return capture.get()


def test_the_same_twice_is_no_change():
    told = compare(result(), result())
    assert {change.verdict for change in told.changes} == {ChangeVerdict.SAME}
    assert told.summary == ("nothing changed outside the noise",)
    assert told.mismatches == told.came == told.went == told.warnings == ()


def test_what_one_contender_gained_is_told_of_it_alone():
    told = compare(result(), with_times(result(), 0.89, {ONNX}))
    assert {change.name for change in told.changes if change.changed} == {ONNX}
    assert [change.way for change in told.changes if change.changed] == [SEGMENT, SESSION, PREDICT]
    assert str(of(told, ONNX)) == "unetrt with ONNX Runtime: 12 % faster (2.55 s -> 2.27 s), outside the noise"
    assert told.summary[1].startswith("unetrt with ONNX Runtime, engine alone: 12 % faster")


def test_what_it_lost_too():
    told = of(compare(result(), with_times(result(), 1.3, {ONNX})), ONNX)
    assert told.verdict is ChangeVerdict.SLOWER
    assert str(told) == "unetrt with ONNX Runtime: 30 % slower (2.55 s -> 3.31 s), outside the noise"
    assert told.seconds.ratio == pytest.approx(1.3)


def test_intervals_that_overlap_are_no_change():
    told = of(compare(result(), with_times(result(), 0.97, {ONNX})), ONNX)
    assert told.verdict is ChangeVerdict.SAME
    assert str(told) == "unetrt with ONNX Runtime: no change outside the noise (2.55 s -> 2.47 s)"


@pytest.mark.parametrize("rounds", [1, 3, 5])
def test_with_too_few_rounds_nothing_can_be_told(rounds):
    told = compare(result(), with_times(result(rounds=rounds), 0.5))
    assert {change.verdict for change in told.changes} == {ChangeVerdict.TOO_FEW}
    assert told.summary == ("too few rounds to judge what changed: 6 in both results are needed",)
    assert str(told.changes[0]).endswith(
        f"too few rounds to judge (6.00 s -> 3.00 s): 7 and {rounds}, and 6 each are needed"
    )


@pytest.mark.parametrize("factor", [0.7, 1.4])
def test_a_machine_that_changed_as_a_whole_is_no_change_of_a_contender(factor):
    after = replace(with_times(result(), factor), limits=limits(1 / factor))
    told = compare(result(), after)
    assert {change.seconds.verdict for change in told.changes} <= {ChangeVerdict.FASTER, ChangeVerdict.SLOWER}
    assert {change.verdict for change in told.changes} == {ChangeVerdict.SAME}
    assert [change.relative.ratio for change in told.changes] == pytest.approx([1] * len(told.changes), rel=0.02)
    word = "43 % faster" if factor < 1 else "40 % slower"
    assert f"relative to matmul fp32, which was itself {word}" in str(of(told, ONNX))
    assert any(f"the machine itself changed (matmul fp32 is {word})" in warning for warning in told.warnings)


def test_what_is_gained_on_a_slower_machine_is_seen():
    after = replace(with_times(result(), 1.4), limits=limits(1 / 1.4))
    gained = compare(result(), with_times(after, 1 / 1.4, {ONNX}))
    assert of(gained, ONNX).seconds.verdict is ChangeVerdict.SAME
    assert of(gained, ONNX).verdict is ChangeVerdict.FASTER
    assert "40 % faster (2.55 s -> 2.55 s), outside the noise, relative to" in str(of(gained, ONNX))
    assert {change.name for change in gained.changes if change.changed} == {ONNX}


def test_a_limit_within_its_noise_does_not_decide():
    after = replace(with_times(result(), 0.8), limits=limits(1.01))
    assert {change.verdict for change in compare(result(), after).changes} == {ChangeVerdict.FASTER}


def test_without_a_limit_in_both_the_seconds_decide():
    after = replace(with_times(result(), 0.8), limits=())
    told = compare(result(), after)
    assert {change.relative for change in told.changes} == {None}
    assert {change.verdict for change in told.changes} == {ChangeVerdict.FASTER}
    moved = tuple(replace(one, limit="copy") for one in after.contenders)
    assert of(compare(result(), replace(after, contenders=moved, limits=limits())), ONNX).relative is None


def test_a_limit_of_other_rounds_counts_by_its_median():
    told = compare(result(), replace(result(), limits=limits(0.5, rounds=12)))
    relative = of(told, ONNX).relative.after
    np.testing.assert_allclose(
        relative.rounds, np.array(of(told, ONNX).seconds.after.rounds) * limits(0.5, 12)[0].rate.median
    )


def test_chance_alone_sets_six_rounds_apart_as_seldom_as_is_said():
    draws = np.random.default_rng(0).normal(1.0, 0.1, (4000, 12))
    apart = [Shift(Figure.of(one[:6]), Figure.of(one[6:])).outside for one in draws.tolist()]
    assert np.mean(apart) == pytest.approx(2 / 924, abs=0.003)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            {"frame": (512, 512)},
            "frames of 2048 x 2048 and of 512 x 512 have no times to compare: time both with the same",
        ),
        (
            {"network": {"depth": 4, "base": 64}},
            "networks of depth 4, base 16, .* and of depth 4, base 64 have no times",
        ),
    ],
)
def test_another_frame_or_network_is_refused(other, words):
    with pytest.raises(OptionError, match=words):
        compare(result(), replace(result(), **other))


def test_another_processor_is_compared_with_a_warning():
    environment = {**result().environment, "processor": "Imagined CPU 1"}
    told = compare(result(), replace(result(), environment=environment))
    assert told.warnings[0].startswith("the processors differ (Invented CPU 9000 @ 3.2 GHz -> Imagined CPU 1)")
    assert [str(one) for one in told.mismatches] == ["processor: Invented CPU 9000 @ 3.2 GHz -> Imagined CPU 1"]
    assert (
        compare(result(), on_gpu())
        .warnings[0]
        .endswith("-> Invented GPU): the times depend on them as much as on the contenders")
    )


def test_versions_and_tiles_that_differ_are_told():
    after = result()
    after = replace(
        after,
        environment={**after.environment, "threads": 4, "versions": {"unetrt": "0.0.2", "torch": "2.0.0"}},
        contenders=tuple(replace(one, tile=(1212, 1212)) if one.name == ONNX else one for one in after.contenders),
    )
    assert [str(one) for one in compare(result(), after).mismatches] == [
        "threads: 2 -> 4",
        "versions: unetrt: 0.0.1 -> 0.0.2",
        "versions: onnxruntime: 1.20.0 -> none",
        "unetrt with ONNX Runtime, tile: 2236 x 2236 -> 1212 x 1212",
    ]


def test_contenders_that_came_or_went_are_told_with_their_reason():
    after = result([*result().contenders[:-1], contender("tensorrt", "TensorRT FP16", 0.1)])
    after = replace(after, left_out=(LeftOut("unetrt-openvino", "unetrt with OpenVINO", "it is not installed"),))
    told = compare(result(), after)
    assert told.went == ("unetrt with OpenVINO, bf16: it is not installed",)
    assert told.came == ("TensorRT FP16: there is no NVIDIA driver here: nvidia-smi is not on the path",)
    alone = compare(result(), result([contender("new", "new", 1.0)]))
    assert alone.summary == ("no contender is in both results",)
    assert "only after  new" in shown(alone)


@pytest.mark.parametrize("width", [100, 60])
def test_the_table_has_it_all(width):
    after = replace(with_times(result(), 0.5, {ONNX}), limits=limits(0.9))
    after = replace(after, contenders=(*after.contenders[:-1], contender("new", "[b]" + HOSTILE, 1.0)))
    told = compare(result(), after)
    text = " ".join(shown(told, width).split())
    for sentence in (*told.warnings, *told.summary, *map(str, told.mismatches), *told.went, *told.came):
        assert " ".join(sentence.split()) in text
    assert "limit matmul fp32 100 GFLOP/s -> 90.0 GFLOP/s, outside the noise" in text
    assert "0.500" in text
    assert max(map(len, shown(told, width).splitlines())) <= width


@pytest.mark.parametrize(
    ("ratio", "words"),
    [
        (0.5, "2.00 times as fast"), (0.1, "10.0 times as fast"), (0.8, "25 % faster"), (0.992, "0.8 % faster"),
        (1.01, "1.0 % slower"), (1.5, "50 % slower"), (2.5, "2.50 times as slow"), (1.0, "0.0 % faster"),
    ],
)  # fmt: skip
def test_ratios_in_words(ratio, words):
    assert faster(ratio) == words


def test_ways_that_only_one_has_are_left_out():
    before = result([contender("a", "a", 1.0, ours=True)])
    assert [change.way for change in compare(before, result([contender("a", "a", 1.0)])).changes] == [SEGMENT]
    assert of(compare(before, before), "a").seconds.before == around(1.0)

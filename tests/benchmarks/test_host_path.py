import numpy as np
import pytest
from click.testing import CliRunner

from unetrt.benchmarks.history import read
from unetrt.benchmarks.host_path import KEPT, command, figures, host_path
from unetrt.benchmarks.idle_path import HEADS, INPUTS, IdlePath
from unetrt.benchmarks.record import Record

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def result():
    return host_path((100, 120), (204, 300), rounds=2, copied=1 << 12)


def test_all_cases_are_timed_alike(result):
    cases = result["cases"]
    assert len({(case["tile"], case["input"], case["head"]) for case in cases}) == 2 * len(INPUTS) * len(HEADS)
    for side in (204, 300):
        count = len(IdlePath((100, 120), side, "fixed", "labels").spec.plan((100, 120)))
        assert {case["tiles"] for case in cases if case["tile"] == side} == {count}
    for case in cases:
        seconds = case["seconds"]
        assert {len(figure["rounds"]) for figure in seconds.values()} == {2}
        assert case["rate"] == pytest.approx(100 * 120 / seconds["total"]["median"] / 1e6)
        phases = zip(*(seconds[phase]["rounds"] for phase in ("normalise", "cut", "stitch", "total")), strict=True)
        assert all(sum(parts) <= total for *parts, total in phases)


def test_the_goal_is_500_or_a_tenth_of_the_copy(result):
    assert result["copy"]["rate"] == pytest.approx((1 << 12) / 2 / result["copy"]["seconds"]["median"] / 1e6)
    assert result["goal"] == pytest.approx(min(500, result["copy"]["rate"] / 10))


def test_key_figures_are_those_of_their_cases(result):
    told = {figure.name: figure for figure in figures(result)}
    assert len(told) == 2 * (len(KEPT) + 3) + 2
    for case in result["cases"]:
        if (case["input"], case["head"]) in KEPT:
            assert told[f"{case['tile']}: {case['input']}, {case['head']}"].median == pytest.approx(case["rate"])
    (plain,) = (case for case in result["cases"] if (case["tile"], case["input"], case["head"]) == (300, *KEPT[-1]))
    for phase, name in (("cut", "300: cut alone"), ("stitch", "300: stitch alone, labels")):
        seconds, figure = plain["seconds"][phase], told[name]
        assert figure.median == pytest.approx(0.012 / seconds["median"])
        assert figure.low == pytest.approx(0.012 / seconds["high"])
        assert figure.rounds == pytest.approx([0.012 / second for second in seconds["rounds"]])
    assert told["slowest case"].median == pytest.approx(min(case["rate"] for case in result["cases"]))
    assert told["slowest case"].goal == result["goal"]
    assert told["copy of uint16"].median == pytest.approx(result["copy"]["rate"])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", INPUTS)
def test_an_idle_path_does_all_of_the_work(name, head):
    """Inputs are the frame's tile, labels are those of the outputs."""
    frame = np.random.default_rng(0).integers(0, 9000, (100, 120)).astype(np.uint16)
    path = IdlePath((100, 120), 316, name, head)
    with path.open() as segmenter:
        (lane, _) = segmenter._lanes
        path.take(segmenter, frame)
        dtype, normalisation = INPUTS[name]
        expected = normalisation(frame[None]) if dtype == "float32" else frame[None]
        np.testing.assert_array_equal(lane.input[0, :, 92:192, 92:212], expected)
        labels = lane.output[0] if head == "labels" else lane.output[0].argmax(axis=0)
    np.testing.assert_array_equal(path.labels, labels[:100, :120])
    assert len(path.spec.plan(frame.shape)) == 1


def test_the_command_writes_what_it_measured(tmp_path):
    path = tmp_path / "host.json"
    arguments = ["--side", "64", "--tile", "252", "--rounds", "1", "--json", str(path)]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "Mpixel/s" in ran.output
    stored = Record.load(path)
    assert stored.detail["frame"] == [64, 64]
    assert stored.figures == tuple(figures(stored.detail))
    assert f"{min(case['rate'] for case in stored.detail['cases']):.0f} Mpixel/s" in ran.output
    (run,) = read(path.with_name("history.jsonl"))
    assert (run.name, run.when, len(run.figures)) == ("host-path", stored.when, len(stored.figures))

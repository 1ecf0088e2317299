import numpy as np
import pytest
from click.testing import CliRunner

from unetrt.benchmarks.__main__ import main
from unetrt.benchmarks.cases import measure
from unetrt.benchmarks.history import read
from unetrt.benchmarks.result import CaseResult
from unetrt.benchmarks.runtime_cases import HEADS, INPUTS, KEPT, PHASES, HostPath, IdlePath


@pytest.fixture(scope="module")
def result():
    return measure(HostPath(100, (204, 300), copied=1 << 12), rounds=3)


@pytest.mark.alone
def test_all_combinations_of_the_host_path_are_timed_alike(result):
    cases = result.detail["cases"]
    assert len({(case["tile"], case["input"], case["head"]) for case in cases}) == 2 * len(INPUTS) * len(HEADS)
    for side in (204, 300):
        count = len(IdlePath((100, 100), side, "fixed", "labels").spec.plan((100, 100)))
        assert {case["tiles"] for case in cases if case["tile"] == side} == {count}
    for case in cases:
        seconds = case["seconds"]
        assert {len(figure["rounds"]) for figure in seconds.values()} == {3}
        assert case["rate"] == pytest.approx(100 * 100 / seconds["total"]["median"] / 1e6)
        phases = zip(*(seconds[phase]["rounds"] for phase in PHASES), strict=True)
        assert all(sum(parts) <= total for *parts, total in phases)


@pytest.mark.alone
def test_the_goal_is_500_or_a_tenth_of_the_copy(result):
    copy = result.detail["copy"]
    assert copy["rate"] == pytest.approx((1 << 12) / 2 / copy["seconds"]["median"] / 1e6)
    assert result.detail["goal"] == pytest.approx(min(500, copy["rate"] / 10))


@pytest.mark.alone
def test_key_figures_are_those_of_their_cases(result):
    assert len(result.figures) == 2 * (len(KEPT) + 3) + 2
    cases = {(case["tile"], case["input"], case["head"]): case for case in result.detail["cases"]}
    for side in (204, 300):
        for kind in KEPT:
            figure = result[f"{side}: {', '.join(kind)}"]
            assert figure.median == pytest.approx(cases[side, *kind]["rate"])
    plain = cases[300, *KEPT[-1]]
    for phase, name in (("cut", "300: cut alone"), ("stitch", "300: stitch alone, labels")):
        seconds, figure = plain["seconds"][phase], result[name]
        assert figure.low == pytest.approx(0.01 / seconds["high"])
        assert figure.rounds == pytest.approx([0.01 / second for second in seconds["rounds"]])
    assert result["slowest case"].median == pytest.approx(min(case["rate"] for case in cases.values()))
    assert result["slowest case"].goal == result.detail["goal"]
    assert result["copy of uint16"].median == pytest.approx(result.detail["copy"]["rate"])


@pytest.mark.alone
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


@pytest.mark.alone
def test_the_command_writes_what_it_measured(tmp_path):
    path = tmp_path / "host.json"
    arguments = ["host-path", "--side", "64", "--tile", "252", "--rounds", "1", "--json", str(path)]
    ran = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    stored = CaseResult.load(path)
    assert stored.detail["frame"] == [64, 64]
    assert all(figure.name in ran.output for figure in stored.figures)
    (run,) = read(path.with_name("history.jsonl"))
    assert (run.name, run.when, len(run.figures)) == ("host-path", stored.when, len(stored.figures))


def test_a_place_that_cannot_be_written_to_is_refused_first(tmp_path):
    (tmp_path / "file").touch()
    done = CliRunner().invoke(main, ["live", "none.onnx", "--json", str(tmp_path / "file" / "live.json")])
    assert done.exit_code == 2
    assert "is not a folder" in done.output

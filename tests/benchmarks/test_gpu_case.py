"""The GPU benchmark, on a CPU: every contender runs, and what is written is what was measured."""

import json
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
import torch

from unetrt.__main__ import main
from unetrt.benchmarks import gpu_case, gpu_profile
from unetrt.benchmarks.environment import QUERY, parse_state
from unetrt.benchmarks.gpu_case import (
    ALONE,
    COMPILED_TILES,
    COUNTED,
    LOOP,
    PHASES,
    WARM_UP,
    GoalCase,
    GoalsBench,
    Ours,
    first_session,
    measured,
    require_right,
    shifted_stack,
)
from unetrt.benchmarks.gpu_goals import lines, table
from unetrt.benchmarks.gpu_profile import kernels_of, profiled, union
from unetrt.benchmarks.journal import Patience
from unetrt.benchmarks.limits import Matmul
from unetrt.benchmarks.networks import drawn_frame, undecided, write_model
from unetrt.benchmarks.torch_contenders import PlannedTiles
from unetrt.export.exporter import Options
from unetrt.runtime.errors import BackendUnavailableError, OptionError, OutOfMemoryError, ParityError
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import open_session
from unetrt.runtime.timings import Timings

CPU = torch.device("cpu")
CASE = GoalCase((96, 130), "uint16", lanes=(1, 2), frames=2)


def bench(folder, **fields):
    """ONNX Runtime on the CPU for the GPU's engine, and torch as it is: compiling takes a minute here."""
    checkpoint = undecided(base=2, depth=2, fixed=True)
    fields = {"rounds": 1, "latencies": 3, "backends": ("onnxruntime",), "compiled": False, "side": 64} | fields
    return GoalsBench(checkpoint, CPU, folder, **fields)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    checkpoint = undecided(base=2, depth=2, fixed=True)
    write_model(checkpoint, Options((92, 108), "fp16", "labels", 1, "uint16"), path)
    return path


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    cases = (CASE, GoalCase((60, 60), "float32", lanes=(2,), batch=4, frames=8))
    shown, folder = [], tmp_path_factory.mktemp("bench")
    path = folder / "goals.json"
    return measured(bench(folder), cases, shown.append, path), shown, path


def test_all_that_is_measured_is_told(result):
    whole, shown, path = result
    assert json.loads(path.read_text()) == json.loads(json.dumps(whole))
    assert [case["case"] for case in whole["results"].values()] == [case["case"] for case in shown]
    assert whole["failed"] == {}
    assert whole["missing"] == []
    raw, batched = json.loads(path.read_text())["results"].values()
    assert set(raw["unetrt"]) == {"unetrt, 1 lane", "unetrt, 2 lanes"}
    assert batched["unetrt"]["unetrt, 2 lanes"]["batch"] == 4
    for case in (raw, batched):
        assert set(case["torch"]) == {LOOP, COMPILED_TILES, ALONE}
        assert 0 <= case["pixels_off"] < 0.05
        assert case["fastest"] in case["unetrt"]
        assert case["left_out"] == {}
        assert len(case["verdicts"]) == 4
        # No kernel runs on a CPU: the goal is not measured, whatever passes were in flight.
        assert case["verdicts"][0]["value"] is None
        assert case["kernels"] == {"busy": None, "reason": "torch's profiler sees no GPU here"}
        for one in case["unetrt"].values():
            assert 0 < one["in_flight"] <= 1
            assert len(one["seconds"]["rounds"]) == 1
            assert one["matmul_share"] <= one["matmul_share_in_flight"]
            assert 0 < one["latency"]["p50"] <= one["latency"]["p99"]
            assert one["latency"]["frames"] == 3
            assert set(one["phases"]) == set(PHASES)
            assert one["phases"]["compute"] > 0


def test_cases_of_one_tile_share_what_was_exported_and_compiled(result, monkeypatch, tmp_path):
    compiled, exported = [], []
    for name, calls in (("PlannedTiles", compiled), ("write_model", exported)):
        real = getattr(gpu_case, name)
        monkeypatch.setattr(
            gpu_case, name, lambda *given, real=real, calls=calls, **named: (calls.append(1), real(*given, **named))[1]
        )
    cases = (CASE, replace(CASE, lanes=(2,), frames=1), replace(CASE, input="float32"))
    names = iter(("one", "two", "three"))
    monkeypatch.setattr(GoalCase, "name", property(lambda case: next(names)))
    measuring = bench(tmp_path, latencies=0)
    for case in cases:
        measuring.measure(case)
    assert (len(compiled), len(exported)) == (1, 2)


class Counted:
    """A session that counts its open lanes, and has no more than so many at once."""

    def __init__(self, session, most):
        self.session, self.most, self.open, self.peak = session, most, 0, 0

    def __getattr__(self, name):
        return getattr(self.session, name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.session.close()

    def lanes(self, count):
        if self.open + count > self.most:
            raise OutOfMemoryError(f"{count} lanes do not fit")
        lanes = self.session.lanes(count)
        self.open += count
        self.peak = max(self.peak, self.open)
        for lane in lanes:
            close = lane.close
            lane.close = lambda close=close: (close(), self.gone())[0]
        return lanes

    def gone(self):
        self.open -= 1


def test_no_more_lanes_are_open_at_once_than_one_contender_has(monkeypatch, tmp_path):
    """What does not fit is left out with its reason, and the others are measured."""
    sessions = []

    def first(model, backends):
        session, refused = first_session(model, backends)
        sessions.append(Counted(session, most=2))
        return sessions[0], refused

    monkeypatch.setattr(gpu_case, "first_session", first)
    result = bench(tmp_path, rounds=2).measure(replace(CASE, lanes=(1, 2, 4)))
    assert (sessions[0].peak, sessions[0].open) == (2, 0)
    assert set(result["unetrt"]) == {"unetrt, 1 lane", "unetrt, 2 lanes"}
    assert result["left_out"] == {"unetrt, 4 lanes": "4 lanes do not fit"}
    assert "unetrt, 4 lanes: not measured: 4 lanes do not fit" in list(lines(result))


def test_a_contender_that_fails_costs_no_other_its_figures(monkeypatch, tmp_path):
    """torch.compile without a compiler, and a profiler that fails: ours are measured all the same."""
    fails = "no compiler\n" * 100

    def tiles(*_, **__):
        raise RuntimeError(fails)

    def profiler(*_, **__):
        raise RuntimeError("CUPTI is not to be had")

    monkeypatch.setattr(gpu_case, "PlannedTiles", tiles)
    monkeypatch.setattr(gpu_profile, "supported_activities", lambda: [gpu_profile.ProfilerActivity.CUDA])
    monkeypatch.setattr(gpu_profile, "profile", profiler)
    result = bench(tmp_path, latencies=0).measure(replace(CASE, lanes=(2,)))
    assert set(result["torch"]) == {LOOP}
    assert set(result["left_out"]) == {COMPILED_TILES, ALONE}
    assert len(result["left_out"][ALONE]) < len(fails)
    assert [verdict["value"] is None for verdict in result["verdicts"]] == [True, False, False, True]
    assert result["kernels"] == {"busy": None, "reason": "the profiler failed: CUPTI is not to be had"}
    assert f"{COMPILED_TILES}: not measured: RuntimeError: no compiler no compiler" in "".join(lines(result))


def test_the_figures_are_shown_with_the_goals_and_the_phases_of_a_miss(result):
    from rich.console import Console

    case = json.loads(json.dumps(result[1][0]))
    console = Console(width=200, record=True, file=StringIO())
    console.print(table(case))
    shown = console.export_text()
    assert "torch, eager" in shown
    assert "unetrt, 2 lanes" in shown
    told = list(lines(case))
    assert ["MISSED" in line or ": met" in line or ": not measured" in line for line in told[:4]] == [True] * 4
    assert "share of time in which kernels run: torch's profiler sees no GPU here" in told
    kernels = kernels_of([kernel(0, 400, "conv"), kernel(500, 100, "cast")], wall=0.001)
    seen = case | {"kernels": kernels}
    met = seen | {"verdicts": [{**verdict, "value": 10.0} for verdict in case["verdicts"]]}
    assert len(list(lines(met))) == 4
    missed = list(lines(seen | {"verdicts": [{**verdict, "value": 0.1} for verdict in case["verdicts"]]}))
    assert len(missed) == 4 + 1 + len(PHASES) + 2
    assert missed[-2:] == ["   40.0 %      1 x  conv", "   10.0 %      1 x  cast"]


def test_a_case_that_fails_is_named_and_the_others_go_on(tmp_path):
    impossible = GoalCase((60, 60), "uint16", lanes=(0,), frames=1)
    path, measuring = tmp_path / "goals.json", bench(tmp_path)
    whole = measured(measuring, (impossible, CASE), lambda case: None, path)
    assert whole["failed"] == {
        impossible.name: "OptionError: memory 8589934592, batch 1 and lanes 0 must be at least 1"
    }
    assert len(whole["results"]) == 2
    again = measured(measuring, (impossible, CASE), lambda case: None, path, Patience(resume=True))
    assert list(again["results"]) == [CASE.name, impossible.name]  # what failed was tried again
    assert again["results"][CASE.name] == json.loads(json.dumps(whole["results"][CASE.name]))


def test_nothing_new_begins_when_the_time_is_up_and_the_rest_is_measured_later(tmp_path):
    path, shown, measuring = tmp_path / "goals.json", [], bench(tmp_path)
    whole = measured(measuring, (CASE,), shown.append, path, Patience(seconds=1e-9))
    assert (whole["results"], whole["missing"], shown) == ({}, [CASE.name], [])
    later = measured(measuring, (CASE,), shown.append, path, Patience(resume=True))
    assert (list(later["results"]), later["missing"], len(shown)) == ([CASE.name], [], 1)
    with pytest.raises(OptionError, match=r"results of another run \(rounds: 1 there, 2 here\)"):
        measured(replace(measuring, rounds=2), (CASE,), shown.append, path, Patience(resume=True))


def test_the_first_engine_that_computes_is_taken_and_the_others_reasons_are_kept(model):
    session, refused = first_session(model, ("tensorrt", "onnxruntime"))
    with session:
        assert session.name == "onnxruntime on the CPU"
    assert set(refused) == {"tensorrt"}
    assert refused["tensorrt"]
    with pytest.raises(BackendUnavailableError, match="tensorrt: .*"):
        first_session(model, ("tensorrt",))


def test_the_answer_of_another_network_is_refused(model, tmp_path):
    measuring, frame = bench(tmp_path), drawn_frame((96, 130), 1)
    other = replace(measuring, checkpoint=undecided(base=2, depth=2, seed=5, fixed=True))
    with Segmenter(model, backend="onnxruntime") as segmenter:
        labels = segmenter.segment(frame).labels
    assert require_right("the same", labels, measuring.truth(frame)) < 0.05
    with pytest.raises(ParityError, match="of the labels of another are not those of one FP32"):
        require_right("another", labels, other.truth(frame))


def test_compiled_tiles_answer_as_the_engine_does(model):
    frame = drawn_frame((96, 130), 1)
    with Segmenter(model, backend="onnxruntime") as segmenter:
        expected, spec = segmenter.segment(frame).labels, segmenter.spec
    assert 0.2 < expected.mean() < 0.8
    tiles = PlannedTiles(undecided(base=2, depth=2, fixed=True).network(), spec, torch.float16, compiled=False)
    assert (tiles(frame) != expected).mean() < 0.02
    assert tiles.alone() > 0


def test_frames_of_a_stack_differ():
    stack = shifted_stack(drawn_frame((40, 80), 1), 5)
    assert len(np.unique(stack, axis=0)) == 5


def test_warm_ups_do_not_count(model):
    with open_session(model, "onnxruntime") as session:
        ours = Ours(session, shifted_stack(drawn_frame((60, 60), 1), 2), lanes=2)
        seconds = [ours.round(), ours.round(latencies=3)]
    assert len(ours.timings) == 2 * COUNTED
    assert (len(ours.latencies), WARM_UP) == (3, 1)
    assert seconds[1] == pytest.approx(np.median([timings.total for timings in ours.timings[COUNTED:]]) / 2)
    ours.timings = [Timings(in_flight=flying, span=10.0) for flying in (1, 2, 4, 5)]
    assert ours.in_flight() == pytest.approx(0.3)


def kernel(ts, dur, name):
    """An event of Kineto's traces; times in microseconds."""
    return {"ph": "X", "cat": "kernel", "name": name, "ts": ts, "dur": dur}


@pytest.mark.parametrize(
    ("intervals", "length"),
    [([], 0), ([(1, 2)], 1), ([(3, 4), (0, 1)], 2), ([(0, 2), (1, 3)], 3), ([(0, 9), (1, 2), (8, 10)], 10)],
)
def test_the_union_of_intervals(intervals, length):
    assert union(intervals) == length


def test_kernels_count_once_where_they_overlap():
    events = [kernel(0, 400, "conv"), kernel(200, 300, "conv"), kernel(700, 100, "cast")]  # two of them in two lanes
    told = kernels_of(events, wall=0.001)
    assert told["busy"] == pytest.approx(0.6)
    assert (told["kernels"], told["wall"]) == (3, 0.001)
    first, second = told["by_kernel"]
    assert (first["name"], first["launches"]) == ("conv", 2)
    assert first["seconds"] == pytest.approx(700e-6)
    assert second["name"] == "cast"


def test_a_profile_without_kernels_is_not_a_figure():
    told = kernels_of([], wall=1.0)
    assert told["busy"] is None
    assert "holds no kernel" in told["reason"]


def test_the_trace_of_torchs_profiler_is_read():
    """On a CPU its events are operators, in the same form as kernels: times and their unit are the real ones."""
    a = torch.ones(400, 400)
    told = profiled(lambda: [a @ a for _ in range(20)], torch.profiler.ProfilerActivity.CPU, "cpu_op")
    assert 0 < told["busy"] <= 1
    names = {one["name"]: one["launches"] for one in told["by_kernel"]}
    assert names["aten::mm"] == 20


def test_the_yardstick_counts_its_operations():
    matmul = Matmul(CPU, side=32)
    assert matmul.flops == 2 * 32**3
    assert matmul() > 0


def test_the_state_of_a_device_is_read():
    told = parse_state("580.1, 1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz, 300.1 W, 700.0 W, 41, 0x0000000000000000\n")
    assert told["clocks.sm"] == "1980 MHz"
    assert tuple(told) == QUERY


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys):
    assert main(["bench", "--goals", "--json", str(tmp_path / "a.json")]) == 2
    assert "this measures a GPU" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert not (tmp_path / "a.json").exists()

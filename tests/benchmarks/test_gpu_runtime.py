"""The GPU benchmark, on a CPU: every contender runs, and what is written is what was measured."""

import json
from io import StringIO

import numpy as np
import pytest
import torch

from unetrt.__main__ import main
from unetrt.benchmarks import gpu_runtime
from unetrt.benchmarks.gpu_case import ALONE, COMPILED_TILES, LOOP, Bench, Case
from unetrt.benchmarks.gpu_engine import first_session, wrong_labels
from unetrt.benchmarks.gpu_machine import ASKED, read_state
from unetrt.benchmarks.gpu_ours import PHASES, Ours, stack_of
from unetrt.benchmarks.gpu_report import lines, table
from unetrt.benchmarks.gpu_torch import Matmul
from unetrt.benchmarks.measure import COUNTED, WARM_UP
from unetrt.benchmarks.networks import drawn_frame, undecided, write_model
from unetrt.benchmarks.planned_tiles import PlannedTiles
from unetrt.export.options import Options
from unetrt.runtime.errors import BackendUnavailableError, ParityError
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.sessions import open_session
from unetrt.runtime.timings import Timings

CPU = torch.device("cpu")
CASE = Case((96, 130), "uint16", lanes=(1, 2), frames=2)


def bench(**fields):
    """ONNX Runtime on the CPU for the GPU's engine, and torch as it is: compiling takes a minute here."""
    checkpoint = undecided(base=2, depth=2, fixed=True)
    fields = {"rounds": 1, "latencies": 3, "backends": ("onnxruntime",), "compiled": False, "side": 64} | fields
    return Bench(checkpoint, CPU, **fields)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_model(bench().checkpoint, Options((92, 108), "fp16", "labels", 1, "uint16"), path)
    return path


@pytest.fixture(scope="module")
def result():
    cases, shown = (CASE, Case((60, 60), "float32", lanes=(2,), batch=4, frames=8)), []
    return gpu_runtime.measured(bench(), cases, shown.append), shown


def test_all_that_is_measured_is_told(result):
    whole, shown = json.loads(json.dumps(result[0])), result[1]
    assert [case["case"] for case in whole["cases"]] == [case["case"] for case in shown]
    assert whole["failed"] == {}
    raw, batched = whole["cases"]
    assert set(raw["unetrt"]) == {"unetrt, 1 lane", "unetrt, 2 lanes"}
    assert batched["unetrt"]["unetrt, 2 lanes"]["batch"] == 4
    for case in (raw, batched):
        assert set(case["torch"]) == {LOOP, COMPILED_TILES, ALONE}
        assert 0 <= case["pixels_off"] < 0.05
        assert case["fastest"] in case["unetrt"]
        assert len(case["verdicts"]) == 4
        assert case["verdicts"][0]["value"] == case["unetrt"][case["fastest"]]["busy"]
        for one in case["unetrt"].values():
            assert 0 < one["busy"] <= 1
            assert len(one["seconds"]["rounds"]) == 1
            assert one["matmul_share"] <= one["matmul_share_while_computing"]
            assert 0 < one["latency"]["p50"] <= one["latency"]["p99"]
            assert set(one["phases"]) == set(PHASES)
            assert one["phases"]["compute"] > 0


def test_the_figures_are_shown_with_the_goals_and_the_phases_of_a_miss(result):
    from rich.console import Console

    case = json.loads(json.dumps(result[0]["cases"][0]))
    console = Console(width=200, record=True, file=StringIO())
    console.print(table(case))
    shown = console.export_text()
    assert "torch, eager" in shown
    assert "unetrt, 2 lanes" in shown
    told = list(lines(case))
    assert [("MISSED" in line or ": met" in line) for line in told[:4]] == [True] * 4
    missed = any("MISSED" in line for line in told[:4])
    assert any("where the" in line for line in told) == missed
    met = case | {"verdicts": [{**verdict, "value": 10.0} for verdict in case["verdicts"]]}
    assert len(list(lines(met))) == 4
    assert len(list(lines(case | {"verdicts": [{**verdict, "value": 0.1} for verdict in case["verdicts"]]}))) == 12


def test_a_case_that_fails_is_named_and_the_others_go_on():
    impossible = Case((60, 60), "uint16", lanes=(0,), frames=1)
    whole = gpu_runtime.measured(bench(), (impossible, CASE), lambda case: None)
    assert whole["failed"] == {
        impossible.name: "OptionError: memory 8589934592, batch 1 and lanes 0 must be at least 1"
    }
    assert len(whole["cases"]) == 1


def test_the_first_engine_that_computes_is_taken_and_the_others_reasons_are_kept(model):
    session, refused = first_session(model, ("tensorrt", "onnxruntime"))
    with session:
        assert session.name == "onnxruntime on the CPU"
    assert set(refused) == {"tensorrt"}
    assert refused["tensorrt"]
    with pytest.raises(BackendUnavailableError, match="tensorrt: .*"):
        first_session(model, ("tensorrt",))


def test_the_answer_of_another_network_is_refused(model):
    checkpoint, frame = undecided(base=2, depth=2, seed=5, fixed=True), drawn_frame((96, 130), 1)
    with open_session(model, "onnxruntime") as session, pytest.raises(ParityError, match="are not those of one FP32"):
        wrong_labels([Segmenter(session)], checkpoint, frame, CPU)


def test_compiled_tiles_answer_as_the_engine_does(model):
    frame = drawn_frame((96, 130), 1)
    with Segmenter(model, backend="onnxruntime") as segmenter:
        expected, spec = segmenter.segment(frame).labels, segmenter.spec
    assert 0.2 < expected.mean() < 0.8
    tiles = PlannedTiles(bench().checkpoint.network(), spec, torch.float16, compiled=False)
    assert (tiles(frame) != expected).mean() < 0.02
    assert tiles.alone() > 0


def test_frames_of_a_stack_differ():
    stack = stack_of(drawn_frame((40, 80), 1), 5)
    assert len(np.unique(stack, axis=0)) == 5


def test_warm_ups_do_not_count():
    ours = Ours(None, np.zeros((4, 8, 8)), lanes=2)
    turns = 2 * (WARM_UP + COUNTED)
    ours.timings = [Timings(busy=float(turn), span=10.0) for turn in range(turns)]
    assert [timings.busy for timings in ours.counted] == [1, 2, 4, 5]
    assert ours.busy() == pytest.approx(0.3)


def test_the_yardstick_counts_its_operations():
    matmul = Matmul(CPU, side=32)
    assert matmul.flops == 2 * 32**3
    assert matmul() > 0


def test_the_state_of_a_device_is_read():
    told = read_state("580.1, 1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz, 300.1 W, 700.0 W, 41, 0x0000000000000000\n")
    assert told["clocks.sm"] == "1980 MHz"
    assert tuple(told) == ASKED


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(tmp_path, capsys):
    assert main(["bench", "--goals", "--json", str(tmp_path / "a.json")]) == 2
    assert "this measures a GPU" in (said := capsys.readouterr().err)
    assert said.count("\n") == 1
    assert not (tmp_path / "a.json").exists()

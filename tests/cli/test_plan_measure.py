import json
from math import inf

import pytest

from unetrt.benchmarks import calibrate, tile_passes
from unetrt.cli import main
from unetrt.runtime import calibration
from unetrt.runtime.sessions import Backend
from unetrt.runtime.setting import folder

TINY = ("100x100", "--base", 4, "--depth", 2)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def single_passes(monkeypatch):
    """What is measured here is not looked at: one pass of each tile will do."""
    once = tile_passes.Wanted(0, least=1, most=1)
    for name, value in {"WARM_UP": once, "TIMED": once, "ROUNDS": 1, "PATIENCE": 0}.items():
        monkeypatch.setattr(tile_passes, name, value)
    monkeypatch.setattr(calibration, "TOLERANCE", inf)


@pytest.fixture
def run(capsys):
    def run(*arguments, status=0):
        assert main(["plan", *(str(argument) for argument in arguments)]) == status
        return capsys.readouterr()

    return run


def test_measured_seconds_are_shown_kept_and_used_again(run):
    before = run(*TINY).out
    assert "ranked by arithmetic" in before
    assert "predicted" not in before
    said = run(*TINY, "--measure", "--backend", "onnxruntime").out
    assert "predicted against measured" in said
    assert "an untrained network was measured" in said
    assert len(list(folder().iterdir())) == 1
    again = run(*TINY, "--backend", "onnxruntime").out
    source = [line for line in again.splitlines() if line.startswith("seconds as measured on")]
    assert source == [line for line in said.splitlines() if line.startswith("seconds as measured on")]
    assert "over 10 tiles that they were not made from" in source[0]
    assert "%" in again.splitlines()[-2]
    assert "of their time, as predicted" in again


def test_json_carries_the_calibration_and_ten_comparisons(run):
    measured = json.loads(run(*TINY, "--measure", "--backend", "onnxruntime", "--json").out)
    said = measured["calibration"]
    assert said["setting"]["backend"] == "onnxruntime"
    assert len({tuple(one["tile"]) for one in said["compared"]}) == 10
    for one in said["compared"]:
        assert one["error"] == pytest.approx(one["predicted"] / one["measured"] - 1)
    assert said["worst"] == max(abs(one["error"]) for one in said["compared"])
    assert measured["best"]["seconds"] > 0
    assert json.loads(run(*TINY, "--backend", "onnxruntime", "--json").out) == measured


def test_another_network_precision_or_batch_has_no_seconds(run):
    run(*TINY, "--measure", "--backend", "onnxruntime")
    for other in (["--base", 5], ["--depth", 3], ["--classes", 3], ["--precision", "fp16"], ["--batch", 2]):
        assert json.loads(run(*TINY, "--backend", "onnxruntime", "--json", *other).out)["calibration"] is None


def test_a_file_with_a_fixed_tile_is_measured_by_its_shape(run, tiny_model):
    said = run("100x100", "--model", tiny_model, "--measure", "--backend", "onnxruntime").out
    assert f"an untrained network of the same shape was measured: {tiny_model}" in " ".join(said.split())
    assert "has the tile 60x76 for good" in said
    assert "seconds as measured" in run(*TINY, "--backend", "onnxruntime").out


def test_a_checkpoint_is_measured_itself(run, tiny_run):
    said = run("100x100", "--model", tiny_run, "--measure", "--backend", "onnxruntime", "--batch", 2).out
    assert f"{tiny_run} was measured" in " ".join(said.split())


def test_auto_uses_the_engine_that_it_chooses(run, monkeypatch):
    monkeypatch.setattr(
        Backend, "probe", lambda self, device=None: None if self.name == "onnxruntime" else "it is elsewhere"
    )
    run(*TINY, "--measure")
    assert json.loads(run(*TINY, "--json").out)["calibration"]["setting"]["backend"] == "onnxruntime"
    monkeypatch.setattr(Backend, "probe", lambda self, device=None: "it is gone")
    assert json.loads(run(*TINY, "--json").out)["calibration"] is None


def test_a_damaged_file_is_ignored_and_written_anew(run):
    run(*TINY, "--measure", "--backend", "onnxruntime")
    (path,) = folder().iterdir()
    path.write_text(path.read_text()[:100])
    ignored = run(*TINY, "--backend", "onnxruntime", "--json")
    assert json.loads(ignored.out)["calibration"] is None
    assert ignored.err.startswith("ignored: ")
    assert ignored.err.count("\n") == 1
    run(*TINY, "--measure", "--backend", "onnxruntime")
    assert "seconds as measured" in run(*TINY, "--backend", "onnxruntime").out


def test_an_error_over_the_tolerance_is_said_and_the_seconds_are_not_used(run, monkeypatch):
    """Timings in no order: half of the tiles take a hundred times as long as the others, whatever their size."""
    monkeypatch.setattr(calibration, "TOLERANCE", 0.15)
    taken = iter([1e-3] * 9 + [1e-5] * 100)
    monkeypatch.setattr(tile_passes, "pass_seconds", lambda *_: next(taken))
    said = run(*TINY, "--measure", "--backend", "onnxruntime").out
    assert "the worst prediction is off by more than 15%: the seconds are neither kept nor used" in " ".join(
        said.split()
    )
    assert "ranked by arithmetic" in said
    assert not folder().exists()


def test_a_tile_beyond_those_measured_is_called_extrapolated(run):
    assert "extrapolated" not in run(*TINY, "--measure", "--backend", "onnxruntime").out
    larger = run("500x500", *TINY[1:], "--backend", "onnxruntime").out
    assert "measured is 140x140: the best one is extrapolated" in larger


def test_a_cache_that_cannot_be_written_to_is_told_before_anything_is_measured(run, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(calibrate, "pass_seconds", lambda *_: pytest.fail("something was measured"))
    assert "is not a folder" in run(*TINY, "--measure", "--backend", "onnxruntime", status=2).err


def test_an_interrupt_leaves_nothing(run, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(calibrate, "time_passes", interrupted)
    run(*TINY, "--measure", "--backend", "onnxruntime", status=130)
    assert not folder().exists()


def test_no_tile_over_the_free_memory_is_measured(run, monkeypatch):
    monkeypatch.setattr(calibrate, "free_memory", lambda: 2**16)
    said = run(*TINY, "--measure", "--backend", "onnxruntime", status=2).err
    assert "different tiles fit into 51 KiB" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "abacus"], "backend 'abacus' is unknown: use one of auto,"),
        (["--backend", "onnxruntime", "--memory", "100KiB"], "different tiles fit into 100 KiB"),
        (["--backend", "onnxruntime", "--device", 0], "onnxruntime computes on the CPU and has no device 0"),
    ],
)
def test_bad_input_gets_one_line(run, arguments, message):
    said = run(*TINY, "--measure", *arguments, status=2)
    assert message in said.err
    assert said.err.count("\n") == 1
    assert not folder().exists()

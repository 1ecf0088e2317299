import json

import pytest

from unetrt.cli import main
from unetrt.runtime.geometry import planner
from unetrt.runtime.sessions import Backend, measured
from unetrt.runtime.sessions.measured import folder

TINY = ("100x100", "--base", 4, "--depth", 2)
ON_CPU = ("--backend", "onnxruntime")


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def one_short_round(monkeypatch):
    """The times do not matter here."""
    for name in ("LONG", "PATIENCE"):
        monkeypatch.setattr(measured, name, 0)


@pytest.fixture
def of_model(tiny_model):
    """The arguments of a plan for a model file of the same network: nothing has to be exported."""
    return ("100x100", "--model", tiny_model)


@pytest.fixture
def run(capsys):
    def run(*arguments, status=0):
        assert main(["plan", *(str(argument) for argument in arguments)]) == status
        return capsys.readouterr()

    return run


def test_measured_times_are_shown_kept_and_used_again(run, of_model):
    before = run(*TINY).out
    assert "ranked by arithmetic: no tile of such a network was measured" in before
    assert "time" not in before
    shown = run(*of_model, "--measure", *ON_CPU)
    assert "timed: " in shown.err
    assert len(list(folder().iterdir())) == 1
    again = run(*TINY, *ON_CPU).out
    assert again == shown.out
    assert again.count("±") == 5
    assert "times measured on" in again


def test_json_carries_the_setting_and_the_times(run, of_model):
    shown = json.loads(run(*of_model, "--measure", *ON_CPU, "--json").out)
    assert shown["measured"]["setting"]["backend"] == "onnxruntime"
    times = {tuple(one["tile"]): one["seconds"] for one in shown["measured"]["tiles"]}
    assert len(times) == 5
    rows = {tuple(one["tile"]): one for one in shown["candidates"]}
    for tile, seconds in times.items():
        assert rows[tile]["seconds"] == pytest.approx(rows[tile]["passes"] * seconds)
    assert tuple(shown["best"]["tile"]) in times
    assert json.loads(run(*TINY, *ON_CPU, "--json").out) == shown


def test_the_fastest_tile_is_the_best(run, monkeypatch, of_model):
    taken = iter([5.0, 4.0, 3.0, 1e-3, 2.0])
    monkeypatch.setattr(measured, "pass_seconds", lambda lanes: next(taken))
    shown = json.loads(run(*of_model, "--measure", *ON_CPU, "--json").out)
    fastest = min(shown["measured"]["tiles"], key=lambda one: one["seconds"])
    assert shown["best"]["tile"] == fastest["tile"]


def test_another_network_precision_batch_or_number_of_lanes_has_no_times(run, of_model):
    run(*of_model, "--measure", *ON_CPU)
    for other in (
        ["--base", 5], ["--depth", 3], ["--classes", 3], ["--precision", "fp16"], ["--batch", 2], ["--lanes", 2]
    ):  # fmt: skip
        assert json.loads(run(*TINY, *ON_CPU, "--json", *other).out)["measured"] is None


def test_tiles_of_other_frames_are_ranked_by_arithmetic(run, of_model):
    run(*of_model, "--measure", *ON_CPU)
    assert "the tile of least arithmetic was not measured" in run("500x500", *TINY[1:], *ON_CPU).out


def test_a_model_file_is_measured_without_torch(run, tiny_model, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "unetrt.export.graph", None)
    shown = run("100x100", "--model", tiny_model, "--measure", *ON_CPU).err
    assert f"timed: {tiny_model}, with each tile" in shown
    assert "times measured on" in run(*TINY, *ON_CPU).out


def test_another_precision_than_the_files_is_measured_with_an_untrained_network(run, of_model):
    shown = run(*of_model, "--measure", "--precision", "fp16", *ON_CPU).err
    assert "timed: an untrained network of the same shape" in shown
    assert "times measured on" in run(*TINY, "--precision", "fp16", *ON_CPU).out


def test_a_checkpoint_is_measured_itself(run, tiny_run):
    shown = run("100x100", "--model", tiny_run, "--measure", *ON_CPU, "--batch", 2).err
    assert "timed: the checkpoint's network" in shown


def test_auto_uses_the_times_of_the_backend_that_it_chooses(run, monkeypatch, of_model):
    monkeypatch.setattr(
        Backend, "probe", lambda self, device=None: None if self.name == "onnxruntime" else "it is elsewhere"
    )
    run(*of_model, "--measure")
    assert json.loads(run(*TINY, "--json").out)["measured"]["setting"]["backend"] == "onnxruntime"
    monkeypatch.setattr(Backend, "probe", lambda self, device=None: "it is gone")
    assert json.loads(run(*TINY, "--json").out)["measured"] is None


def test_a_damaged_file_is_ignored_and_replaced(run, of_model):
    run(*of_model, "--measure", *ON_CPU)
    (path,) = folder().iterdir()
    path.write_text(path.read_text()[:100])
    ignored = run(*TINY, *ON_CPU, "--json")
    assert json.loads(ignored.out)["measured"] is None
    assert ignored.err.startswith("ignored: ")
    assert ignored.err.count("\n") == 1
    run(*of_model, "--measure", *ON_CPU)
    assert "times measured on" in run(*TINY, *ON_CPU).out


def test_a_cache_that_cannot_be_written_to_is_reported_before_anything_is_measured(
    run, monkeypatch, tmp_path, of_model
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(measured, "pass_seconds", lambda *_: pytest.fail("something was measured"))
    assert "is not a folder" in run(*of_model, "--measure", *ON_CPU, status=2).err


def test_an_interrupt_leaves_nothing(run, monkeypatch, of_model):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(measured, "pass_seconds", interrupted)
    run(*of_model, "--measure", *ON_CPU, status=130)
    assert not folder().exists()


def test_no_tile_over_the_free_memory_is_measured(run, monkeypatch, of_model):
    monkeypatch.setattr(planner, "free_memory", lambda: 2**16)
    assert "no tile fits 51 KiB" in run(*of_model, "--measure", *ON_CPU, status=2).err


def test_little_free_memory_is_planned_for(run, monkeypatch, of_model):
    monkeypatch.setattr(planner, "free_memory", lambda: 2**20)
    shown = run(*of_model, "--measure", *ON_CPU)
    assert "planned for 819 KiB, as no more memory is free here" in shown.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "abacus"], "backend 'abacus' is unknown: use one of auto,"),
        ([*ON_CPU, "--memory", "50KiB"], "no tile fits 50 KiB: the smallest, 44x44, needs about"),
        ([*ON_CPU, "--device", 0], "onnxruntime computes on the CPU and has no device 0"),
    ],
)
def test_bad_input_gets_one_line(run, arguments, message, of_model):
    shown = run(*of_model, "--measure", *arguments, status=2)
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert not folder().exists()

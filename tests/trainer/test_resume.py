"""A run that is stopped, killed or cut off goes on as if nothing had happened."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from unetrt.__main__ import main
from unetrt.runtime.errors import DatasetError, ModelFileError, OptionError, TrainingStoppedError
from unetrt.runtime.records import to_json, validated
from unetrt.trainer import training as loop
from unetrt.trainer.checkpoint import LAST, load
from unetrt.trainer.dataset import read_dataset
from unetrt.trainer.history import History
from unetrt.trainer.recipe import RECIPES, Recipe
from unetrt.trainer.run import DataSource, ResumeState, TrainingBudget, TrainingJob, TrainingRun
from unetrt.trainer.training import Training
from unetrt.trainer.validation import Scores

MODERN = RECIPES["modern"].with_options(depth=2, base=4, tile=92)
PAPER = Recipe(depth=2, base=4, tile=92)


def training(folder, out, recipe=MODERN, seed=0):
    train, validation = read_dataset(folder).split(0.25, seed=0)
    return Training(train, validation, recipe, TrainingRun(out, seed))


@pytest.fixture
def without_pictures(monkeypatch):
    """Draw nothing at the end of a training: in one of a few steps that takes most of the time."""
    monkeypatch.setattr(loop, "draw_sheet", lambda *_: None)
    monkeypatch.setattr(History, "save", lambda *_: None)


def stopping_after(run, steps):
    return lambda: run.steps >= steps


@pytest.mark.usefixtures("without_pictures")
@pytest.mark.parametrize(
    "recipe",
    [MODERN, PAPER, pytest.param(replace(MODERN, dropout=0.5, batch=2), marks=pytest.mark.slow)],
    ids=["modern", "paper", "drop"],
)
def test_a_continued_run_is_the_uninterrupted_one_bit_for_bit(drawn_folder, tmp_path, recipe):
    """Drop-out, momentum and the moving average included; a second interruption too."""
    budget = TrainingBudget(steps=9)
    whole = training(drawn_folder, tmp_path / "whole", recipe)
    whole.run(budget)
    for stop in (4, 5, 10):
        run = training(drawn_folder, tmp_path / "parts", recipe, seed=0)
        if stop > 4:
            run.restore(load(tmp_path / "parts" / LAST))
        if stop < 10:
            with pytest.raises(TrainingStoppedError, match=f"stopped after step {stop}; its state is saved"):
                run.run(budget, should_stop=stopping_after(run, stop))
        else:
            run.run(budget)
    assert run.history.losses == whole.history.losses
    assert run.history.scores == whole.history.scores
    for name in ("best.safetensors", LAST):
        one, other = (load(tmp_path / part / name) for part in ("whole", "parts"))
        for kind in ("weights", "state"):
            ones, others = getattr(one, kind), getattr(other, kind)
            assert ones.keys() == others.keys()
            for key in ones:
                np.testing.assert_array_equal(ones[key], others[key], err_msg=f"{name} {kind} {key}")


@pytest.mark.usefixtures("without_pictures")
def test_other_data_are_refused(drawn_folder, tmp_path):
    training(drawn_folder, tmp_path).run(TrainingBudget(steps=2))
    run = training(drawn_folder, tmp_path)
    train, validation = read_dataset(drawn_folder).split(0.5, seed=0)
    other = Training(train, validation, MODERN, TrainingRun(tmp_path))
    with pytest.raises(DatasetError, match="images or labels differ from those that the run began with"):
        other.restore(load(tmp_path / LAST))
    run.restore(load(tmp_path / LAST))
    with pytest.raises(OptionError, match=r"spent its budget \(2 steps done\): extend it"):
        run.run(TrainingBudget(steps=2))


@pytest.mark.usefixtures("without_pictures")
def test_a_run_that_is_given_more_validates_as_often_as_a_new_one(drawn_folder, tmp_path):
    training(drawn_folder, tmp_path).run(TrainingBudget(steps=5))
    run = training(drawn_folder, tmp_path)
    run.restore(load(tmp_path / LAST))
    run.run(TrainingBudget(steps=20))
    new = training(drawn_folder, tmp_path / "new")
    new.run(TrainingBudget(steps=20))
    assert [step for step, _ in run.history.scores] == [5, *(step for step, _ in new.history.scores if step > 5)]
    run.run(TrainingBudget(steps=30))
    assert run.history.scores[-1][0] == 30


@pytest.mark.usefixtures("without_pictures")
def test_what_cannot_be_continued(drawn_folder, tmp_path):
    training(drawn_folder, tmp_path).run(TrainingBudget(steps=2))
    for recipe in (replace(MODERN, base=8), replace(MODERN, optimiser="sgd"), replace(MODERN, w0=3.0)):
        with pytest.raises(ModelFileError, match="trained by another recipe"):
            training(drawn_folder, tmp_path, recipe).restore(load(tmp_path / LAST))
    last = load(tmp_path / LAST)
    without = {name: array for name, array in last.state.items() if name != "net.classify.bias"}
    with pytest.raises(ModelFileError, match="holds another network"):
        training(drawn_folder, tmp_path).restore(replace(last, state=without))
    with pytest.raises(ModelFileError, match="holds no state to resume from"):
        training(drawn_folder, tmp_path).restore(load(tmp_path / "best.safetensors"))
    for part, message in (
        (
            {"progress": {**last.progress, "seconds": "1"}},
            "the progress in .* is invalid: seconds: expected `float`",
        ),
        ({"progress": {**last.progress, "budget": {}}}, "is invalid: budget: give either minutes or steps"),
        ({"training": {**last.training, "recipe": {"tile": "x"}}}, "the recipe in .* is invalid: tile: expected `int`"),
    ):
        with pytest.raises(ModelFileError, match=message):
            training(drawn_folder, tmp_path).restore(replace(last, **part))
    with pytest.raises(
        ModelFileError, match="does not store the path of its images: add it, unetrt train DATA --resume"
    ):
        TrainingJob.resumed(tmp_path, None, {})
    assert TrainingJob.resumed(tmp_path, None, {"data": drawn_folder}).source == DataSource(drawn_folder)


def test_what_earlier_versions_stored_is_read():
    """The JSON of a last checkpoint of version 0.2.0.dev0."""
    scores = [100, {"iou": 0.93, "seg": 0.27, "ap": 0.14, "merged": 449}]
    origin = {"data": "/data", "val": "/val", "fraction": 0.2, "listed": None, "classes": None, "ignore": None}
    stored = {
        "scores": [scores], "seconds": 94.7, "validated_at": [100, 94.7], "budget": {"minutes": None, "steps": 1000},
        "data": ["b715", "7433"], "run": {"seed": 0, "tta": False, "compiled": False}, "origin": origin,
    }  # fmt: skip
    state = validated(stored, ResumeState, "stored")
    assert (state.scores, state.budget) == (((100, Scores(0.93, 0.27, 0.14, 449)),), TrainingBudget(steps=1000))
    assert json.loads(to_json(state)) == stored


SMALL = ["--depth", "1", "--base", "2", "--tile", "60", "--no-export"]


def child(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "unetrt", "train", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for(path, process, seconds=120):
    begin = time.monotonic()
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() - begin < seconds, f"no {path}"
        time.sleep(0.01)


# SIGHUP has the same handler as SIGTERM.
@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_saves_and_resume_goes_on(drawn_folder, tmp_path, capsys, number):
    folder = tmp_path / "run"
    process = child(drawn_folder, "--steps", 100_000, "-o", folder, *SMALL)
    wait_for(folder / LAST, process)
    process.send_signal(number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.strip().splitlines()[-1].startswith("stopped after step ")
    steps = load(folder / LAST).training["steps"]
    assert f"stopped after step {steps}; its state is saved" in said
    assert main(["train", "--resume", str(folder), "--steps", str(steps + 3), "--no-export"]) == 0
    assert f"continuing after step {steps}" in capsys.readouterr().out
    assert load(folder / LAST).training["steps"] == steps + 3


@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_a_whole_checkpoint(drawn_folder, tmp_path):
    """Every step saves here; every other kill is aimed at a save that has begun."""
    folder, rng = tmp_path / "run", random.Random(0)
    script = (
        "import sys; from unetrt.trainer import training; training.SAVE_EVERY = 0; "
        "from unetrt.__main__ import main; sys.exit(main(sys.argv[1:]))"
    )
    begin = ["train", str(drawn_folder), "--steps", "1000000", "-o", str(folder), *SMALL]
    steps = 0
    for kill in range(10):
        arguments = begin if steps == 0 else ["train", "--resume", str(folder), "--no-export"]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        before = (folder / LAST).stat().st_mtime_ns if steps else 0
        wait_for(folder / LAST, process)
        while (folder / LAST).stat().st_mtime_ns == before:
            assert process.poll() is None, process.stdout.read()
            time.sleep(0.001)
        time.sleep(rng.random() * 0.3)
        while kill % 2 and process.poll() is None and not list(folder.glob(".unetrt-*")):
            pass
        process.kill()
        process.communicate()
        last = load(folder / LAST)
        assert last.training["steps"] > steps
        steps = last.training["steps"]
        assert len(last.state["losses"]) == steps
    assert main(["train", "--resume", str(folder), "--steps", str(steps + 1), "--no-export"]) == 0
    assert not list(folder.glob(".unetrt-*")), "what a killed save left is cleared away"


@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of resources")
@pytest.mark.parametrize("limit", [20_000, pytest.param(1_000, marks=pytest.mark.slow)])
def test_a_full_disk_ends_a_training_with_one_line(drawn_folder, tmp_path, limit):
    """A limit on the size of files stands for the disk: a checkpoint takes 70 kB and more."""
    import resource

    arguments = ["train", drawn_folder, "--depth", 2, "--base", 4, "--tile", 92, "--steps", 4, "-o", tmp_path / "run"]
    done = subprocess.run(
        [sys.executable, "-m", "unetrt", *map(str, arguments)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "MPLCONFIGDIR": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert re.match(r"Error: cannot write .*safetensors: .*(File too large|os error 27)", done.stderr.splitlines()[-1])
    assert [path.name for path in (tmp_path / "run").rglob("*") if path.suffix == ".safetensors"] == []


@pytest.mark.parametrize(("where", "broken"), [(loop, "draw_sheet"), (History, "save")])
def test_pictures_and_logs_do_not_end_a_training(drawn_folder, tmp_path, monkeypatch, caplog, where, broken):
    def fail(*_):
        raise RuntimeError("no font\nat all")

    monkeypatch.setattr(where, broken, fail)
    run = training(drawn_folder, tmp_path)
    assert run.run(TrainingBudget(steps=3)) == tmp_path / "best.safetensors"
    assert load(tmp_path / LAST).training["steps"] == 3
    assert [record.getMessage() for record in caplog.records] == [
        "curves and pictures of the training are not written: no font at all"
    ]


def test_a_picture_does_not_hide_why_a_training_ended(drawn_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "draw_sheet", lambda *_: 1 / 0)
    run = training(drawn_folder, tmp_path)
    with pytest.raises(TrainingStoppedError, match="stopped after step 2"):
        run.run(TrainingBudget(steps=50), should_stop=stopping_after(run, 2))


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system whose names are bytes")
def test_names_that_are_not_utf_8(drawn_folder, tmp_path, capfd):
    data = tmp_path / "data"
    shutil.copytree(drawn_folder, data)
    for part in ("images", "labels"):
        for path in list((data / part).iterdir()):
            path.rename(path.with_name(os.fsdecode(b"caf\xe9-") + path.name))
    out = tmp_path / "run"
    arguments = ["train", data, "--depth", 2, "--base", 4, "--tile", 92, "--steps", 4, "-o", out]
    assert main([str(argument) for argument in arguments]) == 0
    assert {"best.safetensors", LAST, "validation.png", "curves.png", "model.onnx"} <= {
        path.name for path in out.iterdir()
    }
    assert "not written" not in capfd.readouterr().err


def test_what_a_kill_after_the_last_step_left_undone_is_completed(drawn_folder, tmp_path, capsys):
    folder, small = tmp_path / "run", ["--depth", "1", "--base", "2", "--tile", "60", "--steps", "3"]
    assert main(["train", str(drawn_folder), "-o", str(folder), *small]) == 0
    names = ("curves.png", "validation.png", "model.onnx")
    before = {name: (folder / name).read_bytes() for name in names}
    resume = ["train", "--resume", str(folder)]
    assert main(resume) == 2
    assert "spent its budget (3 steps done)" in capsys.readouterr().err
    for name in names:
        (folder / name).unlink()
        assert main(resume) == 0
        assert (folder / name).read_bytes() == before[name]
    os.utime(folder / "model.onnx", (1, 1))
    assert main([*resume, "--no-export"]) == 2
    assert main(resume) == 0
    assert main(resume) == 2

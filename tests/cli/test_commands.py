"""The commands as a user types them, one after another."""

import csv
import json
from dataclasses import replace
from functools import partial

import click
import numpy as np
import onnx
import pytest
import tifffile
from PIL import Image

from tests.benchmarks.sleepers import contender
from tests.conftest import editable
from tests.runtime import acquisitions
from unetrt.__main__ import main
from unetrt.benchmarks.bench import Bench
from unetrt.benchmarks.contenders import CONTENDERS, REFERENCE
from unetrt.benchmarks.result import WAYS, load
from unetrt.cli import Commands
from unetrt.cli.demo import STEPS
from unetrt.runtime.segment.segmenter import Segmenter


@pytest.fixture
def run(capsys):
    """Run a command that must succeed; return its standard output."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert status == 0, err
        return out

    return run


def test_from_a_folder_of_images_to_labels(run, drawn_folder, tmp_path):
    folder, model, out = tmp_path / "run", tmp_path / "model.onnx", tmp_path / "out"
    small = ["--depth", 2, "--base", 4, "--tile", 92, "--steps", 30, "--target", "border"]
    said = run("train", drawn_folder, "--val", drawn_folder, "-o", folder, *small)
    assert "4 images" in said
    assert f"next: unetrt predict {folder / 'model.onnx'}" in said
    assert (folder / "model.onnx").exists()
    said = run("export", folder, "-o", model, "--frame", "80x120", "--precision", "fp16")
    assert "parity with the network in FP32: max error" in said
    said = run("predict", model, drawn_folder / "images", "-o", out)
    assert said.startswith("4 images, ")
    assert sorted(path.name for path in out.iterdir()) == ["0.tif", "1.tif", "2.tif", "3.tif", "overlays"]
    assert tifffile.imread(out / "2.tif").shape == (80, 120)
    with Image.open(out / "overlays" / "2.png") as picture:
        assert picture.size == (120, 80)
    scores = json.loads(run("eval", out, drawn_folder / "labels", "--json"))
    assert [row["name"] for row in scores["images"]] == ["0", "1", "2", "3"]
    assert 0.3 < scores["pooled"]["iou"] <= 1
    assert scores["pooled"]["objects"] == sum(row["objects"] for row in scores["images"])
    table = run("eval", out, drawn_folder / "labels").splitlines()
    assert [row.split()[0] for row in table] == ["IoU", "0", "1", "2", "3", "pooled"]


def test_predict_reads_subfolders_and_never_its_own_results(tiny_model, tmp_path, capsys, caplog):
    frame = np.random.default_rng(0).integers(0, 4000, (40, 50)).astype(np.uint16)
    for name in ("a/x.tif", "a/sub/x.tif", "b/x.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(tmp_path / name, frame)
    (tmp_path / "a" / "notes.txt").touch()
    for _ in range(2):
        for out in ("a/out", "a/other"):
            assert main(["predict", str(tiny_model), str(tmp_path / "a"), "-o", str(tmp_path / out), "--table"]) == 0
            assert capsys.readouterr().out.startswith("2 images, ")
            assert caplog.messages[-1].startswith(f"{tmp_path / 'a'}: 1 file left out: 1 .txt")
            written = sorted(path.relative_to(tmp_path / out).as_posix() for path in (tmp_path / out).rglob("*.*"))
            assert written == ["objects.csv", "overlays/sub/x.png", "overlays/x.png", "sub/x.tif", "x.tif"]
    assert caplog.messages[-1].endswith("; folder left out: out/ (results of an earlier run)")
    with (tmp_path / "a" / "other" / "objects.csv").open(newline="") as file:
        assert {row["image"] for row in csv.DictReader(file)} <= {"sub/x.tif", "x.tif"}
    arguments = [str(tmp_path / name) for name in ("a/x.tif", "b", "b/x.tif")]
    assert main(["predict", str(tiny_model), *arguments, "-o", str(tmp_path / "both"), "--no-overlays"]) == 0
    written = sorted(path.relative_to(tmp_path / "both").as_posix() for path in (tmp_path / "both").rglob("*.tif"))
    assert written == ["a/x.tif", "b/x.tif"]


def test_axes_and_a_channel_are_chosen(run, tiny_model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 4000, (3, 50, 60, 2)).astype(np.uint16)
    np.save(tmp_path / "a.npy", pixels)
    np.save(tmp_path / "b.npy", pixels[0, ..., 1])
    for name, *options in (("a", "--axes", "tyxc", "--channel", 1), ("b",)):
        run("predict", tiny_model, tmp_path / f"{name}.npy", "-o", tmp_path / "out", *options)
    labels = [tifffile.imread(tmp_path / "out" / f"{name}.tif") for name in "ab"]
    assert labels[0].shape == (3, 50, 60)
    np.testing.assert_array_equal(labels[0][0], labels[1])


def test_predict_writes_class_maps_and_stacks(run, tiny_model, tmp_path):
    stack = np.random.default_rng(0).integers(0, 4000, (3, 50, 60)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    run("predict", tiny_model, tmp_path / "stack.tif", "-o", tmp_path / "out", "--as", "classes", "--no-overlays")
    labels = tifffile.imread(tmp_path / "out" / "stack.tif")
    assert labels.shape == (3, 50, 60)
    assert labels.max() <= 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stack.tif"]
    run("predict", tiny_model, tmp_path / "stack.tif", "-o", tmp_path / "averaged", "--as", "classes", "--tta")
    with Segmenter(tiny_model) as segmenter:
        expected = segmenter.segment(stack, tta=True).labels
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "averaged" / "stack.tif"), expected)
    assert (expected != labels).any()
    run("predict", tiny_model, tmp_path / "stack.tif", "-o", tmp_path / "out2")
    with Image.open(tmp_path / "out2" / "overlays" / "stack.png") as picture:
        assert picture.size == (60, 50)


def test_images_of_an_acquisition_are_segmented_and_scored_each_by_its_name(run, tiny_model, tmp_path, capsys):
    acquisitions.write_positions(tmp_path / "set", split=2)
    acquisitions.write_frames(tmp_path / "set")
    acquisitions.write_series(tmp_path / "set" / "b.ome.tif")
    out = tmp_path / "out"
    run("predict", tiny_model, tmp_path / "set", "-o", out, "--as", "classes", "--no-overlays")
    names = [*(f"a_MMStack_Pos{number}" for number in range(3)), *(f"b_Pos{number}" for number in range(3)), "x_T0"]
    assert sorted(path.stem for path in out.iterdir()) == names
    frames = {name: len(tifffile.imread(out / f"{name}.tif")) for name in names}
    assert frames == {name: 4 if name == "x_T0" else 2 for name in names}
    run("predict", tiny_model, tmp_path / "set" / "b.ome.tif", "-o", out / "one", "--series", "Pos1", "--as", "classes")
    assert [path.name for path in (out / "one").glob("*.tif")] == ["b_Pos1.tif"]
    run("predict", tiny_model, tmp_path / "set" / "x_T2.ome.tif", "-o", out / "two", "--as", "classes")
    np.testing.assert_array_equal(tifffile.imread(out / "two" / "x_T2.tif"), tifffile.imread(out / "x_T0.tif")[2])
    scored = json.loads(run("eval", tmp_path / "set" / "b.ome.tif", tmp_path / "set" / "b.ome.tif", "--json", "--ids"))
    assert [image["name"] for image in scored["images"]] == [f"b_Pos{n}[{t}]" for n in range(3) for t in range(2)]
    scored = json.loads(run("eval", out, tmp_path / "set" / "b.ome.tif", "--json", "--ids", "--series", 2))
    assert [image["name"] for image in scored["images"]] == ["b_Pos2[0]", "b_Pos2[1]"]
    (tmp_path / "set" / "x_T1.ome.tif").unlink()
    assert main(["predict", str(tiny_model), str(tmp_path / "set"), "-o", str(out), "--as", "classes"]) != 0
    assert "lacks 1 of its 4 planes (T=1), which are in x_T1.ome.tif: put them beside it" in capsys.readouterr().err
    assert main(["predict", str(tiny_model), str(tmp_path / "set"), "-o", str(out), "--series", "left"]) != 0
    assert "'left' is no image of" in capsys.readouterr().err


def test_eval_pairs_as_the_cell_tracking_challenge_names_and_leaves_out_what_is_masked(run, tmp_path):
    truth = np.zeros((8, 9), np.uint16)
    truth[1:4, 1:4], truth[5:7, 5:8] = 1, 2
    mask = np.zeros((8, 9), np.uint8)
    mask[:, 5:] = 1
    files = {"truth/man_seg007": truth, "found/mask007": truth * (mask == 0), "masks/man_seg007": mask}
    for name, pixels in files.items():
        (tmp_path / name).parent.mkdir()
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, photometric="minisblack")
    folders = ("eval", tmp_path / "found", tmp_path / "truth", "--json")
    assert json.loads(run(*folders))["pooled"]["seg"] == 0.5
    assert json.loads(run(*folders, "--ignore", tmp_path / "masks"))["pooled"]["seg"] == 1


def test_eval_of_class_maps(run, tmp_path):
    for name, labels in (("a", [[0, 1, 2, 2]]), ("b", [[0, 1, 1, 255]])):
        tifffile.imwrite(tmp_path / f"{name}.tif", np.array(labels, np.uint8), photometric="minisblack")
    said = run("eval", tmp_path / "a.tif", tmp_path / "b.tif", "--classes", 3)
    assert said.splitlines()[-1].split() == ["pooled", "0.250", "0.3333", "0.500", "0.000"]


def test_a_moved_run_goes_on(run, drawn_folder, tmp_path):
    import shutil

    folder, small = tmp_path / "run", ["--depth", 1, "--base", 2, "--tile", 60, "--no-export"]
    for name in ("data", "val"):
        shutil.copytree(drawn_folder, tmp_path / name)
    run("train", tmp_path / "data", "--val", tmp_path / "val", "-o", folder, "--steps", 2, *small)
    for old in ("data", "val"):
        (tmp_path / old).rename(tmp_path / f"new-{old}")
    folder.rename(tmp_path / "elsewhere")
    moved = [tmp_path / "new-data", "--val", tmp_path / "new-val"]
    said = run("train", "--resume", tmp_path / "elsewhere", *moved, "--steps", 4, "--no-export")
    assert "continuing after step 2" in said


def test_info_of_a_model_and_of_a_checkpoint(run, tiny_model, tiny_run):
    about = json.loads(run("info", tiny_model, "--json"))
    assert about["tile"] == [60, 76]
    assert about["core"] == [20, 36]
    assert about["stride"] == [20, 36]
    assert about["intact"] == "yes"
    assert about["verification"]["frames"] > 0
    assert 0 < about["verification"]["measured"]["iou"] <= 1
    said = run("info", tiny_model)
    assert "weights_sha256" in said
    assert f'"frames_sha256": "{about["verification"]["frames_sha256"]}"' in said
    assert json.loads(run("info", tiny_run, "--json"))["network"] == {
        "depth": 2, "base": 4, "channels": 1, "classes": 2,
    }  # fmt: skip


def test_info_of_a_file_that_states_no_digest_and_of_a_damaged_one(run, tiny_model, tmp_path, capsys):
    onnx.save(editable(tiny_model), tmp_path / "earlier.onnx")
    assert "unknown: the file states no SHA-256 of its contents" in run("info", tmp_path / "earlier.onnx")
    content = tiny_model.read_bytes()
    weights = onnx.load(tiny_model).graph.initializer[0].raw_data
    (tmp_path / "damaged.onnx").write_bytes(content.replace(weights, weights[::-1]))
    assert main(["info", str(tmp_path / "damaged.onnx")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "damaged.onnx is damaged: its contents do not have the SHA-256 that it states" in line


def test_plan_names_the_best_tile(run, tiny_model, tiny_run):
    planned = json.loads(run("plan", "2048x2048", "--base", 16, "--json"))
    assert planned["best"]["tile"] == [2236, 2236]
    for size in ("2048", "20000", "9999999"):
        table = run("plan", size, "--memory", "1GiB")
        assert len([row for row in table.splitlines() if "│ best" in row]) == 1
    assert "of the arithmetic of 572-tiles" in table
    for model in (tiny_model, tiny_run):
        assert json.loads(run("plan", "100x100", "--model", model, "--json"))["best"]["passes"] >= 1


def test_a_floor_that_nobody_reaches_fails_and_what_was_measured_is_kept(run, capsys, tmp_path, monkeypatch):
    """With contenders that only sleep."""
    usual = replace(contender("quick"), name=REFERENCE, title="the usual sleeper")
    sleepers = partial(Bench, contenders=(usual, contender("sleeper")), sides=(64,), enough=0.3)
    monkeypatch.setattr("unetrt.benchmarks.bench.Bench", sleepers)
    json_path, chart = tmp_path / "a.json", tmp_path / "a.png"
    case = ["bench", "--frame", "96x130", "--base", "1", "--depth", "1", "--rounds", "1", "--device", "cpu"]
    written = ["--json", str(json_path), "--png", str(chart)]
    assert main([*case, *written, "--floor", "sleeper=1000"]) == 1
    said = capsys.readouterr()
    assert "times as fast" in said.out
    assert "the floor is 1000" in said.err
    assert [one.name for one in load(json_path).contenders] == ["torch", "sleeper"]
    assert chart.stat().st_size > 10_000
    assert "too few rounds" in run("bench", "--compare", json_path, json_path)


@pytest.mark.slow
def test_bench_measures_checks_and_writes_what_it_is_asked_for(run, capsys, tmp_path, monkeypatch):
    """A real network, and a floor that nobody reaches: what was measured is kept all the same."""
    monkeypatch.setattr("unetrt.benchmarks.bench.ENOUGH", 0.3)
    json_path, chart = tmp_path / "a.json", tmp_path / "a.png"
    case = ["bench", "--frame", "400x390", "--base", "2", "--rounds", "1", "--only", "onnxruntime", "--device", "cpu"]
    written = ["--json", str(json_path), "--png", str(chart)]
    assert main([*case, *written, "--floor", "onnxruntime=1000"]) == 1
    said = capsys.readouterr()
    assert "times as fast" in said.out
    assert "the floor is 1000" in said.err
    result = load(json_path)
    assert [one.name for one in result.contenders] == ["torch", "onnxruntime"]
    assert set(result["onnxruntime"].seconds) == set(WAYS)
    assert result["onnxruntime"].pixels_off == 0 < result["torch"].pixels_off
    assert result.environment["versions"]["onnxruntime"]
    assert chart.stat().st_size > 10_000
    assert "too few rounds" in run("bench", "--compare", json_path, json_path)


def test_a_bench_without_time_fails(capsys, tmp_path):
    """Nothing was timed: neither is that a success, nor may a floor vanish with it."""
    path = tmp_path / "bench.json"
    case = ["bench", "--frame", "60", "--base", "1", "--depth", "1", "--rounds", "1", "--device", "cpu"]
    case += ["--only", "onnxruntime", "--json", str(path)]
    assert main([*case, "--floor", "0.01", "--seconds", "0.001"]) == 1
    assert "0.001 seconds were over before anything was timed: give more --seconds" in capsys.readouterr().err
    assert json.loads(path.read_text())["missing"]


def test_bench_lists_its_contenders(run):
    said = run("bench", "--list", "--device", "cpu")
    assert "--device gpu" in said
    assert [name for name in ("torch-compile", "monai", "openvino-bf16", "tensorrt") if name not in said] == []


def test_what_helps_is_listed_as_it_is_written(run, monkeypatch):
    """An extra in brackets is no style of the terminal's."""
    (monai,) = (one for one in CONTENDERS if one.name == "monai")
    lacking = replace(monai, probe=lambda: "pip install 'unetrt[bench]'")
    monkeypatch.setattr("unetrt.benchmarks.contenders.CONTENDERS", (lacking,))
    assert "'unetrt[bench]'" in run("bench", "--list", "--device", "cpu")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_demo_leaves_what_it_says(run, tmp_path):
    """As a user runs it: how long it trains is counted in steps, so that every machine gets the same."""
    said = run("demo", "--out", tmp_path / "demo")
    assert "exact: True" in said
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert names >= {"model.onnx", "best.safetensors", "overlay.png", "curves.png", "report.json", "data"}
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["exactness"]["max_logit_difference"] <= 1e-4
    assert report["exactness"]["share_of_pixels_of_another_class"] == 0
    assert report["frame"][0] > report["tile"][0]
    assert report["quality"]["cells_drawn"] > 500
    assert report["quality"]["foreground_iou"] > 0.9
    assert report["quality"]["seg"] >= 0.8
    assert report["nuclei"]["seg"] >= 0.75
    assert len(list((tmp_path / "demo" / "nuclei" / "overlays").iterdir())) == 4
    with (tmp_path / "demo" / "history.csv").open() as history:
        assert len(list(history)) == 1 + STEPS, "a title, and a line a step"


@pytest.mark.parametrize("command", ["demo", "train", "export", "predict", "eval", "plan", "info", "bench"])
def test_every_command_has_help(run, command):
    assert f"unetrt {command}" in run(command, "--help")


def test_an_error_that_came_of_an_interrupt_is_the_interrupt(monkeypatch, capsys):
    """As when Ctrl-C falls into an import: what comes out is the import's own trouble."""

    @click.command()
    def command():
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise AttributeError("a half imported module has no attribute")  # noqa: B904

    monkeypatch.setattr(Commands, "get_command", lambda *_: command)
    assert main(["export"]) == 130
    assert capsys.readouterr().err == "stopped by the user\n"


def test_predict_lists_the_objects_of_all_images(run, tiny_model, drawn_folder, tmp_path):
    said = run("predict", tiny_model, drawn_folder / "images", "-o", tmp_path / "out", "--table", "--no-overlays")
    with (tmp_path / "out" / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert f"4 images, {len(rows)} objects" in said
    for name in ("0", "2"):
        labels = tifffile.imread(tmp_path / "out" / f"{name}.tif")
        mine = [row for row in rows if row["image"] == f"{name}.tif"]
        assert [int(row["area"]) for row in mine] == np.bincount(labels.ravel())[1:].tolist()
    assert all(0 <= float(row["confidence"]) <= 1 for row in rows)


def test_class_maps_have_no_table(tiny_model, drawn_folder, tmp_path, capsys):
    arguments = ["predict", tiny_model, drawn_folder / "images", "-o", tmp_path / "out", "--table", "--as", "classes"]
    assert main([str(argument) for argument in arguments]) == 2
    assert "class maps have none: add --as instances" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

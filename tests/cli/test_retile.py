"""`unetrt retile`, and the tile that `unetrt predict` chooses by the sizes of the images."""

import os
import re
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tifffile

from tests.conftest import coordinate_frame, editable
from unetrt.cli import main
from unetrt.export.onnx_model import describe
from unetrt.runtime.geometry.planner import Budget, best_tile
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.sessions.retile import kept
from unetrt.trainer.drawn_cells import draw

SIZES = {"a": (40, 50), "b": (64, 64), "c": (90, 31), "d": (64, 64)}


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Images of several sizes and kinds, one of them damaged and one a stack."""
    folder = tmp_path_factory.mktemp("images")
    for number, (name, size) in enumerate(SIZES.items()):
        tifffile.imwrite(folder / f"{name}.tif", draw(size, seed=number).frame, photometric="minisblack")
    np.save(folder / "stack.npy", np.stack([draw((64, 80), seed=seed).frame for seed in range(20)]))
    return folder


@pytest.fixture
def run(capsys):
    def run(*arguments, status=0):
        assert main([str(argument) for argument in arguments]) == status
        return capsys.readouterr()

    return run


def test_a_file_with_the_planned_tile(run, large_model, tmp_path):
    out = tmp_path / "out.onnx"
    said = run("retile", large_model, "--frame", "64x64", "--frame", "90x31", "--batch", 2, "-o", out).out
    spec = read_spec(out)
    assert spec.batch == 2
    frames = [(64, 64), (90, 31)]
    assert spec.tile == best_tile(frames, spec.shape, Budget(batch=2)).tile
    assert said.startswith(f"{out}: tile {spec.tile[0]}x{spec.tile[1]} (was 300x316), fp32, logits; verified")
    assert not kept()


def test_a_file_with_a_tile_of_ones_choice(run, large_model, tmp_path):
    run("retile", large_model, "--tile", "60x76", "-o", tmp_path / "out.onnx")
    assert read_spec(tmp_path / "out.onnx").tile == (60, 76)


BAD = {
    "no tile": ("MODEL -o new/o.onnx", "give either --frame, the size of your frames, or --tile"),
    "two tiles": ("MODEL -o new/o.onnx --frame 64 --tile 60", "give either --frame"),
    "illegal tile": ("MODEL -o new/o.onnx --tile 61", "tile 61 is not legal.*use 60 or 64"),
    "no size": ("MODEL -o new/o.onnx --frame 0x5", "'0x5' is not a size"),
    "a fraction": ("MODEL -o new/o.onnx --frame 1.5", "'1.5' is not a size"),
    "a huge frame": ("MODEL -o new/o.onnx --frame 9999999999999x5", "--frame: '9999999999999x5' is not a size"),
    "no batch": ("MODEL -o new/o.onnx --frame 64 --batch 0", "'0' is not valid: use a whole number from 1"),
    "no memory": ("MODEL -o new/o.onnx --frame 64 --memory 1KiB", "no tile fits 1 KiB"),
    "a missing file": ("none.onnx -o new/o.onnx --frame 64", "none.onnx does not exist"),
    "a folder": ("new -o new/o.onnx --frame 64", "new does not exist"),
    "an engine": ("a.engine -o new/o.onnx --frame 64", "does not exist|is an engine"),
    "an engine's name": ("MODEL -o new/o.engine --frame 64", "is the name of an engine: use new/o.onnx"),
    "the model itself": ("MODEL -o MODEL --frame 64", "is read for this, and would be overwritten"),
    "below a file": ("MODEL -o file/o.onnx --frame 64", "cannot write to file.*not a folder"),
    "a folder as output": ("MODEL -o . --frame 64", "is a folder: name a file in it"),
    "no output": ("MODEL --frame 64", "Missing option '-o'"),
    "another network": ("adopted.onnx -o new/o.onnx --frame 64", "is not a U-Net of ours: export or adopt"),
    "weights elsewhere": ("external.onnx -o new/o.onnx --frame 64", "keeps weights in other files: export it again"),
}


@pytest.fixture
def place(large_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "MODEL").write_bytes(large_model.read_bytes())
    model = editable(large_model)
    onnx.save(model, "external.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    adopted = editable(large_model)
    describe(adopted, replace(read_spec(large_model), network={}))
    onnx.save(adopted, "adopted.onnx")
    return tmp_path


@pytest.mark.parametrize(("command", "message"), BAD.values(), ids=BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(run, place, command, message):
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    said = run("retile", *command.split(), status=2).err.strip()
    assert len(said.splitlines()) == 1
    assert re.search(message, said), said
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_cannot_be_written_to(run, large_model, tmp_path):
    (tmp_path / "sealed").mkdir(mode=0o500)
    said = run("retile", large_model, "--frame", "64", "-o", tmp_path / "sealed" / "o.onnx", status=2).err
    assert "no permission" in said


def labels(folder):
    return {path.name: tifffile.imread(path) for path in folder.glob("*.tif")}


def predicted(run, model, images, out, *options, status=0):
    said = run("predict", model, images, "-o", out, "--as", "classes", "--no-overlays", *options, status=status)
    return labels(out), said


@pytest.mark.parametrize("options", [(), ("--tta",), ("--tile", "planned")])
def test_predict_plans_the_tile_and_gives_the_same_labels(run, large_model, images, tmp_path, options):
    own, _ = predicted(run, large_model, images, tmp_path / "own", *options, "--tile", "model")
    assert not kept()
    planned, said = predicted(run, large_model, images, tmp_path / "planned", *options)
    (file,) = kept()
    tile = "{}x{}".format(*read_spec(file).tile)
    assert said.err == f"tile {tile}, planned for these images; --tile model uses the file's, 300x316\n"
    frames = [*SIZES.values(), *20 * [(64, 80)]]
    if "--tta" in options:
        frames += [(width, height) for height, width in frames]
    assert read_spec(file).tile == best_tile(frames, read_spec(file).shape).tile
    assert own.keys() == planned.keys() == {f"{name}.tif" for name in (*SIZES, "stack")}
    for name, expected in own.items():
        assert (planned[name] != expected).mean() <= 1e-4
    assert any(0 < expected.mean() < 1 for expected in own.values())


def test_predict_keeps_the_files_tile_where_another_saves_little(run, tiny_model, large_model, images, tmp_path):
    predicted(run, large_model, images / "a.tif", tmp_path / "one")
    tile = best_tile([SIZES["b"]], read_spec(tiny_model).shape).tile
    run("retile", large_model, "--tile", f"{tile[0]}x{tile[1] + 4}", "-o", tmp_path / "near.onnx")
    predicted(run, tmp_path / "near.onnx", images / "b.tif", tmp_path / "near")
    assert not kept()


@pytest.mark.parametrize("name", ["adopted.onnx", "external.onnx"])
def test_predict_uses_the_files_tile_where_it_cannot_be_changed(run, place, images, name):
    found, _ = predicted(run, place / name, images, place / "out")
    assert len(found) == 5
    assert not kept()
    said = run("predict", name, images, "-o", place / "no", "--tile", "planned", status=2).err
    assert "not a U-Net of ours" in said or "weights in other files" in said
    assert not (place / "no").exists()


def test_predict_works_without_a_cache(run, large_model, images, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    found, _ = predicted(run, large_model, images, tmp_path / "out")
    assert len(found) == 5


def test_predict_skips_what_it_cannot_read_as_before(run, large_model, images, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for path in images.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "bad.tif").write_bytes(b"II*\0")
    tifffile.imwrite(folder / "rgb.tif", coordinate_frame(4, 15).reshape(4, 5, 3), photometric="rgb")
    found, said = predicted(run, large_model, folder, tmp_path / "out", status=2)
    assert len(found) == 5
    assert said.err.count("skipped: ") == 2
    assert len(kept()) == 1


def test_the_cache_is_listed_and_cleared(run, large_model, images, tmp_path):
    predicted(run, large_model, images, tmp_path / "out", "--tile", "planned")
    (file,) = kept()
    height, width = read_spec(file).tile
    listed = run("cache", "list").out.splitlines()[0]
    assert listed.startswith(file.stem[:12])
    assert listed.endswith(f"model with tile {height}x{width} x 1, fp32")
    assert "1 models with other tiles deleted" in run("cache", "clear", file.stem[:12]).out
    assert not kept()

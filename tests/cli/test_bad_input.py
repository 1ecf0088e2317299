"""Every bad input: exit 2, one line that says what to do, and no file left behind."""

import os
import re
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile

from tests.conftest import editable
from unetrt.__main__ import main
from unetrt.export.exporter import Options, export
from unetrt.runtime.model.spec import KEY


def image(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, photometric="rgb" if pixels.shape[-1] == 3 else "minisblack")
    return path


FRAME = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
OBJECTS = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 32, 0), 32, 1)


@pytest.fixture(scope="module")
def labels_model(tiny_checkpoint, tmp_path_factory):
    """A model whose head gives labels."""
    path = tmp_path_factory.mktemp("labels") / "labels.onnx"
    export(tiny_checkpoint, path, Options((60, 60), head="labels"))
    return path


@pytest.fixture
def place(tmp_path, tiny_model, labels_model, tiny_run, drawn_folder):
    """A folder with every kind of bad file in it, and some good ones."""
    image(tmp_path / "good" / "a.tif", FRAME)
    image(tmp_path / "rgb" / "a.tif", np.full((64, 64, 3), (0, 1, 2), np.uint8))
    image(tmp_path / "last" / "a.tif", np.zeros((64, 64, 5), np.uint8))
    image(tmp_path / "thick" / "a.tif", np.zeros((80, 64, 16), np.uint8))
    nan = FRAME.astype(np.float32)
    nan[3, 5] = np.nan
    image(tmp_path / "nan" / "a.tif", nan)
    (tmp_path / "text.tif").write_text("no image")
    for name, labels in (("shapes", OBJECTS[:60]), ("empty", 0 * OBJECTS), ("whole", OBJECTS)):
        image(tmp_path / name / "images" / "a.tif", FRAME)
        image(tmp_path / name / "labels" / "a.tif", labels)
    image(tmp_path / "unlabelled" / "images" / "a.tif", FRAME)
    for part, pixels in (("images", FRAME), ("labels", OBJECTS)):
        image(tmp_path / "little" / part / "a.tif", pixels[:40, :40])
    (tmp_path / "file").write_text("a file, no folder")
    whole = tiny_model.read_bytes()
    (tmp_path / "model.onnx").write_bytes(whole)
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    plain = editable(tiny_model)
    onnx.helper.set_model_props(plain, {})
    onnx.save(plain, tmp_path / "plain.onnx")
    other = editable(tiny_model)
    scale = next(tensor for tensor in other.graph.initializer if tensor.name == "net.classify.weight")
    scale.CopyFrom(onnx.numpy_helper.from_array(1.5 * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(other, tmp_path / "other.onnx")
    odd = editable(tiny_model)
    onnx.helper.set_model_props(odd, {KEY: "{}"})
    onnx.save(odd, tmp_path / "odd.onnx")
    (tmp_path / "best.safetensors").write_bytes((tiny_run / "best.safetensors").read_bytes())
    (tmp_path / "fake.safetensors").write_bytes(b"PK\x03\x04 weights of another kind")
    (tmp_path / "drawn").symlink_to(drawn_folder)
    image(tmp_path / "stack" / "images" / "a.tif", np.stack([FRAME, FRAME]).reshape(2, 64, 64))
    image(tmp_path / "stack" / "labels" / "a.tif", OBJECTS)
    for folder, source in (("broken", b"cut"), ("best", (tiny_run / "best.safetensors").read_bytes())):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "last.safetensors").write_bytes(source)
    (tmp_path / "labels.onnx").write_bytes(labels_model.read_bytes())
    for name in ("pipe", "piped/a.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    (tmp_path / "nothing").mkdir()
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "a.txt").touch()
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    return tmp_path


CASES = {
    "illegal tile": ("export best.safetensors -o new/m.onnx --tile 61", "tile 61 is not legal.*use 60 or 64"),
    "illegal oblong tile": ("export best.safetensors -o new/m.onnx --tile 60x61", "tile 61 is not legal"),
    "illegal tile to bench": ("bench --tile 573 --frame 300x300 --base 1", "tile 573 is not legal.*572 or 588"),
    "no size": ("export best.safetensors -o new/m.onnx --tile big", "'big' is not a size: write 572, or 2048x1536"),
    "tile and frame": ("export best.safetensors -o new/m.onnx --tile 60 --frame 60", "exclude each other"),
    "weights that are none": ("export fake.safetensors -o new/m.onnx", "not a safetensors checkpoint"),
    "weights that are missing": ("export none.safetensors -o new/m.onnx", "does not exist"),
    "checkpoint is a folder without one": ("export good -o new/m.onnx", "does not exist"),
    "export into a file": ("export best.safetensors -o file/m.onnx", "cannot write to file.*not a folder"),
    "missing data": ("train none -o new", "none does not exist: give a folder with images/ and labels/"),
    "missing labels": ("train unlabelled -o new", "labels does not exist"),
    "shapes differ": ("train shapes -o new", "images/a.tif is 64 x 64 px, .*labels/a.tif is 60 x 64 px"),
    "empty labels": ("train empty -o new", "all 1 label images are empty"),
    "one image to split": ("train little -o new", "a is 40 x 40 px, .*too small to hold back a part of it"),
    "a start that is missing": ("train drawn --from none.onnx -o new", "none.onnx does not exist"),
    "a start without a suffix": (
        "train drawn --from none -o new",
        "none does not exist: start from a model file, a checkpoint or the folder of a run",
    ),
    "a start that is an engine": ("train drawn --from a.engine -o new", "a.engine is an engine: start from the ONNX"),
    "a start without a spec": ("train drawn --from plain.onnx -o new", "plain.onnx carries no unetrt spec"),
    "a start that is cut": ("train drawn --from cut.onnx -o new", "cut.onnx is not a whole ONNX file"),
    "a start that is no training": ("train drawn --from good -o new", "best.safetensors does not exist"),
    "a start of other weights": (
        "train drawn --from other.onnx -o new",
        r"other.onnx holds other weights than its spec says \(SHA-256\)",
    ),
    "a start of another depth": (
        "train drawn --from model.onnx --depth 3 -o new",
        "--depth 3 does not fit model.onnx, a network of depth 2 and base 4: use --depth 2, or leave it out",
    ),
    "a start of another base": ("train drawn --from best.safetensors --base 8 -o new", "--base 8 does not fit"),
    "another start to resume": ("train --resume best --from model.onnx", "--from cannot change in the middle"),
    "too many classes": ("train whole --val whole --classes 3 -o new", "holds class 3, 3 classes are 0 ... 2"),
    "unknown recipe": ("train whole --val whole --recipe best -o new", "use one of modern, paper"),
    "minutes and steps": ("train whole --val whole --minutes 1 --steps 1 -o new", "either minutes or steps"),
    "no data": ("train -o new", "give DATA, a folder with images/ and labels/, or --resume RUN"),
    "nothing to resume": ("train --resume good", "good holds no last.safetensors to resume from"),
    "a cut checkpoint to resume": ("train --resume broken", "last.safetensors is not a safetensors checkpoint"),
    "a best checkpoint to resume": ("train --resume best", "holds no state to resume from"),
    "another network to resume": ("train --resume best --base 9", "--base cannot change in the middle of a run"),
    "a run among the data": (
        "train drawn -o whole",
        "whole holds images/ and labels/: a run needs its own folder",
    ),
    "a file as data": ("train text.tif -o new", "text.tif is a file: give a folder with images/ and labels/"),
    "a checkpoint as model": ("predict best.safetensors good -o new", "is a checkpoint: give the model.onnx beside it"),
    "a folder of other files": (
        "predict model.onnx others -o new",
        r"others holds no image: .*\(1 file left out: 1 .txt\)",
    ),
    "a folder and a list": ("train whole --val whole --val-list file -o new", "not both"),
    "a list of other names": ("train drawn --val-list file -o new", "no image is named a file, no folder"),
    "a list that is none": ("train drawn --val-list none -o new", "none cannot be read as a list of names"),
    "the background ignored": ("train drawn --ignore-label 0 -o new", "label 0 cannot be ignored"),
    "an average of one": ("train drawn --average 1 -o new", "invalid average 1.0: use a number from 0"),
    "a zoom of 1000": ("train drawn --zoom 1000 -o new", "invalid zoom 1000.0: use 1 or more, up to 16"),
    "a rim wider than objects": ("train drawn --rim 3 -o new", "invalid rim 3.0: use a number above 0, up to 1"),
    "a batch beyond all memory": (
        "train drawn --batch 1000000000 -o new",
        "invalid batch 10+: use 1 or more, up to 4096",
    ),
    "a tile beyond all memory": ("train drawn --tile 1000000000 -o new", "invalid tile 1000000000: use 16384 or less"),
    "no zoom": ("train drawn --zoom 0.5 -o new", "invalid zoom 0.5: use 1 or more"),
    "a stack without its labels": ("train stack --val whole -o new", "a stack of 2 frames, .* of 1"),
    "no time": ("train whole --val whole --minutes 0 -o new", "use a finite number above 0"),
    "no depth": ("train whole --val whole --depth 0 -o new", "depth 0"),
    "train into a file": ("train whole -o file/run", "cannot write to file/run: .*not a folder"),
    "missing model": ("predict none.onnx good -o new", "none.onnx does not exist: `unetrt export"),
    "no ONNX": ("predict text.tif good -o new", "text.tif is not a whole ONNX file"),
    "truncated ONNX": ("predict cut.onnx good -o new", "cut.onnx is not a whole ONNX file"),
    "ONNX without a spec": ("predict plain.onnx good -o new", "plain.onnx carries no unetrt spec"),
    "ONNX with an odd spec": ("predict odd.onnx good -o new", "odd.onnx: the model's spec is invalid: missing schema"),
    "no lanes to predict in": (
        "predict model.onnx good -o new --lanes 0",
        "lanes must be an integer from 1 to 64",
    ),
    "an unknown backend": (
        "predict model.onnx good -o new --backend tpu",
        "is unknown: use one of auto, tensorrt,",
    ),
    "a GPU for the CPU": (
        "predict model.onnx good -o new --backend onnxruntime --device 1",
        "on the CPU and has no device",
    ),
    "an engine for the CPU": (
        "predict a.engine good -o new --backend onnxruntime",
        "does not run: use backend tensorrt",
    ),
    "no such GPU": (
        "predict model.onnx good -o new --device 99",
        "for GPU 99 is usable|no CUDA device 99",
    ),
    "missing images": ("predict model.onnx none -o new", "none does not exist: give a folder"),
    "folder without images": ("predict model.onnx nothing -o new", "nothing holds no image"),
    "no image": ("predict model.onnx text.tif -o new", "text.tif cannot be read"),
    "wrong channel count": ("predict model.onnx rgb -o new", "a.tif has 3 channels: this model takes 1"),
    "an image that is a pipe": ("predict model.onnx piped -o new", "piped/a.tif is a named pipe: give a regular file"),
    "a pipe as images": (
        "predict model.onnx pipe -o new",
        "pipe is neither a file nor a folder: give",
    ),
    "a model that is a pipe": ("predict pipe good -o new", "pipe .*is not a regular file"),
    "a model without end": ("predict endless good -o new", "endless .*is not a regular file"),
    "a checkpoint that is a pipe": ("export pipe -o new/m.onnx", "pipe (does not exist|is )"),
    "a checkpoint without end": ("export endless -o new/m.onnx", "endless (does not exist|is )"),
    "a network that is a pipe": (
        "adopt pipe -o new/m.onnx --normalisation zscore --classes a,b --head logits",
        "pipe (does not exist|is )",
    ),
    "a start that is a pipe": ("train drawn --from pipe -o new", "pipe (does not exist|is )"),
    "a list of names that is a pipe": (
        "train drawn --val-list pipe -o new",
        "pipe cannot be read .* a named pipe",
    ),
    "a link to itself": ("predict model.onnx circle -o new", "circle"),
    "a folder that is a link to itself": ("predict model.onnx good -o circle", "circle"),
    "a folder below a link to itself": ("predict model.onnx good -o circle/x", "circle"),
    "labels below a link to itself": ("live model.onnx --replay good --fps 0 --save circle/x.ome.zarr", "circle"),
    "a list of names without end": ("train drawn --val-list endless -o new", "endless cannot be read .* a device"),
    "labels that are a pipe": ("eval good piped", "piped/a.tif is a named pipe"),
    "a replay of a pipe": ("live model.onnx --replay piped --fps 0", "piped/a.tif is a named pipe"),
    "results that are a pipe": ("bench --compare pipe endless", "pipe cannot be read .is a named pipe"),
    "an image above the limit": (
        "predict model.onnx good -o new --max-image-memory 8191",
        "a.tif declares 64 x 64 values of uint16, 8 KiB in memory, .* at most 8 KiB are read; --max-image-memory",
    ),
    "labels above the limit": ("eval whole/labels whole/labels --max-image-memory 1000", "at most 1 KiB are read"),
    "training images above the limit": ("train drawn -o new --max-image-memory 1KiB", "at most 1 KiB are read"),
    "a replay above the limit": (
        "live model.onnx --replay good --fps 0 --max-image-memory 1KiB",
        "at most 1 KiB are read",
    ),
    "an example above the limit": (
        "package model.onnx bioimageio -o new.zip --images good --author A --license MIT --max-image-memory 1KiB",
        "at most 1 KiB are read",
    ),
    "verified images above the limit": (
        "export best.safetensors -o new/m.onnx --tile 60 --images good --max-image-memory 1KiB",
        "at most 1 KiB are read",
    ),
    "no memory for images": (
        "predict model.onnx good -o new --max-image-memory 0",
        "--max-image-memory: '0' is not an amount",
    ),
    "axes that are none": ("predict model.onnx good -o new --axes HWC", "axes 'HWC' are not known: use a letter of"),
    "axes of another number": (
        "predict model.onnx last -o new --axes TZYX",
        r"has the shape \(64, 64, 5\): --axes TZYX",
    ),
    "axes that nobody names": ("predict model.onnx thick -o new", "give --axes NYX or --axes YXC"),
    "five channels for a model of one": ("predict model.onnx last -o new", "5 channels: .* choose with --channel"),
    "a channel that is missing": ("predict model.onnx last -o new --channel 5", "no channel 5: it has 0 ... 4"),
    "NaN pixels": ("predict model.onnx nan -o new", "a.tif: 1 pixels are NaN or infinite, .* row 3, column 5"),
    "predict into a file": ("predict model.onnx good -o file", "cannot write to file: .*not a folder"),
    "predict over the images": ("predict model.onnx good -o good", "is an input and would be overwritten"),
    "unknown backend": ("predict model.onnx good -o new --backend tpu", "use one of auto, tensorrt, .*, onnxruntime$"),
    "a backend that computes nothing": ("predict model.onnx good -o new --backend numpy", "is unknown"),
    "demo over other files": ("demo --out whole", "whole holds files that are not a demo's"),
    "no batch": ("plan 2048 --batch 0", "batch 0 and lanes 1 must be at least 1"),
    "no batch to export": ("export best.safetensors -o new/m.onnx --batch 0", "batch 0"),
    "no lanes": ("plan 2048 --lanes -1", "lanes -1 must be at least 1"),
    "a negative seed": ("train whole --val whole --seed -1 -o new", "'-1' is not valid: use a whole number from 0"),
    "minutes that are no number": ("train whole --val whole --minutes nan -o new", "--minutes: 'nan' is not valid"),
    "a fraction of one": ("train drawn --val-fraction 1 -o new", "use one between 0 and 1"),
    "too many classes for a label": ("train whole --val whole --classes 300 -o new", "use 2 to 256"),
    "too deep for the usual loop": ("bench --depth 6 --base 1 --frame 300", "too small at depth 6: up to 5 works"),
    "a name too long": (f"info {'x' * 300}.onnx", "File name too long"),
    "unknown option": ("predict model.onnx good -o new --fast", "No such option '?--fast"),
    "no output": ("predict model.onnx good", "Missing option '-o'"),
    "unknown command": ("segment model.onnx", "No such command 'segment'"),
    "averaging over labels": ("predict labels.onnx good -o new --tta", "head outputs labels only: export it with"),
    "predictions of another size": ("eval shapes/labels whole/labels", "a.tif: predicted 60 x 64 px, true 64 x 64 px"),
    "classes that are too many": ("eval whole/labels whole/labels --classes 3", "class 3 is predicted, 3 classes are"),
    "one class": ("eval whole/labels whole/labels --classes 1", "1 classes cannot be compared: use 2 to 256"),
    "a recipe to resume": ("train --resume best --recipe paper", "^Error: --recipe cannot change in the middle"),
    "an endless weight": ("train drawn --w0 inf -o new", "--w0: 'inf' is not valid: use a decimal number"),
    "an endless zoom": ("train drawn --zoom inf -o new", "--zoom: 'inf' is not valid"),
    "no prediction": ("eval good drawn/labels", "has no labels for 0.tif"),
    "no memory": ("plan 2048 --memory lots", "'lots' is not an amount of memory"),
    "too little memory": ("plan 2048 --memory 1MiB", "no tile fits 1 MiB: the smallest, 204x204, needs"),
    "info on nothing": ("info none.onnx", "does not exist"),
    "a gate without a measurement": ("bench --list --floor 2", "--list takes no --floor: leave one of them out"),
    "a checkpoint and a base": ("bench none.safetensors --base 8", "--base is for an untrained network, and none"),
    "a frame to train": ("bench --training --frame 300", "--training takes no --frame"),
    "a base of blocks": ("bench --blocks --base 8", "--blocks takes no --base"),
    "no model for blocks": ("bench --blocks none.onnx", "none.onnx"),
    "results into a folder": ("bench --json .", "is a folder: name a file in it"),
    "going on from nothing": (
        "bench --resume",
        "--resume continues the file of an earlier run: name it with --json",
    ),
    "one file for two results": ("bench --json a.txt --png a.txt", "--json and --png are both a.txt: use two names"),
    "bench without time": ("bench --base 1 --depth 1 --seconds 0", "0 seconds measure nothing: use more than 0"),
    "time to compare": ("bench --compare a.json b.json --seconds 3", "--compare takes no --seconds"),
    "bench without rounds": ("bench --rounds 0", "0 rounds measure nothing"),
}


@pytest.mark.parametrize(("command", "message"), CASES.values(), ids=CASES)
def test_one_line_exit_2_and_nothing_left(place, monkeypatch, capsys, command, message):
    monkeypatch.chdir(place)
    before = sorted(str(path) for path in place.rglob("*"))
    status = main(command.split())
    out, err = capsys.readouterr()
    line = err.strip().splitlines()[-1]
    assert status == 2, (out, err)
    assert line.startswith("Error: ")
    assert len([text for text in err.splitlines() if text.startswith("Error")]) == 1
    assert "Traceback" not in err
    assert re.search(message, line), line
    assert sorted(str(path) for path in place.rglob("*")) == before


def test_one_bad_image_does_not_stop_the_others(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / "good" / "a.tif").rename(place / "good" / "b.tif")
    assert main(["predict", "model.onnx", "text.tif", "nan", "good", "-o", "new"]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("1 images")
    assert [line.split(":")[0] for line in err.strip().splitlines()] == ["skipped", "skipped", "Error"]
    assert "2 of 3 images could not be segmented" in err
    assert sorted(path.name for path in (place / "new").iterdir()) == ["b.tif", "overlays"]


def test_debug_shows_the_traceback(place, monkeypatch):
    from unetrt.runtime.errors import ModelFileError

    monkeypatch.chdir(place)
    with pytest.raises(ModelFileError):
        main(["--debug", "info", "none.onnx"])


def test_a_second_training_into_the_same_folder_is_refused(tiny_run, drawn_folder, capsys):
    before = sorted(path.stat().st_mtime_ns for path in tiny_run.iterdir())
    assert main(["train", str(drawn_folder), "-o", str(tiny_run)]) == 2
    assert "already holds a training" in capsys.readouterr().err
    assert sorted(path.stat().st_mtime_ns for path in tiny_run.iterdir()) == before


def test_a_missing_package_names_the_extra(monkeypatch, capsys, drawn_folder, tmp_path):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith("unetrt.trainer")]:
        monkeypatch.delitem(sys.modules, name)
    assert main(["train", str(drawn_folder), "-o", str(tmp_path / "run")]) == 2
    assert "this needs torch: pip install 'unetrt[train]'" in capsys.readouterr().err

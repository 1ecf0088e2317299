"""Trainings that start from a trained network."""

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import tifffile

from tests.conftest import editable
from unetrt.__main__ import main
from unetrt.export.exporter import Options, spec_for
from unetrt.export.graph import build_graph
from unetrt.runtime.errors import ModelFileError, OptionError, TrainingStoppedError
from unetrt.runtime.files.outputs.label_tiff import write_labels
from unetrt.runtime.model.retiled import retiled
from unetrt.runtime.model.spec import KEY
from unetrt.trainer.checkpoint import LAST, load
from unetrt.trainer.dataset import AnnotatedImage, Dataset, class_names, read_dataset
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.pretrained import Pretrained, StartedFrom
from unetrt.trainer.recipe import RECIPES
from unetrt.trainer.run import TrainingBudget, TrainingRun
from unetrt.trainer.samples import WEIGHTS, generator_for
from unetrt.trainer.training import Training
from unetrt.trainer.unet import UNet

SMALL = RECIPES["modern"].with_options(depth=2, base=4, tile=92, target="border", mixed=False)
# Bits of a number's mantissa -> the largest relative error of rounding to it.
ROUNDING = {"fp32": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}


def training(folder, out, start=None, recipe=SMALL, seed=0):
    train, validation = read_dataset(folder).split(0.25, seed=0)
    return Training(train, validation, recipe, TrainingRun(out, seed), start=start)


def weights_of(net):
    return {name: tensor.numpy(force=True) for name, tensor in net.state_dict().items()}


def with_spec(path, out, **changes):
    """Write a copy of a model file with other values in its spec."""
    model = editable(path)
    (entry,) = [entry for entry in model.metadata_props if entry.key == KEY]
    entry.value = json.dumps(json.loads(entry.value) | changes)
    onnx.save(model, out)
    return out


@pytest.mark.parametrize("options", [
    Options((60, 60)),
    Options((60, 76), "fp16", "labels"),
    Options((60, 60), "bf16", "probabilities", batch=2),
    Options((60, 60), input="uint16", normalisation="fixed"),
], ids=["fp32", "fp16", "bf16", "raw"])  # fmt: skip
def test_weights_are_read_from_the_graph(tiny_checkpoint, tmp_path, options):
    path = tmp_path / "model.onnx"
    spec = spec_for(tiny_checkpoint, options, tiny_checkpoint.frames)
    onnx.save(build_graph(tiny_checkpoint.network(), spec), path)
    start = Pretrained.read(path)
    assert start.origin == StartedFrom("model.onnx", tiny_checkpoint.weights_sha256())
    assert start.network.weights.keys() == tiny_checkpoint.weights.keys()
    for name, array in tiny_checkpoint.weights.items():
        np.testing.assert_allclose(start.network.weights[name], array, rtol=ROUNDING[options.precision], atol=1e-7)
    said = start.describe(1, tiny_checkpoint.class_names)
    cast = "" if options.precision == "fp32" else f", weights cast from {options.precision}"
    assert said == f"model.onnx (depth 2, base 4){cast}"
    # The mode of the training, not the constants that an export has frozen.
    assert start.options({})["normalisation"] == "percentile"


def test_every_kind_of_source_gives_the_same_weights(tiny_checkpoint, tiny_run, tiny_model, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "other.onnx").write_bytes(retiled(tiny_model, (92, 92), 2))
    sources = tmp_path / "run", tmp_path / "run" / "best.safetensors", tmp_path / "other.onnx", tiny_model
    for path in sources:
        start = Pretrained.read(path)
        assert start.origin == StartedFrom(path.name, tiny_checkpoint.weights_sha256())
        for name, array in tiny_checkpoint.weights.items():
            np.testing.assert_array_equal(start.network.weights[name], array)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"precision": "int8"},
            OptionError,
            "weights in int8, which are too coarse to start from: give its checkpoint",
        ),
        ({"network": {}}, ModelFileError, "a network of another toolkit: start from one that `unetrt train` trained"),
        ({"weights_sha256": "0" * 64}, ModelFileError, "other weights than its spec says"),
        (
            {"network": {"depth": 2, "base": 8}},
            ModelFileError,
            r"holds classify.weight of shape \(2, 4, 1, 1\), and its",
        ),
        ({"network": {"depth": 1, "base": 4}}, ModelFileError, "needs"),
        ({"network": {"depth": 2, "base": 1 << 16}}, ModelFileError, r"and its spec needs \(2, 65536, 1, 1\)"),
        (
            {"network": {"depth": 16, "base": 1 << 16}},
            ModelFileError,
            "larger than torch can describe|and its spec needs",
        ),
    ],
    ids=["int8", "another toolkit", "another hash", "another base", "another depth", "petabytes", "beyond 64 bits"],
)
def test_model_files_that_are_refused(tiny_model, tmp_path, changes, error, message):
    path = with_spec(tiny_model, tmp_path / "model.onnx", **changes)
    with pytest.raises(error, match=message):
        Pretrained.read(path)


def test_weights_in_another_file_are_refused(tiny_model, tmp_path):
    path = tmp_path / "model.onnx"
    onnx.save(editable(tiny_model), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(ModelFileError, match="keeps weights in other files: start from its checkpoint"):
        Pretrained.read(path)


def test_a_training_starts_with_these_weights(tiny_checkpoint, tiny_run, drawn_folder, tmp_path):
    net = training(drawn_folder, tmp_path, Pretrained.read(tiny_run)).net
    for name, array in weights_of(net).items():
        np.testing.assert_array_equal(array, tiny_checkpoint.weights[name])


@pytest.mark.parametrize(
    ("target", "channels", "anew"),
    [
        ("cores", 1, ("classify.",)),
        ("border", 2, ("contracting.0.0.",)),
        ("cores", 2, ("contracting.0.0.", "classify.")),
    ],
)
def test_layers_that_do_not_fit_are_drawn_anew(tiny_checkpoint, tiny_run, tmp_path, target, channels, anew):
    recipe = SMALL.with_options(target=target)
    images = tuple(
        AnnotatedImage(str(seed), np.stack([drawing.frame] * channels), drawing.labels)
        for seed, drawing in ((seed, draw((64, 64), seed)) for seed in range(2))
    )
    data, start = Dataset(images, class_names(None), instances=True), Pretrained.read(tiny_run)
    for seed in (0, 1):
        run = Training(data, data, recipe, TrainingRun(tmp_path, seed), start=start)
        drawn = weights_of(UNet(run.net.shape).initialise(generator_for(seed, WEIGHTS)))
        for name, array in weights_of(run.net).items():
            expected = drawn if name.startswith(anew) else tiny_checkpoint.weights
            np.testing.assert_array_equal(array, expected[name], err_msg=name)
    said = start.describe(channels, run.class_names)
    assert [f"layer {name.rstrip('.')} drawn anew" in said for name in anew] == [True] * len(anew)
    assert said.count("drawn anew") == len(anew)


def test_the_summary_says_where_it_started_and_the_run_resumes_without_the_source(
    tiny_checkpoint, tiny_run, drawn_folder, tmp_path, capsys
):
    source, whole, parts = tmp_path / "source", tmp_path / "whole", tmp_path / "parts"
    shutil.copytree(tiny_run, source)
    options = ["--target", "border", "--tile", "92", "--no-mixed", "--no-export", "--from", str(source)]
    assert main(["train", str(drawn_folder), *options, "--steps", "6", "-o", str(whole)]) == 0
    assert "starting from source (depth 2, base 4)\n" in capsys.readouterr().out
    assert main(["train", str(drawn_folder), *options, "--steps", "3", "-o", str(parts)]) == 0
    shutil.rmtree(source)
    assert main(["train", "--resume", str(parts), "--steps", "6", "--no-export"]) == 0
    origin = {"name": "source", "weights_sha256": tiny_checkpoint.weights_sha256()}
    for folder in (whole, parts):
        for name in ("best.safetensors", LAST):
            assert load(folder / name).training["started_from"] == origin
    assert load(parts / LAST).training["steps"] == 6


def test_a_stopped_run_goes_on_bit_for_bit(tiny_run, drawn_folder, tmp_path):
    start, budget = Pretrained.read(tiny_run), TrainingBudget(steps=6)
    whole = training(drawn_folder, tmp_path / "whole", start)
    whole.run(budget)
    stopped = training(drawn_folder, tmp_path / "parts", start)
    with pytest.raises(TrainingStoppedError):
        stopped.run(budget, should_stop=lambda: stopped.steps >= 3)
    resumed = training(drawn_folder, tmp_path / "parts")
    resumed.restore(load(tmp_path / "parts" / LAST))
    resumed.run(budget)
    assert resumed.history.losses == whole.history.losses


def test_options_that_the_source_determines(tiny_checkpoint, tiny_run, tmp_path):
    start = Pretrained.read(tiny_run)
    assert start.options({"depth": None, "rate": 1e-4}) == {
        "depth": 2, "base": 4, "normalisation": "percentile", "rate": 1e-4,
    }  # fmt: skip
    assert start.options({"normalisation": "zscore", "base": 4})["normalisation"] == "zscore"
    assert RECIPES["paper"].with_options(**start.options({})).depth == 2
    with pytest.raises(OptionError, match="--base 16 does not fit .*, a network of depth 2 and base 4: use --base 4"):
        start.options({"base": 16})
    fixed = replace(tiny_checkpoint, normalisation=tiny_checkpoint.normalisation.frozen(tiny_checkpoint.frames))
    fixed = replace(fixed, training={})
    assert replace(start, network=fixed).options({})["normalisation"] == "fixed"


def drawn(folder, seeds, size):
    """Write drawn micrographs."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True)
    for seed in seeds:
        drawing = draw(size, seed)
        tifffile.imwrite(folder / "images" / f"{seed}.tif", drawing.frame, photometric="minisblack")
        write_labels(folder / "labels" / f"{seed}.tif", drawing.labels)
    return folder


def test_it_needs_fewer_steps(settled_checkpoint, tmp_path):
    """From one image, in 30 steps: an IoU of 0.88 and 0.48 here."""
    settled_checkpoint.save(tmp_path / "source.safetensors")
    start = Pretrained.read(tmp_path / "source.safetensors")
    few, held = drawn(tmp_path / "few", [50], (128, 128)), drawn(tmp_path / "held", [60, 61], (96, 96))
    scores = []
    for name, one in (("from", start), ("scratch", None)):
        run = Training(read_dataset(few), read_dataset(held), SMALL, TrainingRun(tmp_path / name), start=one)
        run.run(TrainingBudget(steps=30))
        scores.append(run.history.scores[-1][1].iou)
    assert scores[0] > scores[1] + 0.1, scores


def test_one_image_is_enough(tmp_path, capsys):
    data, run = drawn(tmp_path / "one", [3], (96, 144)), tmp_path / "run"
    options = ["--depth", "2", "--base", "4", "--tile", "92", "--steps", "4", "--no-export"]
    assert main(["train", str(data), *options, "-o", str(run)]) == 0
    said = capsys.readouterr().out
    assert "validating on the right 33% of 3: 1 images (1 of 96x48; uint16" in said
    assert "note: there is one image, validated on the right 33% of 3" in said
    last = load(run / LAST)
    assert last.frame_sizes == ((96, 144, 1),)
    assert [frame.shape for frame in last.frames] == [(1, 96, 48)]
    np.testing.assert_array_equal(last.frames[0], read_dataset(data).images[0].frame[:, :, 96:])
    assert main(["train", "--resume", str(run), "--steps", "6", "--no-export"]) == 0

"""Models that come with unetrt, by name; most tests put a small one into a folder of their own."""

import json
import re
import shutil

import numpy as np
import pytest
import tifffile

from unetrt import LiveSegmenter, Segmenter, open_session
from unetrt.__main__ import main
from unetrt.cli import models
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.files.images import read_labels
from unetrt.runtime.files.sources import list_images
from unetrt.runtime.model import onnx_file
from unetrt.trainer.checkpoint import load
from unetrt.trainer.evaluation import evaluate_instances, pooled
from unetrt.trainer.metrics import calibration_error, correct_objects

FRAME = np.random.default_rng(0).integers(0, 4000, (70, 90)).astype(np.uint16)
CARD = {"task": "nuclei in fluorescence", "licence": "CC0-1.0", "scores": "SEG 0.84 on 12 images"}


@pytest.fixture
def bundled(tiny_model, tmp_path, monkeypatch):
    """The folder of models, which holds one: nuclei."""
    folder, work = tmp_path / "models", tmp_path / "work"
    folder.mkdir()
    work.mkdir()
    shutil.copy(tiny_model, folder / "nuclei.onnx")
    (folder / "nuclei.md").write_text(f"---\n{json.dumps(CARD, indent=2)}\n---\n# nuclei\n")
    monkeypatch.setattr(onnx_file, "MODELS", folder)
    monkeypatch.chdir(work)
    return folder


@pytest.fixture
def run(capsys):
    """Run a command; return its exit status, its output, and its last line of errors."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, (err.strip().splitlines() or [""])[-1]

    return run


def test_the_list(bundled, run):
    status, out, _ = run("models")
    assert status == 0
    # The best of its 12 steps.
    assert re.sub(r"for \d+ steps", "for N steps", out) == (
        "nuclei: nuclei in fluorescence\n"
        "  0.0 MB, fp32, depth 2, base 4, classes: background, foreground\n"
        "  trained for N steps on 3 images, licence CC0-1.0\n"
        "  SEG 0.84 on 12 images\n"
    )
    (bundled / "nuclei.onnx").unlink()
    assert run("models")[:2] == (0, "no models come with this installation\n")


@pytest.mark.parametrize(
    ("card", "message"),
    [
        (None, "nuclei.md cannot be read"),
        ("# nuclei\n", "does not begin with a front matter: write JSON between two lines of ---"),
        ("---\n{}\n", "does not begin with a front matter"),
        ("---\n{\n---\n", "the front matter of .*nuclei.md is not a JSON object"),
        ("---\n{}\n---\n", "is invalid: .*missing required field `task`"),
        (f"---\n{json.dumps(CARD | {'more': 1})}\n---\n", "unknown key 'more'"),
        (f"---\n{json.dumps(CARD | {'task': 'a' + chr(10) + 'b'})}\n---\n", "invalid task .*one line"),
    ],
)
def test_cards_that_are_not_valid(bundled, card, message):
    path = bundled / "nuclei.md"
    path.unlink() if card is None else path.write_text(card)
    with pytest.raises(ModelFileError, match=message):
        models.read_card("nuclei")


def test_a_name_is_a_model_wherever_a_path_is_one(bundled, run, drawn_folder):
    path = bundled / "nuclei.onnx"
    with Segmenter(path) as expected, Segmenter("nuclei") as segmenter:
        labels = expected.segment(FRAME).labels
        np.testing.assert_array_equal(segmenter.segment(FRAME).labels, labels)
    with LiveSegmenter("nuclei", backend="onnxruntime") as live:
        assert live.segmenter.spec == expected.spec
    with open_session("nuclei", "onnxruntime") as session:
        assert session.spec == expected.spec
    tifffile.imwrite("frame.tif", FRAME)
    assert run("predict", "nuclei", "frame.tif", "-o", "out", "--as", "classes")[0] == 0
    np.testing.assert_array_equal(tifffile.imread("out/frame.tif"), labels)
    assert json.loads(run("info", "nuclei", "--json")[1])["tile"] == [60, 76]
    assert run("plan", "300", "--model", "nuclei")[0] == 0
    assert run("package", "nuclei", "triton", "-o", "served")[0] == 0
    assert run("live", "nuclei", "--replay", "frame.tif", "--fps", "0")[0] == 0
    status, out, _ = run(
        "train", drawn_folder, "--from", "nuclei", "--steps", 2, "--tile", 92, "--no-export", "-o", "r"
    )
    assert status == 0
    assert "starting from nuclei (depth 2, base 4); layer classify drawn anew: background, foreground there," in out
    assert load("r").training["started_from"]["name"] == "nuclei"


def test_a_path_wins_over_a_name(bundled, run):
    shutil.copy(bundled / "nuclei.onnx", "nuclei")
    (bundled / "nuclei.onnx").write_bytes(b"not read")
    assert run("info", "nuclei")[0] == 0
    with Segmenter("nuclei", backend="onnxruntime") as segmenter:
        assert segmenter.spec.tile == (60, 76)


def test_a_folder_of_the_same_name_is_named(bundled, run):
    (bundled.parent / "work" / "nuclei").mkdir()
    tifffile.imwrite("frame.tif", FRAME)
    status, _, error = run("predict", "nuclei", "frame.tif", "-o", "out")
    assert status == 2
    assert error.endswith("for the model nuclei that comes with unetrt, use another working folder")


@pytest.mark.parametrize("command", ["predict nucleii frame.tif -o out", "info nucleii", "build nucleii",
                                     "package nucleii triton", "train . --from nucleii -o out"])  # fmt: skip
def test_an_unknown_name_is_one_line_with_those_that_exist(bundled, run, command):
    tifffile.imwrite("frame.tif", FRAME)
    status, _, error = run(*command.split())
    assert status == 2
    assert error.startswith("Error: nucleii ")
    assert error.endswith("; models: nuclei")


def test_the_bundled_nuclei():
    if "nuclei" not in onnx_file.bundled_names():
        pytest.skip("unetrt/models/nuclei.onnx does not exist: `make model-nuclei` trains it")
    assert models.read_card("nuclei").licence.startswith("CC0")
    assert onnx_file.bundled_path("nuclei").stat().st_size <= 3_000_000
    with Segmenter("nuclei") as segmenter:
        assert segmenter.segment(FRAME).labels.shape == FRAME.shape


def test_the_bundled_nuclei_on_the_images_that_come_with_it():
    """Four of the validation images; confidence as calibrated as the objects of four images can show."""
    if "nuclei" not in onnx_file.bundled_names():
        pytest.skip("unetrt/models/nuclei.onnx does not exist: `make model-nuclei` trains it")
    examples = onnx_file.bundled_path("nuclei").parent / "examples"
    tallies, confidence, correct = [], [], []
    with Segmenter("nuclei") as segmenter:
        for source in list_images(examples / "images"):
            truth = read_labels(examples / "labels" / source.path.name)
            found = segmenter.objects(tifffile.imread(source), confidence=True)
            tallies.append(evaluate_instances(found.labels, truth, warping=False))
            confidence.append(found.confidence)
            correct.append(correct_objects(found.labels, truth))
    scores = pooled(tallies).to_dict()
    assert scores["seg"] >= 0.75
    assert scores["ap"]["0.50"] >= 0.8
    assert calibration_error(np.concatenate(confidence), np.concatenate(correct)) <= 0.08

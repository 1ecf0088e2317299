import json
import shutil
import socket
import subprocess
import sys
import tempfile
import zipfile

import numpy as np
import onnx
import pytest
import ruyaml
from onnx import helper, numpy_helper

from tests.conftest import editable
from tests.export.packages.conftest import EXPORTS, FIXED, raw
from tests.export.packages.conftest import said_otherwise as changed
from unetrt.export.packages import write
from unetrt.runtime.errors import FrameError, GateError, ModelFileError, OptionError, OutputError, TileError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.retiled import retiled
from unetrt.runtime.model.spec import INPUT, OUTPUT, Approximation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.agreement import difference

# In separate processes, because the format's programs leave files open.
OFFLINE = """
import json, re, socket, sys, zipfile
def offline(*arguments): raise OSError("a test needs no network")
socket.socket.connect = socket.getaddrinfo = offline
"""
JUDGE = """
from bioimageio.core import test_model
said = {name: test_model(name) for name in sys.argv[1:]}
print(json.dumps({name: [s.status, [d.name for d in s.details if d.status == "passed"]] for name, s in said.items()}))
"""
# For each package, frame, way and result in turn: segment as the package's README does, by one call, or at once.
BLOCKS = """
import numpy as np
from bioimageio.core import create_prediction_pipeline, load_model_description
from bioimageio.core.digest_spec import create_sample_for_model

def as_readme(package, pipeline, frame):
    with zipfile.ZipFile(package) as content:
        text = content.read("README.md").decode()
    names = {}
    exec(re.search("```python\\n(.*?)\\n\\nwith ", text, re.DOTALL)[1], names)
    return names["segment"](pipeline, frame)

def whole(package, pipeline, frame):
    sample = create_sample_for_model(pipeline.model_description, inputs=frame[None])
    pipeline.apply_preprocessing(sample)
    result = pipeline.predict_sample_without_blocking(sample, skip_preprocessing=True)
    return result.members["segmentation"].to_numpy()[0]

def by_one_call(package, pipeline, frame):
    sample = create_sample_for_model(pipeline.model_description, inputs=frame[None])
    return pipeline.predict_sample_with_blocking(sample).members["segmentation"].to_numpy()[0]

ways = {"readme": as_readme, "one call": by_one_call, "whole": whole}
pipelines, said = {}, []
for package, frame, way, result in zip(*[iter(sys.argv[1:])] * 4):
    try:
        if package not in pipelines:
            pipelines[package] = create_prediction_pipeline(load_model_description(package)).__enter__()
        np.save(result, ways[way](package, pipelines[package], np.load(frame)))
        said.append("")
    except Exception as error:
        said.append(repr(error))
print(json.dumps(said))
"""
REPRODUCED = "Reproduce test outputs from test inputs (onnx)"
SPOILT = "spoilt"


# Files that `others` holds, beside two that cannot be packaged.
OTHERS = ("large", "two channels", "symmetric", "grid 8", "one tile", "one long tile")


def offline(*arguments):
    raise OSError("a package needs no network")


def two_channels(path, out):
    """Write a copy of an ONNX file that adds two channels, of which the second counts a third."""
    model = onnx.load(changed(path, out, channels=2))
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 2
    for node in model.graph.node:
        node.input[:] = ["both" if name == INPUT else name for name in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.float32([[0.75, 0.25]]).reshape(1, 2, 1, 1), "mix"))
    model.graph.node.insert(0, helper.make_node("Conv", [INPUT, "mix"], ["both"]))
    onnx.save(model, out)
    return out


def of_the_tile(path, out):
    """Write a copy of an ONNX file whose scores are multiplied by the largest of the tile."""
    model = editable(path)
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.append(helper.make_node("ReduceMax", ["raw"], ["largest"]))
    model.graph.node.append(helper.make_node("Mul", ["raw", "largest"], [OUTPUT]))
    onnx.save(model, out)
    return out


@pytest.fixture(scope="module")
def others(tiny_model, large_model, tmp_path_factory):
    """Name of `OTHERS` -> ONNX file; `small core` and `of the tile`, which cannot be packaged."""
    folder = tmp_path_factory.mktemp("others")
    files = {name: folder / f"{name}.onnx" for name in (*OTHERS, "small core", "of the tile")}
    shutil.copy(large_model, files["large"])
    two_channels(tiny_model, files["two channels"])
    of_the_tile(tiny_model, files["of the tile"])
    changed(tiny_model, files["symmetric"], border="symmetric")
    changed(tiny_model, files["grid 8"], grid=8)
    for name, tile, grid in (("one tile", (64, 80), 8), ("one long tile", (76, 96), 20), ("small core", (60, 60), 40)):
        files[name].write_bytes(retiled(tiny_model, tile, 1))
        changed(files[name], files[name], grid=grid, network={})
    return files


@pytest.fixture(scope="module")
def packages(exports, frame, tmp_path_factory):
    """Name of an export -> its package; and one whose test output is wrong."""
    folder = tmp_path_factory.mktemp("zips")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", offline)
        patch.setattr(socket, "getaddrinfo", offline)
        made = {
            name: write("bioimageio", exports[name], folder / f"{name}.zip", [raw(frame, name)]) for name in EXPORTS
        }
    made[SPOILT] = folder / "spoilt.zip"
    with zipfile.ZipFile(made["logits"]) as whole, zipfile.ZipFile(made[SPOILT], "w") as spoilt:
        for name in whole.namelist():
            content = whole.read(name)
            if name == "test_output.npy":
                content = content[:128] + (np.frombuffer(content[128:], np.float32) + 1).tobytes()
            if name == "rdf.yaml":
                content = b"\n".join(line for line in content.splitlines() if b"sha256:" not in line)
            spoilt.writestr(name, content)
    return made


@pytest.fixture(scope="module")
def verdicts(packages):
    """Name of an export -> status and tests passed, by bioimageio.core."""
    said = asked(JUDGE, *packages.values())
    return {name: said[str(path)] for name, path in packages.items()}


def asked(code, *arguments):
    """Return what a program of the format prints as JSON in its last line."""
    command = [sys.executable, "-c", OFFLINE + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def described(package):
    with zipfile.ZipFile(package) as content:
        return ruyaml.YAML(typ="safe").load(content.read("rdf.yaml"))


@pytest.mark.parametrize("name", EXPORTS)
def test_the_format_s_own_program_reproduces_the_test_output(verdicts, name):
    status, passed = verdicts[name]
    assert status == "passed"
    assert REPRODUCED in passed


def test_it_would_not_reproduce_a_wrong_one(verdicts):
    assert verdicts[SPOILT][0] == "valid-format"
    assert REPRODUCED not in verdicts[SPOILT][1]


@pytest.mark.parametrize(("name", "code"), [("logits", 0), pytest.param(SPOILT, 1, marks=pytest.mark.slow)])
def test_the_format_s_command_line_tests_a_package(packages, name, code):
    command = [sys.executable, "-m", "bioimageio.core", "test", str(packages[name])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout[-2000:]


# Export, size of a frame in pixels, and way to segment it.
IN_BLOCKS = [
    ("large", (600, 700), "one call"),
    ("large", (601, 703), "readme"),
    *[(name, (101, 203), "readme") for name in (*EXPORTS, *OTHERS)],
    *[(name, (160, 320), "one call") for name in ("labels", "uint16", *OTHERS) if name != "large"],
    *[(name, (160, 320), "whole") for name in ("logits", "symmetric", "grid 8")],
    *[(name, size, "readme") for name in ("logits", "one tile") for size in ((7, 200), (1, 1), (80, 121))],
]
# Its last block lies at the frame's end, which is no multiple of the grid.
OFF_THE_LATTICE = ("logits", (160, 321), "one call")


@pytest.fixture(scope="module")
def in_blocks(packages, exports, others, frame, tmp_path_factory):
    """Case -> what bioimageio.core says, the file of its result, and that of the frame; all cases in one process."""
    folder = tmp_path_factory.mktemp("blocks")
    files = exports | others
    made = packages | {
        name: write("bioimageio", path, folder / f"{name}.zip", [np.repeat(frame, read_spec(path).channels, 0)])
        for name, path in others.items()
        if name in OTHERS
    }
    cases, arguments = (*IN_BLOCKS, OFF_THE_LATTICE), {}
    for number, case in enumerate(cases):
        name, size, way = case
        pixels, result = folder / f"{number}.npy", folder / f"{number} result.npy"
        np.save(pixels, cells(size, read_spec(files[name])))
        arguments[case] = (made[name], pixels, way, result)
    said = asked(BLOCKS, *(each for case in arguments.values() for each in case))
    return {case: (text, arguments[case][3], arguments[case][1]) for case, text in zip(cases, said, strict=True)}


def cells(size, spec):
    """Draw raw pixels (C, H, W) of bright discs; every channel differs."""
    y, x = np.indices(size)
    noise = np.random.default_rng(0).normal(0, 80, (spec.channels, *size))
    grey = np.clip(400 + 900 * (np.cos(x / 7.3) * np.cos(y / 5.1) > 0.3) + x / 3 + noise, 0, None)
    return (grey / 16).clip(0, 255).astype(np.uint8) if spec.input_dtype == "uint8" else grey.astype(np.uint16)


@pytest.mark.parametrize("case", IN_BLOCKS, ids=str)
def test_core_stitches_what_segmenter_returns(in_blocks, exports, others, case):
    said, result, pixels = in_blocks[case]
    assert said == ""
    frame, found = np.load(pixels), np.load(result)
    with Segmenter((exports | others)[case[0]], backend="onnxruntime") as segmenter:
        spec = segmenter.spec
        given = frame[0] if spec.channels == 1 else frame
        expected = segmenter.segment(given).labels[None] if spec.head == "labels" else segmenter.scores(given)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    assert frame.size < 1000 or len(np.unique(expected)) > 1
    if spec.precision == "fp32":
        classes = [each if spec.head == "labels" else each.argmax(0) for each in (found, expected)]
        # Other sizes of blocks are other orders of summation: a tie to the sixth digit may go either way.
        assert np.mean(classes[0] != classes[1]) < 1e-5
        np.testing.assert_allclose(found, expected, atol=1e-4 if spec.head != "labels" else 1)
    if spec.head == "labels":
        found, expected = found[0], expected[0]
    assert difference(spec, expected[None], found[None]) == ""


def test_core_refuses_an_array_whose_blocks_would_leave_the_lattice(in_blocks):
    assert "does not map to axes" in in_blocks[OFF_THE_LATTICE][0]


@pytest.mark.parametrize("name", EXPORTS)
def test_axes_and_types_are_those_of_the_graph(packages, exports, name):
    spec, content = read_spec(exports[name]), described(packages[name])
    (given,), (answer,) = content["inputs"], content["outputs"]
    assert (given["data"]["type"], given["pad"]) == (spec.input_dtype, {"mode": "reflect"})
    assert answer["data"]["type"] == ("uint8" if spec.head == "labels" else "float32")
    assert answer["data"].get("values") == (list(spec.classes) if spec.head == "labels" else None)
    for axes in (given["axes"], answer["axes"]):
        assert [axis.get("id", axis["type"]) for axis in axes] == ["batch", "channel", "y", "x"]
    assert given["axes"][0]["size"] == 1
    assert [axis["size"] for axis in given["axes"][2:]] == [{"min": 2 * spec.halo + spec.grid, "step": spec.grid}] * 2
    assert [axis["halo"] for axis in answer["axes"][2:]] == [spec.halo] * 2
    assert answer["axes"][1]["channel_names"] == (["class"] if spec.head == "labels" else list(spec.classes))
    assert content["config"]["unetrt"]["weights_sha256"] == spec.weights_sha256


def test_a_network_with_one_tile_has_blocks_of_one_size(others, frame, tmp_path):
    content = described(write("bioimageio", others["one tile"], tmp_path / "a.zip", [frame]))
    assert [axis["size"] for axis in content["inputs"][0]["axes"][2:]] == [72, 88]
    assert [axis["halo"] for axis in content["outputs"][0]["axes"][2:]] == [24, 24]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("logits", ("scale_range", {"axes": ["y", "x"], "min_percentile": 1.0, "max_percentile": 99.8, "eps": 1e-12})),
        ("zscore", ("zero_mean_unit_variance", {"axes": ["y", "x"], "eps": 1e-12})),
        (
            "fixed",
            (
                "scale_linear",
                {"axis": "channel", "gain": list(FIXED.scale), "offset": [-FIXED.offset[0] * FIXED.scale[0]]},
            ),
        ),
        ("uint8", None),
        ("uint16", None),
    ],
)
def test_the_normalisation_is_said_with_its_constants(packages, name, step):
    steps = described(packages[name])["inputs"][0]["preprocessing"]
    said = [(entry["id"], entry["kwargs"]) for entry in steps if entry["id"] != "ensure_dtype"]
    assert said == ([] if step is None else [step])


@pytest.mark.parametrize("name", ["logits", "uint8"])
def test_the_test_input_is_a_raw_block_of_the_frame(packages, exports, frame, name, tmp_path):
    spec, pixels = read_spec(exports[name]), raw(frame, name)
    with zipfile.ZipFile(packages[name]) as content:
        block = np.load(content.extract("test_input.npy", tmp_path))
    assert block.dtype == spec.input_dtype
    # The grid divides the core and the halo, so a block is a tile.
    cuts = []
    for place in spec.plan(pixels.shape[1:]):
        cuts.append(spec.new_input()[0])
        place.cut(pixels, cuts[-1])
    assert any(np.array_equal(block[0], cut) for cut in cuts)


def tolerance(package):
    (said,) = described(package)["config"]["bioimageio"]["reproducibility_tolerance"]
    return said


def test_a_precision_below_fp32_has_the_widest_tolerance(packages):
    assert tolerance(packages["batch 3"])["relative_tolerance"] == 0.01
    assert tolerance(packages["logits"])["relative_tolerance"] == 0.001


@pytest.mark.parametrize("name", EXPORTS)
def test_the_tolerance_is_one_that_every_version_of_the_format_allows(packages, name, tmp_path):
    with zipfile.ZipFile(packages[name]) as content:
        output = np.load(content.extract("test_output.npy", tmp_path))
    said = tolerance(packages[name])
    assert said["absolute_tolerance"] <= 0.01 * output.max()
    if output.dtype == np.uint8:
        assert said["absolute_tolerance"] == said["relative_tolerance"] == 0


def test_what_its_makers_say_is_in_it(exports, frame, tmp_path):
    said = {"name": "Nuclei (2d)", "authors": ("A. B. Ömer",), "license": "CC-BY-4.0", "tags": ("nuclei",)}
    path = write("bioimageio", exports["logits"], tmp_path / "a.zip", [frame], **said)
    content = described(path)
    assert (content["name"], content["license"]) == ("Nuclei (2d)", "CC-BY-4.0")
    assert content["authors"] == [{"name": "A. B. Ömer"}]
    assert "nuclei" in content["tags"]
    assert content["cite"][0]["doi"] == "10.1007/978-3-319-24574-4_28"
    with zipfile.ZipFile(path) as whole:
        text = whole.read("README.md").decode()
    assert "without 20 px on each side" in text
    assert "multiples of 4 px" in text


def test_of_several_frames_the_first_that_shows_something_is_taken(exports, frame, tmp_path):
    path = write("bioimageio", exports["labels"], tmp_path / "a.zip", [np.zeros_like(frame), frame])
    with zipfile.ZipFile(path) as whole:
        assert len(np.unique(np.load(whole.extract("test_output.npy", tmp_path)))) == 2


def test_of_a_frame_the_tile_that_shows_most_is_taken(exports, frame, tmp_path):
    """Its other tiles are flat, which tests nothing and would be refused."""
    dark = np.full((1, 300, 400), 500, np.uint16)
    dark[0, -15:, -15:] = frame[0, :15, :15]
    path = write("bioimageio", exports["uint16"], tmp_path / "a.zip", [dark])
    with zipfile.ZipFile(path) as whole:
        assert frame[0, :15, :15].max() in np.load(whole.extract("test_input.npy", tmp_path))


BAD = [
    ({"out": "a.tar"}, OptionError, r"a\.tar is not a \.zip.*use a\.tar\.zip"),
    ({"license": "MITT"}, OptionError, r"license 'MITT' is not an SPDX identifier: use MIT "),
    ({"license": "%%"}, OptionError, "use one from spdx.org"),
    ({"name": "ab"}, OptionError, "name 'ab' does not fit.*5 to 128"),
    ({"authors": ("A/B",)}, OptionError, "author 'A/B' does not fit"),
    ({"name": None}, OptionError, r"name must be text \(got None\)"),
    ({"name": "x" * 1000}, OptionError, "name 'xxx.*5 to 128"),
    ({"authors": "A. Name"}, OptionError, r"authors must be a list \(got 'A. Name'\): give a list"),
    ({"authors": ("A\x1b[31m",)}, OptionError, r"author or tag 'A\\x1b\[31m' is not printable"),
    ({"authors": (None,)}, OptionError, r"author or tag must be text \(got None\)"),
    ({"authors": None}, OptionError, r"authors must be a list \(got None\)"),
    ({"tags": "cells"}, OptionError, r"tags must be a list \(got 'cells'\)"),
    ({"tags": ("\udcff",)}, OptionError, r"author or tag '\\udcff' is not printable"),
    ({"cite": ("U-Net",)}, OptionError, r"cite must be a list of Citation \(got 'U-Net'\)"),
    ({"license": 5}, OptionError, r"license must be text \(got 5\)"),
    ({"license": "M" * 10000}, OptionError, "license 'MMM.* is not an SPDX identifier"),
    ({"description": None}, OptionError, r"description must be text \(got None\)"),
    ({"description": "a\x00"}, OptionError, "description .* is not printable"),
    ({"frames": lambda frame: [None]}, FrameError, r"shape \(\): a package needs \(1, H, W\)"),
    ({"description": "x" * 1025}, OptionError, "refuses the package: description: .*at most 1024"),
    ({"frames": lambda frame: []}, FrameError, "on 0 frames, .* give one that shows objects"),
    ({"frames": lambda frame: [np.zeros_like(frame)]}, FrameError, "is constant on 1 frames"),
    ({"frames": lambda frame: [frame[0]]}, FrameError, r"shape \(80, 120\): a package needs \(1, H, W\)"),
    ({"export": "uint8"}, FrameError, "the image is uint16: this model takes raw uint8"),
    ({"export": None}, ModelFileError, "does not exist"),
    ({"export": "small core"}, TileError, "its core of 20 px is smaller than the grid of 40 px; use 100 or more"),
    ({"export": "of the tile"}, GateError, "in blocks of 44x44 px the model gives another result: "),
    ({"out": "file/a.zip"}, OutputError, "file is not a folder"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_what_was_there(exports, others, frame, tmp_path, changes, error, message):
    (tmp_path / "file").touch()
    (tmp_path / "a.zip").write_text("old")
    changes = dict(changes)
    model = (exports | others).get(changes.pop("export", "logits"), tmp_path / "none.onnx")
    out = tmp_path / changes.pop("out", "a.zip")
    frames = changes.pop("frames", lambda frame: [frame])(frame)
    with pytest.raises(error, match=message) as caught:
        write("bioimageio", model, out, frames, **changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "file"]
    assert (tmp_path / "a.zip").read_text() == "old"


def test_text_of_the_model_s_training_need_not_be_printable(exports, frame, tmp_path):
    model = changed(exports["logits"], tmp_path / "m.onnx", training={"steps": 12, "by": "\x1b[31m", "at": "\udcff"})
    with zipfile.ZipFile(write("bioimageio", model, tmp_path / "a.zip", [frame])) as content:
        assert "Trained: steps 12." in content.read("README.md").decode()


def test_everything_is_written_beside_the_package(exports, frame, tmp_path, monkeypatch):
    """A folder for temporary files that is full or missing does no harm, and what SIGKILL leaves is found there."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    assert write("bioimageio", exports["logits"], tmp_path / "a.zip", [frame]).is_file()


def test_a_package_can_be_written_over(packages, exports, frame, tmp_path):
    shutil.copy(packages["labels"], tmp_path / "a.zip")
    write("bioimageio", exports["logits"], tmp_path / "a.zip", [frame])
    assert described(tmp_path / "a.zip")["config"]["unetrt"]["head"] == "logits"


def test_the_readme_says_that_a_model_is_approximate(tiny_model, frame, tmp_path):
    model, out = tmp_path / "model.onnx", tmp_path / "a.zip"
    changed(tiny_model, model, approximate=Approximation("it normalises instances", 0.01, 2))
    write("bioimageio", model, out, [frame])
    with zipfile.ZipFile(out) as package:
        assert "tiles are approximate, as it normalises instances: 1.00%" in package.read("README.md").decode()

import json
import shutil
import socket
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import ruyaml

from tests.export.packages.conftest import EXPORTS, FIXED, raw
from unetrt.export.packages import write
from unetrt.runtime.errors import FrameError, ModelFileError, OptionError, OutputError
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.sessions import open_session

# In a separate process, because the format's programs leave files open.
JUDGE = """
import json, socket, sys
def offline(*arguments): raise OSError("a test needs no network")
socket.socket.connect = socket.getaddrinfo = offline
from bioimageio.core import test_model
said = {name: test_model(name) for name in sys.argv[1:]}
print(json.dumps({name: [s.status, [d.name for d in s.details if d.status == "passed"]] for name, s in said.items()}))
"""
REPRODUCED = "Reproduce test outputs from test inputs (onnx)"
SPOILT = "spoilt"


def offline(*arguments):
    raise OSError("a package needs no network")


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
                content = content[:-40] + bytes(40)
            if name == "rdf.yaml":
                content = b"\n".join(line for line in content.splitlines() if b"sha256:" not in line)
            spoilt.writestr(name, content)
    return made


@pytest.fixture(scope="module")
def verdicts(packages):
    """Name of an export -> status and tests passed, by bioimageio.core."""
    command = [sys.executable, "-c", JUDGE, *map(str, packages.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout.splitlines()[-1])
    return {name: said[str(path)] for name, path in packages.items()}


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


@pytest.mark.parametrize("name", EXPORTS)
def test_axes_and_types_are_those_of_the_graph(packages, exports, name):
    spec, content = read_spec(exports[name]), described(packages[name])
    (given,), (answer,) = content["inputs"], content["outputs"]
    sizes = [axis.get("size", len(axis.get("channel_names", ()))) for axis in given["axes"]]
    assert sizes == [1, spec.channels, *spec.tile]
    assert given["data"]["type"] == spec.input_dtype
    space = [axis for axis in answer["axes"] if axis["type"] == "space"]
    assert [axis["id"] for axis in space] == ["y", "x"]
    assert [axis["size"]["offset"] for axis in space] == [-2 * spec.halo] * 2
    named = [axis["channel_names"] for axis in answer["axes"] if axis["type"] == "channel"]
    assert named == ([] if spec.head == "labels" else [list(spec.classes)])
    assert answer["data"]["type"] == ("uint8" if spec.head == "labels" else "float32")
    assert answer["data"].get("values") == (list(spec.classes) if spec.head == "labels" else None)
    assert content["config"]["unetrt"]["weights_sha256"] == spec.weights_sha256


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
def test_the_test_input_is_a_raw_tile_of_the_frame(packages, exports, frame, name, tmp_path):
    spec, pixels = read_spec(exports[name]), raw(frame, name)
    with zipfile.ZipFile(packages[name]) as content:
        tile = np.load(content.extract("test_input.npy", tmp_path))
    assert tile.dtype == spec.input_dtype
    cuts = []
    for place in spec.plan(pixels.shape[1:]):
        cuts.append(spec.new_input()[0])
        place.cut(pixels, cuts[-1])
    assert any(np.array_equal(tile[0], cut) for cut in cuts)


def test_a_larger_batch_becomes_one_tile_that_our_runtime_runs_too(packages, exports, frame, tmp_path):
    with zipfile.ZipFile(packages["batch 3"]) as content:
        alone = content.extract("model.onnx", tmp_path)
    answers = []
    for path, batch in ((exports["batch 3"], 3), (alone, 1)):
        with open_session(path) as session:
            assert session.spec.batch == batch
            tile = np.random.default_rng(0).normal(size=session.spec.new_input()[0].shape)
            answers.append(session.run(tile)[0])
    np.testing.assert_allclose(*answers, atol=1e-3)
    tolerance = described(packages["batch 3"])["config"]["bioimageio"]["reproducibility_tolerance"][0]
    assert tolerance["relative_tolerance"] == 0.01


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
    assert "middle 20 x 36 px" in text
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
    ({"description": "x" * 1025}, OptionError, "refuses the package: description: .*at most 1024"),
    ({"frames": lambda frame: []}, FrameError, "on 0 frames, .* give one that shows objects"),
    ({"frames": lambda frame: [np.zeros_like(frame)]}, FrameError, "is constant on 1 frames"),
    ({"frames": lambda frame: [frame[0]]}, FrameError, r"shape \(80, 120\): a package needs \(1, H, W\)"),
    ({"export": "uint8"}, FrameError, "the image is uint16: this model takes raw uint8"),
    ({"export": None}, ModelFileError, "does not exist"),
    ({"out": "file/a.zip"}, OutputError, "file is not a folder"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD)
def test_bad_input_is_one_line_and_leaves_what_was_there(exports, frame, tmp_path, changes, error, message):
    (tmp_path / "file").touch()
    (tmp_path / "a.zip").write_text("old")
    changes = dict(changes)
    model = exports.get(changes.pop("export", "logits"), tmp_path / "none.onnx")
    out = tmp_path / changes.pop("out", "a.zip")
    frames = changes.pop("frames", lambda frame: [frame])(frame)
    with pytest.raises(error, match=message) as caught:
        write("bioimageio", model, out, frames, **changes)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "file"]
    assert (tmp_path / "a.zip").read_text() == "old"


def test_a_package_can_be_written_over(packages, exports, frame, tmp_path):
    shutil.copy(packages["labels"], tmp_path / "a.zip")
    write("bioimageio", exports["logits"], tmp_path / "a.zip", [frame])
    assert described(tmp_path / "a.zip")["config"]["unetrt"]["head"] == "logits"

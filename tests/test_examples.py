"""The examples, run as a user runs them."""

import ast
import csv
import re
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import tifffile

from tests import requirements
from unetrt.__main__ import main
from unetrt.runtime.files.images import read_label_stack, read_labels

EXAMPLES = Path(__file__).parents[1] / "examples"

pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)


def run(name, *arguments):
    """Run an example to its end, and return its output, in lines."""
    command = [sys.executable, "-W", "error", EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout.splitlines()


def predict(model, folder, out):
    assert main(["predict", str(model), str(folder), "-o", str(out), "--no-overlays"]) == 0
    return {file.name: read_label_stack(file) for file in sorted(out.glob("*.tif"))}


def test_snap_and_segment(tiny_model, tmp_path):
    (line,) = run("snap_and_segment.py", tiny_model, "--out", tmp_path)
    objects = int(re.fullmatch(r"512 x 512 pixels: (\d+) objects in \d+\.\d\d s", line)[1])
    assert tifffile.imread(tmp_path / "snap.tif").shape == (512, 512)
    assert read_labels(tmp_path / "labels.tif").max() == objects
    predicted = predict(tiny_model, tmp_path / "snap.tif", tmp_path / "predicted")
    np.testing.assert_array_equal(read_label_stack(tmp_path / "labels.tif"), predicted["snap.tif"])


def test_time_lapse(tiny_model, tmp_path):
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    lines = run("time_lapse.py", tiny_model, "--frames", 4, "--interval", 0.2, "--out", tmp_path)
    assert lines[-1] == "4 frames: 4 segmented, 0 dropped, 0 failed"
    printed = [re.fullmatch(r"t=(\d): done, (\d+) objects, \d+ ms", line).groups() for line in lines[:-1]]
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["t"], row["objects"]) for row in rows] == printed
    assert [row["t"] for row in rows] == list("0123")
    raw, labels = (
        np.asarray(zarr.open(tmp_path / name, mode="r")["0"]) for name in ("raw.ome.zarr", "labels.ome.zarr")
    )
    assert raw.shape == labels.shape == (4, 512, 512)
    assert [str(plane.max()) for plane in labels] == [objects for _, objects in printed]


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """A folder of fields of one size with few cells and with many."""
    from unetrt.trainer.drawn_cells import draw

    folder = tmp_path_factory.mktemp("fields")
    for number, density in enumerate((0.05, 0.4, 0.1, 0.5)):
        tifffile.imwrite(folder / f"{number}.tif", draw((160, 160), seed=number, density=density).frame)
    return folder


def test_smart_microscopy_takes_stacks_of_crowded_fields(tiny_model, fields, tmp_path):
    areas = [np.bincount(labels.flat)[1:] for labels in predict(tiny_model, fields, tmp_path).values()]
    objects = [np.count_nonzero(each > 20) for each in areas]
    many = sorted(objects)[1]
    crowded = [count > many for count in objects]
    assert 0 < sum(crowded) < 4, objects
    lines = run("smart_microscopy.py", tiny_model, "--fields", fields, "--many", many)
    assert lines == [
        *(
            f"field {number}: {count} objects{', a z-stack' if count > many else ''}"
            for number, count in enumerate(objects)
        ),
        f"{4 + 5 * sum(crowded)} images of 4 fields, {sum(crowded)} z-stacks",
    ]


def test_smart_microscopy_ends_when_the_camera_fails(tiny_model, fields, tmp_path):
    for name, side in (("a.tif", 64), ("b.tif", 72)):  # a camera has one size
        tifffile.imwrite(tmp_path / name, np.zeros((side, side), np.uint8))
    lines = run("smart_microscopy.py", tiny_model, "--fields", tmp_path, "--patience", 3)
    assert lines[1:] == ["no result for 3 s: stopping", "1 images of 2 fields, 0 z-stacks"]


def test_smart_microscopy_runs_on_a_configuration(tiny_model):
    assert run("smart_microscopy.py", tiny_model, "--many", 10**6)[-1] == "4 images of 4 fields, 0 z-stacks"


def test_replayed_files_get_the_labels_that_predict_writes(tiny_model, drawn_folder, tmp_path):
    stack = np.stack([tifffile.imread(drawn_folder / "images" / f"{number}.tif") for number in (0, 1)])
    for file in (drawn_folder / "images").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    lines = run("replay_files.py", tiny_model, tmp_path, "--exposure", 1, "--out", tmp_path / "labels")
    predicted = predict(tiny_model, tmp_path, tmp_path / "predicted")
    assert lines == [
        *(
            f"{name}: {len(labels)} frames, {sum(plane.max() for plane in labels)} objects"
            for name, labels in predicted.items()
        ),
        f"6 frames -> {tmp_path / 'labels'}",
    ]
    for name, labels in predicted.items():
        np.testing.assert_array_equal(read_label_stack(tmp_path / "labels" / name), labels)


def counts(line):
    """The frames, those segmented and those dropped, of the last line of an example."""
    return [int(number) for number in re.findall(r"(\d+) (?:frames:|segmented|dropped)", line)]


def test_asyncio(tiny_model):
    lines = run("with_asyncio.py", tiny_model, "--frames", 4, "--interval", 0.05)
    printed = [re.fullmatch(r"frame (\d): done, \d+ objects", line)[1] for line in lines[:4]]
    assert printed == list("0123")
    assert lines[4:] == ["4 in time", "4 frames: 4 segmented, 0 dropped, 0 failed"]


def test_asyncio_drops_what_comes_too_late(tiny_model):
    *_, late, last = run("with_asyncio.py", tiny_model, "--frames", 6, "--interval", 0, "--deadline", 0)
    frames, segmented, dropped = counts(last)
    assert late == "6 too late"
    assert (frames, segmented + dropped) == (6, 6)


def test_an_interrupted_asyncio_program_ends_at_once(tiny_model):
    """Ctrl+C cancels the task, which closes the live segmenter."""
    command = [sys.executable, "-u", EXAMPLES / "with_asyncio.py", tiny_model, "--frames", "100000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout.readline().startswith("frame ")
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert program.returncode not in (0, -signal.SIGABRT)


@pytest.fixture
def _offscreen(monkeypatch):
    pytest.importorskip("qtpy", reason=requirements.NAPARI)
    monkeypatch.setenv("QT_QPA_PLATFORM", "offscreen")


@pytest.mark.usefixtures("_offscreen")
def test_qt(tiny_model):
    (line,) = run("with_qt.py", tiny_model, "--frames", 5, "--interval", 0.1)
    shown = int(re.match(r"(\d+) results shown; ", line)[1])
    frames, segmented, dropped = counts(line)
    assert frames == 5
    assert 1 <= shown <= segmented == 5 - dropped


# Closes the window when the first result is shown, in the middle of an acquisition of hours.
CLOSED_EARLY = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import faulthandler, with_qt
faulthandler.dump_traceback_later(60, exit=True)
class Window(with_qt.Window):
    def show_result(self, result):
        super().show_result(result)
        self.close()
with_qt.Window = Window
with_qt.main()
"""


@pytest.mark.usefixtures("_offscreen")
def test_a_qt_window_closes_in_the_middle_of_an_acquisition(tiny_model):
    command = [sys.executable, "-c", CLOSED_EARLY, EXAMPLES, tiny_model, "--frames", "100000", "--interval", "0.02"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert re.match(r"\d+ results shown; ", done.stdout)


def test_processes(tiny_model):
    opened, *results, last = run("with_processes.py", tiny_model, "--frames", 8)
    assert re.fullmatch(r"opened in process \d+", opened)
    frames, segmented, dropped = counts(last)
    assert frames == 8
    assert len(results) == segmented == 8 - dropped >= 4  # all places were free
    assert all(re.fullmatch(r"frame \d: \d+ objects, \d+% of the frame", line) for line in results)


def test_a_child_process_that_dies_is_noticed(tmp_path):
    command = [sys.executable, EXAMPLES / "with_processes.py", tmp_path / "none.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "the child process has ended\n"
    assert re.fullmatch(r".*none.onnx does not exist.*\n", done.stderr)


def test_two_cameras(tiny_model):
    *cameras, last = run("two_cameras.py", tiny_model, "--frames", 3)
    found = [re.fullmatch(r"(.+): objects in 3 frames: \d+, \d+, \d+", line)[1] for line in cameras]
    assert found == ["Camera", "Camera-2"]
    assert last == "6 frames: 6 segmented, 0 dropped, 0 failed"


def test_every_example_is_in_the_list_and_says_how_to_run_it():
    listed = (EXAMPLES / "README.md").read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f"]({example.name})" in listed
        assert f"python examples/{example.name} model.onnx" in example.read_text()
        assert f'run("{example.name}"' in Path(__file__).read_text()


def programs():
    """The examples, and the Python of README and docs."""
    yield from ((path.name, path.read_text()) for path in EXAMPLES.glob("*.py"))
    for page in (EXAMPLES.parent / "README.md", *(EXAMPLES.parent / "docs").glob("*.md")):
        yield from ((page.name, block) for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))


@pytest.mark.parametrize(("name", "program"), list(programs()))
def test_what_users_copy_imports_public_names_only(name, program):
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unetrt"):
            public = import_module(node.module)
            assert {alias.name for alias in node.names} <= set(public.__all__)
            assert all(hasattr(public, name) for name in public.__all__)

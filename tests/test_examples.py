"""The examples, run as a user runs them."""

import ast
import csv
import re
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

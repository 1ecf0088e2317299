"""Acquisitions that are killed (SIGKILL) at random moments: everything that the table lists is readable."""

import csv
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests import requirements
from tests.acquisition.segmenters import classes_of
from unetrt.__main__ import main

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
KINDS = ("plan", "positions", "queue", "two cameras")


def kill(folder, kind, seconds):
    """Run the acquisition, and kill it this long after its first row."""
    pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)
    command = [sys.executable, "-m", "tests.acquisition.acquire_until_killed", folder, kind]
    table = folder / "labels.csv"
    with (
        (folder.parent / "log").open("wb") as log,
        subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2]) as process,
    ):
        until = time.monotonic() + 120
        while not table.exists() or table.read_bytes().count(b"\n") < 3:
            assert process.poll() is None, (folder.parent / "log").read_text()
            assert time.monotonic() < until, (folder.parent / "log").read_text()
            time.sleep(0.001)
        time.sleep(seconds)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def whole_rows(path):
    """Return the rows of a CSV file without a last one that does not end."""
    text = path.read_bytes().decode()
    return list(csv.DictReader(text[: text.rindex("\n") + 1].splitlines()))


def arrays_of(store):
    """Return the array of each stage position, read by TensorStore, which did not write it."""
    tensorstore = pytest.importorskip("tensorstore", reason="reads the stores")
    series = store / "OME" / "zarr.json"
    names = json.loads(series.read_text())["attributes"]["ome"]["series"] if series.exists() else [""]
    for name in names:
        spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / name / "0")}}
        yield tensorstore.open(spec, read=True).result().read().result()


def place_of(row, kind):
    """Return the position and the index of a row's frame in the store."""
    if kind == "queue":
        return 0, (int(row["frame"]),)
    t = int(row["t"])
    return {
        "plan": lambda: (0, (t, int(row["c"]))),
        "positions": lambda: (int(row["p"]), (t, int(row["c"]))),
        "two cameras": lambda: (0, (t, int(row["cam"]))),
    }[kind]()


def require_whole(folder, kind):
    """Check store and tables of a killed acquisition; return the number of frames that are done."""
    import yaozarrs
    import zarr

    store = folder / "labels.ome.zarr"
    yaozarrs.validate_zarr_store(store)
    arrays = list(arrays_of(store))
    rows = whole_rows(folder / "labels.csv")
    objects = {}
    for row in whole_rows(folder / "labels_objects.csv"):
        objects.setdefault(row["frame"], []).append((int(row["label"]), int(row["area"])))
    table = zarr.open_array(store / "tables" / "objects", mode="r")
    assert table.attrs["columns"] == ["frame", "label", "area"]
    listed = np.asarray(table)
    for number, row in enumerate(rows):
        assert (row["outcome"], row["frame"], row["frames"]) == ("done", str(number), "1")
        position, index = place_of(row, kind)
        expected = classes_of(np.load(folder / "frames" / f"{number}.npy"))
        np.testing.assert_array_equal(arrays[position][index], expected)
        counts = [(label, int((expected == label).sum())) for label in range(1, 7) if (expected == label).any()]
        assert objects[row["frame"]] == counts
        assert listed[listed[:, 0] == number, 1:].tolist() == [list(one) for one in counts]
    return len(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_acquisition_has_all_frames_of_its_table(tmp_path, kind):
    kill(tmp_path / "run", kind, random.Random(kind).uniform(0, 0.5))
    assert require_whole(tmp_path / "run", kind) > 1
    # What `unetrt convert` makes of it are the labels as OME-TIFF.
    assert main(["convert", str(tmp_path / "run" / "labels.ome.zarr"), "-o", str(tmp_path / "tiff")]) == 0
    assert len(list((tmp_path / "tiff").rglob("*.tif"))) == (2 if kind == "positions" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(10))
@pytest.mark.parametrize("kind", KINDS)
def test_acquisitions_killed_at_random_moments(tmp_path, kind, moment):
    kill(tmp_path / "run", kind, random.Random(f"{kind}{moment}").uniform(0, 1))
    require_whole(tmp_path / "run", kind)

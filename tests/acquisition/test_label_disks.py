"""Labels on disks that are full."""

from contextlib import contextmanager

import numpy as np
import pytest

from tests.acquisition.files import positions_of, rows_of
from tests.acquisition.label_results import NOISE, result_with
from unetrt.runtime.acquisition import LabelWriter
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import DroppedFrames


@pytest.fixture
def full_disk():
    """A context that limits the size of files, in bytes."""
    resource = pytest.importorskip("resource", reason="this system has no limit for the size of files")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextmanager
    def full(size=200_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return full


def test_a_disk_that_is_full_is_an_output_error(tmp_path, full_disk):
    writer = LabelWriter(tmp_path / "l.ome.zarr")
    with pytest.raises(OutputError, match=r"l.ome.zarr"), full_disk(), writer:
        for number in range(3):
            writer.result(result_with(NOISE, number))


def test_labels_lost_while_the_disk_was_full_are_reported_and_the_rest_is_stored(tmp_path, full_disk):
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        with full_disk(), pytest.raises(OutputError, match=r"l.ome.zarr"):
            writer.result(result_with(NOISE, 0))
        writer.result(result_with(NOISE, 1))
    np.testing.assert_array_equal(positions_of(tmp_path / "l.ome.zarr")[0], [np.zeros_like(NOISE), NOISE])
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["failed", "done"]


def test_a_row_that_did_not_fit_leaves_no_part_of_it(tmp_path, full_disk):
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        writer.result(result_with(NOISE, 0))
        whole = (tmp_path / "l.csv").read_bytes()
        with full_disk(len(whole) + 3), pytest.raises(OutputError, match=r"cannot write .*l.csv"):
            writer.dropped(DroppedFrames(1, 1))
            writer.result(result_with(None, 2))
        assert (tmp_path / "l.csv").read_bytes() == whole
        writer.result(result_with(NOISE, 3))
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")][::3] == ["done"]


def test_labels_that_fail_behind_dropped_frames_are_one_error(tmp_path, full_disk):
    writer = LabelWriter(tmp_path / "l.ome.zarr")
    writer.result(result_with(np.zeros_like(NOISE), 0))
    writer.dropped(DroppedFrames(1, 2))
    with full_disk(), pytest.raises(OutputError, match=r"l.ome.zarr"):
        writer.result(result_with(NOISE, 3))
    writer.close()
    assert [(row["outcome"], row["frames"]) for row in rows_of(tmp_path / "l.csv")] == [
        ("done", "1"),
        ("dropped", "2"),
        ("failed", "1"),
    ]

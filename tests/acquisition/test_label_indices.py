"""Indices and metadata are what the host program gives: whatever they are, a frame is stored and has its row."""

import json

import numpy as np
import pytest
import useq
import yaozarrs

from tests.acquisition.files import rows_of
from tests.acquisition.label_results import frames, result_with
from unetrt.runtime.acquisition import AcquisitionStore, LabelWriter
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveSequence

IMAGE = frames((40, 30))[0]
CIRCLE = {}
CIRCLE["again"] = [CIRCLE, CIRCLE]


class Mute:
    """A value that has no text."""

    def __str__(self):
        raise RuntimeError("it has no text")

    __repr__ = __str__


# An index, and the columns `t` and `index` of its row in a table of labels.
INDICES = {
    "an array": (np.arange(2), "", [0, 1]),
    "numbers of numpy": ({"t": np.int64(3), "n": np.uint8(4), "f": np.float32(0.5)}, "3", {"n": 4, "f": 0.5}),
    "no number": ({"t": float("nan"), "n": float("inf")}, "", {"n": None}),
    "other keys": ({(1, 2): 3, None: 1, "a\n,": ",\n"}, "", {"(1, 2)": 3, "None": 1, "a\n,": ",\n"}),
    "half a letter": ({"n": "\ud800", "\udfff": 1}, "", {"n": "\\ud800", "\\udfff": 1}),
    "no text": ({"n": Mute()}, "", {"n": None}),
    "a key without a text": ({Mute(): 1}, "", None),
    "a set": ({1}, "", "{1}"),
}


@pytest.mark.parametrize(("index", "time", "others"), INDICES.values(), ids=INDICES)
def test_any_index_is_listed(tmp_path, index, time, others):
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        writer.result(result_with(IMAGE, index=index))
    (row,) = rows_of(tmp_path / "l.csv")
    assert (row["outcome"], row["t"]) == ("done", time)
    assert (json.loads(row["index"]) if row["index"] else None) == others


@pytest.mark.parametrize("index", [*(index for index, *_ in INDICES.values()), CIRCLE], ids=[*INDICES, "a circle"])
def test_any_index_leaves_a_valid_store(tmp_path, index):
    with AcquisitionStore(tmp_path / "run.ome.zarr") as store:
        store.result(result_with(IMAGE, index=index, frame=IMAGE))
    yaozarrs.validate_zarr_store(tmp_path / "run.ome.zarr")
    for path in (tmp_path / "run.ome.zarr").rglob("zarr.json"):
        json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is no JSON
    (row,) = rows_of(tmp_path / "run.csv")
    assert (row["frame"], row["outcome"]) == ("0", "done")
    json.loads(row["index"], parse_constant=pytest.fail)


def test_names_that_are_no_unicode_leave_a_valid_store(tmp_path):
    event = useq.MDAEvent(pos_name="\ud800", channel="\udfff")
    with AcquisitionStore(tmp_path / "run.ome.zarr") as store:
        store.result(result_with(IMAGE, frame=IMAGE, meta={"mda_event": event}))
    yaozarrs.validate_zarr_store(tmp_path / "run.ome.zarr")
    assert rows_of(tmp_path / "run.csv")[0]["position"] == "\\ud800"


def test_numbers_of_numpy_are_places_of_a_plan(tmp_path):
    plan = useq.MDASequence(axis_order="tpc", time_plan={"interval": 0, "loops": 2}, stage_positions=[(0, 0), (1, 1)])
    sequence = LiveSequence(0, plan)
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number, event in enumerate(plan):
            index = {axis: np.int32(at) for axis, at in event.index.items()}
            writer.result(result_with(IMAGE, number, index, sequence=sequence))
    rows = rows_of(tmp_path / "l.csv")
    assert [(row["frame"], row["outcome"]) for row in rows] == [(str(place), "done") for place in range(4)]


def test_an_index_that_no_plan_has_is_a_failed_row(tmp_path):
    plan = useq.MDASequence(stage_positions=[(0, 0), (1, 1)])
    refused = pytest.raises(OutputError, match=r"no frame with the index \{'p': \[1\]\}")
    with LabelWriter(tmp_path / "l.ome.zarr") as writer, refused:
        writer.result(result_with(IMAGE, index={"p": [1]}, sequence=LiveSequence(0, plan)))
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["failed"]


@pytest.mark.parametrize("kind", [LabelWriter, AcquisitionStore])
@pytest.mark.parametrize(
    "meta",
    [
        "none",
        {"image_infos": 5},
        {"image_infos": [5]},
        {"image_infos": {"Camera": {}}},
        {"image_infos": [{"num_camera_adapter_channels": None, "pixel_size_um": "small"}]},
        {"image_infos": [{"num_camera_adapter_channels": 0, "pixel_size_um": float("nan")}]},
    ],
    ids=str,
)
def test_metadata_of_a_sequence_that_say_nothing_cost_no_frame(tmp_path, kind, meta):
    sequence = LiveSequence(0, None, meta)
    with kind(tmp_path / "l.ome.zarr") as output:
        output.sequence_started(sequence)
        output.result(result_with(IMAGE, frame=IMAGE, sequence=sequence))
    yaozarrs.validate_zarr_store(tmp_path / "l.ome.zarr")
    assert [row["outcome"] for row in rows_of(tmp_path / "l.csv")] == ["done"]

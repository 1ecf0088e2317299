"""Names that come from an acquisition are never paths, and nothing is replaced that is not a store of labels."""

import csv
from pathlib import Path

import numpy as np
import pytest
import useq
import yaozarrs
import zarr

from tests.acquisition.files import rows_of
from tests.acquisition.label_results import frames, result_with
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.acquisition import AcquisitionStore, LabelWriter
from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.names import same_name
from unetrt.runtime.live.results import LiveSequence

IMAGE = frames((40, 30))[0]
HOSTILE = [
    "../monday.ome.zarr",
    "..",
    ".",
    "/etc/x",
    "a/b",
    "a\\b",
    "C:x",
    "\0",
    "a\nb",
    "\x1b[31m",
    "\ud800",
    "CON",
    "nul.txt",
    "dot.",
    " blank ",
    "OME",
    "tables",
    "zarr.json",
    "~",
    "%2e%2e",
    "Å",
    "A\u030a",
    "pos",
    "POS",
    "x" * 300,
    "x" * 301,
    "日" * 120,
]


def store(folder, plan, **options):
    """Store a frame for each event of a plan; its labels are its number, from 1."""
    sequence = LiveSequence(0, plan)
    with LabelWriter(folder / "labels.ome.zarr", **options) as writer:
        writer.sequence_started(sequence)
        for number, event in enumerate(plan):
            meta = {"mda_event": event}
            labels = np.full_like(IMAGE, number + 1)
            writer.result(result_with(labels, number, dict(event.index), sequence=sequence, meta=meta))
        writer.sequence_finished(sequence)


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def images_of(path):
    """Return the arrays of the stage positions in the order of the metadata, which must be valid."""
    yaozarrs.validate_zarr_store(path)
    names = zarr.open_group(path / "OME", mode="r").attrs["ome"]["series"]
    assert len({same_name(name) for name in names}) == len(names)
    assert all(Path(name).name == name and not name.startswith("..") for name in names)
    return [zarr.open_array(path / name / "0", mode="r")[...] for name in names]


def test_names_of_stage_positions_are_no_paths(tmp_path):
    other = tmp_path / "monday.ome.zarr"
    store(other, useq.MDASequence(time_plan={"interval": 0, "loops": 2}))
    before = below(other)
    places = [useq.Position(x=number, y=0, name=name) for number, name in enumerate(HOSTILE)]
    store(tmp_path / "run", useq.MDASequence(stage_positions=places))
    assert below(other) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["monday.ome.zarr", "run"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["labels.csv", "labels.ome.zarr"]
    found = images_of(tmp_path / "run" / "labels.ome.zarr")
    assert [int(image.max()) for image in found] == list(range(1, len(HOSTILE) + 1))
    about = zarr.open_group(tmp_path / "run" / "labels.ome.zarr", mode="r").attrs["unetrt"]
    assert about["names"]["_monday.ome.zarr"] == "../monday.ome.zarr"
    # The table has the names as they are; only what no file can hold is escaped.
    with (tmp_path / "run" / "labels.csv").open(newline="", encoding="utf-8") as file:
        names = [row["position"] for row in csv.DictReader(file)]
    assert names == [name.encode("utf-8", "backslashreplace").decode() for name in HOSTILE]


@pytest.mark.parametrize("name", ["../monday.ome.zarr", "/tmp/monday", "..", "a\\..\\b"])
def test_names_of_tiles_and_wells_are_no_paths(tmp_path, name):
    grid = useq.MDASequence(grid_plan={"rows": 1, "columns": 2})
    plain = useq.Position(x=0, y=0, name=name)
    tiled = useq.Position(x=0, y=0, name=name, sequence=grid)
    wells = [useq.Position(x=0, y=0, name=name, plate_row=row, plate_col=0) for row in range(2)]
    plans = {
        "tiles": useq.MDASequence(stage_positions=[tiled, (10, 0)]),
        "grid": useq.MDASequence(stage_positions=[plain], grid_plan={"rows": 2, "columns": 1}),
        "points": useq.MDASequence(stage_positions=[plain], grid_plan=useq.RandomPoints(num_points=2, random_seed=1)),
        "wells": useq.MDASequence(stage_positions=wells),
    }
    for kind, plan in plans.items():
        store(tmp_path / kind, plan)
        yaozarrs.validate_zarr_store(tmp_path / kind / "labels.ome.zarr")
        assert sorted(path.name for path in (tmp_path / kind).iterdir()) == ["labels.csv", "labels.ome.zarr"]
        stored = [path for path in (tmp_path / kind).rglob("zarr.json") if '"array"' in path.read_text()]
        highest = {int(zarr.open_array(path.parent, mode="r")[...].max()) for path in stored}
        assert highest == set(range(1, len(list(plan)) + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(plans)


@pytest.mark.parametrize("name", ["../x", "a/b", "\0", "x" * 5000, 'a,b\n"c'])
def test_names_of_channels_are_text(tmp_path, name):
    shown = name.encode("utf-8", "backslashreplace").decode()
    store(tmp_path, useq.MDASequence(channels=[name, "DAPI"]))
    yaozarrs.validate_zarr_store(tmp_path / "labels.ome.zarr")
    channels = zarr.open_group(tmp_path / "labels.ome.zarr", mode="r").attrs["ome"]["omero"]["channels"]
    assert [channel["label"] for channel in channels] == [shown, "DAPI"]
    assert [row["channel"] for row in rows_of(tmp_path / "labels.csv")] == [shown, "DAPI"]


def test_a_name_with_a_path_in_the_real_core(core, tmp_path):
    from tests.acquisition.segmenters import segmenter

    core.setROI(0, 0, 96, 64)
    monday = tmp_path / "monday.ome.zarr"
    zarr.save_array(monday, np.ones((3, 3)))
    before = below(monday)
    places = [useq.Position(x=0, y=0, name="../monday.ome.zarr"), useq.Position(x=5, y=0)]
    writer = LabelWriter(tmp_path / "labels.ome.zarr")
    with LiveSegmenter(segmenter(), policy="drop_oldest", kind="classes", outputs=[writer]) as live:
        core.mda.run(useq.MDASequence(stage_positions=places), output=[live])
        live.flush()
        assert live.status().output_errors == 0
    assert below(monday) == before
    assert len(images_of(tmp_path / "labels.ome.zarr")) == 2


def foreign_folder(path):
    path.mkdir()
    (path / "thesis.txt").write_text("three years")


def foreign_zarr(path):
    zarr.save_array(path, np.ones((3, 3)))


def damaged_zarr(path):
    path.mkdir()
    (path / "zarr.json").write_text("{")


def link_to_folder(path):
    foreign_folder(path.with_name("home"))
    path.symlink_to(path.with_name("home"))


def broken_link(path):
    path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize(
    "make",
    [foreign_folder, foreign_zarr, damaged_zarr, link_to_folder, broken_link, Path.mkdir, Path.touch],
    ids=lambda make: make.__name__,
)
def test_only_a_store_of_labels_is_replaced(tmp_path, make):
    make(tmp_path / "l.ome.zarr")
    before = below(tmp_path)
    with pytest.raises(OutputError, match=r"l.ome.zarr is not a store of labels, and is not replaced"):
        LabelWriter(tmp_path / "l.ome.zarr", overwrite=True)
    assert below(tmp_path) == before


@pytest.mark.parametrize("name", ["l.csv", "l_objects.csv"])
def test_only_a_table_of_labels_is_replaced(tmp_path, name):
    (tmp_path / name).write_text("name,grant\nmine,1\n")
    with pytest.raises(OutputError, match=rf"{name} is not a table of labels, and is not replaced"):
        LabelWriter(tmp_path / "l.ome.zarr", overwrite=True)
    assert (tmp_path / name).read_text() == "name,grant\nmine,1\n"


@pytest.mark.parametrize(("first", "second"), [(AcquisitionStore, LabelWriter), (LabelWriter, AcquisitionStore)])
def test_a_store_of_another_kind_is_not_replaced(tmp_path, first, second):
    """An acquisition store has frames that exist nowhere else."""
    with first(tmp_path / "l.ome.zarr") as output:
        output.result(result_with(IMAGE, frame=IMAGE))
    before = below(tmp_path)
    with pytest.raises(OutputError, match=r"l.ome.zarr is not a store of \w.*, and is not replaced"):
        second(tmp_path / "l.ome.zarr", overwrite=True)
    assert below(tmp_path) == before


@pytest.mark.parametrize("kind", [LabelWriter, AcquisitionStore])
def test_a_program_may_change_its_working_folder(tmp_path, monkeypatch, kind):
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    with kind("l.ome.zarr") as output:
        monkeypatch.chdir(tmp_path / "other")
        output.result(result_with(IMAGE, frame=IMAGE))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.csv", "l.ome.zarr", "other"]
    assert not below(tmp_path / "other")


def test_later_sequences_leave_out_numbers_that_are_not_theirs(tmp_path):
    """Who asks to overwrite l.ome.zarr has not named l_001.ome.zarr."""
    foreign_folder(tmp_path / "l_001.ome.zarr")
    (tmp_path / "l_002.csv").write_text("name,grant\n")
    before = below(tmp_path)
    for _ in range(2):
        with LabelWriter(tmp_path / "l.ome.zarr", overwrite=True) as writer:
            for number in range(2):
                writer.sequence_started(LiveSequence(number, first=number))
                writer.result(result_with(IMAGE, number, sequence=LiveSequence(number, first=number)))
    assert set(before) <= set(below(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "l.csv", "l.ome.zarr", "l_001.ome.zarr", "l_002.csv", "l_003.csv", "l_003.ome.zarr",
    ]  # fmt: skip


def test_a_link_to_a_store_of_labels_is_replaced_and_the_store_stays(tmp_path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    with LabelWriter(tmp_path / "first" / "l.ome.zarr") as writer:
        writer.result(result_with(IMAGE))
    before = below(tmp_path / "first")
    for suffix in (".ome.zarr", ".csv"):
        (tmp_path / "second" / f"l{suffix}").symlink_to(tmp_path / "first" / f"l{suffix}")
    text = (tmp_path / "first" / "l.csv").read_text()
    with LabelWriter(tmp_path / "second" / "l.ome.zarr", overwrite=True) as writer:
        writer.result(result_with(IMAGE[:10], 0))
    assert below(tmp_path / "first") == before
    assert (tmp_path / "first" / "l.csv").read_text() == text
    assert not (tmp_path / "second" / "l.ome.zarr").is_symlink()


def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    writer = LabelWriter(tmp_path / "l.ome.zarr")
    writer.result(result_with(None, 0))
    foreign_folder(tmp_path / "l.ome.zarr")
    with pytest.raises(OutputError, match=r"l.ome.zarr (exists|is not a store)"):
        writer.result(result_with(IMAGE, 1))
    writer.close()
    assert (tmp_path / "l.ome.zarr" / "thesis.txt").exists()

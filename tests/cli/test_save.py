"""`--save` of `unetrt predict` and `unetrt convert`: every kind of file, of frames, stacks, classes and subfolders."""

import csv
import json
import sys

import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image
from pyarrow import parquet
from roifile import roiread

from tests.runtime.acquisitions import plane, write_positions, write_series
from tests.trainer.test_dataset import plate
from unetrt.cli import main
from unetrt.runtime.files.images import read_label_stack
from unetrt.runtime.files.outputs import KINDS, opened_outputs
from unetrt.runtime.files.outputs.label_tiff import write_labels
from unetrt.runtime.files.outputs.label_zarr import write_zarr
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.pixel_size import PixelSize

RNG = np.random.default_rng(0)
ALL = [argument for kind in KINDS for argument in ("--save", kind)]
PER_IMAGE = ["a.tif", "geojson/a.geojson", "ome-zarr/a.ome.zarr", "outlines/a.png", "rois/a.zip"]
PER_RUN = ["objects.csv", "objects.parquet"]


@pytest.fixture
def run(capsys):
    """Run a command; return its status, standard output and standard error."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err

    return run


def written(folder):
    """Return the files in a folder, a Zarr as one of them."""
    found = {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
    return sorted({str(next((one for one in (file, *file.parents) if one.suffix == ".zarr"), file)) for file in found})


@pytest.fixture
def labelled(tmp_path):
    """A folder with labels/a.tif and images/a.tif, (30, 40): two objects, one of them with a hole."""
    labels = np.zeros((30, 40), np.int32)
    labels[2:9, 3:9], labels[4:6, 5:7], labels[20:25, 30:40] = 1, 0, 70000
    write_labels(tmp_path / "labels" / "a.tif", labels)
    (tmp_path / "images").mkdir()
    tifffile.imwrite(tmp_path / "images" / "a.tif", RNG.integers(0, 60000, (30, 40)).astype(np.uint16))
    return tmp_path


def test_predict_saves_all_kinds(run, tiny_model, drawn_folder, tmp_path):
    out = tmp_path / "out"
    status, said, err = run("predict", tiny_model, drawn_folder / "images" / "0.tif", "-o", out, *ALL, "--montage")
    assert status == 0, err
    names = [name.replace("a.", "0.", 1) if "/" not in name else name.replace("/a.", "/0.") for name in PER_IMAGE]
    assert written(out) == sorted([*names, *PER_RUN, "overlays/0.png", "overlays/montage.png"])
    labels = tifffile.imread(out / "0.tif")
    count = labels.max()
    assert f"1 images, {count} objects" in said
    with (out / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["confidence"] for row in rows] == [
        f"{row['confidence']:.4f}" for row in parquet.read_table(out / "objects.parquet").to_pylist()
    ]
    features = json.loads((out / "geojson" / "0.geojson").read_text())["features"]
    assert [feature["properties"]["measurements"]["confidence"] for feature in features] == pytest.approx(
        [float(row["confidence"]) for row in rows], abs=1e-4
    )
    assert len(roiread(out / "rois" / "0.zip")) == count == len(features) == len(rows)
    group = zarr.open_group(out / "ome-zarr" / "0.ome.zarr", mode="r")
    np.testing.assert_array_equal(group["labels/objects/0"][:], labels)
    np.testing.assert_array_equal(group["0"][0], tifffile.imread(drawn_folder / "images" / "0.tif"))


def test_predict_saves_only_what_is_asked_for(run, tiny_model, drawn_folder, tmp_path):
    out = tmp_path / "out"
    arguments = ["predict", tiny_model, drawn_folder / "images" / "0.tif", "-o", out, "--no-overlays"]
    assert run(*arguments, "--save", "geojson", "--save", "geojson")[0] == 0
    assert written(out) == ["geojson/0.geojson"]
    assert run(*arguments, "--table")[0] == 0
    assert written(out) == ["0.tif", "geojson/0.geojson", "objects.csv"]


def test_predict_keeps_the_axes_of_the_image(run, tiny_model, tmp_path):
    pixels = RNG.integers(0, 4000, (2, 3, 100, 110)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, ome=True, metadata={"axes": "ZTYX"})
    assert run("predict", tiny_model, tmp_path / "a.tif", "-o", tmp_path / "out", "--as", "classes", *ALL[:10])[0] == 0
    with tifffile.TiffFile(tmp_path / "out" / "a.tif") as tiff:
        assert (tiff.series[0].axes, tiff.series[0].shape) == ("ZTYX", (2, 3, 100, 110))
        labels = tiff.asarray()
    group = zarr.open_group(tmp_path / "out" / "ome-zarr" / "a.ome.zarr", mode="r")
    np.testing.assert_array_equal(group["labels/objects/0"][:], labels.swapaxes(0, 1))
    assert len(list((tmp_path / "out" / "outlines" / "a").iterdir())) == 6


def test_predict_names_the_results_of_positions_and_plates(run, tiny_model, tmp_path, caplog):
    """Annotations that lie beside an image are not segmented."""
    folder, out = tmp_path / "images", tmp_path / "out"
    write_positions(folder / "scan", 2, 2)
    write_series(folder / "one.ome.tif", ("Pos0", "Pos1"))
    plate(folder / "p.zarr", {"A/1/0": plane(), "A/1/1": plane(), "B/2/0": plane()})
    for name in ("cell.tif", "cell_cp_masks.tif"):
        tifffile.imwrite(folder / name, plane())
    status, said, err = run("predict", tiny_model, folder, "-o", out, "--save", "labels", "--save", "rois", "--montage")
    assert status == 0, err
    assert caplog.messages == [f"{folder}: 1 file left out: 1 named as annotations"]
    names = ["cell", "one_Pos0", "one_Pos1", "p/A/1/0", "p/A/1/1", "p/B/2/0"]
    names += [f"scan/a_MMStack_Pos{number}" for number in range(2)]
    assert said.startswith(f"{len(names)} images, ")
    assert sorted(path.relative_to(out).as_posix() for path in out.rglob("*.tif")) == [f"{name}.tif" for name in names]
    assert sorted(path.relative_to(out / "rois").as_posix() for path in out.rglob("*.zip")) == [
        f"{name}.zip" for name in names
    ]
    with tifffile.TiffFile(out / f"{names[-1]}.tif") as tiff:
        assert tiff.series[0].axes == "TYX"


def test_convert_makes_all_kinds(run, labelled):
    out = labelled / "out"
    status, said, err = run(
        "convert", labelled / "labels", labelled / "images", "-o", out, *ALL, "--montage", "--overlays"
    )
    assert status == 0, err
    assert said.startswith("1 label image -> ")
    assert written(out) == sorted([*PER_IMAGE, *PER_RUN, "overlays/a.png", "overlays/montage.png"])
    labels, pixels = (tifffile.imread(labelled / part / "a.tif") for part in ("labels", "images"))
    np.testing.assert_array_equal(tifffile.imread(out / "a.tif"), labels)
    assert [roi.name for roi in roiread(out / "rois" / "a.zip")] == ["00001", "70000"]
    with (out / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["1", "70000"]
    assert [int(row["integrated_intensity"]) for row in rows] == [pixels[labels == label].sum() for label in (1, 70000)]
    with Image.open(out / "outlines" / "a.png") as picture:
        assert picture.size == (40, 30)


def test_the_pixel_size_travels(run, labelled, tiny_model):
    """From the file of the labels, or else of the image, to all files."""
    labels = tifffile.imread(labelled / "labels" / "a.tif")
    frames = RNG.integers(0, 9000, (1, 1, 30, 40)).astype(np.uint16)
    size = PixelSize(500, 250, unit="nm")
    write_zarr(labelled / "sized" / "a.ome.zarr", LabelledImage("a", labels, frames=frames, pixel_size=size))
    write_labels(labelled / "tiff" / "a.tif", labels, pixel_size=size.in_micrometres)
    for number, arguments in enumerate(
        [
            ["convert", labelled / "tiff"],
            ["convert", labelled / "sized" / "a.ome.zarr" / "labels" / "objects"],
            ["convert", labelled / "labels" / "a.tif", labelled / "sized"],
            ["predict", tiny_model, labelled / "sized", "--as", "instances"],
        ]
    ):
        out = labelled / f"out{number}"
        status, _, err = run(*arguments, "-o", out, *ALL)
        assert status == 0, err
        (name,) = (str(path.relative_to(out).with_suffix("")) for path in out.rglob("*.tif"))
        with tifffile.TiffFile(out / f"{name}.tif") as tiff:
            assert 'PhysicalSizeX="0.25" PhysicalSizeXUnit="µm" PhysicalSizeY="0.5"' in tiff.ome_metadata
        zattrs = json.loads((out / "ome-zarr" / f"{name}.ome.zarr" / "labels" / "objects" / ".zattrs").read_text())
        assert zattrs["multiscales"][0]["datasets"][0]["coordinateTransformations"][0]["scale"] == [0.5, 0.25]
        for row in parquet.read_table(out / "objects.parquet").to_pylist():
            assert row["area_um2"] == pytest.approx(row["area"] * 0.125)
        for feature in json.loads((out / "geojson" / f"{name}.geojson").read_text())["features"]:
            measurements = feature["properties"]["measurements"]
            assert measurements["area_um2"] == pytest.approx(measurements["area"] * 0.125)


def test_convert_of_two_files_pairs_them_whatever_their_names(run, labelled):
    (labelled / "images" / "a.tif").rename(labelled / "other.tif")
    arguments = ["convert", labelled / "labels" / "a.tif", labelled / "other.tif", "-o", labelled / "out"]
    assert run(*arguments, "--save", "table")[0] == 0
    assert "other.tif,0,1,38," in (labelled / "out" / "objects.csv").read_text()


def test_convert_of_class_maps(run, labelled):
    write_labels(labelled / "labels" / "a.tif", np.kron(np.array([[0, 1], [2, 1]]), np.ones((15, 20), int)))
    out = labelled / "out"
    kinds = ["--save", "rois", "--save", "geojson"]
    assert run("convert", labelled / "labels", "-o", out, "--as", "classes", *kinds)[0] == 0
    assert [roi.name for roi in roiread(out / "rois" / "a.zip")] == ["class 1", "class 2"]
    status, _, err = run("convert", labelled / "labels", "-o", out, "--as", "classes", "--save", "parquet")
    assert (status, err.count("\n")) == (2, 1)
    assert "class maps have none" in err
    assert not (out / "objects.parquet").exists()


def test_convert_names_files_that_cannot_be_converted_and_does_the_others(run, labelled):
    write_labels(labelled / "labels" / "b.tif", np.ones((5, 6), np.uint8))
    tifffile.imwrite(labelled / "images" / "b.tif", np.zeros((6, 6), np.uint8))
    arguments = ["convert", labelled / "labels", labelled / "images", "-o", labelled / "out"]
    status, said, err = run(*arguments, "--save", "rois", "--save", "table")
    assert status == 2
    assert said.startswith("1 label image -> ")
    assert "skipped: b.tif has 1 frame of 6 x 6 px, its labels have 1 frame of 5 x 6 px: give the image that" in err
    assert "1 of 2 images could not be converted, the others are done" in err
    assert written(labelled / "out") == ["objects.csv", "rois/a.zip"]


REFUSED = {
    "an unknown kind": (["labels", "--save", "svg"], "'svg' is not one of 'labels', 'ome-zarr', 'rois', 'geojson'"),
    "into the labels": (["labels", "-o", "labels"], "labels/a.tif is an input and would be overwritten"),
    "into the images": (["labels", "images", "-o", "images"], "images/a.tif is an input and would be overwritten"),
    "no labels": (["none"], "none does not exist: give a folder"),
    "no such image": (["labels", "labels/../empty"], "b.tif|has no image for labels/a.tif: each needs one of the same"),
    "an image that is not finite": (["nan/a.tif", "nan.tif"], "nan.tif: 12 pixels are NaN or infinite"),
    "an image as labels": (["grey"], "a.tif holds float32 values that are not labels"),
    "too large a label": (["large.npy"], "large.npy: labels must be from 0 to 4294967295 (got 0 to 4294967296)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_converted_is_refused_in_one_line(run, labelled, monkeypatch, case):
    monkeypatch.chdir(labelled)
    for name, pixels in (
        ("empty/b.tif", np.zeros((30, 40), np.uint8)),
        ("grey/a.tif", np.full((3, 4), 0.5, np.float32)),
        ("nan/a.tif", np.ones((3, 4), np.uint8)),
        ("nan.tif", np.full((3, 4), np.nan, np.float32)),
    ):
        (labelled / name).parent.mkdir(exist_ok=True)
        tifffile.imwrite(labelled / name, pixels)
    np.save(labelled / "large.npy", np.array([[0, 2**32]]))
    (labelled / "empty" / "c.png").write_bytes((labelled / "empty" / "b.tif").read_bytes())
    arguments, message = REFUSED[case]
    place = [] if "-o" in arguments else ["-o", "new"]
    for kinds in [], ALL:
        status, _, err = run("convert", *arguments, *place, *kinds)
        assert (status, err.count("\n")) == (2, 1), err
        assert any(part in err for part in message.split("|"))
        assert not (labelled / "new").exists()


def test_a_table_lists_the_images_that_are_converted_and_no_others(run, labelled):
    np.save(labelled / "labels" / "b.npy", np.array([[0, 1, 2**32]]))
    out = labelled / "out"
    assert run("convert", labelled / "labels", "-o", out, *ALL)[0] == 2
    with (out / "objects.csv").open(newline="") as file:
        assert [(row["image"], row["label"]) for row in csv.DictReader(file)] == [("a.tif", "1"), ("a.tif", "70000")]
    assert parquet.read_table(out / "objects.parquet")["label"].to_pylist() == [1, 70000]
    (labelled / "labels" / "a.tif").unlink()
    before = {name: (out / name).read_bytes() for name in PER_RUN}
    assert run("convert", labelled / "labels", "-o", out, *ALL)[0] == 2
    assert {name: (out / name).read_bytes() for name in PER_RUN} == before


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_labels_in_floating_point_are_converted(run, labelled, dtype):
    labels = (read_label_stack(labelled / "labels" / "a.tif")[0] > 0).astype(dtype)
    np.save(labelled / "f.npy", labels)
    assert run("convert", labelled / "f.npy", "-o", labelled / "out") == (
        0,
        f"1 label image -> {labelled / 'out'} (labels)\n",
        "",
    )
    np.testing.assert_array_equal(tifffile.imread(labelled / "out" / "f.tif"), labels)


@pytest.mark.parametrize(
    ("kind", "package", "extra"), [(name, *KINDS[name][3:5]) for name in KINDS if KINDS[name].package]
)
@pytest.mark.parametrize("command", ["predict", "convert"])
def test_a_missing_package_is_named_before_the_work_begins(
    run, labelled, tiny_model, monkeypatch, command, kind, package, extra
):
    monkeypatch.setitem(sys.modules, package, None)
    arguments = [tiny_model, labelled / "images"] if command == "predict" else [labelled / "labels"]
    status, _, err = run(command, *arguments, "-o", labelled / "out", "--save", kind)
    assert status == 2
    assert err == f"Error: {kind} needs {package}: pip install 'unetrt[{extra}]'\n"
    assert not (labelled / "out").exists()


def test_grey_saved_as_colours_has_one_intensity(run, labelled):
    grey = RNG.integers(0, 255, (30, 40), np.uint8)
    colours = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    (labelled / "images" / "a.tif").unlink()
    Image.fromarray(colours).save(labelled / "images" / "a.png")
    out = labelled / "out"
    assert run("convert", labelled / "labels", labelled / "images", "-o", out, "--save", "parquet")[0] == 0
    row = parquet.read_table(out / "objects.parquet").to_pylist()[0]
    assert [name for name in row if "mean" in name] == ["mean_intensity"]
    assert row["max_intensity"] == grey[tifffile.imread(labelled / "labels" / "a.tif") == 1].max()


def test_names_with_folders_keep_them(tmp_path):
    image = LabelledImage("day1/well.2/a.b", np.stack([np.eye(9, dtype=np.uint8)] * 2))
    with opened_outputs(tmp_path, list(KINDS), channels=0, overlays=True, sheet=1) as outputs:
        outputs.write(image)
    name = "day1/well.2/a.b"
    assert written(tmp_path) == sorted(
        [
            *(f"{name}.tif", f"ome-zarr/{name}.ome.zarr", f"rois/{name}.zip", f"geojson/{name}.geojson"),
            *(f"outlines/{name}/0000.png", f"outlines/{name}/0001.png", f"overlays/{name}.png"),
            *(*PER_RUN, "overlays/montage.png"),
        ]
    )


def test_labels_survive_every_kind_of_file_that_is_read_again(run, labelled):
    kinds = ["--save", "labels", "--save", "ome-zarr"]
    assert run("convert", labelled / "labels", labelled / "images", "-o", labelled / "out", *kinds)[0] == 0
    labels = tifffile.imread(labelled / "labels" / "a.tif")
    for path in ("a.tif", "ome-zarr/a.ome.zarr"):
        np.testing.assert_array_equal(read_label_stack(labelled / "out" / path)[0], labels)


def test_convert_of_selected_frames_and_images(run, tmp_path):
    labels = np.arange(6 * 20 * 30, dtype=np.int32).reshape(6, 20, 30)
    for name in ("a1", "a2", "b1"):
        write_labels(tmp_path / "labels" / f"{name}.tif", labels, axes="TYX", pixel_size=PixelSize(0.5, 0.5))
    chosen = ["--select", "T=1:6:2", "--select", "a*"]
    status, _, err = run("convert", tmp_path / "labels", "-o", tmp_path / "out", "--save", "labels", *chosen)
    assert (status, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a1.tif", "a2.tif"]
    np.testing.assert_array_equal(read_label_stack(tmp_path / "out" / "a1.tif"), labels[1:6:2])
    wrong = {"Z=1": "has nothing at Z=1:2: it has T (0 ... 5)", "c*": "matches no image; there are a1"}
    for select, message in wrong.items():
        given = [tmp_path / "labels", "-o", tmp_path / "no", "--save", "labels", "--select", select]
        status, _, err = run("convert", *given)
        assert status == 2
        assert message in err
        assert not (tmp_path / "no").exists() or not any((tmp_path / "no").iterdir())


def test_missing_chunks_are_refused_or_filled(run, tmp_path):
    write_labels(tmp_path / "labels.tif", np.ones((20, 30), np.int32))
    zarr.create_array(tmp_path / "image.zarr", shape=(20, 30), chunks=(20, 15), dtype="uint16")[:, :15] = 7
    files = [tmp_path / "labels.tif", tmp_path / "image.zarr"]
    arguments = ["convert", *files, "-o", tmp_path / "out", "--save", "ome-zarr"]
    status, _, err = run(*arguments)
    assert status == 2
    assert "image.zarr lacks the chunk c/0/1: save it again, or give --missing-chunks fill" in err
    assert run(*arguments, "--missing-chunks", "fill")[0] == 0
    written = zarr.open_array(tmp_path / "out" / "ome-zarr" / "labels.ome.zarr" / "0", mode="r")
    np.testing.assert_array_equal(np.asarray(written[...]).reshape(20, 30)[0, ::14], [7, 7, 0])

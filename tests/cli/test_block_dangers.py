"""`unetrt predict --block`: files equal those of the whole image for all kinds of images; errors are one clear line."""

import io
import os
import re
import shutil
import subprocess
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from unetrt.cli import main
from unetrt.runtime.blockwise.stages import BlockWorker

pytest.importorskip("dask")

SAVED = ["--table", "--save", "labels", "--save", "geojson", "--save", "rois"]


def grey(*shape, dtype=np.uint16, seed=0):
    """Return grey blobs, (..., H, W)."""
    smooth = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), [0] * (len(shape) - 2) + [2, 2])
    values = (smooth - smooth.min()) / np.ptp(smooth)
    if dtype is bool:
        return values > 0.5
    return (values * (np.iinfo(dtype).max if np.dtype(dtype).kind == "u" else 1)).astype(dtype)


def tiff(place, pixels, **options):
    tifffile.imwrite(path := place / "image.tif", pixels, photometric="minisblack", **options)
    return path


def npy(place, pixels):
    np.save(path := place / "image.npy", pixels)
    return path


def ome_zarr(place, pixels, version="0.4", name="image.zarr"):
    """Write an OME-Zarr image in chunks of 64 x 64 pixels."""
    group = zarr.open_group(place / name, mode="w", zarr_format=2 if version == "0.4" else 3)
    axes = ["tczyx".index(axis) for axis in "tczyx"[-pixels.ndim :]]
    array = group.create_array(
        "0", shape=pixels.shape, chunks=(1,) * (pixels.ndim - 2) + (64, 64), dtype=pixels.dtype, fill_value=0
    )
    array[...] = pixels
    scale = [{"type": "scale", "scale": [1.0] * pixels.ndim}]
    kinds = ("time", "channel", "space", "space", "space")
    about = {
        "axes": [{"name": "tczyx"[axis], "type": kinds[axis]} for axis in axes],
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    if version == "0.4":
        group.attrs["multiscales"] = [{**about, "version": "0.4"}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [about]}
    return place / name


def plate(place):
    """Write a plate of two wells, of two fields and one."""
    root = zarr.open_group(place / "plate.zarr", mode="w", zarr_format=2)
    wells = {"A/1": ["0", "1"], "B/2": ["0"]}
    root.attrs["plate"] = {
        "version": "0.4",
        "rows": [{"name": "A"}, {"name": "B"}],
        "columns": [{"name": "1"}, {"name": "2"}],
        "wells": [{"path": "A/1", "rowIndex": 0, "columnIndex": 0}, {"path": "B/2", "rowIndex": 1, "columnIndex": 1}],
    }
    for well, fields in wells.items():
        group = root.create_group(well)
        group.attrs["well"] = {"version": "0.4", "images": [{"path": field} for field in fields]}
        for field in fields:
            ome_zarr(place / "plate.zarr" / well, grey(90, 110, seed=len(well) + int(field)), name=field)
    return place / "plate.zarr"


class Predict:
    """Runs `unetrt predict` in this process."""

    def __init__(self, model, root):
        self.model, self.root = model, root

    def __call__(self, image, out, *options):
        """Return the exit code, and the lines that are printed."""
        said = io.StringIO()
        command = ["predict", self.model, image, "-o", self.root / out, "--tile", "model", *options]
        with redirect_stdout(said), redirect_stderr(said):
            status = main(list(map(str, command)))
        return status, said.getvalue().splitlines()

    def files(self, out):
        """Return the content of the files below a folder; of label TIFFs, pixels and axes."""
        found = {}
        for path in sorted(path for path in (self.root / out).rglob("*") if path.is_file()):
            name = str(path.relative_to(self.root / out))
            found[name] = path.read_bytes()
            if path.suffix == ".tif":
                with tifffile.TiffFile(path) as file:
                    found[name] = file.series[0].axes, file.series[0].shape, file.asarray().tobytes()
        return found


@pytest.fixture
def predict(tiny_model, tmp_path):
    return Predict(tiny_model, tmp_path)


IMAGES = {
    "uint8": (lambda place: tiff(place, grey(130, 170, dtype=np.uint8)), ()),
    "float32": (lambda place: tiff(place, grey(130, 170, dtype=np.float32)), ()),
    "bool": (lambda place: npy(place, grey(130, 170, dtype=bool)), ()),
    "compressed, in tiles": (lambda place: tiff(place, grey(130, 170), tile=(64, 64), compression="zlib"), ()),
    "one row": (lambda place: tiff(place, grey(1, 170)), ()),
    "one column": (lambda place: tiff(place, grey(170, 1)), ()),
    "one pixel": (lambda place: tiff(place, np.full((1, 1), 7, np.uint16)), ()),
    "smaller than a tile": (lambda place: tiff(place, grey(30, 20)), ()),
    "constant": (lambda place: tiff(place, np.full((130, 170), 7, np.uint16)), ()),
    "zeros": (lambda place: tiff(place, np.zeros((130, 170), np.float32)), ()),
    "no objects": (lambda place: tiff(place, grey(130, 170)), ("--min-area", "1000000")),
    "small ones left out": (lambda place: tiff(place, grey(130, 170)), ("--min-area", "30")),
    "rotated copies": (lambda place: tiff(place, grey(100, 120)), ("--tta",)),
    "times and depths": (lambda place: tiff(place, grey(2, 3, 80, 90), imagej=True, metadata={"axes": "TZYX"}), ()),
    "rows of times": (lambda place: tiff(place, grey(3, 1, 170), metadata={"axes": "TYX"}), ()),
    "some times": (
        lambda place: tiff(place, grey(3, 2, 80, 90), imagej=True, metadata={"axes": "TZYX"}),
        ("--select", "T=1:", "--select", "Z=1"),
    ),
    "a channel": (lambda place: tiff(place, grey(3, 90, 110), metadata={"axes": "CYX"}), ("--channel", "1")),
    "grey as colours": (lambda place: npy(place, np.repeat(grey(90, 110, dtype=np.uint8)[..., None], 3, 2)), ()),
    "named axes": (lambda place: npy(place, grey(3, 90, 110)), ("--axes", "ZYX")),
    "OME-Zarr 0.4": (lambda place: ome_zarr(place, grey(130, 170)), ()),
    "OME-Zarr 0.5": (lambda place: ome_zarr(place, grey(2, 90, 110), "0.5"), ()),
    "plate": (plate, ()),
    "a name that is a chain of fsspec": (
        lambda place: ome_zarr(place, grey(90, 110)).rename(place / "zip::a#b c.zarr"),
        (),
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_files_are_those_of_the_whole_image(predict, tmp_path, name):
    write, options = IMAGES[name]
    image = write(tmp_path)
    assert predict(image, "whole", *SAVED, *options)[0] == 0
    status, said = predict(image, "blocks", *SAVED, "--block", "70x60", *options)
    assert status == 0, said
    assert predict.files("blocks") == predict.files("whole")


@pytest.mark.parametrize("tta", [(), ("--tta",)])
def test_class_maps_are_those_of_the_whole_image(predict, tmp_path, tta):
    image = tiff(tmp_path, grey(130, 170))
    options = ("--as", "classes", *tta)
    assert predict(image, "whole", *options)[0] == 0
    assert predict(image, "blocks", "--block", "70x60", *options)[0] == 0
    assert predict.files("blocks") == predict.files("whole")
    assert len(set(tifffile.imread(tmp_path / "blocks" / "image.tif").ravel())) == 2


def with_nan(place, shape=(130, 170)):
    pixels = grey(*shape, dtype=np.float32)
    pixels[(*((1,) if len(shape) > 2 else ()), 101, 77)] = np.nan
    return tiff(place, pixels, **({"metadata": {"axes": "TYX"}} if len(shape) > 2 else {}))


def cut_off(place, **options):
    path = tiff(place, grey(130, 170), **options)
    path.write_bytes(path.read_bytes()[:-9000])
    return path


def lacking(place, version):
    path = ome_zarr(place, grey(130, 170), version)
    (path / ("0/1.2" if version == "0.4" else "0/c/1/2")).unlink()
    return path


# Where the first part that cannot be read is: workers read rows of blocks in any order.
PLACE = r" \(frame 0, rows \d+:\d+, columns \d+:\d+\) "
REFUSED = {
    "NaN": (with_nan, ": 1 pixels are NaN or infinite, the first at row 101, column 77: replace them"),
    "NaN in a stack": (
        lambda place: with_nan(place, (2, 130, 170)),
        r" \(frame 1\): 1 pixels are NaN or infinite, the first at row 101, column 77: replace them",
    ),
    "truncated": (cut_off, f"{PLACE}is cut off: its pixels end at byte"),
    "truncated tiles": (lambda place: cut_off(place, tile=(64, 64)), f"{PLACE}is cut off: the tile at rows 128:130,"),
    "missing chunk": (lambda place: lacking(place, "0.4"), rf"{PLACE}lacks the chunk 1\.2:"),
    "missing chunk of Zarr 3": (lambda place: lacking(place, "0.5"), f"{PLACE}lacks the chunk c/1/2:"),
    "channels": (lambda place: tiff(place, grey(2, 90, 110), metadata={"axes": "CYX"}), " has 2 channels: this model"),
    "colours": (lambda place: npy(place, grey(90, 110, 3)), f"{PLACE}has colours, and the model takes 1 channel: "),
    "empty": (lambda place: npy(place, np.zeros((0, 5))), " holds no pixels"),
    "complex": (
        lambda place: npy(place, grey(90, 110).astype(np.complex64)),
        ": the image is complex64: use an integer",
    ),
    "text": (lambda place: (place / "image.tif").write_text("hello") and place / "image.tif", " cannot be read: "),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_segmented_is_named_and_leaves_nothing(predict, tmp_path, name):
    write, wanted = REFUSED[name]
    (tmp_path / "in").mkdir()
    image = write(tmp_path / "in")
    status, said = predict(image, "new/out", "--block", "70x60")
    assert status == 2
    assert len(said) == 1, said
    assert re.match(f"Error: {re.escape(str(image))}{wanted}", said[0]), said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("inside", ["", "results", "0/results"])
@pytest.mark.parametrize("what", ["results", "scratch"])
def test_folders_inside_the_image_are_refused_before_anything_is_computed(predict, tmp_path, what, inside):
    image = ome_zarr(tmp_path, grey(90, 110))
    before = sorted(image.rglob("*"))
    out, options = (image / inside, ()) if what == "results" else ("out", ("--scratch", str(image / inside)))
    status, said = predict(image, out, "--block", "70x60", *options)
    assert status == 2
    assert said == [f"Error: {image / inside} lies in the image {image}: choose another folder"]
    assert sorted(image.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_a_scratch_folder_that_the_run_has_made_is_removed(predict, tmp_path):
    image = tiff(tmp_path, grey(90, 110))
    (tmp_path / "mine").mkdir()
    for scratch in ("mine", "new", "mine/new/er"):
        assert predict(image, "out", "--block", "70x60", "--scratch", str(tmp_path / scratch))[0] == 0
    assert list((tmp_path / "mine").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["image.tif", "mine", "out"]


def test_axes_that_do_not_fit(predict, tmp_path):
    image = npy(tmp_path, grey(3, 90, 110))
    status, said = predict(image, "out", "--block", "70x60", "--axes", "YX")
    assert (status, len(said)) == (2, 1), said
    assert said[0].startswith(f"Error: {image} ")
    assert "axes" in said[0]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_missing_chunks_can_be_filled(predict, tmp_path, version):
    image = lacking(tmp_path, version)
    for out, options in (("whole", ()), ("blocks", ("--block", "70x60"))):
        status, said = predict(image, out, *SAVED, "--missing-chunks", "fill", *options)
        assert status == 0, said
    assert predict.files("blocks") == predict.files("whole")


def test_an_input_that_fails_later_keeps_what_was_computed(predict, tmp_path, monkeypatch, caplog):
    image, classify, computed = ome_zarr(tmp_path, grey(130, 170)), BlockWorker.classify, []
    times = image.stat().st_atime_ns, image.stat().st_mtime_ns
    options = [*SAVED, "--block", "70x60", "--workers", "1"]
    assert predict(image, "whole", *options)[0] == 0

    def until_chunks_are_lost(self, *arguments):
        if len(computed) == 3:
            (image / "0").rename(tmp_path / "lost")
            (image / "0").mkdir()
            shutil.copy(tmp_path / "lost" / ".zarray", image / "0")
        computed.append(classify(self, *arguments))

    monkeypatch.setattr(BlockWorker, "classify", until_chunks_are_lost)
    status, said = predict(image, "out", *options)
    assert (status, len(said)) == (2, 1)
    assert re.match(rf"Error: {re.escape(str(image))}{PLACE}lacks the chunk ", said[0]), said
    assert f"is kept in {tmp_path / 'out' / '.unfinished' / 'image' / 'scratch'}: --resume" in caplog.text
    shutil.rmtree(image / "0")
    (tmp_path / "lost").rename(image / "0")
    os.utime(image, ns=times)  # which renaming changed
    monkeypatch.undo()
    status, said = predict(image, "out", *options, "--resume")
    assert status == 0, said
    assert "3 of them from an unfinished run" in said[0]
    assert predict.files("out") == predict.files("whole")


def test_one_image_of_a_folder_that_fails_is_listed(predict, tmp_path):
    (tmp_path / "in").mkdir()
    with_nan(tmp_path / "in").rename(tmp_path / "in" / "bad.tif")
    tiff(tmp_path / "in", grey(130, 170))
    status, said = predict(tmp_path / "in", "out", "--block", "70x60")
    assert status == 2
    assert said[1].startswith(f"skipped: {tmp_path / 'in' / 'bad.tif'}: 1 pixels are NaN")
    assert said[2].startswith("Error: 1 of 2 images could not be segmented")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image.tif", "overlays"]


def test_an_image_that_changes_meanwhile_is_refused(predict, tmp_path, monkeypatch):
    image, write = tiff(tmp_path, grey(130, 170)), BlockWorker.write

    def touched(self, *arguments):
        os.utime(image, ns=(1, 1))
        return write(self, *arguments)

    monkeypatch.setattr(BlockWorker, "write", touched)
    wanted = f"Error: {image} was changed while it was segmented: segment it again"
    assert predict(image, "out", "--block", "70x60") == (2, [wanted])
    assert [path for path in tmp_path.iterdir() if path != image] == []


def test_a_chunk_that_changes_meanwhile_is_noticed(predict, tmp_path, monkeypatch):
    image, write = ome_zarr(tmp_path, grey(130, 170)), BlockWorker.write
    chunk = next(path for path in sorted((image / "0").rglob("*")) if path.is_file() and path.suffix != ".json")

    def touched(self, *arguments):
        os.utime(chunk, ns=(1, 1))
        return write(self, *arguments)

    monkeypatch.setattr(BlockWorker, "write", touched)
    assert predict(image, "out", "--block", "70x60")[0] == 2
    assert [path for path in tmp_path.iterdir() if path != image] == []


def test_labels_that_are_added_meanwhile_are_no_change(predict, tmp_path, monkeypatch):
    image, write = ome_zarr(tmp_path, grey(130, 170)), BlockWorker.write

    def beside(self, *arguments):
        (image / "labels" / "others").mkdir(parents=True, exist_ok=True)
        (image / ".DS_Store").touch()
        return write(self, *arguments)

    monkeypatch.setattr(BlockWorker, "write", beside)
    assert predict(image, "out", "--block", "70x60")[0] == 0


# Disks


def filled(disk: Path, left: int) -> Path:
    """Fill a disk but for some bytes; return the file that does."""
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(shutil.disk_usage(disk).free - left))
    return ballast


@pytest.mark.parametrize("part", ["scratch", "output"])
@pytest.mark.parametrize("left", [100_000, *(pytest.param(left, marks=pytest.mark.slow) for left in (0, 300_000))])
def test_a_full_disk_is_named_and_what_was_computed_goes_on(predict, small_disk, tmp_path, part, left):
    image = npy(tmp_path, grey(400, 500))
    options = ["--block", "70x60", "--workers", "2", *SAVED, "--save", "ome-zarr"]
    out = tmp_path / "out" if part == "scratch" else small_disk / "out"
    options += ["--scratch", small_disk / "scratch"] if part == "scratch" else ["--scratch", tmp_path / "scratch"]
    assert predict(image, "whole", *options)[0] == 0
    ballast = filled(small_disk, left)
    status, said = predict(image, out, *options)
    assert status == 2, said
    assert len(said) == 1
    assert said[0].startswith("Error: cannot write "), said
    assert said[0].endswith("No space left on device"), said
    assert str(small_disk) in said[0]
    ballast.unlink()
    status, said = predict(image, out, *options, "--resume")
    assert status == 0, said
    assert predict.files(out) == predict.files("whole")


def test_a_folder_that_is_read_only_is_named(predict, small_disk, tmp_path):
    image = npy(tmp_path, grey(130, 170))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, said = predict(image, small_disk / "out", "--block", "70x60")
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith(f"Error: cannot write to {small_disk / 'out'}: ")
    status, said = predict(image, "out", "--block", "70x60", "--scratch", small_disk / "scratch")
    assert (status, len(said)) == (2, 1)
    assert said[0] == f"Error: cannot write {small_disk / 'scratch' / 'image'}: Read-only file system"
    assert not (tmp_path / "out").exists()

"""`segment_large`: one call of a program for an image of any kind and size, equal to the image in memory."""

import pickle
import tempfile

import numpy as np
import pytest
import tifffile
import zarr

from tests import requirements
from unetrt.runtime import PixelSize, Segmenter, segment_large
from unetrt.runtime.blockwise import HowInBlocks
from unetrt.runtime.blockwise.run import Blockwise
from unetrt.runtime.errors import FrameError, OptionError, OutputError, UnetrtError
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import layout_of, read_label_stack
from unetrt.runtime.files.windows import ArraySource, open_windows

IMAGE = np.random.default_rng(0).integers(0, 4000, (150, 170)).astype(np.uint16)
IMAGE[20:90, 30:140] += 4000
STACK = np.stack([IMAGE, IMAGE[::-1], IMAGE // 2])
BLOCK = {"block": (64, 64)}


@pytest.fixture(scope="module")
def segmenter(tiny_model):
    with Segmenter(tiny_model, backend="onnxruntime") as opened:
        yield opened


@pytest.fixture(scope="module")
def expected(segmenter):
    return segmenter.objects(IMAGE).labels


def file_of(folder):
    path = folder / "raw.tif"
    tifffile.imwrite(path, IMAGE, tile=(64, 64))
    return path


def memory_map(folder):
    np.save(folder / "raw.npy", IMAGE)
    return np.load(folder / "raw.npy", mmap_mode="r")


def stored(folder):
    array = zarr.create_array(folder / "raw.zarr", shape=IMAGE.shape, dtype=IMAGE.dtype, chunks=(64, 64))
    array[...] = IMAGE
    return array


def address(folder):
    stored(folder)
    return f"file://{folder}/raw.zarr"


def lazy(folder):
    da = pytest.importorskip("dask.array", reason=requirements.DASK)
    return da.from_zarr(stored(folder)) + 0


def hdf5(folder):
    h5py = pytest.importorskip("h5py", reason=requirements.HDF5)
    return h5py.File(folder / "raw.h5", "w").create_dataset("raw", data=IMAGE)


IMAGES = {
    "file": (file_of, "raw"),
    "text": (lambda folder: str(file_of(folder)), "raw"),
    "address": (address, "raw"),
    "numpy": (lambda _: IMAGE, "image"),
    "memory map": (memory_map, "image"),
    "zarr": (stored, "image"),
    "dask": (lazy, "image"),
    "hdf5": (hdf5, "image"),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_of_any_kind_has_the_labels_of_the_image_in_memory(tmp_path, segmenter, expected, kind):
    make, name = IMAGES[kind]
    shares = []
    done = segment_large(
        segmenter, make(tmp_path), tmp_path / "out", ["ome-zarr", "table"], progress=shares.append, **BLOCK
    )
    np.testing.assert_array_equal(read_label_stack(tmp_path / "out" / "ome-zarr" / f"{name}.ome.zarr")[0], expected)
    assert (done.pixels, done.objects, done.computed) == (IMAGE.size, expected.max(), done.blocks)
    assert done.blocks > 1
    assert shares == sorted(shares)
    assert shares[-1] == 1
    table = (tmp_path / "out" / "objects.csv").read_text().splitlines()
    assert len(table) == 1 + done.objects
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["objects.csv", "ome-zarr"]


def test_a_model_by_its_path_and_what_is_known_of_an_array(tmp_path, tiny_model, segmenter):
    segment_large(
        tiny_model,
        STACK,
        tmp_path,
        ["labels", "ome-zarr"],
        name="plate/well",
        pixel_size=PixelSize(0.5, 0.25, 2),
        reading=Reading(axes="ZYX"),
        kind="classes",
        version="0.5",
    )
    layout = layout_of(tmp_path / "ome-zarr/plate/well.ome.zarr")
    assert (layout.axes, layout.shape, layout.pixel_size) == ("ZYX", STACK.shape, PixelSize(0.5, 0.25, 2))
    with tifffile.TiffFile(tmp_path / "plate" / "well.tif") as tiff:
        assert tiff.series[0].axes == "ZYX"
        np.testing.assert_array_equal(tiff.asarray(), segmenter.segment(STACK).labels)


def test_small_objects_are_dropped(tmp_path, segmenter):
    segment_large(segmenter, IMAGE, tmp_path, min_area=30, **BLOCK)
    found = read_label_stack(tmp_path / "ome-zarr/image.ome.zarr")[0]
    np.testing.assert_array_equal(found, segmenter.objects(IMAGE, min_area=30).labels)


class StoppedError(Exception):
    pass


def stop_halfway(share):
    if share > 0.45:
        raise StoppedError


def leave_unfinished(folder, segmenter, image, **how):
    with pytest.raises(StoppedError):
        segment_large(segmenter, image, folder, progress=stop_halfway, workers=1, **BLOCK, **how)


@pytest.mark.parametrize("kind", IMAGES)
def test_a_run_that_ended_goes_on(tmp_path, segmenter, expected, kind):
    make, name = IMAGES[kind]
    image = make(tmp_path)
    leave_unfinished(tmp_path / "out", segmenter, image)
    with pytest.raises(OptionError, match="holds an unfinished run of .*resume"):
        segment_large(segmenter, image, tmp_path / "out", **BLOCK)
    done = segment_large(segmenter, image, tmp_path / "out", resume=True, **BLOCK)
    assert 0 < done.computed < done.blocks
    np.testing.assert_array_equal(read_label_stack(tmp_path / "out" / "ome-zarr" / f"{name}.ome.zarr")[0], expected)


@pytest.mark.parametrize("scratch", [None, "scratch", "memory://names"])
def test_an_unfinished_run_stays_when_an_image_has_the_name_of_its_folder(tmp_path, segmenter, scratch):
    how = {"scratch": scratch and scratch.replace("scratch", str(tmp_path / "scratch"))}
    leave_unfinished(tmp_path / "out", segmenter, IMAGE, name="plate/well", **how)
    segment_large(segmenter, IMAGE, tmp_path / "out", name="plate", **BLOCK, **how)
    done = segment_large(segmenter, IMAGE, tmp_path / "out", name="plate/well", resume=True, **BLOCK, **how)
    assert 0 < done.computed < done.blocks
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ome-zarr"]


@pytest.mark.parametrize("part", ["records/write/0/0", "confidence/0"])
def test_measurements_that_are_damaged_are_named_and_computed_again(tmp_path, segmenter, part):
    kept = tmp_path / "scratch" / "image" / part

    def damage(share):
        if share > 0.95 and kept.exists():
            kept.write_bytes(kept.read_bytes()[:-1])

    how = {"save": ["table"], "scratch": tmp_path / "scratch", **BLOCK}
    with pytest.raises(OutputError, match="scratch.image lacks .*: --resume computes it again"):
        segment_large(segmenter, IMAGE, tmp_path / "out", progress=damage, **how)
    segment_large(segmenter, IMAGE, tmp_path / "out", resume=True, **how)
    segment_large(segmenter, IMAGE, tmp_path / "expected", **how)
    assert (tmp_path / "out" / "objects.csv").read_text() == (tmp_path / "expected" / "objects.csv").read_text()


def test_measurements_need_no_room_among_temporary_files(tmp_path, segmenter, monkeypatch):
    """These are in the memory of many machines."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    assert segment_large(segmenter, IMAGE, tmp_path / "out", ["table", "geojson"], **BLOCK).objects > 0


def written_again(folder):
    image = memory_map(folder)
    image = np.load(folder / "raw.npy", mmap_mode="r+")
    image[0] += 1
    image.flush()
    return image


def chunks_written_again(folder):
    array = zarr.open_array(folder / "raw.zarr", mode="r+")
    array[-1:] = IMAGE[-1:] + 1
    return array


OTHERS = {
    "other pixels": (lambda _: IMAGE, lambda _: IMAGE + np.uint16(1)),
    "another dtype": (lambda _: IMAGE, lambda _: IMAGE.astype(np.int32)),
    "another shape": (lambda _: IMAGE, lambda _: IMAGE[1:]),
    "a file that was written since": (memory_map, written_again),
    "chunks that were written since": (stored, chunks_written_again),
    "an array elsewhere": (stored, lambda folder: zarr.create_array(folder / "b.zarr", data=IMAGE, chunks=(64, 64))),
    "another file": (hdf5, lambda folder: hdf5_at(folder / "b.h5")),
}


def hdf5_at(path):
    path.mkdir()
    return hdf5(path)


@pytest.mark.parametrize("case", OTHERS)
def test_a_run_does_not_go_on_with_another_image(tmp_path, segmenter, case):
    first, second = OTHERS[case]
    leave_unfinished(tmp_path / "out", segmenter, first(tmp_path))
    with pytest.raises(OptionError, match=r"the unfinished run in .* has another image"):
        segment_large(segmenter, second(tmp_path), tmp_path / "out", resume=True, **BLOCK)


def test_a_run_does_not_go_on_with_another_model(tmp_path, segmenter, large_model):
    leave_unfinished(tmp_path, segmenter, IMAGE)
    message = "the unfinished run in .* has another model"
    with Segmenter(large_model, backend="onnxruntime") as other, pytest.raises(OptionError, match=message):
        segment_large(other, IMAGE, tmp_path, resume=True, **BLOCK)


REFUSED = {
    "no such file": ({"image": "no.tif"}, FrameError, "no.tif"),
    "no such address": ({"image": "memory://no.zarr"}, FrameError, "memory://no.zarr"),
    "another number of axes": ({"image": IMAGE[0]}, FrameError, r"the image has shape \(170,\): this model takes"),
    "no numbers": ({"image": np.full((9, 9), "a")}, FrameError, "the image is <U1: use an integer or float dtype"),
    "no kind of file": ({"save": ["png"]}, OptionError, "'png' is no kind of file: use labels, ome-zarr"),
    "a text of kinds": ({"save": "labels"}, OptionError, r"save must be a list of kinds, such as \['labels'\]"),
    "outlines": ({"save": ["outlines"]}, OptionError, "use --save geojson"),
    "a table of classes": ({"save": ["table"], "kind": "classes"}, OptionError, "table lists instances"),
    "no kind of labels": ({"kind": "cells"}, OptionError, "'cells' are unknown: use instances or classes"),
    "a share of pixels": ({"min_area": 0.5}, OptionError, r"min_area must be a whole number .*got 0.5"),
    "no address": ({"scheduler": 8786}, OptionError, r"scheduler must be an address.*got 8786"),
    "no scratch": ({"scratch": ["a"]}, OptionError, r"scratch must be a folder or an address .*got \['a'\]"),
    "a yes": ({"resume": "yes"}, OptionError, "resume must be True, False or None .*got 'yes'"),
    "no workers": ({"workers": 0}, OptionError, "workers must be an integer from 1"),
    "no block": ({"block": 64}, OptionError, r"block must be a height and a width .*got 64"),
    "another version": ({"version": "0.6"}, OptionError, "version must be 0.4 or 0.5"),
    "a name above": ({"name": "../a"}, OptionError, r"name must be that of files .*got '\.\./a'"),
    "a name from the root": ({"name": "/a"}, OptionError, "name must be that of files"),
    "an empty name": ({"name": ""}, OptionError, "name must be that of files"),
    "no name": ({"name": 3}, OptionError, r"name must be that of files .*got 3"),
    "a number for a size": ({"pixel_size": 0.65}, OptionError, r"pixel_size must be a PixelSize.*got 0.65"),
    "a size of a file": ({"image": "a.tif", "pixel_size": PixelSize(1, 1)}, OptionError, "of a.tif is read from it"),
    "no function": ({"progress": 3}, OptionError, r"progress must be a function .*got 3"),
    "an open model": ({"scheduler": "tcp://127.0.0.1:1"}, OptionError, "cannot use an open Segmenter: give the path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_work_is_refused_in_one_line_and_nothing_is_written(tmp_path, segmenter, case):
    changed, kind, said = REFUSED[case]
    given = {"image": IMAGE, "folder": tmp_path / "out", **BLOCK, **changed}
    with pytest.raises(kind, match=said) as caught:
        segment_large(segmenter, **given)
    assert isinstance(caught.value, UnetrtError)
    assert len(str(caught.value).splitlines()) == 1
    assert [path for path in tmp_path.rglob("*") if not path.is_dir()] == []


UNSENDABLE = {
    "numpy": (lambda _: IMAGE, "is in the memory of this process, and workers of a cluster need it: give its file"),
    "a part of a memory map": (lambda folder: memory_map(folder)[1:], "is in the memory of this process"),
    "hdf5": (hdf5, "cannot be sent to workers of a cluster .*h5py.*: give its file"),
    "dask of numpy": (lambda _: lazy_of(np.zeros((2048, 2048), np.uint8)), "takes 4 MiB to send with each block"),
}


def lazy_of(pixels):
    return pytest.importorskip("dask.array", reason=requirements.DASK).from_array(pixels)


@pytest.mark.parametrize("case", UNSENDABLE)
def test_an_image_that_workers_cannot_open_is_refused_before_anything_is_sent(tmp_path, tiny_model, case):
    make, said = UNSENDABLE[case]
    with pytest.raises(OptionError, match=said):
        segment_large(tiny_model, make(tmp_path), tmp_path / "out", scheduler="tcp://127.0.0.1:1")
    assert not (tmp_path / "out").exists()


def test_a_memory_map_is_sent_as_its_file(tmp_path):
    for image in (memory_map(tmp_path), np.memmap(tmp_path / "raw", ">i4", "w+", 8, (30, 40), "F")):
        sent = pickle.dumps(ArraySource(image))
        assert len(sent) < 1000
        with open_windows(pickle.loads(sent), channels=1) as windows:
            whole = (slice(0, side) for side in image.shape)
            np.testing.assert_array_equal(windows.read(0, *whole)[0], image)


def test_workers_of_a_cluster_read_arrays(tmp_path, tiny_model, expected):
    distributed = pytest.importorskip("distributed", reason=requirements.DASK)
    local = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None, "worker_dashboard_address": None}
    with distributed.LocalCluster(**local, local_directory=tmp_path / "cluster") as cluster:
        for kind in ("dask", "memory map", "zarr", "address"):
            (folder := tmp_path / kind).mkdir()
            make, name = IMAGES[kind]
            segment_large(
                tiny_model, make(folder), folder / "out", scheduler=cluster.scheduler_address, block=(128, 128)
            )
            found = read_label_stack(folder / "out" / "ome-zarr" / f"{name}.ome.zarr")[0]
            np.testing.assert_array_equal(found, expected)


def is_in_a_task(block):
    """Pixels that say whether a task of a cluster computes them."""
    from distributed import get_worker

    try:
        get_worker()
    except ValueError:
        return np.zeros_like(block)
    return np.ones_like(block)


def test_pixels_of_dask_arrays_are_computed_where_they_are_read(tmp_path):
    distributed = pytest.importorskip("distributed", reason=requirements.DASK)
    array = lazy(tmp_path).map_blocks(is_in_a_task, dtype=IMAGE.dtype)
    options = {"processes": False, "dashboard_address": None, "local_directory": tmp_path / "cluster"}
    with distributed.Client(n_workers=1, threads_per_worker=1, **options), open_windows(array, channels=1) as windows:
        assert array.compute().all()
        assert not windows.read(0, slice(0, 100), slice(0, 100)).any()


def test_the_options_are_those_of_blocks():
    assert {*HowInBlocks.__annotations__} == {*Blockwise.__dataclass_fields__}

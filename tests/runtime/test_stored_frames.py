"""Images and labels that are not in memory: read and written by blocks, with the labels of the image in memory."""

import subprocess
import sys
from dataclasses import replace

import dask.array
import numpy as np
import pytest
import zarr

from tests.conftest import small_spec
from tests.runtime.test_block_classes import PlaceSession, frame_of
from unetrt.runtime.errors import FrameError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.running import Running
from unetrt.runtime.segment import _blocks
from unetrt.runtime.segment import segmenter as module
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import CropSession

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Frames of more than 1000 pixels are large, and have several blocks."""
    for place in (_blocks, module):
        monkeypatch.setattr(place, "LARGE", 1000)
    monkeypatch.setattr(_blocks, "SIDE", 64)
    monkeypatch.setattr(_blocks, "SIDE_OF_SCORES", 32)


def as_zarr(array, folder):
    stored = zarr.create_array(folder / "image", shape=array.shape, chunks=array.ndim * (23,), dtype=array.dtype)
    stored[...] = array
    return stored


def as_memmap(array, folder):
    stored = np.memmap(folder / "image", array.dtype, "w+", shape=array.shape)
    stored[...] = array
    return stored


def as_dask(array, folder):
    return dask.array.from_array(array, chunks=17)


KINDS = {"zarr": as_zarr, "memmap": as_memmap, "dask": as_dask}


class Watched:
    """An array that notes the parts that are read."""

    def __init__(self, array):
        self.array, self.read = array, []
        self.shape, self.dtype = array.shape, array.dtype

    def __getitem__(self, index):
        part = self.array[index]
        self.read.append(part.shape)
        return part


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["percentile", "zscore", "fixed"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
def test_labels_are_those_of_the_image_in_memory(kind, mode, dtype, tmp_path):
    image = frame_of(150, 133, dtype=dtype)[0] + 3
    normalisation = Normalisation(mode, offset=(90.0,), scale=(0.013,))
    with PlaceSession(normalisation=normalisation) as session, Segmenter(session) as segmenter:
        expected = segmenter.segment(image).labels
        result = segmenter.segment(KINDS[kind](image, tmp_path))
        assert isinstance(result.labels, np.ndarray)
        np.testing.assert_array_equal(result.labels, expected)


@pytest.mark.parametrize(
    "options", [{"probabilities": True}, {"tta": True}, {"tta": True, "probabilities": True}], ids=str
)
def test_probabilities_too(options, tmp_path):
    image = frame_of(90, 101)[0]
    with PlaceSession() as session, Segmenter(session) as segmenter:
        expected, seen = segmenter.segment(image, **options), []
        found = segmenter.segment(as_zarr(image, tmp_path), **options, progress=lambda *at: seen.append(at))
        np.testing.assert_array_equal(found.labels, expected.labels)
        if expected.probabilities is not None:
            np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        assert seen[-1][0] == seen[-1][1] == found.timings.tiles


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 2, 80, 70)), (3, (3, 80, 70)), (3, (2, 3, 80, 70))])
@pytest.mark.parametrize("kind", KINDS)
def test_stacks_and_channels_and_labels_on_disk(channels, shape, kind, tmp_path):
    image = np.random.default_rng(0).integers(0, 900, shape).astype(np.uint16)
    with PlaceSession(channels=channels) as session, Segmenter(session) as segmenter:
        expected = segmenter.segment(image).labels
        chunks = (*(1,) * (expected.ndim - 2), 29, 31)
        out = zarr.create_array(tmp_path / "labels", shape=expected.shape, chunks=chunks, dtype="uint8")
        result = segmenter.segment(KINDS[kind](image, tmp_path), out=out)
    assert result.labels is out
    np.testing.assert_array_equal(out[...], expected)
    assert len(result.timings.frames) == int(np.prod(expected.shape[:-2]))
    assert all(0 < frame.total <= result.timings.total for frame in result.timings.frames)


@pytest.mark.parametrize("size", [(20, 30), (150, 133)], ids=["small", "large"])
def test_an_image_in_memory_goes_to_labels_on_disk(size, tmp_path):
    image = frame_of(*size)[0]
    out = zarr.create_array(tmp_path / "labels", shape=size, chunks=(29, 31), dtype="uint8")
    mapped = np.memmap(tmp_path / "mapped", np.uint8, "w+", shape=size)
    with PlaceSession() as session, Segmenter(session) as segmenter:
        expected = segmenter.segment(image).labels
        for labels in (out, mapped):
            assert segmenter.segment(image, out=labels).labels is labels
            np.testing.assert_array_equal(labels[...], expected)


def test_a_frame_is_read_in_windows_of_blocks():
    image = Watched(frame_of(400, 390)[0])
    with PlaceSession(normalisation=AS_IT_IS) as session, Segmenter(session) as segmenter:
        segmenter.segment(image)
        reach = max(segmenter.spec.tile) + 2 * segmenter.spec.halo
    assert len(image.read) > 20
    assert max(side for shape in image.read for side in shape) <= 64 + reach


def test_small_frames_and_those_with_a_measure_are_read_as_a_whole():
    stack = frame_of(20, 30, 3)
    with PlaceSession() as session, Segmenter(session) as segmenter:
        small, large = Watched(stack), Watched(frame_of(150, 133)[0])
        segmenter.segment(small)
        assert small.read == [(20, 30)] * 3
        found = segmenter.segment(large, measure=Running(segmenter.spec.normalisation).measure).labels
        expected = segmenter.segment(large.array, measure=Running(segmenter.spec.normalisation).measure).labels
        np.testing.assert_array_equal(found, expected)
        assert (150, 133) in large.read


def test_all_blocks_go_through_one_loop(monkeypatch):
    """A pass may hold tiles of two blocks: lanes are not drained in between."""
    image = Watched(frame_of(150, 133)[0])
    with PlaceSession(normalisation=AS_IT_IS, batch=4) as session, Segmenter(session, lanes=1) as segmenter:
        launches, blocks = [], _blocks.BlockPlan(segmenter.spec.plan((150, 133)), (64, 64))
        submit = session.submit
        monkeypatch.setattr(session, "submit", lambda work: launches.append(1) or submit(work))
        segmenter.segment(image)
    assert sum(len(block) % 4 != 0 for block in blocks) > 1
    assert len(launches) == -(-len(segmenter.spec.plan((150, 133))) // 4)


@pytest.mark.parametrize("mode", ["percentile", "fixed"])
def test_pixels_that_are_not_finite_are_named_as_in_memory(mode, tmp_path):
    stack = np.zeros((2, 150, 133), np.float32)
    stack[1, 149, 100] = np.inf
    stack[1, 70, 132] = np.nan
    normalisation = Normalisation(mode, offset=(90.0,), scale=(0.013,))
    with PlaceSession(normalisation=normalisation) as session, Segmenter(session) as segmenter:
        with pytest.raises(FrameError) as expected:
            segmenter.segment(stack)
        with pytest.raises(FrameError) as caught:
            segmenter.segment(as_zarr(stack, tmp_path))
    assert str(caught.value) == str(expected.value)
    assert "frame 1: 2 pixels are NaN or infinite, the first at row 70, column 132" in str(caught.value)


class Leading(Watched):
    def __getitem__(self, index):
        if any(isinstance(one, slice) for one in index):
            raise TypeError("an integer is required")
        return self.array[index]


class Ragged(Watched):
    def __getitem__(self, index):
        return self.array[..., :5]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Leading(frame_of(150, 133)[0]),
         r"rows 0 to \d+, columns 0 to \d+ of the image, a Leading, cannot be read \(an integer is required\): an "
         r"image must be readable by integers and slices"),
        (Ragged(frame_of(150, 133)[0]), r"a part of the image has shape \(1, 150, 5\), not \(1, 1, 1\)"),
        (Watched(frame_of(150, 133, dtype=complex)[0]), "the image is complex128: use an integer or float dtype"),
        (Watched(np.zeros((150, 133), "U5")), "the image is <U5: use an integer"),
    ],
    ids=["leading axes only", "ragged", "complex", "text"],
)  # fmt: skip
def test_images_that_cannot_be_read_in_parts_are_refused(image, message):
    with PlaceSession() as session, Segmenter(session) as segmenter:
        with pytest.raises(FrameError, match=message) as caught:
            segmenter.segment(image)
        segmenter.segment(image.array[:20, :30].astype(np.uint8) if image.dtype.kind in "ui" else frame_of(9, 9)[0])
    assert "\n" not in str(caught.value)


def test_a_graph_that_takes_raw_pixels_takes_no_others(tmp_path):
    fixed = Normalisation("fixed", offset=(90.0,), scale=(0.013,))
    segmenter = Segmenter(CropSession(small_spec(normalisation=fixed, input_dtype="uint8")))
    image = frame_of(150, 133)[0]
    with pytest.raises(FrameError, match="the image is uint16: this model takes raw uint8"):
        segmenter.segment(as_zarr(image, tmp_path))
    low = image.astype(np.uint8)
    np.testing.assert_array_equal(segmenter.segment(as_dask(low, None)).labels, segmenter.segment(low).labels)
    assert replace(segmenter.spec, input_dtype="float32").takes_raw is False


class Unwritable(Watched):
    def __setitem__(self, index, labels):
        raise ValueError("the store is\nclosed")


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (lambda folder: zarr.create_array(folder / "a", shape=(5, 5), dtype="uint8"), r"give uint8 \(150, 133\)"),
        (lambda folder: zarr.create_array(folder / "a", shape=(150, 133), dtype="int32"), "out is int32"),
        (lambda folder: read_only(folder / "a"), "out is read-only"),
        (lambda folder: Watched(np.zeros((150, 133), np.uint8)),
         "out is a Watched: give a numpy array, a Zarr or HDF5 array, or"),
        (lambda folder: Unwritable(np.zeros((150, 133), np.uint8)),
         r"labels cannot be written to out, a Unwritable \(the store is closed\): give an array that is open"),
        (lambda folder: (folder / "a").as_posix(), "out"),
    ],
    ids=["shape", "dtype", "read-only", "without setitem", "closed", "path"],
)  # fmt: skip
def test_out_must_be_writable_by_parts(out, message, tmp_path):
    with (
        PlaceSession() as session,
        Segmenter(session) as segmenter,
        pytest.raises(FrameError, match=message) as caught,
    ):
        segmenter.segment(frame_of(150, 133)[0], out=out(tmp_path))
    assert "\n" not in str(caught.value)


def read_only(folder):
    zarr.create_array(folder, shape=(150, 133), dtype="uint8")
    return zarr.open_array(folder, mode="r")


def test_out_is_not_the_image(tmp_path):
    image = as_zarr(frame_of(150, 133, dtype=np.uint8)[0], tmp_path)
    with PlaceSession() as session, Segmenter(session) as segmenter, pytest.raises(FrameError, match="shares memory"):
        segmenter.segment(image, out=image)


def test_memory_does_not_grow_with_the_frame(tmp_path):
    """The memory that a call adds, for a frame and for one of six times the pixels."""
    peaks = {}
    for side in (8192, 20480):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / str(side)), str(side)],
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[side] = int(done.stdout)
    assert peaks[20480] < 1.5 * peaks[8192]
    assert peaks[20480] < 20480**2  # bytes: less than the labels alone


# Prints the bytes that a call adds to the peak of the process.
PEAK = """
import sys
import zarr
from resource import RUSAGE_SELF, getrusage
from tests.conftest import small_spec
from unetrt.runtime import Segmenter
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.sessions.cpu import CropSession

folder, side = sys.argv[1], int(sys.argv[2])
image = zarr.create_array(folder + "i", shape=(side, side), chunks=(1024, 1024), dtype="uint16")
image[3000:3100, 3000:3100] = 7
extremes = Normalisation("percentile", 0.0, 100.0)
out = zarr.create_array(folder + "o", shape=(side, side), chunks=(1024, 1024), dtype="uint8")
segmenter = Segmenter(CropSession(small_spec(2, (2088, 2088), head="labels", normalisation=extremes)))
before = getrusage(RUSAGE_SELF).ru_maxrss
segmenter.segment(image, out=out)
assert (out[3050, 3050], out[2999, 3050]) == (1, 0)
print((getrusage(RUSAGE_SELF).ru_maxrss - before) * 1024)
"""

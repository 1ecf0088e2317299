"""Axes and channels of image files: what files say, what their shape tells, and what the user says."""

import numpy as np
import pytest
import tifffile
from PIL import Image

from tests import requirements
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import (
    Output,
    predict_file,
    read_frames,
    read_image,
    read_labels,
    read_stack,
    stack_shape,
)
from unetrt.runtime.files.outputs import opened_outputs


def zarr_array(path, pixels):
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    zarr.open_array(path, mode="w", shape=pixels.shape, dtype=pixels.dtype)[...] = pixels


# Each way to store an array without naming its axes.
STORED = {
    "npy": lambda path, pixels: np.save(path.with_suffix(".npy"), pixels),
    "tif": lambda path, pixels: tifffile.imwrite(path.with_suffix(".tif"), pixels, photometric="minisblack"),
    "pages": lambda path, pixels: tifffile.imwrite(
        path.with_suffix(".tif"), pixels, photometric="minisblack", metadata=None
    ),
    "zarr": lambda path, pixels: zarr_array(path.with_suffix(".zarr"), pixels),
}


def numbered(shape, dtype=np.uint16):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def stored(folder, how, pixels):
    STORED[how](folder / "a", pixels)
    return next(folder.glob("a.*"))


@pytest.mark.parametrize("how", STORED)
@pytest.mark.parametrize(
    ("shape", "order", "read"),
    [
        ((64, 48, 1), (2, 0, 1), (1, 1, 64, 48)),
        ((64, 48, 2), (2, 0, 1), (1, 2, 64, 48)),
        ((64, 48, 5), (2, 0, 1), (1, 5, 64, 48)),
        ((64, 48, 8), (2, 0, 1), (1, 8, 64, 48)),
        ((9, 7, 3), (2, 0, 1), (1, 3, 9, 7)),
        ((5, 64, 48), (0, 1, 2), (5, 1, 64, 48)),
        ((50, 8, 64), (0, 1, 2), (50, 1, 8, 64)),
        ((2, 64, 6), (0, 1, 2), (2, 1, 64, 6)),
        ((20, 64, 30), (0, 1, 2), (20, 1, 64, 30)),
    ],
)
def test_a_last_axis_that_is_much_shorter_is_channels(tmp_path, how, shape, order, read):
    pixels = numbered(shape)
    path = stored(tmp_path, how, pixels)
    np.testing.assert_array_equal(read_stack(path), pixels.transpose(order).reshape(read))
    assert stack_shape(path) == read


@pytest.mark.parametrize("how", STORED)
def test_a_shape_with_two_meanings_is_refused_and_the_user_says_which(tmp_path, how):
    for shape in ((100, 120, 24), (10, 64, 5)):
        pixels = numbered(shape)
        path = stored(tmp_path, how, pixels)
        first, second, last = shape
        message = (
            rf"does not name its axes: {first} frames of {second} x {last} px, or {first} x {second} px with the "
            rf"channels last, {last}; give --axes NYX or --axes YXC"
        )
        with pytest.raises(FrameError, match=message):
            read_stack(path)
        assert stack_shape(path) is None
        np.testing.assert_array_equal(read_stack(path, Reading(axes="ZYX"))[:, 0], pixels)
        np.testing.assert_array_equal(read_stack(path, Reading(axes="YXC"))[0], np.moveaxis(pixels, -1, 0))
        assert stack_shape(path, Reading(axes="YXC")) == (1, last, first, second)
        path.unlink() if path.is_file() else None


@pytest.mark.parametrize("how", ["npy", "tif", "zarr"])
def test_four_axes_are_stacks_of_channels_and_five_are_named_by_the_user(tmp_path, how):
    pixels = numbered((2, 3, 20, 30))
    np.testing.assert_array_equal(read_stack(stored(tmp_path, how, pixels)), pixels)
    last = numbered((2, 40, 30, 5))
    np.testing.assert_array_equal(read_stack(stored(tmp_path, how, last)), np.moveaxis(last, -1, 1))
    many = numbered((2, 3, 4, 20, 30))
    path = stored(tmp_path, how, many)
    with pytest.raises(FrameError, match=r"has the shape \(2, 3, 4, 20, 30\) and does not name its axes.*--axes TZCYX"):
        read_stack(path)
    np.testing.assert_array_equal(read_stack(path, Reading(axes="TCZYX")), many.swapaxes(1, 2).reshape(8, 3, 20, 30))
    with pytest.raises(FrameError, match=r"has the shape \(2, 3, 4, 20, 30\): --axes ZYX does not name 5 axes"):
        read_stack(path, Reading(axes="ZYX"))


def test_the_user_is_believed_more_than_the_file_but_colours_stay_colours(tmp_path):
    pixels = numbered((3, 20, 30))
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "CYX"})
    assert read_stack(tmp_path / "a.tif").shape == (1, 3, 20, 30)
    assert read_stack(tmp_path / "a.tif", Reading(axes="ZYX")).shape == (3, 1, 20, 30)
    Image.fromarray(numbered((20, 30, 3), np.uint8)).save(tmp_path / "a.png")
    tifffile.imwrite(tmp_path / "rgb.tif", numbered((20, 30, 3), np.uint8), photometric="rgb")
    for name in ("a.png", "rgb.tif"):
        assert read_stack(tmp_path / name, Reading(axes="YXC")).shape == (1, 3, 20, 30)
        with pytest.raises(FrameError, match="its colours beside each other: --axes ZYX does not fit"):
            read_stack(tmp_path / name, Reading(axes="ZYX"))


def test_files_with_one_axis_fewer_have_no_channels(tmp_path):
    """Labels of images that are read with --axes, and grey images among them."""
    np.save(tmp_path / "plane.npy", numbered((40, 30)))
    np.save(tmp_path / "stack.npy", numbered((40, 50, 9)))
    assert read_labels(tmp_path / "plane.npy", Reading(axes="YXC")).shape == (40, 30)
    assert read_stack(tmp_path / "plane.npy", Reading(axes="TZYX")).shape == (1, 1, 40, 30)
    assert read_stack(tmp_path / "stack.npy", Reading(axes="TCYX")).shape == (40, 1, 50, 9)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("HWC", "axes 'HWC' are not known: use a letter of TZPNCSYX for each axis"),
        ("yxc", "axes 'yxc' are not known"),
        ("", "axes '' do not say"),
        ("ZCX", "axes 'ZCX' do not say which axes are rows, columns and channels: .*such as ZYX, YXC or TZCYX"),
        ("YYX", "axes 'YYX' do not say"),
        ("CYXS", "axes 'CYXS' do not say"),
        (3, "axes 3 are not known"),
    ],
)
def test_letters_that_name_no_axes(axes, message):
    with pytest.raises(OptionError, match=message):
        Reading(axes=axes)


def with_channels(path, names=("DAPI", "GFP", "488")):
    pixels = numbered((2, 3, 20, 30))
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "TCYX", "Channel": {"Name": list(names)}})
    return pixels


def test_channels_are_picked_by_index_and_name(tmp_path):
    path = tmp_path / "a.ome.tif"
    pixels = with_channels(path)
    for channel, indices in (
        ((1,), [1]),
        (("GFP",), [1]),
        (("gfp", 0), [1, 0]),
        ((488,), [2]),
        ((), [0, 1, 2]),
    ):
        image = read_image(path, Reading(channel=channel))
        np.testing.assert_array_equal(image.pixels, pixels[:, indices])
        assert image.layout.channels == tuple(("DAPI", "GFP", "488")[index] for index in indices)
        assert stack_shape(path, Reading(channel=channel)) == image.pixels.shape
    assert read_frames(path, 1, Reading(channel=(2,))).shape == (2, 20, 30)


def test_a_channel_that_is_not_there(tmp_path):
    with_channels(tmp_path / "a.ome.tif")
    with pytest.raises(FrameError, match=r"a.ome.tif has no channel RFP: it has 0 ... 2, named DAPI, GFP, 488"):
        read_stack(tmp_path / "a.ome.tif", Reading(channel=("RFP",)))
    with_channels(tmp_path / "twice.ome.tif", ("DAPI", "GFP", "GFP"))
    with pytest.raises(FrameError, match=r"has no channel GFP: it has 0 ... 2, named DAPI, GFP, GFP"):
        read_stack(tmp_path / "twice.ome.tif", Reading(channel=("GFP",)))
    np.save(tmp_path / "a.npy", numbered((20, 30)))
    with pytest.raises(FrameError, match=r"a.npy has no channel 1: it has 0 only and does not name them"):
        read_stack(tmp_path / "a.npy", Reading(channel=(1,)))
    for wrong in (True, -1, "", 1.0):
        with pytest.raises(OptionError, match="a channel must be an index, from 0, or a name"):
            Reading(channel=(wrong,))


def test_labels_have_no_channel_to_pick(tmp_path):
    np.save(tmp_path / "a.npy", numbered((20, 30)))
    assert read_labels(tmp_path / "a.npy", Reading(channel=(2,))).shape == (20, 30)


@pytest.mark.parametrize("kind", ["instances", "classes"])
def test_narrow_frames_of_a_file_that_names_its_axes_are_segmented(tmp_path, tiny_model, kind):
    from unetrt.runtime import Segmenter

    frames = np.random.default_rng(0).integers(0, 255, (40, 33, 7)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", frames, imagej=True, metadata={"axes": "TYX"})
    outputs = opened_outputs(tmp_path / "out", ["labels"], channels=1)
    with Segmenter(tiny_model, backend="onnxruntime") as segmenter, outputs as files:
        labels = predict_file(segmenter, tmp_path / "a.tif", Output(files, kind))
        alone = segmenter.objects(frames[5]).labels if kind == "instances" else segmenter.segment(frames[5]).labels
    assert labels.shape == frames.shape
    np.testing.assert_array_equal(labels[5], alone)

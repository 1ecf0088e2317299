"""`--select`: frames of stacks by axis, images by name, in whole reads and by windows."""

import numpy as np
import pytest
import tifffile

from tests.runtime import test_ome_zarr as ome_zarr
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.files.images import layout_of, read_image, read_label_stack, stack_shape, stacked_axes_of
from unetrt.runtime.files.sources import list_images
from unetrt.runtime.files.windows import open_windows

# Each pixel is its own index.
STACK = np.arange(6 * 4 * 2 * 20 * 30, dtype=np.uint32).reshape(6, 4, 2, 20, 30)


def write_ome(path):
    tifffile.imwrite(path.with_suffix(".ome.tif"), STACK, metadata={"axes": "TZCYX"}, tile=(16, 16), compression="zlib")
    return path.with_suffix(".ome.tif")


def write_npy(path):
    np.save(path.with_suffix(".npy"), STACK)
    return path.with_suffix(".npy")


def write_zarr(path):
    zarr = pytest.importorskip("zarr", reason=ome_zarr.requirements.ZARR)
    zarr.create_array(path.with_suffix(".zarr"), data=STACK, chunks=(1, 1, 2, 16, 16), dimension_names=list("tzcyx"))
    return path.with_suffix(".zarr")


SELECTIONS = {
    ("T=0:2",): np.s_[0:2],
    ("T=::2", "Z=1"): np.s_[::2, 1:2],
    ("t=-2:", "Z=::3"): np.s_[-2:, ::3],
    ("T=3",): np.s_[3:4],
    ("T=-1",): np.s_[-1:],
    ("T=4:100", " Z = 1 : 3 "): np.s_[4:, 1:3],
    ("T=:",): np.s_[:],
}


@pytest.mark.parametrize("write", [write_ome, write_npy, write_zarr])
@pytest.mark.parametrize(("select", "index"), SELECTIONS.items())
def test_frames_of_a_stack(tmp_path, write, select, index):
    path, expected = write(tmp_path / "a"), STACK[index]
    reading = Reading(select=select, axes="TZCYX")
    found = read_image(path, reading)
    np.testing.assert_array_equal(found.pixels, expected.reshape(-1, *expected.shape[2:]))
    assert stack_shape(path, reading) == found.pixels.shape
    assert found.layout.frames == (("T", expected.shape[0]), ("Z", expected.shape[1]))
    assert layout_of(path, reading) == found.layout
    with open_windows(path, reading) as windows:
        assert windows.shape == found.pixels.shape
        for frame, pixels in enumerate(found.pixels):
            np.testing.assert_array_equal(windows.read(frame, slice(3, 18), slice(10, 30)), pixels[:, 3:18, 10:30])


def test_the_axes_of_the_labels_have_the_selected_lengths(tmp_path):
    path = write_ome(tmp_path / "a")
    assert stacked_axes_of(layout_of(path, Reading(select=("T=0:3",)))) == ("TZYX", (3, 4))
    assert stacked_axes_of(layout_of(path, Reading(select=("T=0",)))) == ("ZYX", (4,))


def test_labels_are_selected_as_images(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[:, 0, 0], metadata={"axes": "TYX"})
    np.testing.assert_array_equal(
        read_label_stack(tmp_path / "a.ome.tif", Reading(select=("T=1:3",))), STACK[1:3, 0, 0]
    )


def test_only_selected_frames_take_memory(tmp_path):
    path, one = write_ome(tmp_path / "a"), STACK[0, 0].nbytes
    with pytest.raises(FrameError, match="--max-image-memory"):
        read_image(path, Reading(one))
    assert read_image(path, Reading(one, select=("T=0", "Z=0"))).pixels.nbytes == one


def test_an_axis_of_length_1_may_be_left_out_by_a_file(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", STACK[:1, :, 0], metadata={"axes": "TZYX"})
    assert stack_shape(tmp_path / "a.ome.tif", Reading(select=("T=0:10",))) == (4, 1, 20, 30)
    with pytest.raises(FrameError, match=r"a.ome.tif has nothing at T=1:: it has Z \(0 ... 3\)"):
        read_image(tmp_path / "a.ome.tif", Reading(select=("T=1:",)))


MISSING = {
    ("T=6",): r"a.ome.tif has nothing at T=6:7: it has T \(0 ... 5\), Z \(0 ... 3\)$",
    ("Z=9:12:2",): r"has nothing at Z=9:12:2: it has T",
    ("P=1",): r"has nothing at P=1:2: it has T",
}


@pytest.mark.parametrize(("select", "message"), MISSING.items())
def test_frames_that_an_image_does_not_have(tmp_path, select, message):
    path, reading = write_ome(tmp_path / "a"), Reading(select=select)
    with pytest.raises(FrameError, match=message):
        read_image(path, reading)
    with pytest.raises(FrameError, match=message), open_windows(path, reading):
        pass
    assert layout_of(path, reading) is None


def test_frames_whose_axis_has_no_name(tmp_path):
    np.save(tmp_path / "a.npy", STACK[:, 0, 0])
    with pytest.raises(FrameError, match=r"a.npy has no axis T to select from: it has N \(0 ... 5\); --axes names the"):
        read_image(tmp_path / "a.npy", Reading(select=("T=0",)))
    assert stack_shape(tmp_path / "a.npy", Reading(select=("N=0:2",))) == (2, 1, 20, 30)
    assert stack_shape(tmp_path / "a.npy", Reading(select=("T=0:2",), axes="TYX")) == (2, 1, 20, 30)


WRONG = {
    ("T=",): "select 'T=' is no index and no slice with a step of at least 1: use an index or a slice",
    ("T=a",): "is no index",
    ("T=1.5",): "is no index",
    ("T=0:5:0",): "is no index and no slice with a step of at least 1",
    ("T=5:0:-1",): "is no index and no slice with a step",
    ("T=0", "t=1"): "select 't=1' is the second of axis T: give one slice for each axis",
    ("C=0",): "select 'C=0' is not an axis of frames: --channel .channel. chooses channels",
    ("Y=0:10",): "select 'Y=0:10' is not an axis of frames: frames are processed as a whole",
    ("",): "select '' is not known: use",
    (5,): "select 5 is not known",
    "T=0": r"select must be a sequence of selections, such as \['T=0'\]",
}


@pytest.mark.parametrize(("select", "message"), WRONG.items())
def test_what_is_no_selection(select, message):
    with pytest.raises(OptionError, match=message):
        Reading(select=select)


@pytest.mark.parametrize("wrong", ["zero", None, 0])
def test_what_missing_chunks_can_be(wrong):
    with pytest.raises(OptionError, match="missing_chunks must be refuse or fill"):
        Reading(missing_chunks=wrong)


NAMES = {
    ("*/B/*",): ["screen/B/2/0", "screen/B/2/1"],
    ("*/0", "a*"): ["a", "screen/A/1/0", "screen/B/2/0"],
    ("screen/[A-B]/1/1", "T=0"): ["screen/A/1/1"],
    ("T=0",): ["a", "screen/A/1/0", "screen/A/1/1", "screen/B/2/0", "screen/B/2/1"],
}


@pytest.mark.parametrize(("select", "names"), NAMES.items())
def test_images_by_name(tmp_path, select, names):
    ome_zarr.plate(tmp_path / "screen.zarr", "0.5")
    np.save(tmp_path / "a.npy", STACK[0, 0, 0])
    sources = list_images(tmp_path, Reading(select=select))
    assert [source.name for source in sources] == names
    with pytest.raises(OptionError, match=r"--select \(select\) \*/b/\* matches no image; there are a, screen/A/1/0,"):
        list_images(tmp_path, Reading(select=("*/b/*",)))


def test_every_field_of_a_plate_opens_by_windows(tmp_path):
    for version in ("0.4", "0.5"):
        path = ome_zarr.plate(tmp_path / f"{version}.zarr", version)
        values = []
        for source in list_images(path, Reading(select=("*/B/*",))):
            with open_windows(source) as windows:
                assert windows.shape == (1, 1, 8, 9)
                values.append(windows.read(0, slice(2, 4), slice(3, 9)).mean())
        assert values == [12, 13]


def test_positions_of_a_file_by_name(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as file:
        for number in range(3):
            file.write(STACK[number, 0, 0], metadata={"axes": "YX", "Name": f"Pos{number}"})
    found = list_images(tmp_path, Reading(select=("a_Pos[12]",)))
    assert [source.name for source in found] == ["a_Pos1", "a_Pos2"]
    for number, source in enumerate(found, 1):
        with open_windows(source) as windows:
            np.testing.assert_array_equal(windows.read(0, slice(2, 9), slice(3, 9))[0], STACK[number, 0, 0, 2:9, 3:9])

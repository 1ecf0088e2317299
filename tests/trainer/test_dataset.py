"""Folders of annotated images in every layout and format, and their splits."""

import re

import numpy as np
import pytest
import tifffile
import torch
import zarr
from PIL import Image

from tests.runtime import acquisitions
from unetrt.runtime.errors import DatasetError, FrameError, OptionError, UnetrtError
from unetrt.runtime.files.formats import Reading
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.dataset import Dataset, read_dataset, read_names
from unetrt.trainer.label_values import LabelRule
from unetrt.trainer.recipe import RECIPES
from unetrt.trainer.samples import prepare

SMALL = np.arange(20, dtype=np.uint16).reshape(4, 5)
SMALL_LABELS = np.array([[0, 1, 1, 0, 2]] * 4, np.uint8)
RNG = np.random.default_rng(0)
FRAMES = RNG.integers(0, 4000, (3, 20, 30)).astype(np.uint16)
LABELS = np.zeros((3, 20, 30), np.uint8)
LABELS[:, 2:8, 2:8], LABELS[:, 2:8, 12:20], LABELS[1] = 1, 2, 0


def tiff(path, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, pixels, **({"photometric": "minisblack"} | options))


def npy(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, pixels)


def test_a_stack_becomes_an_image_a_frame(tmp_path):
    tiff(tmp_path / "images" / "s.tif", FRAMES)
    tiff(tmp_path / "labels" / "s.tif", LABELS)
    data = read_dataset(tmp_path)
    assert [image.name for image in data.images] == ["s[0]", "s[1]", "s[2]"]
    np.testing.assert_array_equal(data.images[2].frame[0], FRAMES[2])
    np.testing.assert_array_equal(data.images[2].labels, LABELS[2])
    assert "1 images without any" in str(data)


def test_ome_tiff_npy_and_zarr_pair_by_stem(tmp_path):
    tiff(tmp_path / "images" / "a.ome.tif", FRAMES, ome=True, metadata={"axes": "TYX"})
    npy(tmp_path / "images" / "b.npy", FRAMES.astype(np.float32))
    zarr.save(tmp_path / "images" / "c.zarr", FRAMES)
    group = zarr.open_group(tmp_path / "images" / "d.ome.zarr", mode="w")
    group.create_array("0", data=FRAMES[:, None])
    axes = [{"name": name} for name in "tcyx"]
    group.attrs["ome"] = {"multiscales": [{"axes": axes, "datasets": [{"path": "0"}]}]}
    for name in ("a.tif", "b.npy", "c.tif", "d.npy"):
        (npy if name.endswith("npy") else tiff)(tmp_path / "labels" / name, LABELS)
    data = read_dataset(tmp_path)
    assert [image.name for image in data.images] == [f"{stem}[{index}]" for stem in "abcd" for index in range(3)]
    for index, image in enumerate(data.images):
        np.testing.assert_array_equal(image.frame[0], FRAMES[index % 3])
        np.testing.assert_array_equal(image.labels, LABELS[index % 3])


def plate(path, fields):
    """Write an OME-Zarr plate; `fields` are planes by path."""
    wells = sorted({field.rpartition("/")[0] for field in fields})
    group = zarr.open_group(path, mode="w", attributes={"ome": {"plate": {"wells": [{"path": one} for one in wells]}}})
    for well in wells:
        images = [{"path": field.rpartition("/")[2]} for field in fields if field.startswith(well)]
        group.create_group(well, attributes={"ome": {"well": {"images": images}}})
    for field, pixels in fields.items():
        scales = [{"axes": [{"name": name} for name in "yx"], "datasets": [{"path": "0"}]}]
        group.create_group(field, attributes={"ome": {"multiscales": scales}}).create_array("0", data=pixels)


def test_the_fields_of_plates_are_paired_by_well_and_field(tmp_path):
    fields = ("A/1/0", "A/1/1", "B/2/0")
    plate(tmp_path / "images" / "screen.ome.zarr", dict(zip(fields, FRAMES, strict=True)))
    plate(tmp_path / "labels" / "screen.zarr", dict(zip(fields, LABELS, strict=True)))
    data = read_dataset(tmp_path)
    assert [image.name for image in data.images] == [f"screen/{field}" for field in fields]
    for image, frame, labels in zip(data.images, FRAMES, LABELS, strict=True):
        np.testing.assert_array_equal(image.frame[0], frame)
        np.testing.assert_array_equal(image.labels, labels)


def test_channels_of_npy_and_ome(tmp_path):
    rgb = np.stack(list(FRAMES), axis=-1)
    npy(tmp_path / "images" / "a.npy", rgb)
    npy(tmp_path / "images" / "b.npy", np.moveaxis(rgb, -1, 0)[None])
    tiff(tmp_path / "images" / "c.tif", np.moveaxis(rgb, -1, 0), ome=True, metadata={"axes": "CYX"})
    for name in "abc":
        npy(tmp_path / "labels" / f"{name}.npy", LABELS[0])
    data = read_dataset(tmp_path)
    for image in data.images:
        np.testing.assert_array_equal(image.frame, np.moveaxis(rgb, -1, 0))


GREY = RNG.integers(0, 255, (20, 30), np.uint8)
GREY_COLOURS, COLOURS = np.dstack([GREY] * 3), RNG.integers(0, 255, (20, 30, 3), np.uint8)
OPAQUE = np.full((20, 30), 255, np.uint8)
PICTURES = {
    "grey": ([GREY_COLOURS, GREY], 1),
    "grey colours alone": ([GREY_COLOURS], 1),
    "grey with opacity": ([np.dstack([GREY_COLOURS, OPAQUE]), np.dstack([GREY, OPAQUE]), GREY], 1),
    "colours": ([COLOURS, np.dstack([COLOURS, OPAQUE]), GREY_COLOURS], 3),
}


@pytest.mark.parametrize(("pictures", "channels"), PICTURES.values(), ids=PICTURES)
def test_grey_saved_as_colours_and_opacity(tmp_path, pictures, channels):
    (tmp_path / "images").mkdir()
    for index, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
        npy(tmp_path / "labels" / f"{index}.npy", LABELS[0])
    data = read_dataset(tmp_path)
    assert data.channels == channels
    for image, pixels in zip(data.images, pictures, strict=True):
        np.testing.assert_array_equal(np.moveaxis(image.frame, 0, -1), np.atleast_3d(pixels)[..., :channels])


def test_the_cell_tracking_challenges_layout(tmp_path):
    for time in (0, 7, 12):
        tiff(tmp_path / "01" / f"t{time:03d}.tif", FRAMES[0] + time)
    tiff(tmp_path / "01_GT" / "SEG" / "man_seg007.tif", LABELS[0].astype(np.uint16))
    tiff(tmp_path / "02" / "t001.tif", FRAMES)
    tiff(tmp_path / "02_GT" / "SEG" / "man_seg_001_002.tif", LABELS[2].astype(np.uint16))
    tiff(tmp_path / "02_GT" / "TRA" / "man_track001.tif", LABELS)
    data = read_dataset(tmp_path)
    assert [image.name for image in data.images] == ["01/t007", "02/t001[2]"]
    np.testing.assert_array_equal(data.images[0].frame[0], FRAMES[0] + 7)
    np.testing.assert_array_equal(data.images[1].frame[0], FRAMES[2])


def test_a_third_folder_marks_what_is_not_annotated(tmp_path):
    mask = np.zeros((20, 30), np.uint8)
    mask[:, 15:] = 255
    for name in ("a", "b"):
        tiff(tmp_path / "images" / f"{name}.tif", FRAMES[0])
        tiff(tmp_path / "labels" / f"{name}.tif", LABELS[0])
    tiff(tmp_path / "ignore" / "b.tif", mask)
    data = read_dataset(tmp_path)
    assert data.images[0].ignored is None
    np.testing.assert_array_equal(data.images[1].ignored, mask > 0)
    assert data.ignored == pytest.approx(0.25)
    assert "25.0% of the pixels not annotated" in str(data)


@pytest.mark.parametrize(
    ("classes", "ignore", "share"), [(3, None, 0.1), (None, 255, 0.1), (3, 2, None), (None, None, 0)]
)
def test_a_label_marks_what_is_not_annotated(tmp_path, classes, ignore, share):
    """255 for class maps unless told otherwise; an instance may have any number."""
    labels = LABELS[0].copy()
    labels[:2] = 0 if ignore == 2 else 255
    tiff(tmp_path / "images" / "a.tif", FRAMES[0])
    tiff(tmp_path / "labels" / "a.tif", labels)
    data = read_dataset(tmp_path, classes, ignore)
    assert data.ignored == pytest.approx(48 / 600 if share is None else share)
    assert data.images[0].labels.max() == (3 if share == 0 else 1 if ignore == 2 else 2)


def named(tmp_path):
    for name in ("cell_01", "cell_02", "cell_03"):
        tiff(tmp_path / "images" / f"{name}.tif", FRAMES[0])
        tiff(tmp_path / "labels" / f"{name}.tif", LABELS[0])
    return read_dataset(tmp_path)


def test_a_list_says_what_is_held_back(tmp_path):
    (tmp_path / "val.txt").write_text("# held back\ncell_02.tif\n\ncell_03\n")
    train, held = named(tmp_path).split_by(read_names(tmp_path / "val.txt"))
    assert [[image.name for image in part.images] for part in (train, held)] == [["cell_01"], ["cell_02", "cell_03"]]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["cell_1"], "no image is named cell_1: did you mean cell_01?"),
        (["cell_01", "cell_02", "cell_03"], "holds back every image"),
    ],
)
def test_lists_that_do_not_fit(tmp_path, names, message):
    with pytest.raises(DatasetError, match=message):
        named(tmp_path).split_by(names)


def test_what_is_no_list(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name, message in (("empty", "names no image"), ("binary", "cannot be read"), ("none", "cannot be read")):
        with pytest.raises(DatasetError, match=message):
            read_names(tmp_path / f"{name}.txt")


BAD = {
    "a stack with one plane of labels": (
        {"images/a.tif": FRAMES, "labels/a.tif": LABELS[0]}, "a stack of 3 frames, .* of 1: .*\\(1, C, H, W\\)",
    ),
    "a mask of another shape": (
        {"images/a.tif": FRAMES[0], "labels/a.tif": LABELS[0], "ignore/a.tif": LABELS[0][:9]},
        "images.a.tif is 20 x 30.*ignore.a.tif is 9 x 30",
    ),
    "a mask without an image": (
        {"images/a.tif": FRAMES[0], "labels/a.tif": LABELS[0], "ignore/b.tif": LABELS[0]}, "mask b.tif has no partner",
    ),
    "nothing annotated": (
        {"images/a.tif": FRAMES[0], "labels/a.tif": LABELS[0], "ignore/a.tif": LABELS[0] + 1}, "no pixel is annotated",
    ),
    "a format that is not read": (
        {"images/a.tif": FRAMES[0], "labels/a.tif": LABELS[0], "labels/b.tif": LABELS[0], "images/b.webp": FRAMES[0]},
        "label b.tif has no partner .*: b.webp is there, but not read, use .tif",
    ),
    "masks of 255 as classes": (
        {"images/a.tif": FRAMES[0], "labels/a.tif": (LABELS[0] > 0) * np.uint8(255)}, "leave --classes out for masks",
    ),
    "a challenge frame that is missing": ({"01_GT/SEG/man_seg003.tif": LABELS[0]}, "t003.tif, which does not exist"),
    "a challenge file of another name": ({"01_GT/SEG/man_seg3b.tif": LABELS[0]}, "not named as the challenge"),
    "a challenge plane that is missing": (
        {"01_GT/SEG/man_seg_003_9.tif": LABELS[0], "01/t003.tif": FRAMES}, "annotates plane 9 .* which has 3",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit(tmp_path, files, message):
    for name, pixels in files.items():
        tiff(tmp_path / name, pixels)
    with pytest.raises(DatasetError, match=message):
        read_dataset(tmp_path, classes=2 if "--classes" in message else None)


def test_what_looks_odd_is_said(tmp_path):
    spots = np.zeros((20, 30), np.uint8)
    spots[::4, ::4] = 1 + np.arange(8) % 2
    for name, frame in (("a", FRAMES[0]), ("b", 0 * FRAMES[0])):
        tiff(tmp_path / "images" / f"{name}.tif", frame)
        tiff(tmp_path / "labels" / f"{name}.tif", spots)
    assert [re.sub(r"\d+", "N", doubt) for doubt in read_dataset(tmp_path).warnings()] == [
        "a (and N more) holds N values in N pieces, and each value is one object: give --masks for masks, --classes "
        "for class maps, and do not interpolate labels",
        "b without any contrast, but with objects",
    ]
    assert named(tmp_path / "good").warnings() == []


def test_a_frame_that_is_not_annotated_at_all_is_left_out(tmp_path):
    tiff(tmp_path / "images" / "s.tif", FRAMES)
    tiff(tmp_path / "labels" / "s.tif", LABELS)
    tiff(tmp_path / "ignore" / "s.tif", np.stack([0 * LABELS[0], LABELS[0] * 0 + 1, 0 * LABELS[0]]))
    assert [image.name for image in read_dataset(tmp_path).images] == ["s[0]", "s[2]"]


def test_frames_of_a_stack_stay_together(tmp_path):
    for name in ("a", "b", "c"):
        tiff(tmp_path / "images" / f"{name}.tif", FRAMES)
        tiff(tmp_path / "labels" / f"{name}.tif", LABELS)
    data = read_dataset(tmp_path)
    for seed in range(5):
        train, held = data.split(0.2, seed)
        sources = [{image.source for image in part.images} for part in (train, held)]
        assert not sources[0] & sources[1]
        assert (len(train.images), len(held.images)) == (6, 3)
    train, held = data.split_by(["b", "c[1]"])
    assert [image.name for image in held.images] == ["b[0]", "b[1]", "b[2]", "c[1]"]


def test_a_single_stack_is_split_by_frames_and_a_sequence_is_held_back_by_its_name(tmp_path):
    tiff(tmp_path / "a" / "images" / "s.tif", FRAMES)
    tiff(tmp_path / "a" / "labels" / "s.tif", LABELS)
    assert len(read_dataset(tmp_path / "a").split(0.3, seed=1)[1].images) == 1
    for sequence in ("01", "02"):
        for time in (0, 1):
            tiff(tmp_path / "b" / sequence / f"t00{time}.tif", FRAMES[0])
            tiff(tmp_path / "b" / f"{sequence}_GT" / "SEG" / f"man_seg00{time}.tif", LABELS[0])
    (tmp_path / "list").write_text("02\n01/t001.tif\n")
    _, held = read_dataset(tmp_path / "b").split_by(read_names(tmp_path / "list"))
    assert [image.name for image in held.images] == ["01/t001", "02/t000", "02/t001"]


def label_files(folder, *names, frames=1):
    """Write labels with one object for each name; an image of several frames gets a stack."""
    labels = np.zeros((frames, *acquisitions.SIZE), np.uint8)
    labels[:, 2:5, 3:7] = 1
    for name in names:
        tiff(folder / "labels" / f"{name}.tif", labels if frames > 1 else labels[0])


@pytest.mark.parametrize("alone", [True, False])
def test_each_frame_of_a_set_of_files_is_read_once(tmp_path, alone):
    acquisitions.write_frames(tmp_path / "images")
    if alone:
        label_files(tmp_path, *(f"x_T{time}" for time in range(4)))
    else:
        label_files(tmp_path, "x_T0", frames=4)
    data = read_dataset(tmp_path)
    np.testing.assert_array_equal([image.frame for image in data.images], acquisitions.stack(t=range(4)))
    assert {image.source for image in data.images} == {"x_T0"}
    parts = data.split(0.25, seed=0)
    frames = [{image.frame.tobytes() for image in part.images} for part in parts]
    assert not frames[0] & frames[1]
    assert [len(part) for part in frames] == [3, 1]


@pytest.mark.parametrize("labelled", ["series", "files"])
def test_images_of_a_file_pair_with_those_of_a_label_file_by_name(tmp_path, labelled):
    acquisitions.write_series(tmp_path / "images" / "a.ome.tif")
    if labelled == "series":
        acquisitions.write_series(tmp_path / "labels" / "a.ome.tif", ["Pos2", "Pos1", "Pos0"])
    else:
        label_files(tmp_path, *(f"a_Pos{number}" for number in range(3)), frames=2)
    rule = LabelRule(masks=False)  # planes of numbers stand for labels
    data = read_dataset(tmp_path, rule=rule)
    assert [image.name for image in data.images] == [f"a_Pos{field}[{t}]" for field in range(3) for t in range(2)]
    for index, image in enumerate(data.images):
        np.testing.assert_array_equal(image.frame[0], acquisitions.plane(index // 2, index % 2))
    if labelled == "series":  # in the opposite order
        for field, image in enumerate(data.images[::2]):
            assert len(np.unique(image.labels)) == len(np.unique(acquisitions.plane(2 - field)))
    picked = read_dataset(tmp_path, reading=Reading(series="Pos1"), rule=rule)
    assert [image.name for image in picked.images] == ["a_Pos1[0]", "a_Pos1[1]"]
    picked = read_dataset(tmp_path, reading=Reading(select=("a_Pos[12]",)), rule=rule)
    assert [image.name for image in picked.images] == ["a_Pos1[0]", "a_Pos1[1]", "a_Pos2[0]", "a_Pos2[1]"]


def test_fields_of_an_acquisition_stay_together(tmp_path):
    for name in ("a", "b"):
        for number, file in enumerate(acquisitions.write_positions(tmp_path / name)):
            (tmp_path / "images").mkdir(exist_ok=True)
            shown = f"{name}_MMStack_Pos{number}"
            with tifffile.TiffFile(file) as opened:
                text = opened.pages.first.description.replace("a_MMStack", f"{name}_MMStack")
            pages = [acquisitions.plane(number, time) for time in range(2)]
            acquisitions.write_pages(tmp_path / "images" / f"{shown}.ome.tif", pages, text)
            label_files(tmp_path, shown, frames=2)
    data = read_dataset(tmp_path)
    assert {image.source for image in data.images} == {"a_MMStack_Pos0", "b_MMStack_Pos0"}
    for seed in range(3):
        sources = [{image.source for image in part.images} for part in data.split(0.2, seed)]
        assert not sources[0] & sources[1]
    one = Dataset(data.images[:6], data.class_names, data.instances)
    for seed in range(3):
        # The frames of a field resemble each other more than two fields do.
        names = [{image.name.partition("[")[0] for image in part.images} for part in one.split(0.2, seed)]
        assert not names[0] & names[1]
    _, held = data.split_by(["a_MMStack_Pos1"])
    assert [image.name for image in held.images] == ["a_MMStack_Pos1[0]", "a_MMStack_Pos1[1]"]
    _, held = data.split_by(["b_MMStack_Pos0"])
    assert len(held.images) == 6


def test_an_empty_array_is_refused(tmp_path):
    named(tmp_path)
    for kind in ("images", "labels"):
        npy(tmp_path / kind / "cell_05.npy", np.zeros((0, 20, 30), np.uint8))
    with pytest.raises(FrameError, match="cell_05.npy holds no pixels"):
        read_dataset(tmp_path)


def test_a_background_cannot_be_ignored(tmp_path):
    named(tmp_path)
    with pytest.raises(OptionError, match="label 0 cannot be ignored"):
        read_dataset(tmp_path, ignore=0)


def test_objects_in_an_npy_are_never_unpickled(tmp_path):
    class Payload:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was run",))

    named(tmp_path)
    np.save(tmp_path / "images" / "cell_04.npy", np.array([Payload()], object), allow_pickle=True)
    npy(tmp_path / "labels" / "cell_04.npy", LABELS[0])
    with pytest.raises(FrameError, match="cell_04.npy holds Python objects, which are never loaded"):
        read_dataset(tmp_path)
    (tmp_path / "images" / "cell_04.npy").write_bytes(b"\x80\x04 a bare pickle")
    with pytest.raises(FrameError, match="cell_04.npy cannot be read"):
        read_dataset(tmp_path)


def write(folder, images=None, labels=None):
    for kind, files in (("images", images), ("labels", labels)):
        (folder / kind).mkdir()
        for name, pixels in (files or {}).items():
            path = folder / kind / name
            tifffile.imwrite(path, pixels) if path.suffix == ".tif" else Image.fromarray(pixels).save(path)
    return folder


def test_pairs_by_stem_whatever_the_format(tmp_path):
    data = read_dataset(
        write(tmp_path, {"a.tif": SMALL, "b.png": SMALL}, {"a.png": SMALL_LABELS, "b.tif": SMALL_LABELS})
    )
    assert [image.name for image in data.images] == ["a", "b"]
    assert data.images[0].frame.shape == (1, 4, 5)
    assert data.images[1].frame.dtype == np.uint16
    np.testing.assert_array_equal(data.images[0].labels, SMALL_LABELS)
    assert str(data) == "2 images (2 of 4x5; uint16; channels: 1), 4 objects (median 6 px)"


def test_class_maps(tmp_path):
    data = read_dataset(write(tmp_path, {"a.tif": SMALL}, {"a.tif": SMALL_LABELS}), classes=3)
    assert data.class_names == ("background", "class 1", "class 2")
    assert not data.instances


def test_an_image_without_objects_is_a_negative_example(tmp_path):
    data = read_dataset(
        write(tmp_path, {"a.tif": SMALL, "b.tif": SMALL}, {"a.tif": SMALL_LABELS, "b.tif": 0 * SMALL_LABELS})
    )
    assert len(data.images) == 2


NAN = np.where(SMALL == 7, np.nan, SMALL).astype(np.float32)
RGB = RNG.integers(0, 255, (4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "error", "message"),
    [
        ({}, {"a.tif": SMALL_LABELS}, None, DatasetError, "images holds no image"),
        ({"a.tif": SMALL}, {"b.tif": SMALL_LABELS}, None, DatasetError, "image a.tif has no partner of that name"),
        (
            {"a.tif": SMALL},
            {"a.tif": SMALL_LABELS, "b.tif": SMALL_LABELS, "c.tif": SMALL_LABELS},
            None,
            DatasetError,
            r"label b.tif \(and 1 more\) has no partner",
        ),
        (
            {"a.tif": SMALL, "a.png": SMALL},
            {"a.tif": SMALL_LABELS},
            None,
            DatasetError,
            "names must differ in the stem",
        ),
        (
            {"a.tif": SMALL},
            {"a.tif": SMALL_LABELS[:3]},
            None,
            DatasetError,
            "images.a.tif is 4 x 5 px, .*labels.a.tif is 3 x 5 px",
        ),
        ({"a.tif": SMALL}, {"a.tif": 0 * SMALL_LABELS}, None, DatasetError, "all 1 label images are empty"),
        ({"a.tif": NAN}, {"a.tif": SMALL_LABELS}, None, FrameError, "a.tif: 1 pixels are NaN.*row 1, column 2"),
        (
            {"a.tif": SMALL, "b.png": RGB},
            {"a.tif": SMALL_LABELS, "b.tif": SMALL_LABELS},
            None,
            DatasetError,
            "3 channels",
        ),
        ({"a.tif": np.stack([SMALL] * 2)}, {"a.tif": SMALL_LABELS}, None, DatasetError, "stack of 2 frames"),
        ({"a.tif": SMALL}, {"a.tif": SMALL_LABELS}, 2, DatasetError, r"holds class 2, 2 classes are 0 \.\.\. 1"),
    ],
)
def test_pairs_that_do_not_fit(tmp_path, images, labels, classes, error, message):
    with pytest.raises(error, match=message):
        read_dataset(write(tmp_path, images, labels), classes)


@pytest.mark.parametrize("missing", ["", "images", "labels"])
def test_a_missing_folder(tmp_path, missing):
    (tmp_path / {"": "x", "images": "labels", "labels": "images"}[missing]).mkdir()
    (tmp_path / "images" / "a.tif").touch() if missing == "labels" else None
    folder = tmp_path / "none" if missing == "" else tmp_path
    with pytest.raises(UnetrtError, match="does not exist|holds no image"):
        read_dataset(folder)


def test_a_split_loses_no_image_and_repeats_itself(drawn_folder):
    data = read_dataset(drawn_folder)
    train, held = data.split(0.25, seed=3)
    names = [image.name for part in (train, held) for image in part.images]
    assert sorted(names) == [image.name for image in data.images]
    assert len(held.images) == 1
    assert data.split(0.25, seed=3)[1].images[0].name == held.images[0].name


# Three rows of four objects, 12 px in 20; the pixels of the frame say where they are.
ROWS, COLUMNS = np.mgrid[:72, :96]
OF_ONE = np.where((ROWS % 24 < 12) & (COLUMNS % 24 < 12), 1 + ROWS // 24 * 4 + COLUMNS // 24, 0).astype(np.uint8)
FRAME_OF_ONE = (ROWS * 1000 + COLUMNS).astype(np.uint16)


def one_image(folder, labels=OF_ONE, frame=FRAME_OF_ONE, classes=None):
    folder.mkdir(exist_ok=True)
    return read_dataset(write(folder, {"a.tif": frame}, {"a.tif": labels}), classes)


@pytest.mark.parametrize(
    ("transposed", "about"), [(False, "the right 33% of a"), (True, "the bottom 33% of a")], ids=["wide", "high"]
)
def test_a_single_image_is_cut_in_two(tmp_path, transposed, about):
    turned = np.transpose if transposed else np.array
    train, held = one_image(tmp_path, turned(OF_ONE), turned(FRAME_OF_ONE)).split(None, seed=0)
    (kept,), (part,) = train.images, held.images
    joined = [np.concatenate([kept.frame[0], part.frame[0]], axis=0 if transposed else 1)]
    np.testing.assert_array_equal(joined[0], turned(FRAME_OF_ONE))
    assert turned(part.labels).shape == (72, 32)
    assert kept.ignored is part.ignored is None
    assert str(held).startswith(f"{about}: 1 images (1 of ")
    assert str(train).startswith(f"all but {about}: 1 images (1 of ")
    assert train.warnings() == [
        f"there is one image, validated on {about}: scores say little about other images (objects across the cut, "
        "which neither part counts: 0)"
    ]
    assert train.whole_sizes == {turned(OF_ONE).shape: 1}
    assert train.split(None, seed=0)[0].digest != train.digest


def test_an_object_across_the_cut_counts_in_neither_part(tmp_path):
    labels = np.where((ROWS >= 30) & (ROWS < 36) & (COLUMNS >= 50), 13, OF_ONE)
    train, held = one_image(tmp_path, labels).split(0.25, seed=5)
    for (image,), columns in ((train.images, slice(64)), (held.images, slice(64, None))):
        np.testing.assert_array_equal(image.ignored, labels[:, columns] == 13)
        np.testing.assert_array_equal(image.labels > 0, (labels[:, columns] > 0) & ~image.ignored)
    (sample,) = prepare(train, RECIPES["modern"], Normalisation())
    assert (sample.target[1][torch.from_numpy(train.images[0].ignored)] == 0).all()
    assert train.part.crossing == 1


def test_pixels_that_are_not_annotated_stay_so_in_both_parts(tmp_path):
    tiff(tmp_path / "ignore" / "a.tif", (ROWS < 5).astype(np.uint8))
    train, held = one_image(tmp_path).split(None, seed=0)
    assert all(image.ignored[:5].all() and not image.ignored[5:].any() for image in (*train.images, *held.images))


def test_a_single_class_map_a_stack_of_one_frame_and_a_list_that_names_the_only_image(tmp_path):
    classes = np.where(ROWS < 40, 1, 2).astype(np.uint8)
    train, held = one_image(tmp_path / "classes", classes, classes=3).split(None, seed=0)
    assert [data.images[0].ignored for data in (train, held)] == [None, None]
    assert set(np.unique(held.images[0].labels)) == {1, 2}
    stack = one_image(tmp_path / "stack", OF_ONE[None], FRAME_OF_ONE[None])
    assert str(stack.split(None, seed=0)[1]).startswith("the right 33% of a:")
    assert stack.split_by(["a"])[1].digest == stack.split(None, seed=0)[1].digest


def test_the_other_end_is_held_back_where_the_first_has_no_whole_object(tmp_path):
    _, held = one_image(tmp_path, np.where(COLUMNS < 60, OF_ONE, 0)).split(None, seed=0)
    assert str(held).startswith("the left 33% of a:")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (OF_ONE[:40, :60], r"a is 40 x 60 px, .* too small to hold back a part .*at least 32 x 64 px.*--val FOLDER"),
        (OF_ONE[:30], "a is 30 x 96 px, .*too small"),
        (np.where((ROWS < 20) & (COLUMNS < 20), 1, 0).astype(np.uint8), "no cut of a leaves a whole object"),
    ],
    ids=["small", "narrow", "one object"],
)
def test_a_single_image_that_cannot_be_cut(tmp_path, labels, message):
    data = one_image(tmp_path, labels, FRAME_OF_ONE[: labels.shape[0], : labels.shape[1]])
    with pytest.raises(DatasetError, match=message):
        data.split(None, seed=0)

"""Layouts of annotated images: each is read, and what does not fit is refused with the nearest file named."""

import logging

import numpy as np
import pytest
import tifffile
from PIL import Image

from unetrt.runtime import write_labels
from unetrt.runtime.errors import DatasetError
from unetrt.trainer.dataset import read_dataset
from unetrt.trainer.evaluation import LabelFormat, compare_files

FRAME = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
LABELS = np.zeros((20, 30), np.uint8)
LABELS[2:8, 2:8], LABELS[2:8, 12:20] = 1, 2


def write(root, files):
    """Write files by their path; None writes an empty one."""
    for name, pixels in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if pixels is None:
            path.touch()
        elif path.suffix == ".npy":
            np.save(path, pixels)
        elif path.suffix == ".png":
            Image.fromarray(pixels).save(path)
        else:
            tifffile.imwrite(path, pixels, photometric="minisblack")
    return root


LAYOUTS = {
    "labels": (["images/a.tif", "images/b.tif"], ["labels/a.tif", "labels/b.png"], ["a", "b"]),
    "masks": (["images/a.tif"], ["masks/a.tif"], ["a"]),
    "mask": (["image/a.tif"], ["mask/a.tif"], ["a"]),
    "suffixed": (
        ["images/a.tif", "images/b_img.tif", "images/c.tif", "images/d.tif"],
        ["labels/a_mask.tif", "labels/b_masks.tif", "labels/c_labels.png", "labels/d_label.tif"],
        ["a", "b_img", "c", "d"],
    ),
    "BBBC005": (["BBBC005_v1_images/a.tif"], ["BBBC005_v1_ground_truth/a.tif"], ["a"]),
    "BBBC039": (["images/a.tif", "images/b.tif"], ["masks/a.png", "masks/b.png"], ["a", "b"]),
    "nnU-Net": (["imagesTr/a.tif"], ["labelsTr/a.tif"], ["a"]),
    "subfolders": (
        ["images/x/a.tif", "images/y/a.tif", "images/a.tif"],
        ["labels/x/a.tif", "labels/y/a_mask.tif", "labels/a.tif"],
        ["a", "x/a", "y/a"],
    ),
    "one folder": (["a.tif", "b.tif"], ["a_mask.tif", "b_masks.png"], ["a", "b"]),
    "one folder with subfolders": (["x/a.tif", "y/a.tif", "a.tif"], ["x/a_mask.tif", "y/a_mask.tif", "a_mask.tif"],
                                   ["a", "x/a", "y/a"]),
    "Cellpose": (["a.tif", "b_img.tif"], ["a_cp_masks.png", "b_masks.tif"], ["a", "b_img"]),
    "QuPath": (["s [x=0,y=0].tif", "s [x=9,y=0].tif"], ["s [x=0,y=0]-labelled.tif", "s [x=9,y=0]-labelled.tif"],
               ["s [x=0,y=0]", "s [x=9,y=0]"]),
    "QuPath, whole images": (["a.tif"], ["a-labels.png"], ["a"]),
    "QuPath, tiles of two formats": (["s [x=0,y=0].tif", "s [x=9,y=0].ome.tif"],
                                     ["s [x=0,y=0].png", "s [x=9,y=0].png"], ["s [x=0,y=0]", "s [x=9,y=0]"]),
    "experiments": (
        ["one/images/a.tif", "two/images/a.tif", "two/deep/er/image/a.tif"],
        ["one/labels/a.tif", "two/labels/a.tif", "two/deep/er/mask/a.tif"],
        None,
    ),
    "challenges": (["x/01/t000.tif", "y/01/t000.tif"], ["x/01_GT/SEG/man_seg000.tif", "y/01_GT/SEG/man_seg000.tif"],
                   ["x/01/t000", "y/01/t000"]),
    "silver": (["01/t000.tif", "01/t001.tif"], ["01_ST/SEG/man_seg000.tif", "01_ST/SEG/man_seg001.tif"],
               ["01/t000", "01/t001"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", [name for name, (*_, names) in LAYOUTS.items() if names])
def test_each_image_has_its_own_labels(tmp_path, layout):
    images, labels, names = LAYOUTS[layout]
    files = {}
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        files[image] = FRAME + number
        files[label] = np.roll(LABELS, number, 0)
    data = read_dataset(write(tmp_path, files))
    assert [image.name for image in data.images] == names
    for image in data.images:
        number = int(image.frame[0, 0, 0])
        np.testing.assert_array_equal(image.labels, np.roll(LABELS, number, 0))


def test_a_folder_in_a_folder_of_images_is_no_data_set_beside_it(tmp_path):
    images, labels, _ = LAYOUTS["experiments"]
    files = dict.fromkeys(images, FRAME) | dict.fromkeys(labels, LABELS)
    data = read_dataset(write(tmp_path, files))
    assert [image.name for image in data.images] == ["one/a", "two/a"]


def object_at(rows, columns, value=255):
    mask = np.zeros((20, 30), np.uint8)
    mask[rows, columns] = value
    return mask


ONE, TWO = object_at(slice(2, 8), slice(2, 8)), object_at(slice(2, 8), slice(12, 20), 1)


@pytest.mark.parametrize(
    ("image", "masks"),
    [
        ("7f/images/7f.png", "7f/masks"),
        ("images/7f.png", "masks/7f"),
        ("stage1/7f/images/7f.png", "stage1/7f/masks"),
    ],
)
def test_a_file_for_each_object(tmp_path, image, masks):
    frame = FRAME.astype(np.uint8)
    write(tmp_path, {image: frame, f"{masks}/b.png": TWO, f"{masks}/a.png": ONE, f"{masks}/empty.png": 0 * ONE})
    data = read_dataset(tmp_path)
    assert [one.name for one in data.images] == ["7f" if "stage1" not in image else "stage1/7f"]
    np.testing.assert_array_equal(data.images[0].labels, LABELS)
    assert data.notes == ()
    with pytest.raises(DatasetError, match="holds a mask for each object, and no classes"):
        read_dataset(tmp_path, classes=2)


def test_a_pixel_of_several_masks_belongs_to_the_smallest_object(tmp_path):
    large = object_at(slice(0, 16), slice(0, 16))
    write(tmp_path, {"7f/images/7f.png": FRAME.astype(np.uint8), "7f/masks/a.png": ONE, "7f/masks/b.png": large})
    data = read_dataset(tmp_path)
    np.testing.assert_array_equal(data.images[0].labels, np.where(ONE > 0, 1, np.where(large > 0, 2, 0)))
    assert data.notes == (
        "36 pixels of 1 images, such as 7f, lie in several masks: they belong to the smallest object",
    )
    assert data.notes[0] in data.warnings()


def test_an_object_in_two_pieces_that_has_its_own_file_is_one(tmp_path):
    write(tmp_path, {"7f/images/7f.png": FRAME.astype(np.uint8), "7f/masks/a.png": ONE | TWO * 255})
    assert read_dataset(tmp_path).images[0].labels.max() == 1


def test_gold_truth_goes_before_silver_truth_and_it_is_said(tmp_path):
    files = {f"01/t00{time}.tif": FRAME + time for time in range(3)}
    files |= {f"01_ST/SEG/man_seg00{time}.tif": LABELS for time in range(3)} | {"02/t000.tif": FRAME}
    gold = np.roll(LABELS, 3, 0)
    data = read_dataset(write(tmp_path, files | {"01_GT/SEG/man_seg001.tif": gold, "02_GT/SEG/man_seg000.tif": gold}))
    assert [image.name for image in data.images] == ["01/t000", "01/t001", "01/t002", "02/t000"]
    np.testing.assert_array_equal(data.images[1].labels, gold)
    np.testing.assert_array_equal(data.images[2].labels, LABELS)
    (note,) = data.notes
    assert note.endswith("01: labels of 2 frames are the silver truth (01_ST), made by programs; of 1 the gold truth, "
                         "made by hand")  # fmt: skip


def test_labels_go_before_masks_and_it_is_said(tmp_path):
    data = read_dataset(write(tmp_path, {"images/a.tif": FRAME, "labels/a.tif": LABELS, "masks/a.tif": 0 * LABELS}))
    np.testing.assert_array_equal(data.images[0].labels, LABELS)
    assert data.notes == (f"{tmp_path / 'labels'} is read, and not masks beside it",)


def test_labels_of_the_same_name_are_png_files_and_it_is_said(tmp_path):
    write(tmp_path, {"a.tif": FRAME, "a.png": LABELS, "b.tif": FRAME, "b.png": LABELS})
    assert any("the PNG files are the labels" in line for line in read_dataset(tmp_path).notes)


def test_what_cellpose_writes_beside_its_masks_is_left_out(tmp_path, caplog):
    files = {"a.tif": FRAME, "a_cp_masks.png": LABELS, "a_cp_output.png": LABELS, "a_flows.tif": LABELS}
    write(tmp_path, files | {"a_seg.npy": None})
    with caplog.at_level(logging.WARNING, "unetrt"):
        data = read_dataset(tmp_path)
    assert [image.name for image in data.images] == ["a"]
    assert data.notes == ("2 pictures and flows of Cellpose are left out, such as a_cp_output",)
    assert caplog.messages == [f"{tmp_path}: 1 file left out: 1 _seg.npy"]


CELLPOSE = "a_seg.npy holds Python objects of Cellpose, which are never loaded: .* as a_cp_masks.tif"
BAD = {
    "Cellpose's objects": ({"a.tif": FRAME, "a_seg.npy": None}, CELLPOSE),
    "Cellpose's objects beside images": ({"images/a.tif": FRAME, "images/b.tif": FRAME, "images/a_seg.npy": None,
                                          "labels/b.tif": LABELS}, CELLPOSE),
    "Cellpose's objects as labels": (
        {"images/a.tif": FRAME, "labels/a_seg.npy": None, "labels/b.tif": LABELS}, CELLPOSE,
    ),
    "a name with a slip": (
        {"images/cell_01.tif": FRAME, "labels/cel_01.tif": LABELS},
        "image cell_01.tif has no partner of that name in .*labels: did you mean cel_01.* or NAME_mask",
    ),
    "two labels": (
        {"images/a.tif": FRAME, "labels/a_mask.tif": LABELS, "labels/a_masks.tif": LABELS},
        "labels.a_mask.tif and .*labels.a_masks.tif are both labels of .*images.a.tif: keep one",
    ),
    "a subfolder without labels": (
        {"images/x/a.tif": FRAME, "images/y/a.tif": FRAME, "labels/x/a.tif": LABELS},
        "image a.tif has no partner of that name in .*labels: did you mean x/a",
    ),
    "an image without labels beside others": (
        {"a.tif": FRAME, "b.tif": FRAME, "a_mask.tif": LABELS}, "image b.tif has no partner",
    ),
    "a folder with a slip": (
        {"images/a.tif": FRAME, "lables/a.tif": LABELS}, r"labels does not exist \(did you mean lables/\?\): images be",
    ),
    "images alone": ({"a.tif": FRAME}, "images does not exist: .*, or beside the images as NAME_mask"),
    "nothing": ({"a.txt": None}, "images does not exist"),
    "two folders of images": (
        {"z_1_images/a.tif": FRAME, "z_2_images/a.tif": FRAME, "labels/a.tif": LABELS},
        "holds z_1_images, z_2_images: which belong together is not known, rename the folder to read images",
    ),
    "sets to keep apart, of StarDist": (
        {f"{part}/{kind}/a.tif": LABELS for part in ("test", "train") for kind in ("images", "masks")},
        "holds the data sets train, test: give one of them, such as .*train, and --val .*test",
    ),
    "sets to keep apart": (
        {f"{part}/{kind}/a.tif": LABELS for part in ("train", "val") for kind in ("images", "labels")},
        "holds the data sets train, val: give one of them, such as .*train, and --val .*val",
    ),
    "an image without masks": (
        {"7f/images/7f.png": LABELS, "7f/masks/a.png": ONE, "8a/images/8a.png": LABELS}, "8a.labels does not exist",
    ),
    "masks of several objects": (
        {"7f/images/7f.png": LABELS, "7f/masks/a.png": LABELS}, "a.png holds several values: .*a file holds one object",
    ),
    "masks of several sizes": (
        {"7f/images/7f.png": LABELS, "7f/masks/a.png": ONE, "7f/masks/b.png": ONE[:9]},
        "b.png is 9 x 30 px, .*a.png is 20 x 30 px",
    ),
    "masks of another size": (
        {"7f/images/7f.png": LABELS, "7f/masks/a.png": ONE[:9]}, "7f.png is 20 x 30 px, .*masks is 9 x 30 px",
    ),
    "equal stems in one folder": ({"a.tif": FRAME, "a.png": LABELS, "b.tif": FRAME}, "images does not exist"),
    "equal stems": (
        {"images/x/a.tif": FRAME, "images/x/a.png": LABELS, "labels/x/a.tif": LABELS}, "must differ in the stem",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("files", "message"), BAD.values(), ids=BAD)
def test_what_does_not_fit(tmp_path, files, message):
    with pytest.raises(DatasetError, match=message) as raised:
        read_dataset(write(tmp_path, files))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("predicted", "labels", "names"),
    [
        (["a.tif", "x/a.tif"], ["labels/a_mask.tif", "labels/x/a.tif"], ["a_mask", "x/a"]),
        (["images/a.tif"], ["images/a.tif", "labels/a.tif"], ["a"]),
        (["7f/images/7f.tif", "8a.tif"], ["7f/images/7f.png", "7f/masks/1.png", "8a/images/8a.png", "8a/masks/1.png"],
         ["7f", "8a"]),
        (["a.tif"], ["a.png", "a_cp_masks.png"], ["a"]),
        (["01/t000.tif"], ["01/t000.tif", "01_GT/SEG/man_seg000.tif"], ["01/t000"]),
    ],
)  # fmt: skip
def test_scores_of_each_layout(tmp_path, predicted, labels, names):
    """What is compared is the label, of which the images are the negative."""
    for name in predicted:
        write_labels(tmp_path / "out" / name, (ONE > 0).astype(np.uint8))
    is_image = {name: "images/" in name or name in ("a.png", "01/t000.tif") for name in labels}
    write(tmp_path / "true", {name: 1 - ONE // 255 if is_image[name] else ONE // 255 for name in labels})
    true = tmp_path / "true" / ("labels" if not any(is_image.values()) else "")
    tallies = dict(compare_files(tmp_path / "out", true, LabelFormat()))
    assert list(tallies) == names
    assert all(tally.to_dict()["iou"] == 1 for tally in tallies.values())


def test_a_prediction_that_is_missing_is_named_with_the_nearest(tmp_path):
    write(tmp_path, {"out/cel_1.tif": LABELS, "labels/cell_1.tif": LABELS})
    with pytest.raises(DatasetError, match=r"has no labels for cell_1.tif: .*; did you mean cel_1\?"):
        list(compare_files(tmp_path / "out", tmp_path / "labels", LabelFormat()))

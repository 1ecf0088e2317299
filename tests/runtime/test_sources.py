"""Folders of images: subfolders, what is left out, and the names of what is made from each image."""

import logging
import os

import numpy as np
import pytest
import tifffile

from tests.runtime import acquisitions
from tests.trainer.test_dataset import LABELS, plate
from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.images import Output, predict_file
from unetrt.runtime.files.outputs import opened_outputs
from unetrt.runtime.files.sources import images_below, list_images, named_apart, source_of


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names(root, **options):
    return [source.name for source in list_images(root, **options)]


def test_subfolders_are_read_and_names_keep_them(tmp_path):
    touch(tmp_path, "b.tif", "a/x.tif", "a/deep/er/x.ome.tif", "b/x.png", "a.PNG", ".hidden/x.tif", "a/.x.tif")
    (tmp_path / "a" / "z.zarr" / "inside").mkdir(parents=True)
    touch(tmp_path / "a" / "z.zarr" / "inside", "c.png")
    assert names(tmp_path) == ["a/deep/er/x", "a/x", "a/z", "a", "b/x", "b"]
    assert [source.name for source in list_images(tmp_path / "a" / "x.tif")] == ["x"]


def test_images_of_one_file_and_of_a_plate_keep_their_subfolder(tmp_path):
    acquisitions.write_series(tmp_path / "in" / "sub" / "a.ome.tif")
    (one,) = {source.acquisition for source in list_images(tmp_path / "in")}
    assert one == "sub/a"
    assert names(tmp_path / "in") == ["sub/a_Pos0", "sub/a_Pos1", "sub/a_Pos2"]
    for folder in ("in/sub", "more"):
        plate(tmp_path / folder / "labels.zarr", {"A/1/0": LABELS, "A/1/1": LABELS})
    assert names(tmp_path / "in")[3:] == ["sub/labels/A/1/0", "sub/labels/A/1/1"]
    both = named_apart([*list_images(tmp_path / "in" / "sub"), *list_images(tmp_path / "more")])
    assert [source.name for source in both][2:] == [
        "sub/a_Pos2", "sub/labels/A/1/0", "sub/labels/A/1/1", "more/labels/A/1/0", "more/labels/A/1/1",
    ]  # fmt: skip


def test_links_are_followed_once(tmp_path):
    touch(tmp_path, "in/a.tif", "far/b.tif")
    for link, to in (("in/again", "in"), ("in/up", "."), ("in/other", "far"), ("in/twice", "far"), ("in/none", "gone")):
        (tmp_path / link).symlink_to(tmp_path / to)
    (tmp_path / "in" / "itself").symlink_to("itself")
    assert names(tmp_path / "in") == ["a", "other/b"]


def test_results_are_not_read_as_images(tmp_path):
    touch(tmp_path, "a.png", "a.csv", "overlays/a.png", "out/a.tif", "out/overlays/a.png", "out/deep/a.tif")
    touch(tmp_path, "run/validation.png", "run/best.safetensors", "now/a.tif", "outlines/a.png", "table/objects.csv")
    assert names(tmp_path, results=tmp_path / "now") == ["a"]
    found = images_below(tmp_path, tmp_path / "now").left_out
    assert found.folders == dict.fromkeys(("outlines/", "out/", "run/", "table/"), "results of an earlier run")
    assert names(tmp_path / "out") == ["a", "deep/a"]
    assert names(tmp_path / "now", results=tmp_path / "now") == ["a"]


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["images/a.tif", "labels/a.tif", "ignore/a.tif"], ["images/a"]),
        (
            ["7f/images/7f.png", "7f/masks/1.png", "7f/masks/2.png", "8a/images/8a.png"],
            ["7f/images/7f", "8a/images/8a"],
        ),
        (["01/t000.tif", "01_GT/SEG/man_seg000.tif", "01_ST/SEG/man_seg000.tif"], ["01/t000"]),
        (["BBBC005_v1_images/a.tif", "BBBC005_v1_ground_truth/a.tif"], ["BBBC005_v1_images/a"]),
        (["labels/a.tif", "plates/a.tif"], ["labels/a", "plates/a"]),
    ],
)
def test_annotations_beside_images_are_no_images(tmp_path, files, read):
    touch(tmp_path, *files)
    assert names(tmp_path) == read


@pytest.mark.parametrize(
    ("files", "read"),
    [
        (["a.tif", "a_mask.tif", "a_cp_masks.png", "a_cp_outlines.png", "b_mask.tif"], ["a", "b_mask"]),
        (["a_img.png", "a_masks.png", "x/a_masks.png"], ["a_img", "x/a_masks"]),
        (["a.ome.tif", "a-labelled.tif", "a_1.tif"], ["a", "a_1"]),
        (["a_mask.tif"], ["a_mask"]),
    ],
)
def test_annotations_in_the_folder_of_their_images_are_no_images(tmp_path, files, read, caplog):
    touch(tmp_path, *files)
    with caplog.at_level(logging.WARNING, "unetrt"):
        assert names(tmp_path) == read
    number = len(files) - len(read)
    assert [line.split("left out: ")[1] for line in caplog.messages] == [f"{number} named as annotations"] * (
        number > 0
    )
    assert len(list_images(tmp_path, annotations=True)) == len(files)


def test_what_is_left_out_is_counted_in_one_line(tmp_path, caplog):
    touch(tmp_path, "a.tif", "a.txt", "sub/b.TXT", "c.oir", "README", "a_seg.npy", "labels/a.tif", "images/a.tif")
    touch(tmp_path, "NDTiff.index")
    with caplog.at_level(logging.WARNING, "unetrt"):
        list_images(tmp_path)
    (line,) = [record.getMessage() for record in caplog.records]
    kinds = "2 .txt, 1 .oir, 1 without suffix, 1 _seg.npy"
    assert line.startswith(f"{tmp_path}: 5 files left out: ")
    assert sorted(line.partition("out: ")[2].partition(";")[0].split(", ")) == sorted(kinds.split(", "))
    assert line.endswith("; folder left out: labels/ (annotations)")
    with pytest.raises(FrameError, match=r"labels2 holds no image: .tif, .* are read \(1 file left out: 1 .txt\)"):
        touch(tmp_path, "labels2/a.txt")
        list_images(tmp_path / "labels2")


def test_many_kinds_are_summed_up(tmp_path):
    touch(tmp_path, "a.tif", *(f"{kind}.{kind}" for kind in "bcdefghi"), *(f"{number}.txt" for number in range(9)))
    assert str(images_below(tmp_path).left_out).endswith(" 4 others")
    assert str(images_below(tmp_path).left_out).startswith("17 files left out: 9 .txt, 1 .")


@pytest.mark.skipif(os.geteuid() == 0, reason="a user who can read everything")
def test_a_subfolder_that_cannot_be_read_is_named(tmp_path):
    touch(tmp_path, "a.tif", "sub/b.tif")
    (tmp_path / "sub").chmod(0)
    try:
        assert images_below(tmp_path).left_out.folders == {"sub/": "Permission denied"}
    finally:
        (tmp_path / "sub").chmod(0o755)


@pytest.mark.parametrize(
    ("files", "apart"),
    [
        (["a/x.tif", "b/x.tif", "b/y.tif"], ["a/x", "b/x", "b/y"]),
        (["a/x.tif", "b/y.tif"], ["x", "y"]),
        (["a/x.tif", "a/x.tif"], ["x"]),
        (["p/a/x.tif", "q/a/x.tif"], ["p/a/x", "q/a/x"]),
        (["a/x.tif", "a/x.png"], ["x", "x"]),
    ],
)
def test_equal_names_of_several_folders_are_told_apart(tmp_path, files, apart):
    touch(tmp_path, *files)
    assert [source.name for source in named_apart([source_of(tmp_path / file) for file in files])] == apart


def test_folders_of_equal_names_are_told_apart(tmp_path, monkeypatch):
    touch(tmp_path, "a/sub/x.tif", "b/sub/x.tif", "b/z.tif")
    monkeypatch.chdir(tmp_path / "b")
    found = named_apart([*list_images("../a"), *list_images(".")])
    assert [source.name for source in found] == ["a/sub/x", "b/sub/x", "b/z"]


def test_results_lie_in_the_subfolder_of_the_image(tmp_path, tiny_model):
    from unetrt.runtime import Segmenter

    (tmp_path / "in" / "sub").mkdir(parents=True)
    tifffile.imwrite(tmp_path / "in" / "sub" / "a.tif", np.zeros((40, 50), np.uint8))
    (source,) = list_images(tmp_path / "in")
    out = tmp_path / "out"
    outputs = opened_outputs(out, ["labels", "outlines", "geojson"], channels=1, overlays=True)
    with Segmenter(tiny_model, backend="onnxruntime") as segmenter, outputs as files:
        predict_file(segmenter, source, Output(files))
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.*"))
    assert written == ["geojson/sub/a.geojson", "outlines/sub/a.png", "overlays/sub/a.png", "sub/a.tif"]
    assert names(out) == ["sub/a"]

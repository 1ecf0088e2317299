"""Overlays, outlines and the sheet: what is drawn where, and that a sheet stays small."""

import numpy as np
import pytest
from PIL import Image

from tests.runtime.outputs.label_maps import drawn
from unetrt.runtime.files.outputs import pictures
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.pictures import (
    OverlaySheet,
    overview,
    overview_step,
    write_outlines,
    write_overlay,
    write_png,
)
from unetrt.runtime.pixels.drawing import colour_of, outlines, overlay

RNG = np.random.default_rng(0)


def image_of(labels, **others):
    frames = RNG.integers(100, 200, (labels[..., 0, 0].size, 1, *labels.shape[-2:])).astype(np.uint8)
    return LabelledImage("a", labels, frames=frames, **others)


def test_outlines_are_drawn_over_the_grey_image(tmp_path):
    labels = np.kron(drawn("1.2 ..2"), np.ones((5, 5), np.int32))
    image = image_of(labels)
    write_outlines(tmp_path / "a.png", image)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    edge = outlines(labels)
    for label in (1, 2):
        np.testing.assert_array_equal(
            picture[edge & (labels == label)],
            np.broadcast_to(colour_of(label), picture[edge & (labels == label)].shape),
        )
    assert (picture[~edge] == picture[~edge][:, :1]).all()  # grey, inside the objects too
    assert len(np.unique(picture[~edge])) > 20


def test_outlines_of_a_stack_are_a_picture_for_each_frame(tmp_path):
    write_outlines(tmp_path / "a.png", image_of(np.stack([drawn("1.."), drawn(".2.")])))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0000.png", "0001.png"]
    first, second = (np.asarray(Image.open(tmp_path / "a" / f"000{number}.png")) for number in range(2))
    assert first[0, 0].tolist() == colour_of(1)
    assert second[0, 1].tolist() == colour_of(2)


def test_without_an_image_outlines_are_on_black(tmp_path):
    write_outlines(tmp_path / "a.png", LabelledImage("a", drawn("1..")))
    assert np.asarray(Image.open(tmp_path / "a.png")).tolist() == [[colour_of(1), [0, 0, 0], [0, 0, 0]]]


def test_an_overlay_shows_the_first_frame(tmp_path):
    write_overlay(tmp_path / "a.png", image_of(np.stack([drawn("1.."), drawn(".2.")])))
    assert np.asarray(Image.open(tmp_path / "a.png"))[0, 0].tolist() == colour_of(1)


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(AttributeError):
        write_png(tmp_path / "a.png", "no picture")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("images", "side"), [(1, 540), (4, 1060), (5, 2100), (100, 2300), (4096, 5300)])
def test_a_sheet_holds_all_overlays_and_stays_small(tmp_path, images, side):
    sheet = OverlaySheet(images)
    labels = np.kron(drawn("1.2"), np.ones((400, 400), np.int32))
    image = LabelledImage("a", labels)
    for _ in range(min(images, 5)):
        sheet.add(image)
    sheet.write(tmp_path / "new" / "montage.png")
    with Image.open(tmp_path / "new" / "montage.png") as picture:
        assert max(picture.size) <= side
        pixels = np.asarray(picture).astype(int)
        assert np.asarray(picture)[: pictures.CAPTION].max() > 150  # the caption
    assert np.ptp(pixels, axis=-1).max() > 40  # colours


def test_a_large_image_is_drawn_from_a_coarse_copy(monkeypatch):
    """Pixels between rows and columns 0, 3, 6, ... are not looked at."""
    monkeypatch.setattr(pictures, "OVERVIEW", 20)
    coarse = np.kron(drawn("1.2 ..2"), np.ones((10, 6), np.int32))[:, :20]
    grey = RNG.integers(100, 200, coarse.shape).astype(np.uint8)
    labels, frame = np.full((60, 54), 9, np.int32), np.zeros((1, 1, 60, 54), np.uint8)
    step = overview_step(labels.shape)
    assert step == 3
    labels[::step, ::step], frame[0, 0, ::step, ::step] = coarse, grey
    expected = overview(coarse, grey[None])
    drawn_over = []
    monkeypatch.setattr(OverlaySheet, "add_overview", lambda sheet, *given: drawn_over.append(given))
    OverlaySheet(1).add(LabelledImage("a", labels, frames=frame))
    ((name, content, picture),) = drawn_over
    assert (name, content) == ("a", "3 objects")
    np.testing.assert_array_equal(picture, expected)
    np.testing.assert_array_equal(expected, overlay(grey, coarse))
    np.testing.assert_array_equal(overview(coarse), overlay(np.zeros_like(grey), coarse))


def test_a_sheet_takes_overviews_of_images_that_are_not_in_memory(tmp_path):
    sheet = OverlaySheet(1)
    sheet.add_overview("a", "70000 objects", overview(np.kron(drawn("1.2"), np.ones((400, 400), np.int32))))
    sheet.write(tmp_path / "montage.png")
    assert sheet.captions == ["a: 70000 objects"]
    with Image.open(tmp_path / "montage.png") as picture:
        assert np.ptp(np.asarray(picture).astype(int), axis=-1).max() > 40  # colours


def test_captions_count_objects_and_are_short(monkeypatch):
    sheet = OverlaySheet(3)
    labels = drawn("1.77 1...")
    for name, one in (("a", labels), ("b" * 500, np.stack([labels, labels])), ("c", 0 * labels)):
        sheet.add(LabelledImage(name, one))
    sheet.add(LabelledImage("d", labels, "classes"))
    found = [caption.rpartition(": ")[2] for caption in sheet.captions]
    assert found == ["2 objects", "4 objects in 2 frames", "0 objects", "2 classes"]


def test_a_sheet_of_very_many_images_counts_the_rest(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "MOST", 4)
    sheet = OverlaySheet(6)
    for _ in range(6):
        sheet.add(LabelledImage("a", drawn("1..")))
    sheet.write(tmp_path / "montage.png")
    assert sheet.left_out == 2
    assert len(sheet.captions) == 4


def test_no_image_is_no_sheet(tmp_path):
    OverlaySheet(2).write(tmp_path / "montage.png")
    assert list(tmp_path.iterdir()) == []

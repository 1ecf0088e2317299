"""ROIs for ImageJ: `roifile` reads back what was written, and filling them gives the labels."""

import time
from zipfile import ZipFile

import numpy as np
import pytest
from roifile import ROI_TYPE, ImagejRoi, roiread

from tests.runtime.outputs.label_maps import MAPS, drawn, random_maps
from unetrt.benchmarks.saving import discs
from unetrt.runtime.files.outputs.imagej_rois import write_rois
from unetrt.runtime.files.outputs.labelled_image import LabelledImage


def rings_of(roi):
    """Return the closed rings of a ROI, (n, 2) each: x, y."""
    found = roi.coordinates(multi=True)
    return [np.concatenate([ring, ring[:1]]) for ring in (found if isinstance(found, list) else [found])]


def filled(roi, shape):
    """Return the pixels whose centre an odd number of edges lies to the left of, as java.awt.geom fills a path."""
    crossings = np.zeros((shape[0], shape[1] + 1), int)
    for ring in rings_of(roi):
        for (x, y), (to_x, to_y) in zip(ring[:-1].astype(int), ring[1:].astype(int), strict=True):
            assert x == to_x or y == to_y
            if x == to_x:
                crossings[min(y, to_y) : max(y, to_y), x] += 1
    return np.cumsum(crossings, axis=1)[:, :-1] % 2 == 1


def read_back(path):
    found = roiread(path)
    return found if isinstance(found, list) else [found]


def test_filling_gives_the_labels_back(tmp_path):
    for labels in [*MAPS.values(), *random_maps(40), discs(5)]:
        write_rois(tmp_path / "a.zip", LabelledImage("a", labels))
        found = np.zeros_like(labels)
        for roi in read_back(tmp_path / "a.zip") if labels.any() else []:
            assert not found[filled(roi, labels.shape)].any()
            found[filled(roi, labels.shape)] = int(roi.name)
        np.testing.assert_array_equal(found, labels)


def test_simple_labels_are_traced_and_others_composite(tmp_path):
    write_rois(tmp_path / "a.zip", LabelledImage("a", drawn("11.222 11.2.2 ...222 3..... .3....")))
    traced, hole, parts = read_back(tmp_path / "a.zip")
    assert (traced.roitype, traced.name, traced.n_coordinates) == (ROI_TYPE.TRACED, "00001", 4)
    assert (traced.left, traced.top, traced.right, traced.bottom) == (0, 0, 2, 2)
    for roi in (hole, parts):
        assert (roi.roitype, roi.composite) == (ROI_TYPE.RECT, True)
        assert len(rings_of(roi)) == 2
    assert (hole.left, hole.top, hole.right, hole.bottom) == (3, 0, 6, 3)


@pytest.mark.parametrize(
    ("shape", "axes", "channels", "names", "positions"),
    [
        ((3, 4), None, 1, ["00001"], [(0, 0, 0, 0)]),
        ((2, 3, 4), "TYX", 1, ["T0001-00001", "T0002-00001"], [(1, 0, 0, 0), (2, 0, 0, 0)]),
        ((2, 3, 4), "ZYX", 1, ["Z0001-00001", "Z0002-00001"], [(1, 0, 0, 0), (2, 0, 0, 0)]),
        ((2, 3, 4), "TYX", 2, ["T0001-00001", "T0002-00001"], [(0, 0, 0, 1), (0, 0, 0, 2)]),
        ((1, 2, 3, 4), "TZYX", 1, ["T0001-Z0001-00001", "T0001-Z0002-00001"], [(0, 0, 1, 1), (0, 0, 2, 1)]),
    ],
)  # fmt: skip
def test_frames_of_stacks_have_positions(tmp_path, shape, axes, channels, names, positions):
    """ImageJ numbers the slices of a plain stack, and channels, slices and frames of a hyperstack, from 1."""
    labels = np.ones(shape, np.int32)
    frames = np.zeros((labels[..., 0, 0].size, channels, *shape[-2:]))
    write_rois(tmp_path / "a.zip", LabelledImage("a", labels, frames=frames, axes=axes))
    found = read_back(tmp_path / "a.zip")
    assert [roi.name for roi in found] == names
    assert [(roi.position, roi.c_position, roi.z_position, roi.t_position) for roi in found] == positions


def test_classes_are_groups(tmp_path):
    write_rois(tmp_path / "a.zip", LabelledImage("a", drawn("11.2 .1.. 2..2"), "classes"))
    found = read_back(tmp_path / "a.zip")
    assert [(roi.name, roi.group) for roi in found] == [("class 1", 1), ("class 2", 2)]


def test_coordinates_beyond_16_bits(tmp_path):
    labels = np.zeros((3, 70000), np.int32)
    labels[1, 40000:40002], labels[2, 69999] = 7, 100000
    write_rois(tmp_path / "a.zip", LabelledImage("a", labels))
    found = read_back(tmp_path / "a.zip")
    assert [roi.name for roi in found] == ["000007", "100000"]
    for roi in found:
        np.testing.assert_array_equal(filled(roi, labels.shape), labels == int(roi.name))


def test_the_same_labels_give_the_same_file_and_no_labels_an_empty_one(tmp_path):
    for name in ("a.zip", "b.zip"):
        write_rois(tmp_path / name, LabelledImage("a", MAPS["a hole"]))
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    write_rois(tmp_path / "c.zip", LabelledImage("a", np.zeros((3, 4), np.int32)))
    assert ZipFile(tmp_path / "c.zip").namelist() == []


def test_more_rois_than_a_zip_of_16_bits_counts(tmp_path):
    labels = np.zeros((300, 1000), np.int32)
    labels[::2, ::2] = np.arange(1, 75001).reshape(150, 500)
    write_rois(tmp_path / "a.zip", LabelledImage("a", labels))
    with ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        assert len(set(names)) == 75000
        last = ImagejRoi.frombytes(archive.read(names[-1]))
    assert (last.name, last.left, last.top) == ("75000", 998, 298)


@pytest.mark.alone
def test_time_grows_with_the_number_of_objects(tmp_path):
    """16 times as many objects take about 16 times as long, not 256 times."""
    seconds = []
    for side in (10, 40):
        image = LabelledImage("a", discs(side))
        begin = time.process_time()
        write_rois(tmp_path / "a.zip", image)
        seconds.append(time.process_time() - begin)
    assert seconds[1] < 40 * seconds[0]

"""Pixel sizes: units by any of their spellings, and what is no size."""

import numpy as np
import pytest

from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.pixel_size import PixelSize


@pytest.mark.parametrize(
    ("unit", "name", "micrometres"),
    [
        ("µm", "µm", 1),
        ("\u03bcm", "µm", 1),
        ("\\u00B5m", "µm", 1),
        ("micron", "µm", 1),
        ("micrometer", "µm", 1),
        ("nm", "nm", 0.001),
        ("mm", "mm", 1000),
        ("centimeter", "cm", 10000),
        ("inch", "in", 25400),
        ("\u212b", "Å", 0.0001),
    ],
)
def test_a_unit_has_one_name(unit, name, micrometres):
    size = PixelSize(2, 3, 4, unit)
    assert size.unit == name
    assert size.in_micrometres == PixelSize(*(float(f"{one * micrometres:.6g}") for one in (2, 3, 4)))
    assert size.area == pytest.approx(6 * micrometres**2)


def test_a_unit_that_is_not_a_length_has_no_micrometres():
    size = PixelSize(2, 3, unit="reference frame")
    assert (size.unit, size.in_micrometres, size.area) == ("reference frame", None, None)


@pytest.mark.parametrize("size", [0, -1, float("nan"), float("inf"), 1e300, True, "1", None, 10**400])
def test_what_is_no_size_is_refused_and_not_found(size):
    with pytest.raises(OptionError, match=r"y must be the size of a pixel in µm, above 0 \(got "):
        PixelSize(size, 1)
    assert PixelSize.found(size, 1) is None
    assert PixelSize.found(1, size) is None
    assert PixelSize.found(1, 1, size) == PixelSize(1, 1)


@pytest.mark.parametrize("unit", ["", "pixel", "Pixels", None, "\0" * 5, "m" * 100])
def test_a_file_without_a_unit_gives_no_size(unit):
    assert PixelSize.found(1, 1, unit=unit) is None


def test_numbers_of_numpy_are_sizes():
    assert PixelSize(np.float32(0.5), np.float64(0.25), np.int64(2)) == PixelSize(0.5, 0.25, 2.0)


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"Y": (500, "nm"), "X": (0.5, "µm"), "Z": (2, "mm")}, PixelSize(500, 500, 2e6, "nm")),
        ({"Y": (1, "voxel"), "X": (2, "voxel"), "Z": (3, "µm")}, PixelSize(1, 2, unit="voxel")),
        ({"Y": (1, "µm"), "X": (2, "voxel")}, None),
        ({"X": (1, "µm")}, None),
    ],
)
def test_axes_with_several_units_have_that_of_the_rows(sizes, expected):
    assert PixelSize.of_axes(sizes) == expected

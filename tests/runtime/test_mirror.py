import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetrt.runtime.geometry.plan import BORDERS, mirrored, spans

windows = st.tuples(st.integers(-60, 60), st.integers(1, 120)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(windows, st.integers(1, 40), st.sampled_from(BORDERS))
def test_indices_are_those_of_numpy_pad(window, length, border):
    start, stop = window
    before, after = max(0, -start), max(0, stop - length)
    padded = np.pad(np.arange(length), (before, after), mode=border)
    np.testing.assert_array_equal(mirrored(start, stop, length, border), padded[start + before : stop + before])


@given(windows, st.integers(2, 40), st.sampled_from(BORDERS))
def test_spans_read_what_the_indices_say(window, length, border):
    start, stop = window
    source = np.arange(length)
    read = np.full(stop - start, -1)
    for span in spans(start, stop, length, border):
        read[span.window] = source[span.frame]
    np.testing.assert_array_equal(read, mirrored(start, stop, length, border))


@pytest.mark.parametrize(("border", "expected"), [("reflect", [2, 1, 0, 1, 2]), ("symmetric", [1, 0, 0, 1, 2])])
def test_the_edge_pixel_is_repeated_by_symmetric_alone(border, expected):
    assert mirrored(-2, 3, 5, border).tolist() == expected


@given(windows, st.integers(2, 40), st.sampled_from(BORDERS), st.integers(1, 50))
def test_parts_of_spans_read_what_the_spans_read(window, length, border, most):
    start, stop = window
    source, read = np.arange(length), np.full(stop - start, -1)
    for span in spans(start, stop, length, border):
        for part in span.split(most):
            assert part.window.stop - part.window.start <= most
            read[part.window] = source[part.frame]
    np.testing.assert_array_equal(read, mirrored(start, stop, length, border))

import numpy as np
import pytest

from unetrt.runtime.errors import FrameError
from unetrt.runtime.pixels.frames import frame_axes, split_axes, stack_of


@pytest.mark.parametrize(
    ("channels", "shape", "stack"),
    [
        (1, (5, 7), (1, 5, 7)),
        (1, (2, 5, 7), (2, 5, 7)),
        (3, (3, 5, 7), (1, 3, 5, 7)),
        (3, (2, 3, 5, 7), (2, 3, 5, 7)),
    ],
)
def test_a_frame_has_two_axes_for_one_channel_and_else_three(channels, shape, stack):
    assert stack_of(np.zeros(shape), channels).shape == stack
    leading, size = split_axes(shape, channels)
    assert leading == shape[: -frame_axes(channels)]
    assert size == (5, 7)


@pytest.mark.parametrize(
    ("channels", "shape", "message"),
    [
        (1, (5,), r"this model takes \(H, W\), or a stack"),
        (1, (9, 9, 3), "as if colours came last"),
        (3, (2, 5, 7), r"2 channels: this model takes \(3, H, W\)"),
        (1, (0, 5), "holds no pixels"),
    ],
)
def test_other_shapes_are_refused(channels, shape, message):
    with pytest.raises(FrameError, match=message):
        split_axes(shape, channels)

import numpy as np
import pytest

from unetrt.runtime.errors import FrameError
from unetrt.runtime.pixels.frames import frame_axes, split_axes, stack_of


@pytest.mark.parametrize(
    ("channels", "shape", "stack"),
    [
        (1, (5, 7), (1, 5, 7)),
        (1, (2, 5, 7), (2, 5, 7)),
        (1, (1, 512, 3), (1, 512, 3)),
        (1, (5, 64, 64), (5, 64, 64)),
        (1, (100, 8, 64), (100, 8, 64)),
        (1, (20, 64, 32), (20, 64, 32)),
        (1, (300, 1, 512, 64), (300, 1, 512, 64)),
        (3, (3, 5, 7), (1, 3, 5, 7)),
        (3, (2, 3, 5, 7), (2, 3, 5, 7)),
    ],
)
def test_a_frame_has_two_axes_for_one_channel_and_else_three(channels, shape, stack):
    assert stack_of(np.zeros(shape), channels).shape == stack
    leading, size = split_axes(shape, channels)
    assert leading == shape[: -frame_axes(channels)]
    assert size == shape[-2:]


@pytest.mark.parametrize(
    ("channels", "shape", "message"),
    [
        (1, (5,), r"this model takes \(H, W\), or a stack"),
        (1, (9, 9, 3), r"9 frames of 9 x 3 px, or 9 x 9 px with .* last, 3; this model takes \(H, W\): give "),
        (1, (64, 64, 1), r"64 frames of 64 x 1 px, or .* the channels last, 1; .*: give array\[..., 0\] for a channel"),
        (1, (2, 64, 64, 5), r"64 frames of 64 x 5 px, or .* or array\[..., None, :, :\] where they are frames"),
        (1, (300, 512, 64), "300 frames of 512 x 64 px, or 300 x 512 px with the channels last, 64"),
        (3, (64, 64, 3), r"64 channels: this model takes \(3, H, W\); if they come last, give numpy.moveaxis"),
        (3, (2, 5, 7), r"2 channels: this model takes \(3, H, W\)"),
        (1, (0, 5), "holds no pixels"),
    ],
)
def test_other_shapes_are_refused(channels, shape, message):
    with pytest.raises(FrameError, match=message):
        split_axes(shape, channels)

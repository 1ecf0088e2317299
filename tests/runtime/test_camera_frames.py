import numpy as np
import pytest
from PIL import Image

from tests.runtime.live.live_cases import gated
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.errors import FrameError
from unetrt.runtime.pixels.frames import FrameLayout, grey

RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (12, 16, 4), np.uint8)
RED, GREEN, BLUE, OPACITY = np.moveaxis(COLOURS, -1, 0)
PLANES = np.moveaxis(COLOURS, -1, 0)


@pytest.mark.parametrize(
    ("count", "channels", "frame", "arranged"),
    [
        (1, (), RED, RED),
        (1, (), RED[None], RED),
        (1, (), RED[None, None], RED),
        (3, (), PLANES[:3], PLANES[:3]),
        (3, (), PLANES[None, :3], PLANES[:3]),
        (3, (), COLOURS[..., :3], PLANES[:3]),
        (3, (), COLOURS, PLANES[:3]),
        (4, (), COLOURS, PLANES),
        (1, [1], COLOURS, GREEN),
        (1, [1], COLOURS[None], GREEN),
        (1, [2], PLANES[:3], BLUE),
        (1, [0], RED[None], RED),
        (2, [2, 0], COLOURS[..., :3], PLANES[[2, 0]]),
        (5, (), np.ones((5, 12, 4)), np.ones((5, 12, 4))),  # narrow, not colours
        (3, (), np.ones((3, 12, 3)), np.ones((3, 12, 3))),
    ],
)
def test_frames_of_cameras_become_those_of_the_model(count, channels, frame, arranged):
    found = FrameLayout(count, channels).arrange(frame)
    np.testing.assert_array_equal(found, arranged)
    assert found.dtype == frame.dtype


@pytest.mark.parametrize(
    "frame", [np.zeros((64, 64, 1)), np.zeros((64, 64, 2)), np.zeros((2, 9, 9)), np.zeros(4), "no", None]
)
def test_other_frames_are_left_to_the_segmenter(frame):
    assert FrameLayout(1).arrange(frame) is frame


@pytest.mark.parametrize(
    ("count", "channels", "frame", "message"),
    [
        (
            2,
            (),
            COLOURS[..., :3],
            r"3 colours last, and the model takes 2 channels: choose them with channels=\[0, 1\]",
        ),
        (1, [3], COLOURS[..., :3], "channel 3 was chosen, and the frame has 3: 0 to 2"),
        (1, [0], RED, r"a frame of shape \(12, 16\) has no channels to choose from: leave out channels="),
        (1, [1], np.zeros((64, 64, 2)), "64 frames of 64 x 2 px, or 64 x 64 px with the channels last, 2; submit"),
    ],
)
def test_channels_that_a_frame_does_not_have_are_refused(count, channels, frame, message):
    with pytest.raises(FrameError, match=message):
        FrameLayout(count, channels).arrange(frame)


def test_grey_is_that_of_pillow_in_the_dtype_of_the_frame():
    expected = np.asarray(Image.fromarray(COLOURS[..., :3]).convert("L"))
    np.testing.assert_array_equal(grey(PLANES[:3]), expected)
    sixteen = grey(PLANES[:3].astype(np.uint16) * 257)
    assert sixteen.dtype == np.uint16
    np.testing.assert_allclose(sixteen / 257, expected, atol=0.51)
    np.testing.assert_allclose(grey(PLANES[:3].astype(np.float64)), expected, atol=0.51)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_equal_colours_keep_their_value(dtype):
    largest = 1.0 if dtype is np.float32 else np.iinfo(dtype).max
    values = np.linspace(0, largest, 500).astype(dtype).reshape(20, 25)
    np.testing.assert_allclose(grey(np.stack([values] * 3)), values, rtol=1e-6)


@pytest.mark.parametrize("frame", [RED[None], np.stack([RED] * 3, axis=-1)])
def test_a_live_segmenter_takes_them(frame):
    segmenter, session = gated()
    session.let()
    with LiveSegmenter(segmenter) as live:
        result = live.submit(frame).result(30)
    np.testing.assert_array_equal(result.labels, RED)
    np.testing.assert_array_equal(result.frame, RED)

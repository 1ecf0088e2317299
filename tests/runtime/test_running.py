import numpy as np
import pytest

from tests.conftest import small_spec
from unetrt.runtime.errors import OptionError
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.running import FRAMES, Running, Streams, noise_of
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import CropSession
from unetrt.trainer.drawn_cells import draw

RNG = np.random.default_rng(0)
CELLS = draw((256, 256), seed=0).frame[None]
MEASURED = [Normalisation("percentile"), Normalisation("zscore"), Normalisation("running", 2.0, 99.0)]


def blank(noise=20.0, level=300.0, dtype=np.uint16):
    """A frame of a camera that sees nothing: its offset and its noise."""
    return np.clip(RNG.normal(level, noise, (1, 256, 256)), 0, None).astype(dtype)


@pytest.mark.parametrize("normalisation", MEASURED, ids=lambda one: one.mode)
@pytest.mark.parametrize("frame", [CELLS, (CELLS >> 8).astype(np.uint8), CELLS.astype(np.float32)], ids=str)
def test_the_first_frame_is_measured_as_alone_bit_for_bit(normalisation, frame):
    expected, found = normalisation.measure(frame), Running(normalisation).measure(frame)
    np.testing.assert_array_equal(found.offset, expected.offset)
    np.testing.assert_array_equal(found.scale, expected.scale)


def test_running_alone_is_percentile():
    alone, percentile = Normalisation("running", 2, 98), Normalisation("percentile", 2, 98)
    np.testing.assert_array_equal(alone(CELLS), percentile(CELLS))
    spec = small_spec(normalisation=alone)
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("normalisation", MEASURED, ids=lambda one: one.mode)
def test_it_is_the_average_of_the_first_frames_and_then_follows(normalisation):
    running = Running(normalisation, frames=4)
    gains = [1.0, 3.0, 2.0]
    (_, width), *_ = normalisation.limits(CELLS.astype(np.float32))
    for gain in gains:
        found = running.measure(CELLS * np.float32(gain))
    assert 1 / found.scale[0] == pytest.approx(2 * width, rel=1e-5)
    for _ in range(40):
        found = running.measure(CELLS * np.float32(5))
    assert 1 / found.scale[0] == pytest.approx(5 * width, rel=1e-3)


def test_a_flickering_lamp_flickers_less():
    running, alone, averaged = Running(Normalisation()), [], []
    for _ in range(2 * FRAMES):
        frame = CELLS * np.float32(RNG.uniform(0.7, 1.3))
        alone.append(Normalisation().measure(frame).scale[0])
        averaged.append(running.measure(frame).scale[0])
    assert np.std(averaged[FRAMES:]) < 0.25 * np.std(alone[FRAMES:])


@pytest.mark.parametrize("normalisation", MEASURED, ids=lambda one: one.mode)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("noise", [0.0, 0.2, 1.0, 20.0])
def test_blank_frames_do_not_move_the_average_and_stay_dark(normalisation, dtype, noise):
    running = Running(normalisation)
    objects = (CELLS >> 8).astype(dtype) if dtype == np.uint8 else CELLS.astype(dtype)
    before = running.measure(objects)
    for _ in range(5):
        empty = blank(noise, 40, dtype)
        found = running.measure(empty)
        np.testing.assert_array_equal([found.offset, found.scale], [before.offset, before.scale])
    after = running.measure(objects)
    np.testing.assert_allclose([after.offset, after.scale], [before.offset, before.scale], rtol=1e-6)


@pytest.mark.parametrize("normalisation", MEASURED, ids=lambda one: one.mode)
def test_a_stream_that_begins_blank_does_not_show_noise_as_objects(normalisation):
    running, empty = Running(normalisation), blank()
    spread = np.ptp(np.percentile(normalisation(empty), (1, 99)))
    quiet = np.ptp(np.percentile(running.measure(empty).apply(empty.astype(np.float32)), (1, 99)))
    assert quiet < 0.25 * spread
    expected, found = normalisation.measure(CELLS), running.measure(CELLS)
    np.testing.assert_array_equal([found.offset, found.scale], [expected.offset, expected.scale])


def test_another_dtype_begins_anew():
    running = Running(Normalisation())
    running.measure(CELLS)
    eight = (CELLS >> 8).astype(np.uint8)
    np.testing.assert_array_equal(running.measure(eight).scale, Normalisation().measure(eight).scale)


@pytest.mark.parametrize("noise", [2.0, 30.0])
def test_noise_is_found_between_cells(noise):
    smooth = np.full((256, 256), 1000.0) + np.add.outer(np.arange(256), np.arange(256))
    noisy = smooth + RNG.normal(0, noise, smooth.shape)
    assert noise_of(noisy.astype(np.uint16)) == pytest.approx(noise, rel=0.1)
    assert noise_of(smooth[:, :1]) == 0


def test_streams_are_apart_and_can_be_forgotten():
    streams = Streams(Normalisation(), "running")
    one = streams.measure_for(("Camera", "DAPI"))
    assert streams.measure_for(("Camera", "DAPI")) == one
    assert streams.measure_for(("Camera", "FITC")) != one
    assert streams.measure_for(("Camera2", "DAPI")) != one
    streams.restart()
    assert streams.measure_for(("Camera", "DAPI")) != one


def test_a_model_may_ask_for_a_running_average():
    assert Streams(Normalisation("running")).measure_for(None) is not None
    assert Streams(Normalisation("percentile")).measure_for(None) is None
    assert Streams(Normalisation("fixed", offset=(0.0,), scale=(1.0,))).measure_for(None) is None


def test_a_segmenter_measures_as_it_is_told():
    segmenter = Segmenter(CropSession(small_spec(normalisation=Normalisation())))
    told = Running(Normalisation("zscore")).measure
    zscored = Segmenter(CropSession(small_spec(normalisation=Normalisation("zscore"))))
    expected = zscored.segment(CELLS[0], probabilities=True).probabilities
    found = segmenter.segment(CELLS[0], probabilities=True, measure=told).probabilities
    np.testing.assert_array_equal(found, expected)


FIXED = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Running(FIXED), "fixed normalisation is not measured"),
        (lambda: Running(Normalisation(), 0), r"frames must be at least 1 \(got 0\)"),
        (lambda: Streams(FIXED, "running"), "fixed normalisation is not measured"),
        (lambda: Streams(FIXED, "fixed"), "normalisation 'fixed' is not one of a stream: use model or running"),
        (
            lambda: Segmenter(CropSession(small_spec(normalisation=FIXED, input_dtype="uint16"))).segment(
                CELLS[0], measure=FIXED.measure
            ),
            "this model normalises raw pixels itself: export it with --input float32",
        ),
    ],
)
def test_what_cannot_run(make, message):
    with pytest.raises(OptionError, match=message):
        make()

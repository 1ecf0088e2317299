"""Frames that lie on a GPU, on the fake one, whose kernels are the real ones run on this processor."""

from contextlib import suppress
from itertools import count

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import small_spec
from tests.runtime.cuda.fake_driver import OTHERS, AskedForError, FakeDriver
from tests.runtime.cuda.fake_session import FakeCudaSession
from tests.runtime.test_cuda_lanes import check
from unetrt.runtime.errors import FrameError, InferenceError, OptionError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import CropSession

MODES = {
    "fixed": Normalisation("fixed", offset=(20.0,), scale=(0.01,)),
    "percentile": Normalisation("percentile"),
    "zscore": Normalisation("zscore"),
}


class OnFakeGpu:
    """An array of another library: its elements are written by work that is still on that library's stream."""

    def __init__(self, array, driver=None):
        self.array, self.final = array, array.copy()
        self.driver = driver
        if driver is not None:
            array[...] = 0
            driver.compute(OTHERS, self._write)

    def _write(self):
        self.array[...] = self.final

    @property
    def shape(self):
        return self.array.shape

    @property
    def __cuda_array_interface__(self):
        about = self.array.__array_interface__
        return {
            "shape": about["shape"],
            "strides": about["strides"],
            "typestr": about["typestr"],
            "data": about["data"],
            "version": 3,
            "stream": OTHERS,
        }


def made_on(driver, array):
    """The array, as if it had been made on the GPU just now; the context is the caller's own business."""
    driver.push()
    try:
        return OnFakeGpu(array.copy(), driver)
    finally:
        driver.pop()


def pixels(shape, dtype="uint16", seed=0):
    greys = np.random.default_rng(seed).integers(0, 200, shape)
    return greys.astype(dtype) if dtype != "float32" else (greys / 7).astype(dtype)


def on_the_host(spec, image):
    with Segmenter(CropSession(spec)) as segmenter:
        return segmenter.segment(image).labels


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("head", ["logits", "labels"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32", "float32"])
@pytest.mark.parametrize("stays", [False, True])
def test_labels_are_the_hosts(mode, head, dtype, stays):
    driver = FakeDriver()
    spec = small_spec(normalisation=MODES[mode], head=head, batch=2, precision="fp16")
    image = pixels((3, 61, 95), dtype)
    out = made_on(driver, np.full(image.shape, 9, np.uint8)) if stays else None
    with FakeCudaSession(spec, driver) as session, Segmenter(session) as segmenter:
        driver.calls.clear()
        result = segmenter.segment(made_on(driver, image), out=out)
        copied_in = any(call.name == "copy_in" for call in driver.calls)
    labels = out.array if stays else result.labels
    np.testing.assert_array_equal(labels, on_the_host(spec, image))
    assert (result.labels is out) == stays
    assert not copied_in
    assert len(result.timings.frames) == 3
    del segmenter, session
    check(driver)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_raw_pixels_are_cut_as_they_are(dtype):
    driver, image = FakeDriver(), pixels((61, 95), dtype)
    spec = small_spec(normalisation=MODES["fixed"], head="labels", input_dtype=dtype)
    out = made_on(driver, np.zeros((61, 95), np.uint8))
    with FakeCudaSession(spec, driver) as session, Segmenter(session) as segmenter:
        segmenter.segment(made_on(driver, image), out=out)
        with pytest.raises(FrameError, match=f"the image is float32: this model takes raw {dtype} pixels"):
            segmenter.segment(made_on(driver, image.astype(np.float32)))
    np.testing.assert_array_equal(out.array, on_the_host(spec, image))


@settings(max_examples=25)
@given(st.integers(1, 70), st.integers(1, 70), st.sampled_from(["reflect", "symmetric"]), st.integers(0, 99))
def test_frames_of_any_size_and_stride(height, width, border, seed):
    driver = FakeDriver(seed)
    spec = small_spec(normalisation=MODES["percentile"], border=border)
    image = pixels((2 * height, width + 3), seed=seed)[::-2, 1:-2]
    with FakeCudaSession(spec, driver) as session, Segmenter(session, lanes=3) as segmenter:
        labels = segmenter.segment(OnFakeGpu(image)).labels
    np.testing.assert_array_equal(labels, on_the_host(spec, image))
    assert driver.violations == []


def test_channels_and_stacks():
    driver, image = FakeDriver(), pixels((2, 3, 40, 50))
    spec = small_spec(normalisation=MODES["percentile"], channels=3)
    with FakeCudaSession(spec, driver) as session, Segmenter(session) as segmenter:
        labels = segmenter.segment(made_on(driver, image)).labels
    np.testing.assert_array_equal(labels, on_the_host(spec, image))


def test_a_frame_on_the_host_may_leave_its_labels_on_the_device():
    driver, image = FakeDriver(), pixels((61, 95))
    spec = small_spec(normalisation=MODES["percentile"])
    out = made_on(driver, np.full(image.shape, 9, np.uint8))
    with FakeCudaSession(spec, driver) as session, Segmenter(session) as segmenter:
        segmenter.segment(image, out=out)
    np.testing.assert_array_equal(out.array, on_the_host(spec, image))


def test_a_view_as_out_is_written_and_its_neighbours_are_not():
    driver, image = FakeDriver(), pixels((40, 50))
    spec = small_spec(normalisation=MODES["fixed"], head="labels")
    whole = np.full((60, 70), 9, np.uint8)
    with FakeCudaSession(spec, driver) as session, Segmenter(session) as segmenter:
        segmenter.segment(OnFakeGpu(image), out=OnFakeGpu(whole[5:45, 8:58]))
    np.testing.assert_array_equal(whole[5:45, 8:58], on_the_host(spec, image))
    whole[5:45, 8:58] = 9
    assert (whole == 9).all()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_scores_that_are_not_finite_are_seen_where_they_can_be(precision):
    driver = FakeDriver()
    spec = small_spec(normalisation=Normalisation("fixed", offset=(0.0,), scale=(1e38,)), precision=precision)
    image, out = np.full((40, 50), 200, np.uint8), np.zeros((40, 50), np.uint8)
    with FakeCudaSession(spec, driver) as session, Segmenter(session) as segmenter:
        if precision == "fp32":
            segmenter.segment(OnFakeGpu(image), out=OnFakeGpu(out))
            return
        with pytest.raises(InferenceError, match="the network's output holds NaN or infinity"):
            segmenter.segment(OnFakeGpu(image), out=OnFakeGpu(out))
        segmenter.segment(OnFakeGpu(image // 200), out=OnFakeGpu(out))


def test_pixels_that_are_not_finite_are_named():
    image = pixels((40, 50), "float32")
    image[7, 9] = np.nan
    message = "1 pixels are NaN or infinite, the first at row 7, column 9"
    refused(small_spec(normalisation=MODES["fixed"]), message, image)


def refused(spec, message, image, **options):
    with FakeCudaSession(spec) as session, Segmenter(session) as segmenter, pytest.raises(FrameError, match=message):
        segmenter.segment(OnFakeGpu(image), **options)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (np.zeros((40, 51), np.uint8), r"out is uint8 \(40, 51\): give uint8 \(40, 50\)"),
        (np.zeros((40, 50), np.int32), "out is int32"),
        (np.zeros((40, 100), np.uint8)[:, ::2], "gaps between pixels"),
    ],
)
def test_labels_that_cannot_be_written_are_refused(out, message):
    refused(small_spec(), message, pixels((40, 50)), out=OnFakeGpu(out))


def test_what_else_is_refused():
    image = OnFakeGpu(pixels((40, 50), "uint8"))
    with FakeCudaSession(small_spec()) as session, Segmenter(session) as segmenter:
        with pytest.raises(FrameError, match="out shares memory with the image"):
            segmenter.segment(image, out=image)
        for options in ({"probabilities": True}, {"tta": True}):
            with pytest.raises(OptionError, match="for arrays on the host"):
                segmenter.segment(image, **options)
        with pytest.raises(OptionError, match="for frames on the host"):
            segmenter.scores(image)
    message = "lies on a GPU, and the model on numpy"
    with Segmenter(CropSession(small_spec())) as segmenter, pytest.raises(FrameError, match=message):
        segmenter.segment(image)


def test_tensors_on_the_cpu_are_read_as_arrays_are():
    image, spec = pixels((40, 50), "int32"), small_spec()
    with Segmenter(CropSession(spec)) as segmenter:
        labels = segmenter.segment(torch.from_numpy(image)).labels
    np.testing.assert_array_equal(labels, on_the_host(spec, image))


@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.slow), 7])
def test_an_error_at_every_call_leaves_nothing_and_the_next_frame_works(step):
    spec = small_spec(normalisation=MODES["percentile"], precision="fp16")
    image = pixels((2, 8, 20))
    expected, failures = on_the_host(spec, image), []
    for number in count(step=step):
        driver = FakeDriver(seed=number)
        driver.fail_at = number
        out = np.zeros(image.shape, np.uint8)
        with suppress(AskedForError), FakeCudaSession(spec, driver) as session, Segmenter(session) as segmenter:
            with suppress(AskedForError):
                segmenter.segment(OnFakeGpu(image), out=OnFakeGpu(out))
            segmenter.segment(OnFakeGpu(image), out=OnFakeGpu(out))
            np.testing.assert_array_equal(out, expected)
        segmenter = session = None
        check(driver)
        if driver.failed is None:
            break
        failures.append(driver.failed)
    wanted = {"launch", "fill", "wait_for"} if step > 1 else {"load_module", "launch", "fill", "wait_for", "function"}
    assert wanted < set(failures)

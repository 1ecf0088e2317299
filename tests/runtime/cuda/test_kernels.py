"""The kernels' own source, run on the processor, against what the host does with numpy: bit for bit."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.runtime.cuda.fake_gpu.host_driver import HostDriver, on_device
from unetrt.runtime.cuda.arrays import DTYPES
from unetrt.runtime.cuda.device import CudaDevice
from unetrt.runtime.errors import FrameError, InferenceError
from unetrt.runtime.geometry.plan import BORDERS, Axis, Geometry, Tile, TilePlan
from unetrt.runtime.pixels.frames import as_frame, require_finite
from unetrt.runtime.pixels.normalisation import Affine, Normalisation
from unetrt.runtime.pixels.scores import best_class, require_finite_scores
from unetrt.runtime.segment.kernels import FOUND, Kernels, bins_shape, measure_counts, require_none

# Each gives a view, with other strides, of a new array that holds (C, H, W).
LAYOUTS = {
    "packed": np.empty,
    "reversed": lambda shape, dtype: np.empty(shape, dtype)[::-1, ::-1, ::-1],
    "every second": lambda shape, dtype: np.empty((shape[0], 2 * shape[1], 2 * shape[2]), dtype)[:, ::2, ::2],
    "transposed": lambda shape, dtype: np.empty(shape[::-1], dtype).T,
    "channels last": lambda shape, dtype: np.moveaxis(np.empty((*shape[1:], shape[0]), dtype), -1, 0),
}
STREAM = 7


@pytest.fixture(scope="module")
def driver():
    return HostDriver()


@pytest.fixture(scope="module")
def kernels(driver):
    kernels = Kernels(CudaDevice(driver))
    yield kernels
    kernels.close()
    kernels.close()
    assert driver.modules == {}


def random_pixels(rng, shape, dtype):
    """Any values of a dtype; floats that float32 can hold, subnormal ones among them."""
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    bits = rng.integers(0, 256, (*shape, dtype.itemsize), np.uint8).view(dtype)[..., 0]
    if dtype.kind == "f":
        with np.errstate(all="ignore"):
            bits[~(np.abs(bits) < np.float32(1e38))] = 1
        bits.flat[: bits.size // 4] *= np.finfo(min(dtype, np.dtype(np.float32))).smallest_subnormal * 9
    return bits


@st.composite
def frames(draw, dtypes=DTYPES, most=40):
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, most)), draw(st.integers(1, most)))
    dtype = draw(st.sampled_from(dtypes))
    frame = LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](shape, dtype)
    frame[...] = random_pixels(np.random.default_rng(draw(st.integers(0, 99))), shape, np.dtype(dtype))
    return frame


@st.composite
def tiles(draw, height, width):
    border = draw(st.sampled_from(BORDERS))
    starts, sides = (draw(st.tuples(*[st.integers(*limits)] * 2)) for limits in ((-130, 60), (1, 90)))
    axes = zip(starts, sides, (height, width), strict=True)
    return Tile(0, *(Axis(start, start + side, slice(0, 0), length, border) for start, side, length in axes))


def window(tile):
    return tile.rows.stop - tile.rows.start, tile.columns.stop - tile.columns.start


@given(st.data(), frames())
def test_a_normalised_tile_is_the_hosts(kernels, data, frame):
    tile = data.draw(tiles(*frame.shape[1:]))
    rng = np.random.default_rng(frame.size)
    affine = Affine(*(rng.normal(0, 300, (2, len(frame))).astype(np.float32)))
    affine = data.draw(st.sampled_from([affine, None]))
    on_host, on_gpu = np.full((2, len(frame), *window(tile)), np.nan, np.float32)
    tile.cut(as_frame(frame, len(frame)), on_host)
    with np.errstate(all="ignore"):
        affine and affine.apply(on_host)
    kernels.cut(on_device(frame).as_frame(len(frame)), tile, affine, on_device(on_gpu), STREAM)
    np.testing.assert_array_equal(on_gpu.view(np.uint32), on_host.view(np.uint32))


@pytest.mark.parametrize(
    ("given_dtype", "taken"), [("bool", "uint8"), ("uint8", "uint8"), ("uint8", "uint16"), ("uint16", "uint16")]
)
@given(data=st.data())
def test_a_raw_tile_is_the_hosts(kernels, given_dtype, taken, data):
    frame = data.draw(frames([np.dtype(given_dtype)]))
    tile = data.draw(tiles(*frame.shape[1:]))
    on_host, on_gpu = np.zeros((2, len(frame), *window(tile)), taken)
    tile.cut(as_frame(frame, len(frame)), on_host)
    kernels.cut(on_device(frame), tile, None, on_device(on_gpu), STREAM)
    np.testing.assert_array_equal(on_gpu, on_host)


def test_each_step_is_rounded(kernels):
    # One fused multiply-add gives another last bit for some of these.
    frame = np.arange(60000, dtype=np.float32).reshape(1, 200, 300) / np.float32(7)
    plan = TilePlan((200, 300), (220, 300), Geometry.unet(2))
    affine = Affine(np.float32([1.1]), np.float32([1 / 3]))  # type: ignore[arg-type]
    fused = np.float32(frame.astype(np.float64) * affine.scale[0] - np.float64(affine.offset[0]) * affine.scale[0])
    stepwise = affine.apply(frame.copy())
    assert (fused != stepwise).any()
    for tile in plan:
        on_host, on_gpu = np.zeros((2, 1, *plan.tile), np.float32)
        tile.cut(stepwise, on_host)
        kernels.cut(on_device(frame), tile, affine, on_device(on_gpu), STREAM)
        np.testing.assert_array_equal(on_gpu, on_host)


@pytest.mark.parametrize("dtype", ["int64", "uint64"])
def test_large_integers_are_rounded_once(kernels, dtype):
    # Just above the middle of two float32: by way of float64 it would lie in the middle, and go to the even one.
    frame, slot = np.full((1, 1, 1), (1 << 60) + (1 << 36) + 1, dtype), np.zeros((1, 1, 1), np.float32)
    tile = Tile(0, *[Axis(0, 1, slice(0, 1), 1, "reflect")] * 2)
    kernels.cut(on_device(frame), tile, None, on_device(slot), STREAM)
    assert slot == frame.astype(np.float32) == np.float32((1 << 60) + (1 << 37))


@st.composite
def plans(draw):
    geometry = Geometry.unet(draw(st.integers(1, 2)))
    tile = tuple(geometry.side_for(geometry.grid) + geometry.grid * draw(st.integers(0, 4)) for _ in range(2))
    return TilePlan((draw(st.integers(1, 70)), draw(st.integers(1, 70))), tile, geometry)


def random_scores(rng, shape, spoil):
    """Scores of few values, so that many tie, a few of them NaN or infinite."""
    scores = rng.integers(-2, 3, shape).astype(np.float32)
    if spoil:
        scores.flat[rng.integers(0, scores.size, 3)] = rng.choice([np.nan, np.inf, -np.inf], 3)
    return scores


def is_spoilt(scores):
    try:
        with np.errstate(invalid="ignore"):
            require_finite_scores(scores)
    except InferenceError:
        return True
    return False


@given(plans(), st.integers(1, 5), st.integers(0, 99), st.sampled_from(sorted(LAYOUTS)), st.booleans(), st.booleans())
def test_stitched_labels_and_the_flag_are_the_hosts(kernels, plan, classes, seed, layout, spoil, look):
    rng = np.random.default_rng(seed)
    on_host, on_gpu = np.full(plan.frame, 99, np.uint8), LAYOUTS[layout]((1, *plan.frame), np.uint8)[0]
    on_gpu[:] = 99
    halo = plan.geometry.halo
    for tile in plan:
        scores = random_scores(rng, (classes, *(side - 2 * halo for side in plan.tile)), spoil)
        flag = np.zeros(1, np.int32)
        tile.stitch(best_class(scores), on_host)
        spoilt = on_device(flag).address if look else None
        kernels.stitch_labels(on_device(scores), tile, on_device(on_gpu), spoilt, STREAM)
        assert flag[0] == (look and is_spoilt(scores))
        np.testing.assert_array_equal(on_gpu, on_host)


def test_a_score_beyond_the_frame_raises_the_flag_too(kernels):
    plan = TilePlan((3, 3), (60, 60), Geometry.unet(2))
    scores, labels, flag = np.zeros((2, 20, 20), np.float32), np.zeros((3, 3), np.uint8), np.zeros(1, np.int32)
    scores[1, 19, 19] = np.inf
    for tile in plan:
        kernels.stitch_labels(on_device(scores), tile, on_device(labels), on_device(flag).address, STREAM)
    assert flag[0] == 1


def counted(kernels, frame):
    bins = np.full(bins_shape(on_device(frame)), 3, np.uint32)
    kernels.histogram(on_device(frame), on_device(bins), STREAM)
    return bins


@given(frames([np.dtype(np.uint8), np.dtype(np.uint16)]))
def test_counts_are_those_of_bincount(kernels, frame):
    bins = counted(kernels, frame).sum(axis=1)
    for channel, counts in zip(frame, bins, strict=True):
        np.testing.assert_array_equal(counts, np.bincount(channel.ravel(), minlength=len(counts)))


def test_blocks_count_into_different_copies(kernels):
    assert (counted(kernels, np.zeros((1, 64, 64), np.uint16))[0, :, 0] > 0).all()


normalisations = st.one_of(
    st.just(Normalisation("zscore")),
    st.tuples(st.floats(0, 50), st.floats(50.001, 100)).map(lambda ranks: Normalisation("percentile", *ranks)),
    st.just(Normalisation("fixed", offset=(3.0, 1.0, 2.0), scale=(0.1, 0.2, 0.3))),
)


@given(frames([np.dtype(np.uint8), np.dtype(np.uint16)]), normalisations, st.sampled_from([1, 50, 1000]))
def test_what_is_measured_from_counts_is_what_is_measured_on_the_frame(kernels, frame, normalisation, divisor):
    frame //= (
        np.asarray(divisor, np.uint16).astype(frame.dtype) or 1
    )  # as cameras do, few grey values of those there are
    on_host, on_gpu = normalisation.measure(frame), measure_counts(normalisation, counted(kernels, frame))
    np.testing.assert_array_equal(on_gpu.offset.view(np.uint32), on_host.offset.view(np.uint32))
    np.testing.assert_array_equal(on_gpu.scale.view(np.uint32), on_host.scale.view(np.uint32))


def test_a_frame_that_bins_cannot_count_is_refused(kernels):
    from unetrt.runtime.cuda.arrays import DeviceArray

    frame = DeviceArray.packed(0, (1, 1 << 16, 1 << 16), np.uint8)
    with pytest.raises(FrameError, match="2\\^32 pixels"):
        kernels.histogram(frame, DeviceArray.packed(0, bins_shape(frame), np.uint32), STREAM)


def message(call, *arguments):
    try:
        call(*arguments)
    except FrameError as error:
        return str(error)
    return None


@given(frames([np.dtype(name) for name in ("float16", "float32", "float64")]), st.integers(0, 3), st.integers(0, 99))
def test_pixels_that_are_not_finite_are_named_as_on_the_host(kernels, frame, count, seed):
    rng = np.random.default_rng(seed)
    bad = [np.nan, np.inf, -np.inf, -1e39 if frame.itemsize == 8 else np.nan]
    frame[tuple(rng.integers(0, np.array(frame.shape)[:, None], (3, count)))] = rng.choice(bad, count)
    found = np.full(1, 77, FOUND)
    kernels.not_finite(on_device(frame), on_device(found.view(np.uint64)).address, STREAM)
    expected, given = message(require_finite, frame), message(require_none, found[0], on_device(frame))
    assert (expected is None) == (count == 0) == (given is None)
    if frame.itemsize < 8:
        assert given == expected
    elif count:
        assert given.split(" pixels")[0] == expected.split(" pixels")[0]
        assert re.findall("the first at [^:]*", given) == re.findall("the first at [^:]*", expected)
        assert "are NaN or infinite or beyond 3.4e+38, the largest float32" in given


@pytest.mark.parametrize(("pixel", "usable"), [(np.finfo(np.float32).max, True), (3.4028235e38 * (1 + 1e-15), False)])
def test_float64_is_usable_up_to_float32s_largest_number(kernels, pixel, usable):
    frame, found = np.full((1, 1, 1), -np.float64(pixel)), np.zeros(1, FOUND)
    kernels.not_finite(on_device(frame), on_device(found.view(np.uint64)).address, STREAM)
    assert (found["count"][0] == 0) == usable
    assert (message(require_finite, frame) is None) == usable


def test_the_stream_is_passed_on(driver, kernels):
    driver.launches.clear()
    counted(kernels, np.zeros((2, 3, 3), np.uint8))
    assert driver.launches == [("histogram", STREAM)] * 2


def test_kernels_that_do_not_load_leave_no_module():
    class Forgetful(HostDriver):
        def function(self, module, name):
            raise InferenceError("no such kernel")

    driver = Forgetful()
    with pytest.raises(InferenceError):
        Kernels(CudaDevice(driver))
    assert driver.modules == {}

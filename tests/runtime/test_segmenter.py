import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import coordinate_frame, small_spec
from unetrt.runtime.errors import FrameError, InferenceError, OptionError, SessionClosedError
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import CropSession, WorkerSession
from unetrt.runtime.timings import Timings

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


class FunctionSession(WorkerSession):
    """A session whose pass is a function of the test."""

    def __init__(self, function, **fields):
        super().__init__(small_spec(normalisation=AS_IT_IS, **fields), "a function of the test")
        self._function = function

    def compute(self, frames, scores):
        self._function(frames, scores)


def crop_segmenter(lanes=2, **fields):
    return Segmenter(CropSession(small_spec(normalisation=AS_IT_IS, **fields)), lanes=lanes)


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 200), (131, 90)])
def test_every_pixel_comes_back_to_its_place(lanes, batch, size):
    frame = coordinate_frame(*size)
    np.testing.assert_array_equal(crop_segmenter(lanes, batch=batch).scores(frame)[0], frame)


@pytest.mark.parametrize(
    ("channels", "shape", "labels"),
    [(1, (40, 50), (40, 50)), (1, (3, 40, 50), (3, 40, 50)), (1, (2, 3, 9, 8), (2, 3, 9, 8)),
     (3, (3, 40, 50), (40, 50)), (3, (5, 3, 40, 50), (5, 40, 50))],
)  # fmt: skip
def test_frames_and_stacks(channels, shape, labels):
    fixed = Normalisation("fixed", offset=(0.5,) * channels, scale=(1.0,) * channels)
    image = np.random.default_rng(0).integers(0, 2, shape).astype(np.uint8)
    session = CropSession(small_spec(channels=channels, normalisation=fixed, head="labels"))
    result = Segmenter(session).segment(image)
    assert result.labels.shape == labels
    assert result.labels.dtype == np.uint8
    assert result.probabilities is None


def test_bool_and_lists_are_images_too():
    image = [[0, 1, 1], [1, 0, 0]]
    segmenter = crop_segmenter(head="labels")
    np.testing.assert_array_equal(segmenter.segment(np.array(image, bool)).labels, image)
    np.testing.assert_array_equal(segmenter.segment(image).labels, image)


def test_a_stack_is_each_of_its_frames():
    stack = np.random.default_rng(1).integers(0, 200, (3, 70, 50)).astype(np.uint8)
    segmenter = crop_segmenter(head="labels")
    np.testing.assert_array_equal(segmenter.segment(stack).labels, stack)


def test_a_memmap_and_a_lazy_array_are_read_frame_by_frame(tmp_path):
    stack = np.random.default_rng(2).integers(0, 200, (4, 30, 20)).astype(np.uint8)
    np.save(tmp_path / "stack.npy", stack)

    class Lazy:
        shape, read = stack.shape, []

        def __getitem__(self, index):
            self.read.append(index)
            return stack[index]

    segmenter = crop_segmenter(head="labels")
    np.testing.assert_array_equal(segmenter.segment(np.load(tmp_path / "stack.npy", mmap_mode="r")).labels, stack)
    np.testing.assert_array_equal(segmenter.segment(Lazy()).labels, stack)
    assert Lazy.read == [(0,), (1,), (2,), (3,)]


def test_labels_go_into_out():
    frame = np.random.default_rng(3).integers(0, 200, (30, 20)).astype(np.uint8)
    out = np.zeros((30, 20), np.uint8)
    assert crop_segmenter(head="labels").segment(frame, out=out).labels is out
    np.testing.assert_array_equal(out, frame)


def test_probabilities_sum_to_one_and_agree_with_the_labels():
    frame = np.random.default_rng(4).normal(size=(70, 50)).astype(np.float32)

    def compute(frames, scores):
        inner = slice(20, -20)
        scores[:, 0], scores[:, 1] = frames[:, 0, inner, inner], 0

    with FunctionSession(compute) as session:
        result = Segmenter(session).segment(frame, probabilities=True)
    np.testing.assert_allclose(result.probabilities.sum(axis=0), 1, rtol=1e-6)
    np.testing.assert_allclose(result.probabilities[0], 1 / (1 + np.exp(-frame)), rtol=1e-5)
    np.testing.assert_array_equal(result.labels, frame < 0)


def test_progress_and_timings_count_every_tile():
    seen = []
    result = crop_segmenter().segment(np.zeros((2, 100, 100), np.uint8), progress=lambda *at: seen.append(at))
    total = seen[-1][1]
    assert seen == [(done, total) for done in range(1, total + 1)]
    assert result.timings.tiles == total
    parts = result.timings
    assert parts.normalise + parts.cut + parts.wait + parts.stitch <= parts.total


@pytest.mark.parametrize(
    ("channels", "image", "message"),
    [
        (1, np.zeros(5), r"shape \(5,\): this model takes \(H, W\)"),
        (3, np.zeros((5, 5)), r"this model takes \(3, H, W\)"),
        (3, np.zeros((2, 5, 5)), r"2 channels: this model takes \(3, H, W\)"),
        (1, np.zeros((0, 5)), "holds no pixels"),
        (1, np.zeros((9, 9, 3), np.uint8), "9 frames of 9 x 3 px, or 9 x 9 px with the channels last"),
        (1, np.zeros((64, 64, 1), np.uint8), "64 frames of 64 x 1 px, or"),
        (1, None, "a NoneType cannot be converted to an array"),
        (1, np.zeros((5, 5), complex), "the image is complex128"),
        (1, np.array([[1, np.nan], [np.inf, 2]]), "2 pixels are NaN or infinite, the first at row 0, column 1"),
        (
            1,
            np.array([[1, 2], [-1e39, 1e300]]),
            r"2 pixels are beyond 3.4e\+38, the largest float32, the first at row 1, column 0: divide the image by a",
        ),
        (
            1,
            np.array([[1, np.nan], [3, 1e300]]),
            r"2 pixels are NaN or infinite or beyond 3.4e\+38, the largest float32, the first at row 0, column 1",
        ),
    ],
)
def test_what_is_no_frame(channels, image, message):
    fixed = Normalisation("fixed", offset=(0.0,) * channels, scale=(1.0,) * channels)
    segmenter = Segmenter(CropSession(small_spec(channels=channels, normalisation=fixed)))
    for call in (segmenter.segment, segmenter.objects, segmenter.scores):
        with pytest.raises(FrameError, match=message):
            call(image)


def test_frames_that_are_narrow_are_segmented_with_an_axis_between():
    frames = np.arange(40 * 32 * 6).reshape(40, 1, 32, 6).astype(np.float32)
    segmenter = crop_segmenter()
    stacked = segmenter.objects(frames)
    assert stacked.count.shape == (40, 1)
    np.testing.assert_array_equal(stacked.labels[7, 0], segmenter.objects(frames[7, 0]).labels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_graph_that_normalises_is_handed_raw_tiles_and_sees_what_others_see(dtype):
    fixed = Normalisation("fixed", offset=(90.0,), scale=(0.013,))
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (131, 90), dtype=dtype)
    with crop_segmenter() as plain, Segmenter(CropSession(replace(plain.spec, normalisation=fixed))) as normalised:
        raw = Segmenter(CropSession(replace(normalised.spec, input_dtype=dtype)))
        np.testing.assert_array_equal(raw.scores(image), normalised.scores(image))
        np.testing.assert_array_equal(raw.scores(image)[0], fixed(image[None])[0])


@pytest.mark.parametrize(("dtype", "given"), [("uint8", "uint16"), ("uint16", "float32"), ("uint16", "int16")])
def test_a_graph_that_takes_raw_pixels_takes_no_others(dtype, given):
    with pytest.raises(FrameError, match=f"the image is {given}: this model takes raw {dtype}.*--input float32"):
        crop_segmenter(input_dtype=dtype).segment(np.zeros((5, 5), given))


@pytest.mark.parametrize("out", [np.zeros((5, 4), np.uint8), np.zeros((5, 5), np.int32)])
def test_out_must_fit(out):
    with pytest.raises(FrameError, match=r"give uint8 \(5, 5\)"):
        crop_segmenter().segment(np.zeros((5, 5)), out=out)


def test_out_must_be_writable_and_apart_from_the_image():
    image = np.zeros((5, 5), np.uint8)
    with pytest.raises(FrameError, match="shares memory"):
        crop_segmenter().segment(image, out=image)
    image.flags.writeable = False
    with pytest.raises(FrameError, match="can be written to"):
        crop_segmenter().segment(np.ones((5, 5)), out=image)


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_lower_precision_that_overflows_is_an_error_and_no_background(probabilities):
    def compute(frames, scores):
        scores[...] = 1
        scores[0, 0, 3, 3] = np.nan

    with (
        FunctionSession(compute, precision="fp16") as session,
        pytest.raises(InferenceError, match="export it in fp32"),
    ):
        Segmenter(session).segment(np.zeros((30, 30)), probabilities=probabilities)


def test_a_labels_head_has_no_probabilities():
    segmenter = crop_segmenter(head="labels")
    with pytest.raises(OptionError, match="--head logits or probabilities"):
        segmenter.segment(np.zeros((5, 5)), probabilities=True)
    with pytest.raises(OptionError, match="--head logits or probabilities"):
        segmenter.scores(np.zeros((5, 5)))


@pytest.mark.parametrize("failing", [0, 1, 5])
def test_after_a_failed_pass_the_next_frame_works(failing):
    passes = iter(range(1000))

    def compute(frames, scores):
        if next(passes) == failing:
            raise InferenceError("the engine failed")
        scores[...] = frames[:, :1, 20:-20, 20:-20]

    frame = coordinate_frame(150, 150)
    with FunctionSession(compute) as session:
        segmenter = Segmenter(session)
        with pytest.raises(InferenceError, match="the engine failed"):
            segmenter.scores(frame)
        np.testing.assert_array_equal(segmenter.scores(frame)[0], frame)


def test_eight_threads_get_what_one_gets():
    segmenter = crop_segmenter()
    frames = [coordinate_frame(40 + 13 * number, 90) + number for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        for frame, scores in zip(frames * 4, pool.map(segmenter.scores, frames * 4), strict=True):
            np.testing.assert_array_equal(scores[0], frame)


def test_the_next_tile_is_cut_while_one_computes():
    """With two lanes the second pass is queued before the first ends; with one it cannot be."""

    def most_in_flight(lanes):
        gate, queued, most = threading.Semaphore(0), [], []

        class Counting(FunctionSession):
            def submit(self, work):
                queued.append(1)
                if len(queued) == min(lanes, 2):
                    gate.release(1000)
                return super().submit(work)

        def compute(frames, scores):
            gate.acquire(timeout=10)
            most.append(len(queued))
            scores[...] = 0
            queued.pop()

        with Counting(compute) as session:
            Segmenter(session, lanes=lanes).scores(np.zeros((100, 60)))
        return max(most)

    assert most_in_flight(1) == 1
    assert most_in_flight(2) == 2


def test_a_closed_session_says_so():
    session = CropSession(small_spec(normalisation=AS_IT_IS))
    closed, segmenter = Segmenter(session), Segmenter(session)
    closed.close()
    closed.close()
    with pytest.raises(SessionClosedError, match="open the model again"):
        closed.segment(np.zeros((5, 5)))
    segmenter.segment(np.zeros((5, 5)))  # the session was not opened by the segmenter that was closed
    session.close()
    session.close()
    with pytest.raises(SessionClosedError, match="open the model again"):
        segmenter.segment(np.zeros((5, 5)))


@pytest.mark.parametrize("lanes", [0, -1, 65, 10**400, 2.0, "2", None])
def test_no_segmenter_has_no_lanes_or_too_many(lanes):
    with pytest.raises(OptionError, match=r"^lanes must be an integer from 1 to 64 \(got .{1,60}\)$"):
        crop_segmenter(lanes=lanes)


def test_an_interrupt_of_who_waits_for_the_lanes_does_not_keep_them(monkeypatch):
    """Ctrl-C may come at once after the lock was taken."""
    add = Timings.add

    def interrupted(timings, name, seconds):
        monkeypatch.setattr(Timings, "add", add)
        raise KeyboardInterrupt

    segmenter = crop_segmenter()
    monkeypatch.setattr(Timings, "add", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segmenter.scores(coordinate_frame(30, 30))
    assert not segmenter._lock.locked()
    assert segmenter.scores(coordinate_frame(30, 30)).shape == (2, 30, 30)


def test_closing_waits_for_no_other_thread():
    """A call that runs ends at its next tile, those that wait for it at once; the last frees the lanes."""
    begun, closed = threading.Event(), threading.Event()
    errors = []

    def call(progress=None):
        try:
            segmenter.segment(coordinate_frame(300, 300), progress=progress)
        except SessionClosedError as error:
            errors.append(str(error))

    def hold(*_):
        begun.set()
        closed.wait(10)

    segmenter = crop_segmenter()
    threads = [threading.Thread(target=call, args=(hold,)), threading.Thread(target=call)]
    threads[0].start()
    begun.wait(10)
    threads[1].start()
    segmenter.close()
    closed.set()
    for thread in threads:
        thread.join(10)
    assert errors == ["the segmenter is closed: open the model again"] * 2
    assert segmenter._lanes == []


def test_a_fork_does_not_wait_for_what_its_parent_has(monkeypatch):
    with crop_segmenter() as segmenter:
        with monkeypatch.context() as child:
            child.setattr("unetrt.runtime.segment.segmenter.os.getpid", lambda: -1)
            with pytest.raises(SessionClosedError, match="before this process was forked"):
                segmenter.segment(np.zeros((5, 5)))
        segmenter.segment(np.zeros((5, 5)))


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(5, 5, requires_grad=True),
        torch.zeros(5, 5, dtype=torch.bfloat16),
        [[1, 2], [3]],
    ],
    ids=["requires grad", "bfloat16", "ragged"],
)
def test_what_does_not_become_an_array_is_said_in_a_line(image):
    with crop_segmenter() as segmenter, pytest.raises(FrameError, match="give") as caught:
        segmenter.segment(image)
    assert "\n" not in str(caught.value)


def test_buffers_and_tensors_are_read_and_written():
    frame = np.arange(600, dtype=np.uint16).reshape(20, 30)
    with crop_segmenter() as segmenter:
        expected = segmenter.segment(frame).labels
        np.testing.assert_array_equal(segmenter.segment(memoryview(frame)).labels, expected)
        out = torch.zeros(20, 30, dtype=torch.uint8)
        assert segmenter.segment(frame, out=out).labels is out
        np.testing.assert_array_equal(out.numpy(), expected)


def test_a_bad_frame_of_a_stack_is_named():
    stack = np.zeros((3, 2, 20, 20), np.float32)
    stack[2, 1, 3, 4] = np.nan
    with crop_segmenter() as segmenter, pytest.raises(FrameError, match="frame 2, 1: 1 pixels .* row 3, column 4"):
        segmenter.segment(stack)


@pytest.mark.parametrize("model", [None, 5, b"x"])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(OptionError, match="model must be the path of a file or an open session"):
        Segmenter(model)

"""`Segmenter.objects`: the objects of `instances`, decoded while the next frame is computed."""

import threading
import time

import numpy as np
import pytest

from tests.conftest import small_spec
from unetrt.runtime import Segmenter, instances
from unetrt.runtime.errors import FrameError, OptionError, SessionClosedError
from unetrt.runtime.model.confidence import confidence
from unetrt.runtime.model.spec import CORE_CLASSES, Decoding
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.segment import _decoder as module
from unetrt.runtime.sessions.cpu import CropSession, WorkerSession

CORES = Decoding("cores", reach=4, bridge=1, smallest=3)


class ClassSession(WorkerSession):
    """The class of a pixel is its grey value; calls `before` with the number of each pass."""

    def __init__(self, before=lambda number: None, head="logits", classes=CORE_CLASSES, decoding=CORES, **fields):
        as_it_is = Normalisation("fixed", offset=(0.0,), scale=(1.0,))
        # A frame of `class_maps` is one tile.
        fixed = {"tile": (60, 76), "normalisation": as_it_is, "classes": classes, "decoding": decoding}
        super().__init__(small_spec(head=head, **fixed, **fields), "classes as drawn")
        self.passes, self._before = 0, before

    def compute(self, frames, scores):
        self.passes += 1
        self._before(self.passes)
        halo = self.spec.halo
        drawn = frames[:, 0, halo:-halo, halo:-halo]
        if self.spec.head == "labels":
            scores[...] = drawn
            return
        for index in range(len(self.spec.classes)):
            scores[:, index] = -np.abs(drawn - index)


def class_maps(count, shape=(20, 30), seed=0):
    """Return class maps of squares with cores; each plane has more squares than the last."""
    rng = np.random.default_rng(seed)
    maps = np.zeros((count, *shape), np.uint8)
    for number, plane in enumerate(maps):
        for _ in range(number + 1):
            y, x = rng.integers(0, shape[0] - 6), rng.integers(0, shape[1] - 6)
            plane[y : y + 6, x : x + 6] = np.maximum(plane[y : y + 6, x : x + 6], 1)
            plane[y + 2 : y + 4, x + 2 : x + 4] = 2
    return maps


@pytest.fixture(autouse=True)
def no_thread_left():
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("unetrt-decode")] == []


@pytest.mark.parametrize("leading", [(), (1,), (5,), (2, 3)])
@pytest.mark.parametrize("lanes", [1, 2])
def test_they_are_those_of_instances(leading, lanes):
    maps = class_maps(int(np.prod(leading, dtype=int)), (70, 90)).reshape(*leading, 70, 90)
    with ClassSession() as session, Segmenter(session, lanes=lanes) as segmenter:
        found, classes = segmenter.objects(maps, min_area=30), segmenter.segment(maps).labels
    expected = instances(classes, CORES, 30)
    np.testing.assert_array_equal(found.labels, expected)
    np.testing.assert_array_equal(found.count, expected.max(axis=(-2, -1)))
    assert (found.labels.dtype, found.count.shape, found.confidence) == (np.int32, leading, None)
    assert found.timings.decode == sum(frame.decode for frame in found.timings.frames) > 0
    assert found.timings.total >= found.timings.frames[-1].decode


def test_memmaps_lists_and_channels_are_images_too(tmp_path):
    maps = class_maps(3)
    np.save(tmp_path / "maps.npy", maps)
    with ClassSession() as session, Segmenter(session) as segmenter:
        expected = segmenter.objects(maps).labels
        np.testing.assert_array_equal(segmenter.objects(np.load(tmp_path / "maps.npy", mmap_mode="r")).labels, expected)
        np.testing.assert_array_equal(segmenter.objects(maps[2].tolist()).labels, expected[2])
    fixed = Normalisation("fixed", offset=(0.5,) * 3, scale=(1.0,) * 3)
    colours = Segmenter(CropSession(small_spec(channels=3, normalisation=fixed, head="labels")))
    assert colours.objects(np.ones((2, 3, 9, 8), np.uint8)).labels.shape == (2, 9, 8)


@pytest.mark.parametrize("tta", [False, True])
def test_the_confidence_follows_from_the_probabilities(tta):
    maps = class_maps(3)
    with ClassSession() as session, Segmenter(session) as segmenter:
        found = segmenter.objects(maps, confidence=True, tta=tta)
        result = segmenter.segment(maps, probabilities=True, tta=tta)
    expected = [confidence(*plane, CORES) for plane in zip(found.labels, result.probabilities, strict=True)]
    np.testing.assert_array_equal(found.confidence, np.concatenate(expected))
    assert found.confidence.dtype == np.float32
    assert len(found.confidence) == found.count.sum()


def test_a_frame_without_objects_has_none():
    with ClassSession() as session, Segmenter(session) as segmenter:
        found = segmenter.objects(np.zeros((9, 9), np.uint8), confidence=True)
    assert (int(found.count), found.confidence.shape, f"{found.count}") == (0, (0,), "0")


def test_what_is_refused_is_refused_before_anything_is_computed():
    with ClassSession(head="labels") as session, Segmenter(session) as segmenter:
        for options in ({"confidence": True}, {"tta": True}):
            with pytest.raises(OptionError, match="head outputs labels only: export it with --head logits"):
                segmenter.objects(class_maps(1), **options)
        with pytest.raises(OptionError, match=r"min_area must be at least 0 \(got -1\)"):
            segmenter.objects(class_maps(1), min_area=-1)
        with pytest.raises(FrameError, match="this model takes"):
            segmenter.objects(np.zeros(3))
        assert session.passes == 0
        assert segmenter.objects(class_maps(1)).count == [1]


def decoding_through(monkeypatch, before):
    """Call `before` with the number of each plane, from 1, before it is decoded: each alone, as if it were large."""
    monkeypatch.setattr(module, "GROUP", 1)
    planes = []

    def watched(*arguments):
        planes.append(None)
        before(len(planes))
        return instances(*arguments)

    monkeypatch.setattr(module, "instances", watched)


def test_a_plane_is_decoded_while_the_next_is_computed(monkeypatch):
    decoding, computing, overlapped = threading.Event(), threading.Event(), []

    def compute(number):
        if number == 2:
            computing.set()
            overlapped.append(decoding.wait(30))  # the first plane, before the second is there

    def decode(number):
        if number == 1:
            decoding.set()
            overlapped.append(computing.wait(30))

    decoding_through(monkeypatch, decode)
    with ClassSession(compute) as session, Segmenter(session, lanes=1) as segmenter:
        found = segmenter.objects(class_maps(2))
    assert overlapped == [True, True]
    assert found.count.shape == (2,)


def test_computing_does_not_run_ahead_of_decoding(monkeypatch):
    ahead = []

    def decode(number):
        time.sleep(0.02)
        ahead.append(session.passes - number)

    decoding_through(monkeypatch, decode)
    with ClassSession() as session, Segmenter(session, lanes=1) as segmenter:
        segmenter.objects(class_maps(12))
    assert max(ahead) <= 3  # one waits, one is in flight, one is stitched


@pytest.mark.parametrize("frames", [1, 3, 300])
def test_small_planes_are_decoded_together(monkeypatch, frames):
    maps = class_maps(frames, (12, 10))
    with ClassSession() as session, Segmenter(session) as segmenter:
        together = segmenter.objects(maps, confidence=True)
        classes, sizes = segmenter.segment(maps).labels, []

        def counted(planes, *how):
            sizes.append(len(planes))
            return instances(planes, *how)

        monkeypatch.setattr(module, "instances", counted)
        segmenter.objects(maps)
        assert sizes == [frames] if frames < 100 else sizes == [136, 136, 28]
        monkeypatch.setattr(module, "GROUP", 1)
        alone = segmenter.objects(maps, confidence=True)
    for plane, labels in zip(classes, together.labels, strict=True):
        np.testing.assert_array_equal(labels, instances(plane, CORES))
    np.testing.assert_array_equal(together.count, alone.count)
    np.testing.assert_array_equal(together.confidence, alone.confidence)
    assert all(frame.decode > 0 for frame in together.timings.frames)


@pytest.mark.parametrize("failing", [1, 3, 6])
def test_an_error_of_the_decoding_is_raised(monkeypatch, failing):
    def decode(number):
        if number == failing:
            raise MemoryError("no room for objects")

    decoding_through(monkeypatch, decode)
    with ClassSession() as session, Segmenter(session) as segmenter:
        with pytest.raises(MemoryError, match="no room for objects"):
            segmenter.objects(class_maps(6))
        monkeypatch.undo()
        assert segmenter.objects(class_maps(6)).labels.any()


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupt_ends_the_call_and_its_thread(error):
    def progress(done, total):
        if done == 3:
            raise error

    with ClassSession() as session, Segmenter(session) as segmenter:
        with pytest.raises(error):
            segmenter.objects(class_maps(6), progress=progress)
        assert segmenter.objects(class_maps(6)).labels.any()


def test_closing_ends_a_call_of_another_thread():
    errors, begun, closed = [], threading.Event(), threading.Event()

    def progress(done, total):
        begun.set()
        closed.wait(30)

    def call():
        try:
            segmenter.objects(class_maps(6), progress=progress)
        except SessionClosedError as error:
            errors.append(str(error))

    with ClassSession() as session:
        segmenter = Segmenter(session)
        thread = threading.Thread(target=call)
        thread.start()
        begun.wait(30)
        segmenter.close()
        closed.set()
        thread.join(30)
    assert errors == ["the segmenter is closed: open the model again"]


def test_threads_get_what_one_gets():
    found = {}
    maps = [class_maps(4, (30 + number, 40), seed=number) for number in range(4)]
    with ClassSession() as session, Segmenter(session) as segmenter:
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: segmenter.objects(maps[n], confidence=True)}))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        for number, one in found.items():
            expected = segmenter.objects(maps[number], confidence=True)
            np.testing.assert_array_equal(one.labels, expected.labels)
            np.testing.assert_array_equal(one.confidence, expected.confidence)
    assert len(found) == 4

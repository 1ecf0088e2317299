"""Real images through Micro-Manager's engine, from a camera that replays files."""

import time

import numpy as np
import pytest
import tifffile
import useq

from tests import requirements
from tests.acquisition.slow_model import Notes, slow_segmenter
from tests.conftest import NUCLEI
from unetrt.__main__ import main
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.acquisition.replay import Replay, by_kind, load_replay_camera
from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.images import read_labels
from unetrt.runtime.files.sources import list_images

pytestmark = pytest.mark.alone


@pytest.fixture
def core():
    """A core that supports cameras written in Python, without any other device."""
    pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)
    from pymmcore import CMMCore
    from pymmcore_plus.experimental.unicore import UniMMCore

    core = UniMMCore()
    yield core
    core.unloadAllDevices()
    # As in the other fixture: no callback may find the interpreter finalizing.
    CMMCore.registerCallback(core, None)


def timed(frames, interval=0.0):
    return useq.MDASequence(time_plan={"interval": interval, "loops": frames})


@pytest.fixture
def numbered(tmp_path):
    """A stack of three frames and a single one, 30 x 40 uint16, whose pixels are their number."""
    frames = np.full((4, 30, 40), np.arange(4)[:, None, None], np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", frames[:3], photometric="minisblack")
    tifffile.imwrite(tmp_path / "b.tif", frames[3], photometric="minisblack")
    return [tmp_path / "a.tif", tmp_path / "b.tif"]


@pytest.fixture(scope="module")
def predicted(tiny_model, tmp_path_factory):
    """The folder of labels that `unetrt predict` writes for real images, and the images."""
    if not NUCLEI.is_dir():
        pytest.skip(f"{NUCLEI} is not there")
    folder, files = tmp_path_factory.mktemp("predicted"), list_images(NUCLEI / "val" / "images")
    assert main(["predict", str(tiny_model), *map(str, files), "-o", str(folder), "--no-overlays"]) == 0
    return folder, files


@pytest.mark.parametrize("sequenced", [False, True])
def test_real_images_get_the_labels_that_predict_writes(core, tiny_model, predicted, sequenced):
    folder, files = predicted
    core.mda.engine.use_hardware_sequencing = sequenced
    notes, shown = Notes(), []
    with LiveSegmenter(tiny_model, policy="drop_oldest", capacity=len(files), outputs=[notes]) as live:
        for group in by_kind(files).values():
            load_replay_camera(core, group, exposure=1)
            core.mda.run(timed(len(group)), output=[live])
            shown += group
        live.flush()
    assert sorted(shown, key=str) == files
    for file, result in zip(shown, notes.results, strict=True):
        np.testing.assert_array_equal(result.frame, tifffile.imread(file))
        np.testing.assert_array_equal(result.labels, read_labels(folder / file.path.name))
    in_sequences = [(file.path.name, result.meta) for file, result in zip(shown, notes.results, strict=True)]
    named = [(name, meta["camera_metadata"]["File"]) for name, meta in in_sequences if "camera_metadata" in meta]
    # The engine makes no sequence of one frame, and there are two sizes of which there is one.
    assert len(named) == (len(files) - 2 if sequenced else 0)
    assert all(name == given for name, given in named)
    assert sum(result.objects for result in notes.results) > len(files)


def test_frames_come_in_order_and_round_again(core, numbered):
    load_replay_camera(core, numbered, exposure=1)
    assert [core.snap()[0, 0] for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    assert Replay(numbered).count() == 4
    assert (core.getImageHeight(), core.getImageWidth(), core.getImageBitDepth()) == (30, 40, 16)


def test_a_program_chooses_what_is_shown_next(core, numbered):
    replay = Replay(numbered)
    load_replay_camera(core, replay, exposure=1)
    replay.rewind(1)
    assert [core.snap()[0, 0] for _ in range(2)] == [3, 0]


def test_a_frame_takes_the_exposure(core, numbered):
    load_replay_camera(core, numbered)
    assert core.getExposure() == 10
    core.setExposure(50)
    begin = time.perf_counter()
    core.snap()
    assert 0.05 <= time.perf_counter() - begin < 2


def test_continuous_mode_and_a_region(core, numbered):
    load_replay_camera(core, numbered, exposure=2)
    core.setROI(5, 6, 20, 10)
    core.startContinuousSequenceAcquisition(0)
    until = time.perf_counter() + 10
    while core.getRemainingImageCount() < 5 and time.perf_counter() < until:
        time.sleep(0.005)
    core.stopSequenceAcquisition()
    frames = [core.popNextImageAndMD() for _ in range(5)]
    assert [frame[0, 0] for frame, _ in frames] == [0, 1, 2, 3, 0]
    assert [(meta["File"], meta["Frame"]) for _, meta in frames[2:4]] == [("a.tif", "2"), ("b.tif", "0")]
    assert {frame.shape for frame, _ in frames} == {(10, 20)}


def test_a_camera_of_another_size_takes_its_place(core, numbered, tmp_path):
    load_replay_camera(core, numbered, exposure=1)
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((50, 60), np.uint8))
    load_replay_camera(core, [tmp_path / "c.tif"], exposure=1)
    with slow_segmenter() as segmenter, LiveSegmenter(segmenter) as live:
        core.mda.run(timed(1), output=[live])
        live.flush()
        assert live.status().done == 1
    assert core.snap().shape == (50, 60)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((30, 41), np.uint16, r"c.tif is 30 x 41 uint16, .*a.tif is 30 x 40 uint16.*by_kind"),
        ((30, 40), np.uint8, r"c.tif is 30 x 40 uint8, .*a.tif is 30 x 40 uint16.*by_kind"),
    ],
)
def test_a_camera_has_one_size_and_dtype(numbered, tmp_path, shape, dtype, message):
    tifffile.imwrite(tmp_path / "c.tif", np.zeros(shape, dtype))
    files = [*numbered, tmp_path / "c.tif"]
    replay = Replay(files)
    for _ in range(4):
        replay.next()
    with pytest.raises(FrameError, match=message):
        replay.next()
    groups = [[source.path for source in group] for group in by_kind(files).values()]
    assert groups == [numbered, [tmp_path / "c.tif"]]


def test_files_that_cannot_be_replayed_are_refused(tmp_path):
    with pytest.raises(FrameError, match="no files to replay: give one or more"):
        Replay([])
    tifffile.imwrite(
        tmp_path / "rgb.tif", np.eye(9, 3, dtype=np.uint8)[None] * np.ones((9, 1, 1), np.uint8), photometric="rgb"
    )
    with pytest.raises(FrameError, match="rgb.tif has 3 channels: a replay camera is grey"):
        Replay([tmp_path / "rgb.tif"])

"""LiveSegmenter in Micro-Manager's acquisition engine: it follows an experiment, and never disturbs it."""

import logging

import numpy as np
import pytest
import useq

from tests import requirements
from tests.acquisition.slow_model import Notes, adds_up, bright, slow_segmenter
from unetrt.runtime import LiveSegmenter

pytestmark = pytest.mark.alone


@pytest.fixture
def engine_errors():
    """Asserts that the engine logs no error."""
    records = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = records.append
    logger = logging.getLogger("pymmcore-plus")
    logger.addHandler(handler)
    yield records
    logger.removeHandler(handler)
    assert [record.getMessage() for record in records] == []


def timed(frames, interval=0.02):
    return useq.MDASequence(time_plan={"interval": interval, "loops": frames})


def live_for(notes, segmenter, **options):
    """A live segmenter that keeps all frames of these short runs."""
    options = {"policy": "drop_oldest", "capacity": 64, "kind": "classes", **options}
    return LiveSegmenter(segmenter, outputs=[notes], **options)


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
def segmenter():
    with slow_segmenter() as segmenter:
        yield segmenter


def test_a_hardware_sequence_is_segmented_in_order(core, notes, segmenter, engine_errors):
    core.mda.engine.use_hardware_sequencing = True
    started = []
    core.events.sequenceAcquisitionStarted.connect(started.append)
    with live_for(notes, segmenter) as live:
        core.mda.run(timed(40, interval=0), output=[live])
        live.flush()
        status = live.status()
    assert started == ["Camera"]
    assert notes.indices() == list(range(40))
    assert [int(result.meta["camera_metadata"]["ImageNumber"]) for result in notes.results] == list(range(40))
    assert (status.submitted, status.done, status.missed) == (40, 40, 0)


@pytest.mark.parametrize("policy", ["latest", "drop_oldest"])
def test_a_hardware_sequence_faster_than_the_segmenter_adds_up(core, notes, engine_errors, policy):
    core.mda.engine.use_hardware_sequencing = True
    with slow_segmenter(0.05) as segmenter, live_for(notes, segmenter, policy=policy, capacity=1) as live:
        core.mda.run(timed(40, interval=0), output=[live])
        live.flush()
        status = live.status()
    assert (status.submitted, status.pending) == (40, 0)
    assert adds_up(status)
    assert status.dropped > 0
    assert notes.indices() == sorted(set(notes.indices()))
    assert notes.indices()[-1] == 39
    assert sum(result.dropped for result in notes.results) == status.dropped


def test_frames_that_the_model_fails_on_are_results(core, notes, engine_errors):
    with slow_segmenter(failing=range(0, 100, 3)) as segmenter, live_for(notes, segmenter) as live:
        core.mda.run(timed(12), output=[live])
        live.flush()
        status = live.status()
    assert [result.outcome for result in notes.results] == ["failed", "done", "done"] * 4
    assert {str(result.error) for result in notes.results[::3]} == {"the engine failed"}
    assert (status.submitted, status.done, status.failed, status.output_errors) == (12, 8, 4, 0)
    assert status.last_error == "InferenceError: the engine failed"


def test_an_output_that_raises_ends_neither_acquisition_nor_others(core, notes, segmenter, engine_errors):
    frames = []
    core.mda.events.frameReady.connect(lambda frame, event, meta: frames.append(event))

    def fail(result):
        raise ValueError("an output of the program's")

    with live_for(notes, segmenter, on_result=fail) as live:
        core.mda.run(timed(5), output=[live])
        live.flush()
        status = live.status()
    assert (len(frames), len(notes.results), status.done, status.output_errors) == (5, 5, 5, 5)


def set_pixel_type(name):
    return lambda core: core.setProperty("Camera", "PixelType", name)


def set_binning(core):
    core.setProperty("Camera", "Binning", 2)


def set_roi(core):
    core.setROI(16, 32, 200, 100)


def set_large(core):
    for axis in "XY":
        core.setProperty("Camera", f"OnCameraCCD{axis}Size", 2048)


CHANGES = [
    (lambda core: None, (512, 512), "uint16"),
    (set_roi, (100, 200), "uint16"),
    (lambda core: core.clearROI(), (512, 512), "uint16"),
    (set_binning, (256, 256), "uint16"),
    (lambda core: core.setProperty("Camera", "Binning", 1), (512, 512), "uint16"),
    (set_pixel_type("8bit"), (512, 512), "uint8"),
    (set_pixel_type("16bit"), (512, 512), "uint16"),
    (set_large, (2048, 2048), "uint16"),
]


def test_size_and_dtype_change_between_sequences(core, notes, segmenter, engine_errors):
    with live_for(notes, segmenter) as live:
        for change, _, _ in CHANGES:
            change(core)
            core.mda.run(timed(2), output=[live])
        live.flush()
    assert [result.error for result in notes.results] == [None] * 2 * len(CHANGES)
    for number, (_, shape, dtype) in enumerate(CHANGES):
        for result in notes.results[2 * number : 2 * number + 2]:
            assert (result.labels.shape, result.frame.dtype) == (shape, dtype)
            assert result.sequence.number == number
            assert (
                result.sequence.meta["image_infos"][0]["height"],
                result.sequence.meta["image_infos"][0]["width"],
            ) == shape
            assert 0 < result.labels.mean() < 1
            np.testing.assert_array_equal(result.labels, bright(result.frame))


@pytest.mark.parametrize("as_slot", [False, True])
def test_cancelling_ends_everything_and_the_next_run_works(core, notes, engine_errors, as_slot):
    canceled = []
    core.mda.events.sequenceCanceled.connect(canceled.append)

    def cancel(frame, event, meta):
        if event.index["t"] == 4:
            core.mda.cancel()

    core.mda.events.frameReady.connect(cancel)
    with slow_segmenter(0.03) as segmenter, live_for(notes, segmenter) as live:
        if as_slot:
            for name in ("sequenceStarted", "frameReady", "sequenceFinished"):
                getattr(core.mda.events, name).connect(getattr(live, name))
        output = None if as_slot else [live]
        core.mda.run(timed(50), output=output)
        assert len(canceled) == 1
        live.flush()
        assert (live.status().submitted, live.status().done) == (5, 5)
        core.mda.events.frameReady.disconnect(cancel)
        core.mda.run(timed(3), output=output)
        live.flush()
        assert (live.status().submitted, live.status().done) == (8, 8)
    assert notes.calls == [
        *[("started", 0), *[("result", 0)] * 5, ("finished", 0)],
        *[("started", 1), *[("result", 1)] * 3, ("finished", 1), ("closed",)],
    ]


def test_a_channel_may_be_the_only_one(core, notes, segmenter, engine_errors):
    sequence = useq.MDASequence(channels=["DAPI", "FITC"], time_plan={"interval": 0, "loops": 3})
    with live_for(notes, segmenter, channel="FITC") as live:
        core.mda.run(sequence, output=[live])
        live.flush()
        assert live.status().submitted == 3
    assert notes.indices("c") == [1, 1, 1]
    assert notes.indices("t") == [0, 1, 2]


def test_positions_and_planes_come_back_with_the_results(core, notes, segmenter, engine_errors):
    sequence = useq.MDASequence(
        axis_order="tpcz",
        stage_positions=[(0, 0, 0), (100, 50, 5)],
        z_plan={"range": 2, "step": 1},
        channels=["DAPI", "FITC"],
    )
    with live_for(notes, segmenter) as live:
        core.mda.run(sequence, output=[live])
        live.flush()
    assert [result.index for result in notes.results] == [dict(event.index) for event in sequence]
    assert [result.meta["mda_event"].z_pos for result in notes.results] == [event.z_pos for event in sequence]
    assert notes.results[0].sequence.plan is sequence


def test_closing_in_mid_run_does_no_harm_to_the_engine(core, notes, engine_errors):
    frames = []

    def close(frame, event, meta):
        frames.append(event.index["t"])
        if event.index["t"] == 4:
            live.close(drain=False)

    core.mda.events.frameReady.connect(close)
    with slow_segmenter(0.05) as segmenter, live_for(notes, segmenter) as live:
        core.mda.run(timed(12), output=[live])
        status = live.status()
        assert frames == list(range(12))
        assert (status.state, status.submitted, status.pending) == ("closed", 12, 0)
        assert adds_up(status)
        assert notes.calls[-1] == ("closed",)
        # The program's own segmenter is still open.
        assert segmenter.segment(np.eye(20)).labels.any()


def test_two_share_a_segmenter(core, engine_errors):
    both = Notes(), Notes()
    with (
        slow_segmenter(0.01) as segmenter,
        live_for(both[0], segmenter) as first,
        live_for(both[1], segmenter, channel="FITC") as second,
    ):
        sequence = useq.MDASequence(channels=["DAPI", "FITC"], time_plan={"interval": 0, "loops": 4})
        core.mda.run(sequence, output=[first, second])
        first.flush()
        second.flush()
    assert both[0].indices("c") == [0, 1] * 4
    assert both[1].indices("c") == [1] * 4
    for result in both[0].results + both[1].results:
        np.testing.assert_array_equal(result.labels, bright(result.frame))


def test_raw_data_is_stored_beside(core, notes, segmenter, engine_errors, tmp_path):
    zarr = pytest.importorskip("zarr", reason=requirements.ZARR)
    with live_for(notes, segmenter) as live:
        core.mda.run(timed(4), output=[tmp_path / "raw.ome.zarr", live])
        live.flush()
    stored = np.asarray(zarr.open(tmp_path / "raw.ome.zarr", mode="r")["0"])
    np.testing.assert_array_equal(stored, [result.frame for result in notes.results])


@pytest.mark.parametrize("policy", ["latest", "drop_oldest", "block"])
def test_only_a_slot_that_blocks_overflows_the_buffer_of_a_sequence(core, notes, policy):
    """The engine takes images from the core's buffer as fast as slots let it; where it is full, the camera stops."""
    core.mda.engine.use_hardware_sequencing = True
    core.setCircularBufferMemoryFootprint(32)  # MB: 64 frames
    core.setExposure(5)
    # Where it blocks, so long that the buffer fills at a tenth of the camera's rate too, as on a machine that is busy.
    seconds = 0.2 if policy == "block" else 0.05
    with slow_segmenter(seconds) as segmenter, live_for(notes, segmenter, policy=policy, capacity=1) as live:
        for name in ("sequenceStarted", "frameReady", "sequenceFinished"):
            getattr(core.mda.events, name).connect(getattr(live, name))
        if policy == "block":
            with pytest.raises(MemoryError, match="overflowed"):
                core.mda.run(timed(100, interval=0))
        else:
            core.mda.run(timed(100, interval=0))
        live.flush()
        status, before = live.status(), len(notes.results)
        assert adds_up(status)
        assert (status.submitted == 100) == (policy != "block")
        assert before == status.done > 0
        core.mda.run(timed(2, interval=0.2))
        live.flush()
    assert notes.calls[-4:] == [("result", 1), ("result", 1), ("finished", 1), ("closed",)]
    assert ("finished", 0) in notes.calls

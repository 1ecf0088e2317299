"""Several cameras, and a colour camera, of Micro-Manager's core."""

import numpy as np
import pytest
import useq

from tests.acquisition.slow_model import bright, slow_segmenter
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.pixels.frames import grey

pytestmark = pytest.mark.alone


@pytest.fixture
def two_cameras(core):
    """The core with a Multi Camera of two cameras; the second is brighter and shows noise."""
    core.loadDevice("Camera2", "DemoCamera", "DCam")
    core.loadDevice("Multi", "Utilities", "Multi Camera")
    for device in ("Camera2", "Multi"):
        core.initializeDevice(device)
    for name in ("PixelType", "BitDepth"):
        core.setProperty("Camera2", name, core.getProperty("Camera", name))
    core.setProperty("Camera2", "Mode", "Noise")
    core.setProperty("Multi", "Physical Camera 1", "Camera")
    core.setProperty("Multi", "Physical Camera 2", "Camera2")
    core.setCameraDevice("Multi")
    return core


@pytest.mark.parametrize("in_hardware", [False, True])
def test_cameras_and_channels_are_streams_of_their_own(two_cameras, in_hardware):
    core, results = two_cameras, []
    core.mda.engine.use_hardware_sequencing = in_hardware
    plan = useq.MDASequence(channels=["DAPI", "FITC"], time_plan={"interval": 0, "loops": 6}, axis_order="ct")
    options = {"policy": "drop_oldest", "capacity": 64, "kind": "classes", "normalisation": "running"}
    with slow_segmenter() as segmenter, LiveSegmenter(segmenter, on_result=results.append, **options) as live:
        core.mda.run(plan, output=[live])
        assert live.flush(60)
        status = live.status()
    assert (status.done, status.missed) == (24, 0)
    streams = [("Camera", "DAPI"), ("Camera2", "DAPI"), ("Camera", "FITC"), ("Camera2", "FITC")]
    assert {stream: sum(result.stream == stream for result in results) for stream in streams} == dict.fromkeys(
        streams, 6
    )
    assert all(result.index["cam"] == (result.stream.camera == "Camera2") for result in results)
    means = [
        np.mean([r.frame.mean() for r in results if r.stream.camera == camera]) for camera in ("Camera", "Camera2")
    ]
    assert max(means) > 1.2 * min(means)  # an average over both cameras would misplace the mean of each
    for result in results:
        assert (result.labels == bright(result.frame)).mean() > 0.9, result.stream


@pytest.mark.parametrize(("pixels", "dtype"), [("32bitRGB", np.uint8), ("64bitRGB", np.uint16)])
@pytest.mark.parametrize("in_hardware", [False, True])
def test_a_colour_camera_is_grey_for_a_model_of_one_channel(core, pixels, dtype, in_hardware):
    core.setProperty("Camera", "PixelType", pixels)
    core.mda.engine.use_hardware_sequencing = in_hardware
    results, images = [], []
    core.mda.events.frameReady.connect(lambda image, event: images.append(image))
    options = {"policy": "drop_oldest", "kind": "classes"}
    with slow_segmenter() as segmenter, LiveSegmenter(segmenter, on_result=results.append, **options) as live:
        core.mda.run(useq.MDASequence(time_plan={"interval": 0, "loops": 3}), output=[live])
        assert live.flush(60)
    assert [str(result.outcome) for result in results] == ["done"] * 3
    for result, image in zip(results, images, strict=True):
        assert (image.shape, image.dtype) == ((512, 512, 3), dtype)
        np.testing.assert_array_equal(result.frame, grey(np.moveaxis(image, -1, 0)))
        np.testing.assert_array_equal(result.labels, bright(result.frame))


def test_a_colour_of_a_colour_camera_can_be_chosen(core):
    core.setProperty("Camera", "PixelType", "32bitRGB")
    results, images = [], []
    core.mda.events.frameReady.connect(lambda image, event: images.append(image))
    options = {"policy": "drop_oldest", "kind": "classes", "channels": [1]}
    with slow_segmenter() as segmenter, LiveSegmenter(segmenter, on_result=results.append, **options) as live:
        core.mda.run(useq.MDASequence(time_plan={"interval": 0, "loops": 1}), output=[live])
        assert live.flush(60)
    np.testing.assert_array_equal(results[0].frame, images[0][..., 1])

"""`unetrt convert` makes files for other programs from stores of labels, also of acquisitions that did not end."""

import json

import numpy as np
import pytest
import tifffile
import useq
import zarr
from roifile import roiread

from tests.acquisition.label_results import result_with
from unetrt.__main__ import main
from unetrt.runtime.acquisition import LabelWriter
from unetrt.runtime.live.results import LiveSequence

TIME, CHANNELS, STACK = {"interval": 0, "loops": 3}, ["DAPI", "FITC"], {"range": 2, "step": 1}
PLACES = [useq.Position(x=0, y=0, name="../a"), useq.Position(x=9, y=0, name="b")]
PLATE = useq.WellPlatePlan(plate=96, a1_center_xy=(0, 0), selected_wells=([0, 1], [0, 1]))
# Plan, number of cameras -> axes and names of the files.
CASES = {
    "time": (useq.MDASequence(time_plan=TIME), 1, "TYX", ["l"]),
    "channels": (useq.MDASequence(time_plan=TIME, channels=CHANNELS), 1, "TCYX", ["l"]),
    "stacks": (useq.MDASequence(time_plan=TIME, channels=CHANNELS, z_plan=STACK), 1, "TCZYX", ["l"]),
    "positions": (useq.MDASequence(time_plan=TIME, stage_positions=PLACES), 1, "TYX", ["l/_a", "l/b"]),
    "plate": (useq.MDASequence(time_plan=TIME, stage_positions=PLATE), 1, "TYX", ["l/A/1/fov0", "l/B/2/fov0"]),
    "cameras": (useq.MDASequence(time_plan=TIME), 2, "TCYX", ["l"]),
    "cameras and stacks": (useq.MDASequence(time_plan=TIME, channels=CHANNELS, z_plan=STACK), 2, "TCZYX", ["l"]),
    "queue": (None, 1, "TYX", ["l"]),
}


@pytest.mark.parametrize(("plan", "cameras", "axes", "names"), CASES.values(), ids=CASES)
def test_labels_of_an_acquisition_become_ome_tiffs(tmp_path, plan, cameras, axes, names):
    meta = {"image_infos": [{"pixel_size_um": 0.5, "num_camera_adapter_channels": cameras}]}
    sequence = LiveSequence(0, plan, meta)
    events = [dict(event.index) for event in plan] if plan else [{"t": number} for number in range(5)]
    indices = [index | ({"cam": camera} if cameras > 1 else {}) for index in events for camera in range(cameras)]
    writer = LabelWriter(tmp_path / "l.ome.zarr")
    for number, index in enumerate(indices[:-1]):  # the last frame has not come, and the writer is open
        if number != 1:
            labels = np.full((40, 30), number + 1, np.int32)
            writer.result(result_with(labels, number, index, sequence=sequence, meta=meta))
    assert main(["convert", str(tmp_path / "l.ome.zarr"), "-o", str(tmp_path / "out")]) == 0
    writer.close()
    files = sorted((tmp_path / "out").rglob("*.tif"))
    assert [str(file.relative_to(tmp_path / "out").with_suffix("")) for file in files] == names
    folders = [name.partition("/")[2] for name in names]
    for file, folder in zip(files, folders, strict=True):
        stored = zarr.open_array(tmp_path / "l.ome.zarr" / folder / "0", mode="r")[...]
        with tifffile.TiffFile(file) as tiff:
            assert (tiff.is_ome, tiff.series[0].axes) == (True, axes)
            np.testing.assert_array_equal(tiff.asarray(), stored)
            assert 'PhysicalSizeX="0.5"' in tiff.ome_metadata
    values = set(np.concatenate([tifffile.imread(file).ravel() for file in files]).tolist())
    assert values == {0, 1, *range(3, len(indices))}


def test_channels_of_labels_are_in_outlines_and_rois_too(tmp_path):
    plan = CASES["channels"][0]
    with LabelWriter(tmp_path / "l.ome.zarr") as writer:
        for number, event in enumerate(plan):
            labels = np.zeros((40, 30), np.int32)
            labels[2:8, 3:9] = number + 1
            writer.result(result_with(labels, number, dict(event.index), sequence=LiveSequence(0, plan)))
    kinds = [word for kind in ("geojson", "rois", "table") for word in ("--save", kind)]
    assert main(["convert", str(tmp_path / "l.ome.zarr"), "-o", str(tmp_path / "out"), *kinds]) == 0
    features = json.loads(next((tmp_path / "out").rglob("*.geojson")).read_text())["features"]
    assert [(one["geometry"]["plane"]["t"], one["geometry"]["plane"]["c"]) for one in features] == [
        (t, c) for t in range(3) for c in range(2)
    ]
    rois = roiread(next((tmp_path / "out").rglob("*.zip")))
    assert [(roi.t_position, roi.c_position) for roi in rois] == [(t, c) for t in (1, 2, 3) for c in (1, 2)]

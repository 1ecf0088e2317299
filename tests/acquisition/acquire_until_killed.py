"""A program that acquires with Micro-Manager's core and stores labels, until it is killed.

    python -m tests.acquisition.acquire_until_killed FOLDER KIND

Each frame is in FOLDER/frames, by the submission index of its result, before its labels are stored.
"""

import itertools
import os
import sys
from pathlib import Path

import numpy as np
import useq
from pymmcore_plus import CMMCorePlus

from tests.acquisition.cameras import two_cameras
from tests.acquisition.segmenters import segmenter
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.acquisition import LabelWriter

LONG = {"interval": 0, "loops": 1000}
PLANS = {
    "plan": lambda: useq.MDASequence(time_plan=LONG, channels=["DAPI", "FITC"]),
    "positions": lambda: useq.MDASequence(
        axis_order="tpc", time_plan=LONG, stage_positions=[(0, 0), (10, 0)], channels=["DAPI"]
    ),
    "queue": lambda: (useq.MDAEvent(index={"t": number, "round": number % 3}) for number in itertools.count()),
    "two cameras": lambda: useq.MDASequence(time_plan=LONG),
}


class Tables:
    """A writer of labels for results whose objects are measured: one for each class above 0, of its pixels."""

    def __init__(self, writer):
        self._writer = writer

    def result(self, result):
        counts = np.bincount(result.labels.ravel(), minlength=8)[1:]
        table = {"label": np.flatnonzero(counts) + 1, "area": counts[counts > 0]}
        object.__setattr__(result, "table", table)
        self._writer.result(result)

    def __getattr__(self, name):
        return getattr(self._writer, name)


def main(folder, kind):
    (folder / "frames").mkdir(parents=True)
    core = CMMCorePlus()
    core.loadSystemConfiguration("MMConfig_demo.cfg")
    core.setProperty("Camera", "PixelType", "16bit")
    core.setExposure(1)
    if kind == "two cameras":
        two_cameras(core)
    else:
        core.setROI(0, 0, 96, 64)

    def keep(result):
        path = folder / "frames" / f"{result.number}.npy"
        with path.with_suffix(".part").open("wb") as file:
            np.save(file, result.frame)
        path.with_suffix(".part").rename(path)

    writer = Tables(LabelWriter(folder / "labels.ome.zarr"))
    live = LiveSegmenter(segmenter(), policy="block", capacity=4, kind="classes", outputs=[writer], on_result=keep)
    core.mda.events.frameReady.connect(live.frameReady)
    core.mda.events.sequenceStarted.connect(live.sequenceStarted)
    core.mda.run(PLANS[kind]())
    os._exit(3)  # it was to be killed


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

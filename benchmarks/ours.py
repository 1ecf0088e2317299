"""unetrt as a contender: the engine by itself, the segmenter around it, and files in and out around that."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import Contender
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.ready import Ready, planned
from unetrt.benchmarks.result import PREDICT, SEGMENT, SESSION
from unetrt.runtime.files.images import Output, predict_file, read_frames, write_labels
from unetrt.runtime.geometry.plan import TilePlan
from unetrt.runtime.segment.segmenter import LANES, Segmentation, Segmenter
from unetrt.runtime.sessions import Lane, Session

# Of `Timings`, between reading the file and writing the labels.
PHASES = ("normalise", "cut", "upload", "compute", "download", "wait", "stitch")


def ready(job: Job, contender: Contender) -> Ready:
    """Load the exported file, once for all three ways."""
    segmenter = Segmenter(job.model(contender.precision_on(job.device)), backend=contender.backend)
    frame, last = job.read_frame(), Last()
    size, shape = (frame.shape[-2], frame.shape[-1]), segmenter.spec.shape
    assert shape is not None, "what was exported is a U-Net"
    # Class maps, as the usual loop gives; telling instances apart is another task.
    output = Output(job.folder / f"labels-{contender.name}", "classes", overlays=False)

    def segment() -> NDArray[np.uint8]:
        last.result = segmenter.segment(frame, progress=lambda *_: None)
        return last.result.labels

    ways = {
        SEGMENT: segment,
        SESSION: passes(segmenter.session, size),
        PREDICT: lambda: predict_file(segmenter, job.frame, output),
    }
    about = replace(planned(shape, segmenter.spec, size), engine=segmenter.session.name)
    return Ready(about, ways, lambda: _phases(last.result, job, segmenter, output))


@dataclass
class Last:
    """The result of the last frame; there is none before the first."""

    result: Segmentation | None = None


def _phases(result: Segmentation | None, job: Job, segmenter: Segmenter, output: Output) -> dict[str, float]:
    """Return the seconds of a frame's phases, from reading its file to writing its labels."""
    assert result is not None, "phases are asked for after a frame"
    begin = time.perf_counter()
    read_frames(job.frame, segmenter.spec.channels)
    read = time.perf_counter()
    write_labels(output.folder / "written.tif", result.labels)
    written = time.perf_counter() - read
    return {"read": read - begin, **{name: getattr(result.timings, name) for name in PHASES}, "write": written}


def passes(session: Session, size: tuple[int, int]) -> Callable[[], None]:
    """Return a run of all passes for a frame (H, W), on lanes of its own, without cutting or stitching."""
    lanes = session.lanes(LANES)
    for lane in lanes:
        lane.input[...] = np.random.default_rng(0).random(lane.input.shape, np.float32)
    plan = TilePlan(size, session.spec.tile, session.spec.geometry, session.spec.border)
    count = len(list(plan.batches(session.spec.batch)))

    def run() -> None:
        flying: deque[Lane] = deque()
        for _, lane in zip(range(count), cycle(lanes), strict=False):
            if len(flying) == len(lanes):
                flying.popleft().wait()
            lane.launch()
            flying.append(lane)
        for lane in flying:
            lane.wait()

    return run

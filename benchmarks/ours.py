"""unetrt as a contender: the engine by itself, the segmenter around it, and files in and out around that."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import Contender
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.planned_tiles import about
from unetrt.benchmarks.ready import Ready
from unetrt.benchmarks.result import PREDICT, SEGMENT, SESSION
from unetrt.runtime.images import write_labels
from unetrt.runtime.plan import TilePlan
from unetrt.runtime.prediction import Output, predict_file, read_frames
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.sessions import Session
from unetrt.runtime.timings import Timings

# Of `Timings`, between reading the file and writing the labels.
PHASES = ("normalise", "cut", "upload", "compute", "download", "wait", "stitch")


def ready(job: Job, contender: Contender) -> Ready:
    """Load the exported file, once for all three ways."""
    segmenter = Segmenter(job.model(contender.precision_on(job.device)), backend=contender.backend)
    frame, last = job.read_frame(), [Timings()]
    size, shape = (frame.shape[-2], frame.shape[-1]), segmenter.spec.shape
    assert shape is not None, "what was exported is a U-Net"
    # Class maps, as the usual loop gives; telling instances apart is another task.
    output = Output(job.folder / f"labels-{contender.name}", "classes", overlays=False)

    def segment() -> NDArray[np.uint8]:
        result = segmenter.segment(frame, progress=lambda *_: None)
        last[0] = result.timings
        return result.labels

    ways = {
        SEGMENT: segment,
        SESSION: passes(segmenter.session, size),
        PREDICT: lambda: predict_file(segmenter, job.frame, output),
    }
    return Ready(about(shape, segmenter.spec, size), ways, lambda: _phases(last[0], job, segmenter, output))


def _phases(timings: Timings, job: Job, segmenter: Segmenter, output: Output) -> dict[str, float]:
    """Return the seconds of a frame's phases, from reading its file to writing its labels."""
    begin = time.perf_counter()
    frame = read_frames(job.frame, segmenter.spec.channels)
    read = time.perf_counter()
    write_labels(output.folder / "written.tif", np.zeros(frame.shape[-2:], np.uint8))
    written = time.perf_counter() - read
    return {"read": read - begin, **{name: getattr(timings, name) for name in PHASES}, "write": written}


def passes(session: Session, size: tuple[int, int]) -> Callable[[], None]:
    """Return a run of all passes for a frame (H, W), on a lane of its own, without cutting or stitching."""
    (lane,) = session.lanes(1)
    lane.input[...] = np.random.default_rng(0).random(lane.input.shape, np.float32)
    plan = TilePlan(size, session.spec.tile, session.spec.geometry, session.spec.border)
    count = len(list(plan.batches(session.spec.batch)))

    def run() -> None:
        for _ in range(count):
            lane.launch()
            lane.wait()

    return run

"""unetrt as a contender: the session by itself, the segmenter around it, and files in and out around that."""

from collections.abc import Callable

import numpy as np

from unetrt.benchmarks.job import PREDICT, SEGMENT, SESSION, Job
from unetrt.runtime.plan import TilePlan
from unetrt.runtime.prediction import Output, predict_file
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.sessions import Session


def contenders(job: Job) -> dict[str, Callable[[], object]]:
    """Return the three, sharing one loaded model, ready to run on the job's frame."""
    segmenter, frame = Segmenter(job.model, backend="onnxruntime"), job.read_frame()
    # Class maps, as the usual loop gives; telling instances apart is another task.
    output = Output(job.folder / "labels", "classes", overlays=False)
    return {
        SESSION: passes(segmenter.session, (frame.shape[-2], frame.shape[-1])),
        SEGMENT: lambda: segmenter.segment(frame).labels,
        PREDICT: lambda: predict_file(segmenter, job.frame, output),
    }


def passes(session: Session, size: tuple[int, int]) -> Callable[[], None]:
    """Return a run of all passes for a frame, on a lane of its own, without cutting or stitching."""
    (lane,) = session.lanes(1)
    lane.input[...] = np.random.default_rng(0).random(lane.input.shape, np.float32)
    plan = TilePlan(size, session.spec.tile, session.spec.geometry, session.spec.border)
    count = len(list(plan.batches(session.spec.batch)))

    def run() -> None:
        for _ in range(count):
            lane.launch()
            lane.wait()

    return run

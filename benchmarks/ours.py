"""unetrt as a contender: the engine alone, the segmenter around it, and files in and out around that."""

import time
from collections import deque
from collections.abc import Callable
from itertools import cycle

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import BenchJob, Contender, Ready, planned
from unetrt.benchmarks.decoding import by_cores, with_objects
from unetrt.benchmarks.result import PREDICT, SESSION
from unetrt.runtime.files.images import Output, predict_file, read_frames
from unetrt.runtime.files.outputs import Outputs
from unetrt.runtime.files.outputs.label_tiff import write_labels
from unetrt.runtime.segment.segmenter import LANES, Segmentation, Segmenter
from unetrt.runtime.sessions import Lane, Session

# Of `Timings`, between reading the file and writing the labels.
PHASES = ("normalise", "cut", "upload", "compute", "download", "wait", "stitch")


def ready(job: BenchJob, contender: Contender) -> Ready:
    """Load the exported file, once for all sections."""
    segmenter = Segmenter(job.model(contender.precision_on(job.device)), backend=contender.backend)
    frame = job.read_frame()
    last: deque[Segmentation] = deque(maxlen=1)
    size, shape = (frame.shape[-2], frame.shape[-1]), segmenter.spec.shape
    assert shape is not None, "what was exported is a U-Net"
    # Class maps, as the usual loop yields them; numbering objects is timed by itself.
    output = Output(Outputs(job.folder / f"labels-{contender.name}", overlays=False), "classes")

    def segment() -> NDArray[np.uint8]:
        last.append(segmenter.segment(frame, progress=lambda *_: None))
        return last[0].labels

    def phases() -> dict[str, float]:
        """Return the seconds of the last frame's phases, and of reading and writing files once more."""
        begin = time.perf_counter()
        read_frames(job.frame, segmenter.spec.channels)
        read = time.perf_counter()
        write_labels(output.files.folder / "written.tif", last[0].labels)
        written = time.perf_counter() - read
        return {"read": read - begin, **{name: getattr(last[0].timings, name) for name in PHASES}, "write": written}

    ways = {
        **with_objects(job, segment, by_cores),
        SESSION: passes(segmenter.session, size),
        PREDICT: lambda: predict_file(segmenter, job.frame, output),
    }
    return Ready(planned(shape, segmenter.spec, size, segmenter.session.name), ways, phases)


def passes(session: Session, size: tuple[int, int]) -> Callable[[], None]:
    """Return a run of all passes for a frame (H, W), on separate lanes, without cutting or stitching."""
    lanes = session.lanes(LANES)
    for lane in lanes:
        lane.input[...] = np.random.default_rng(0).random(lane.input.shape, np.float32)
    count = len(list(session.spec.plan(size).batches(session.spec.batch)))

    def run() -> None:
        in_flight: deque[Lane] = deque()
        for _, lane in zip(range(count), cycle(lanes), strict=False):
            if len(in_flight) == len(lanes):
                in_flight.popleft().wait()
            lane.launch()
            in_flight.append(lane)
        for lane in in_flight:
            lane.wait()

    return run

"""unetrt on a GPU as a contender: frames to labels, sustained and one by one, and how long kernels run meanwhile."""

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.profiler import ProfilerActivity, profile, supported_activities

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.gpu_goals import frame_flops, rates
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import Session
from unetrt.runtime.timings import Timings

# Runs of a contender in each round: uncounted, then counted.
WARM_UP, COUNTED = 1, 2
PHASES = ("normalise", "cut", "upload", "compute", "download", "wait", "stitch")
# Kernels that a profile names, those that take longest first.
NAMED = 15
# What Kineto's traces call a kernel, and what they count time in.
KERNEL, MICROSECOND = "kernel", 1e-6


@dataclass
class Ours:
    """A session with a number of lanes, which are open only while they are measured.

    Parameters
    ----------
    session
        The loaded model.
    stack
        Raw frames (N, H, W).
    lanes
        How many.

    Attributes
    ----------
    timings
        Of each counted sustained run.
    latencies
        Of each frame that was segmented by itself, in seconds.
    """

    session: Session
    stack: NDArray[Any]
    lanes: int
    timings: list[Timings] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The contender's name."""
        return f"unetrt, {self.lanes} {'lane' if self.lanes == 1 else 'lanes'}"

    @contextmanager
    def opened(self) -> Iterator[Segmenter]:
        """Open the lanes, and close them at the end: nothing else of ours holds the device's memory meanwhile."""
        with Segmenter(self.session, lanes=self.lanes) as segmenter:
            yield segmenter

    def labels(self, frame: NDArray[Any]) -> NDArray[np.uint8]:
        """Return the labels of a frame (H, W), uint8."""
        with self.opened() as segmenter:
            return segmenter.segment(frame).labels

    def round(self, latencies: int = 0) -> float:
        """Segment the stack, warmed up, and then single frames, as a camera gives them.

        Parameters
        ----------
        latencies
            How many single frames.

        Returns
        -------
        Seconds of one frame of the stack, the median of the counted runs.
        """
        with self.opened() as segmenter:
            runs = [segmenter.segment(self.stack).timings for _ in range(WARM_UP + COUNTED)][WARM_UP:]
            for number in range(latencies):
                begin = time.perf_counter()
                segmenter.segment(self.stack[number % len(self.stack)])
                self.latencies.append(time.perf_counter() - begin)
        self.timings += runs
        return median(timings.total for timings in runs) / len(self.stack)

    def kernels(self) -> dict[str, Any]:
        """Return the profile of a sustained run (`profiled`) that is not timed, as profiling takes time."""
        with self.opened() as segmenter:
            segmenter.segment(self.stack)
            return profiled(lambda: segmenter.segment(self.stack))

    def phases(self) -> dict[str, float]:
        """Return the median seconds that a frame spends in each phase; those in lanes overlap."""
        seconds = defaultdict(list)
        for timings in self.timings:
            for phase in PHASES:
                seconds[phase].append(getattr(timings, phase) / len(self.stack))
        return {phase: float(np.median(values)) for phase, values in seconds.items()}

    def in_flight(self) -> float:
        """Return the median share of time in which a pass is in flight, from a run's first pass to its last."""
        return float(np.median([timings.in_flight / timings.span for timings in self.timings]))

    def to_dict(self, seconds: Figure, shape: UNetShape, matmul: float) -> dict[str, Any]:
        """Return what JSON stores.

        Parameters
        ----------
        seconds
            Of one frame of the sustained runs.
        shape
            The network.
        matmul
            The dense FP16 matmul rate of the same rounds, in operations a second.
        """
        spec, frame = self.session.spec, (self.stack.shape[-2], self.stack.shape[-1])
        flops = frame_flops(spec, shape, frame)
        passes = float(np.median([timings.in_flight / len(self.stack) for timings in self.timings]))
        p50, p99 = np.percentile(self.latencies, [50, 99]) if self.latencies else (None, None)
        return {
            "lanes": self.lanes,
            "batch": spec.batch,
            "tile": spec.tile,
            "input": spec.input_dtype,
            "seconds": asdict(seconds),
            "per_second": rates(seconds, flops, frame),
            "in_flight": self.in_flight(),
            "matmul_share": flops / seconds.median / matmul,
            "matmul_share_in_flight": flops / passes / matmul,
            "phases": self.phases(),
            "latency": {"p50": p50, "p99": p99, "frames": len(self.latencies)},
        }


def stack_of(frame: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a frame (H, W) moved `count` times, (count, H, W), so that no two of a stack are the same."""
    return np.stack([np.roll(frame, 37 * number, axis=1) for number in range(count)])


def profiled(
    run: Callable[[], object], activity: ProfilerActivity = ProfilerActivity.CUDA, category: str = KERNEL
) -> dict[str, Any]:
    """Run twice under torch's profiler, and return what CUPTI said of the second run.

    CUPTI sees all kernels of the process, those of TensorRT, ONNX Runtime and torch alike. The first run is for
    its own preparation.

    Parameters
    ----------
    run
        Returns when the device has done its work.
    activity, category
        What is recorded, and what of it counts: the GPU's kernels.

    Returns
    -------
    `busy`: the union of all kernels' intervals over the wall time of the run, 0 to 1; `wall`: that time, in seconds;
    `kernels`: how many ran; `by_kernel`: name, seconds and launches of those that took longest. `busy` is None, and
    `reason` says why, where no kernel was seen.
    """
    if activity not in supported_activities():  # type: ignore[no-untyped-call]
        return {"busy": None, "reason": "torch's profiler sees no GPU here"}
    try:
        for _ in range(2):
            with profile(activities=[activity]) as profiler:
                begin = time.perf_counter()
                run()
                wall = time.perf_counter() - begin
        with TemporaryDirectory(prefix="unetrt-trace-") as folder:
            trace = Path(folder) / "trace.json"
            profiler.export_chrome_trace(str(trace))
            events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    except (RuntimeError, ValueError, KeyError) as error:  # the profiler's; the other figures stand
        return {"busy": None, "reason": f"the profiler failed: {error}"}
    return kernels_of([event for event in events if event.get("cat") == category], wall)


def kernels_of(kernels: Sequence[dict[str, Any]], wall: float) -> dict[str, Any]:
    """Return what `profiled` does, from the kernels of a Chrome trace and the wall time of the run in seconds."""
    if not kernels:
        return {"busy": None, "reason": "the profile holds no kernel: may this user read the GPU's counters?"}
    busy = MICROSECOND * union((event["ts"], event["ts"] + event["dur"]) for event in kernels)
    spent: dict[str, float] = defaultdict(float)
    launches: dict[str, int] = defaultdict(int)
    for event in kernels:
        spent[event["name"]] += MICROSECOND * event["dur"]
        launches[event["name"]] += 1
    longest = sorted(spent, key=lambda name: -spent[name])[:NAMED]
    by_kernel = [{"name": name, "seconds": spent[name], "launches": launches[name]} for name in longest]
    return {"busy": busy / wall, "wall": wall, "kernels": len(kernels), "by_kernel": by_kernel}


def union(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals (begin, end)."""
    covered, last = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        covered += max(0.0, end - max(begin, last))
        last = max(last, end)
    return covered

"""unetrt on a GPU as a contender: frames to labels, sustained and one by one."""

import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.gpu_goals import frame_flops, rates
from unetrt.benchmarks.measure import COUNTED, WARM_UP
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.segmenter import Segmenter
from unetrt.runtime.timings import Timings

PHASES = ("normalise", "cut", "upload", "compute", "download", "wait", "stitch")


@dataclass
class Ours:
    """A segmenter, and what its timings said of each sustained run.

    Parameters
    ----------
    segmenter
        With so many lanes.
    stack
        Raw frames (N, H, W).
    lanes
        How many.
    timings, latencies
        Of each sustained run, warm-ups included; of each frame by itself, in seconds.
    """

    segmenter: Segmenter
    stack: NDArray[Any]
    lanes: int
    timings: list[Timings] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The contender's name."""
        return f"unetrt, {self.lanes} {'lane' if self.lanes == 1 else 'lanes'}"

    def sustained(self) -> float:
        """Segment the stack, and return the seconds of one frame."""
        timings = self.segmenter.segment(self.stack).timings
        self.timings.append(timings)
        return timings.total / len(self.stack)

    def one_by_one(self, count: int) -> None:
        """Segment so many frames, each in a call of its own, as a camera gives them."""
        for number in range(count):
            begin = time.perf_counter()
            self.segmenter.segment(self.stack[number % len(self.stack)])
            self.latencies.append(time.perf_counter() - begin)

    @property
    def counted(self) -> list[Timings]:
        """What was measured after each warm-up, as `interleaved` runs it."""
        turns = WARM_UP + COUNTED
        return [timings for turn, timings in enumerate(self.timings) if turn % turns >= WARM_UP]

    def phases(self) -> dict[str, float]:
        """Return the median seconds that a frame spends in each phase; those in lanes overlap."""
        seconds = defaultdict(list)
        for timings in self.counted:
            for phase in PHASES:
                seconds[phase].append(getattr(timings, phase) / len(self.stack))
        return {phase: float(np.median(values)) for phase, values in seconds.items()}

    def busy(self) -> float:
        """Return the median share of time in which the GPU computes, from a run's first pass to its last."""
        return float(np.median([timings.busy / timings.span for timings in self.counted]))

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
        spec, frame = self.segmenter.spec, (self.stack.shape[-2], self.stack.shape[-1])
        flops = frame_flops(spec, shape, frame)
        computing = float(np.median([timings.busy / len(self.stack) for timings in self.counted]))
        p50, p99 = np.percentile(self.latencies, [50, 99]) if self.latencies else (None, None)
        return {
            "lanes": self.lanes,
            "batch": spec.batch,
            "tile": spec.tile,
            "input": spec.input_dtype,
            "seconds": asdict(seconds),
            "per_second": rates(seconds, flops, frame),
            "busy": self.busy(),
            "matmul_share": flops / seconds.median / matmul,
            "matmul_share_while_computing": flops / computing / matmul,
            "phases": self.phases(),
            "latency": {"p50": p50, "p99": p99, "frames": len(self.latencies)},
        }


def stack_of(frame: NDArray[Any], count: int) -> NDArray[Any]:
    """Return a frame (H, W) moved `count` times, (count, H, W), so that no two of a stack are the same."""
    return np.stack([np.roll(frame, 37 * number, axis=1) for number in range(count)])

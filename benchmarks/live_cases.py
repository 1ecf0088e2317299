"""Benchmarks of a live segmenter without a microscope: how long `submit` blocks, and what a frame costs."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.cases import BenchCase, Figures, store_drawn, stored
from unetrt.benchmarks.processes import WARM_UP
from unetrt.benchmarks.result import Measure
from unetrt.runtime.errors import InferenceError
from unetrt.runtime.live.frame_queue import Policy
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.results import LiveResult
from unetrt.runtime.model.measurements import object_columns
from unetrt.runtime.model.objects import instances
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions import AUTO

Array = NDArray[Any]

# Buffers that a camera's driver fills in turn.
BUFFERS = 8
# --- The call that the camera makes

# Seconds that 99 of 100 submissions are to take at most.
SUBMIT_GOAL = 1e-3
# Frames before those that count.
UNCOUNTED = 50
# Policies under which `submit` never waits, and how a frame is passed (`copy`).
POLICIES = (Policy.LATEST, Policy.DROP_OLDEST)
PASSED = {"by reference": False, "copied": True}


@dataclass(frozen=True)
class LiveSubmit(BenchCase):
    """The time for which `LiveSegmenter.submit` blocks a camera's thread while the model computes without a pause.

    Attributes
    ----------
    model
        An exported model.
    side
        Height and width of the drawn frames, in pixels.
    count, fps
        Frames of each combination in a round, and frames per second.
    """

    NAME: ClassVar[str] = "live"
    MEASURES: ClassVar[str] = (
        "How long `LiveSegmenter.submit` blocks a camera's thread while the model keeps all cores busy: p50 and p99 of "
        "a round's submissions."
    )
    HELP: ClassVar[str] = "Time `submit` while MODEL computes without a pause."
    ROUNDS: ClassVar[int] = 6

    model: Path
    side: int = field(default=2048, metadata={"--side": "Side of the drawn frames, pixels."})
    count: int = field(default=500, metadata={"--count": "Frames of each case in a round."})
    fps: float = field(default=100.0, metadata={"--fps": "Frames per second."})

    def facts(self) -> dict[str, Any]:
        """Return the options."""
        return {**asdict(self), "model": str(self.model)}

    def prepare(self, folder: Path) -> None:
        """Draw the frames."""
        store_drawn(folder, (self.side, self.side), BUFFERS)

    def round(self, folder: Path) -> dict[str, Any]:
        """Return p50 and p99 of each combination in seconds, and the counts of frames at its end."""
        frames, cases = [drawing.frame for drawing in stored(folder)], []
        found: dict[str, Any] = {}
        with Segmenter(self.model) as segmenter:
            for policy, passed in product(POLICIES, PASSED):
                one = self._submitted(segmenter, frames, policy, passed)
                found |= {f"{policy}, {passed}: {rank}": one["submit"][rank] for rank in ("p50", "p99")}
                cases.append(one)
            network = {"tile": list(segmenter.spec.tile), **segmenter.spec.network}
            return {**found, "engine": segmenter.session.name, "network": network, "cases": cases}

    def _submitted(self, segmenter: Segmenter, frames: Sequence[Array], policy: Policy, passed: str) -> dict[str, Any]:
        with LiveSegmenter(segmenter, policy=policy) as live:
            seconds = self._submit(live, frames, PASSED[passed])
            status = live.status()
            live.close(drain=False)
        p50, p99 = np.percentile(seconds, (50, 99)).tolist()
        counts = {name: getattr(status, name) for name in ("submitted", "done", "dropped", "failed", "pending")}
        times = {"p50": p50, "p99": p99, "highest": max(seconds)}
        return {"policy": str(policy), "frame": passed, "submit": times, **counts, "compute": asdict(status.compute)}

    def _submit(self, live: LiveSegmenter, frames: Sequence[Array], copy: bool) -> list[float]:
        """Submit frames at the given rate; return the seconds of each counted call."""
        seconds, due = [], time.perf_counter()
        for frame in islice(cycle(frames), UNCOUNTED + self.count):
            due += 1 / self.fps
            time.sleep(max(0.0, due - time.perf_counter()))
            begin = time.perf_counter()
            live.submit(frame, copy=copy)
            seconds.append(time.perf_counter() - begin)
        return seconds[UNCOUNTED:]

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield p50 and p99 of each combination."""
        for name, figure in seconds.items():
            yield Measure.of(name, "s", figure, SUBMIT_GOAL if name.endswith("p99") else None)

    def detail(self, _seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return engine, network, and the cases of each round."""
        shared = {name: rounds[0][name] for name in ("engine", "network")}
        cases = [one["cases"] for one in rounds]
        return {"frame": [self.side, self.side], "fps": self.fps, "goal": SUBMIT_GOAL, **shared, "cases": cases}


# --- What a frame costs

# The parts of a frame's way that overlap with those of the next.
PARTS = ("network", "objects")


@dataclass(frozen=True)
class LiveThroughput(BenchCase):
    """The cost of a frame in a live segmenter that always has a next one, beside that of its parts one after another.

    Attributes
    ----------
    model
        An exported model, a small one, so that its time is like that of objects; its tile is planned for the frames.
    side
        Height and width of the drawn frames, in pixels.
    count
        Frames of each way in a round.
    backend, threads
        The inference engine, and threads of a named one on the CPU; 0 for its default, all cores, which leaves none to
        the objects.
    """

    NAME: ClassVar[str] = "throughput"
    MEASURES: ClassVar[str] = (
        "What a frame costs in a live segmenter, which numbers and measures the objects of one frame while the next is "
        "in the network, beside both one after another."
    )
    HELP: ClassVar[str] = "Time frames of MODEL whose objects are numbered while the next frame is segmented."
    ROUNDS: ClassVar[int] = 6

    model: Path
    side: int = field(default=2048, metadata={"--side": "Side of the drawn frames, pixels."})
    count: int = field(default=40, metadata={"--count": "Frames of each way in a round."})
    backend: str = field(default=AUTO, metadata={"--backend": "Inference engine."})
    threads: int = field(default=0, metadata={"--threads": "Threads of a named engine on the CPU; 0 for all cores."})

    def facts(self) -> dict[str, Any]:
        """Return the options."""
        return {**asdict(self), "model": str(self.model)}

    def prepare(self, folder: Path) -> None:
        """Draw the frames."""
        store_drawn(folder, (self.side, self.side), BUFFERS)

    def round(self, folder: Path) -> dict[str, Any]:
        """Return the mean seconds of a frame, of its network and of its objects, both ways."""
        frames = list(islice(cycle([drawing.frame for drawing in stored(folder)]), WARM_UP + self.count))
        options = {"threads": self.threads} if self.threads else None
        size = (self.side, self.side)
        with Segmenter(self.model, frame=size, backend=self.backend, backend_options=options) as segmenter:
            apart = [_in_turn(segmenter, frame) for frame in frames][WARM_UP:]
            seconds, overlapped, objects = _overlapped(segmenter, frames)
            network = {"tile": list(segmenter.spec.tile), **segmenter.spec.network}
            shared = {"engine": segmenter.session.name, "network": network, "objects": objects}
        alone, live = np.mean(apart, axis=0).tolist(), np.mean(overlapped, axis=0).tolist()
        named = {
            f"{way}: {part}": mean
            for way, means in (("alone", alone), ("live", live))
            for part, mean in zip(PARTS, means, strict=True)
        }
        sums = {"sum": sum(alone), "longer": max(alone), "live sum": sum(live)}
        return {**named, **sums, "a frame": seconds, **shared}

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the cost of a frame, that of its parts, and how far they overlap."""
        yield Measure.of("a frame, live", "s", seconds["a frame"])
        for part in PARTS:
            yield Measure.of(f"{part}, alone", "s", seconds[f"alone: {part}"])
        yield Measure.of("one after another", "s", seconds["sum"])
        yield Measure.of("the longer of both", "s", seconds["longer"])
        for part in PARTS:
            yield Measure.of(f"{part}, live", "s", seconds[f"live: {part}"])
        yield Measure.of("live against one after another", "x", seconds["sum"] / seconds["a frame"])
        yield Measure.of("at best", "x", seconds["sum"] / seconds["longer"])
        yield Measure.of("parts, live, against a frame", "x", seconds["live sum"] / seconds["a frame"])

    def detail(self, _seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return engine, network, threads, and the number of objects in each frame."""
        shared = {name: rounds[0][name] for name in ("engine", "network", "objects")}
        return {"frame": [self.side, self.side], "threads": self.threads, **shared}


def _in_turn(segmenter: Segmenter, frame: Array) -> tuple[float, float]:
    """Segment a frame, then number and measure its objects; return the seconds of each."""
    begin = time.perf_counter()
    found = segmenter.segment(frame)
    middle = time.perf_counter()
    object_columns(instances(found.labels, segmenter.spec.decoding), frame[None])
    return middle - begin, time.perf_counter() - middle


def _overlapped(segmenter: Segmenter, frames: Sequence[Array]) -> tuple[float, list[tuple[float, float]], list[int]]:
    """Submit frames as fast as they are taken.

    Returns
    -------
    Seconds of a frame, from one result to the next; then of each counted frame the seconds of its network and of its
    objects, and their number.
    """
    ends: list[float] = []
    parts: list[tuple[float, float]] = []
    objects: list[int] = []

    def note(result: LiveResult) -> None:
        ends.append(time.perf_counter())
        if result.timings is not None and result.objects is not None:
            parts.append((result.compute, result.timings.decode))
            objects.append(result.objects)

    with LiveSegmenter(segmenter, policy=Policy.BLOCK, capacity=1, kind="instances", on_result=note) as live:
        for frame in frames:
            live.submit(frame, copy=False)
    if len(parts) < len(frames):
        raise InferenceError(f"{len(frames) - len(parts)} frames failed: {live.status().last_error}")
    return (ends[-1] - ends[WARM_UP - 1]) / (len(ends) - WARM_UP), parts[WARM_UP:], objects[WARM_UP:]

"""Benchmarks of a live segmenter in Micro-Manager's real core, with its demo camera: decisions, and frames counted.

`FrameToDecision` closes the loop of smart microscopy: the acquisition engine runs events from a queue, and each result
decides on the next one. `FramesAccounted` checks that no frame of a long run of hardware sequences is lost or counted
twice between the camera and the results. They need the extra `acquire`.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from unetrt.benchmarks.cases import BenchCase, Figures
from unetrt.benchmarks.result import Measure
from unetrt.runtime.errors import BackendUnavailableError, InferenceError, ParityError, one_line
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.results import DroppedFrames, LiveResult, LiveSequence

if TYPE_CHECKING:
    from pymmcore_plus import CMMCorePlus
    from useq import MDAEvent

# Micro-Manager's demo microscope, of which the package mm-test-adapters brings the configuration and the devices.
CONFIGURATION = "MMConfig_demo.cfg"
# The demo camera's exposure, in milliseconds.
EXPOSURE = 1.0
# What it shows: 1,000 to 2,000 objects in 2048 x 2048 pixels.
BEADS = {"PixelType": "16bit", "Mode": "Fluorescent Beads", "BeadSize": "5", "BeadDensity": "500"}


@contextmanager
def demo_core(side: int) -> Iterator["CMMCorePlus"]:
    """Yield a core whose demo camera shows one image of beads, side x side pixels of 16 bits, each millisecond.

    Raises
    ------
    BackendUnavailableError
        Micro-Manager is not installed.
    """
    try:
        from pymmcore import CMMCore
        from pymmcore_plus import CMMCorePlus

        core = CMMCorePlus()
        core.loadSystemConfiguration(CONFIGURATION)
    except (ImportError, OSError, RuntimeError) as error:
        raise BackendUnavailableError(
            f"Micro-Manager's demo microscope cannot be loaded ({one_line(error)}): pip install 'unetrt[acquire]'"
        ) from error
    try:
        for name, value in BEADS.items():
            core.setProperty("Camera", name, value)
        for axis in "XY":
            core.setProperty("Camera", f"OnCameraCCD{axis}Size", side)
        core.setExposure(EXPOSURE)
        core.setAutoShutter(False)
        # The camera repeats the image that it drew last.
        core.snapImage()
        core.getImage()
        core.setProperty("Camera", "FastImage", "1")
        yield core
    finally:
        core.mda.cancel()
        core.unloadAllDevices()
        # The core's callback thread aborts the process if it finds the interpreter finalizing.
        CMMCore.registerCallback(core, None)


# --- Frame to decision

# Seconds that 99 of 100 decisions are to take at most, beside the computation.
OURS_GOAL = 5e-3
# How the engine hands frames over: as a slot on its own thread, or as an output on another.
WAYS = ("slot", "output")
RANKS = {"p50": 50, "p95": 95, "p99": 99}
# Decisions before those that count.
UNCOUNTED = 5
# Seconds to wait for a decision.
PATIENCE = 120.0
# Pixels of an object that counts, and objects of a crowded field.
LEAST, MANY = 50, 40


class Decision(NamedTuple):
    """The seconds from a frame to the next event in the queue, and those of its parts.

    Attributes
    ----------
    whole
        From the end of the exposure to the event in the queue.
    readout
        The core's: from the end of the exposure until the engine announces the frame, with its metadata.
    handover
        The engine's: from then until it calls `LiveSegmenter.frameReady`.
    network, numbering, table
        The computation: in the segmenter (grey values, tiles, network, stitching), numbering of objects, their table.
    ours
        From the call of `frameReady` to the event in the queue without network, numbering and table.
    ours_with_objects
        The same without the network alone.
    """

    whole: float
    readout: float
    handover: float
    network: float
    numbering: float
    table: float
    ours: float
    ours_with_objects: float


@dataclass(frozen=True)
class FrameToDecision(BenchCase):
    """The time from a camera's frame to the next event in the queue of an acquisition whose results decide.

    Attributes
    ----------
    model
        An exported model, a small one, so that frames flow; its tile is planned for the frames.
    side
        Height and width of the camera's frames, in pixels.
    count
        Decisions of each way in a round.
    """

    NAME: ClassVar[str] = "decision"
    MEASURES: ClassVar[str] = (
        "From the end of an exposure in Micro-Manager's core to the next event in the queue: the frame is segmented, "
        "its objects are numbered and measured, and `on_result` decides on them."
    )
    HELP: ClassVar[str] = "Time decisions on frames of Micro-Manager's demo camera, segmented with MODEL."
    ROUNDS: ClassVar[int] = 6

    model: Path
    side: int = field(default=2048, metadata={"--side": "Side of the camera's frames, pixels."})
    count: int = field(default=200, metadata={"--count": "Decisions of each way in a round."})

    def facts(self) -> dict[str, Any]:
        """Return the options."""
        return {**asdict(self), "model": str(self.model)}

    def prepare(self, folder: Path) -> None:
        """Do nothing: the camera draws the frames."""

    def round(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        """Return p50, p95 and p99 of all parts of decisions, both ways, and the number of objects."""
        found: dict[str, Any] = {}
        with demo_core(self.side) as core:
            for way in WAYS:
                loop = DecisionLoop(self.model, self.side, UNCOUNTED + self.count)
                decisions = loop.run(core, way)[UNCOUNTED:]
                for part, seconds in zip(Decision._fields, np.transpose(decisions), strict=True):
                    found |= {f"{way}, {part}: {name}": float(np.percentile(seconds, p)) for name, p in RANKS.items()}
            return {**found, **loop.facts}

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the ranks of whole decisions and of what is not computation, and the medians of the computation."""
        parts = {
            "whole": "frame to decision",
            "ours": "all but network and objects",
            "ours_with_objects": "all but the network",
        }
        for way in WAYS:
            for part, title in parts.items():
                for rank in RANKS:
                    goal = OURS_GOAL if (part, rank) == ("ours", "p99") else None
                    yield Measure.of(f"{way}: {title}, {rank}", "s", seconds[f"{way}, {part}: {rank}"], goal)
            for rank in ("p50", "p99"):
                yield Measure.of(f"{way}: handed over by the engine, {rank}", "s", seconds[f"{way}, handover: {rank}"])
        for part in ("readout", "network", "numbering", "table"):
            yield Measure.of(f"{part}, p50", "s", seconds[f"slot, {part}: p50"])

    def detail(self, seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return engine, network, objects, and all ranks of all parts."""
        shared = {name: rounds[0][name] for name in ("engine", "network", "objects")}
        ranks = {name: asdict(figure) for name, figure in seconds.items()}
        return {"frame": [self.side, self.side], "count": self.count, "goal": OURS_GOAL, **shared, "seconds": ranks}


class DecisionLoop:
    """Acquires `count` frames, each after the decision on the one before, and notes when what happened.

    Times are those of `perf_counter`, in seconds, by the number of the frame.

    Attributes
    ----------
    facts
        Engine, network, and number of objects of the last frame.
    """

    def __init__(self, model: Path, side: int, count: int) -> None:
        self._model, self._frame, self._count = model, (side, side), count
        self._events: Queue[MDAEvent | None] = Queue()
        self._exposed: list[float] = []
        self._announced: list[float] = []
        self._called: list[float] = []
        self._decisions: list[Decision] = []
        self._failure: BaseException | None = None
        self.facts: dict[str, Any] = {}

    def run(self, core: "CMMCorePlus", way: str) -> list[Decision]:
        """Run the acquisition; `way` is one of `WAYS`."""

        def announced(_img: Any, _event: Any, meta: Mapping[str, Any]) -> None:
            self._announced.append(now := time.perf_counter())
            # The engine's clock begins with the acquisition.
            self._exposed.append(now - core.mda.seconds_elapsed() + 1e-3 * meta["runner_time_ms"])

        self._events.put(_event(t=0))
        with LiveSegmenter(self._model, frame=self._frame, kind="instances", on_result=self._decide) as live:
            self._live = live
            core.mda.events.frameReady.connect(announced)
            if way == "slot":
                core.mda.events.frameReady.connect(self.frameReady)
            try:
                core.mda.run(self._ordered(), output=[self] if way == "output" else None)
            finally:
                core.mda.events.frameReady.disconnect()
            spec = live.segmenter.spec
            network = {"tile": list(spec.tile), **spec.network}
            self.facts |= {"engine": live.segmenter.session.name, "network": network}
        if self._failure is not None or len(self._decisions) < self._count:
            raise InferenceError(f"the acquisition stopped after {len(self._decisions)} decisions: {self._failure}")
        return self._decisions

    def frameReady(self, img: Any, event: "MDAEvent", meta: Mapping[str, Any]) -> None:  # noqa: N802
        """Pass a frame on: a slot, and an output of the engine."""
        self._called.append(time.perf_counter())
        self._live.frameReady(img, event, meta)

    def _ordered(self) -> Iterator["MDAEvent"]:
        try:
            while (event := self._events.get(timeout=PATIENCE)) is not None:
                yield event
        except Empty:
            self._failure = self._failure or TimeoutError(f"no decision in {PATIENCE:.0f} s")

    def _decide(self, result: LiveResult) -> None:
        """Decide on the next event: a field with many objects is looked at again, another one is left."""
        number = result.index["t"]
        if result.table is None or result.timings is None:
            self._failure = result.error
            self._events.put(None)
            return
        is_crowded = np.count_nonzero(result.table["area"] > LEAST) > MANY
        event = _event(t=number + 1, p=0 if is_crowded else 1)
        self._events.put(event if number + 1 < self._count else None)
        queued = time.perf_counter()
        network, objects, table = result.compute, result.timings.decode, result.timings.table
        exposed, announced, called = self._exposed[number], self._announced[number], self._called[number]
        ours = queued - called - network
        self._decisions.append(
            Decision(
                queued - exposed,
                announced - exposed,
                called - announced,
                network,
                objects - table,
                table,
                ours - objects,
                ours,
            )
        )
        self.facts["objects"] = result.objects


def _event(**index: int) -> "MDAEvent":
    """Return an event that acquires one image."""
    from useq import MDAEvent

    return MDAEvent(index=index)  # type: ignore[arg-type]


# --- Frames accounted for


class AcquiredFrames:
    """Counts the frames that the core acquired: by the engine's signals, and by the camera's own numbers.

    Attributes
    ----------
    announced
        Signals of a frame.
    numbered
        Frames by the camera's image numbers, which begin at 0 in each hardware sequence.
    """

    def __init__(self) -> None:
        self.announced = self.numbered = 0
        self._last = -1

    def frame(self, _img: Any, _event: Any, meta: Mapping[str, Any]) -> None:
        """Count a frame; a slot of the engine's."""
        number = int(meta["camera_metadata"]["ImageNumber"])
        self.announced += 1
        self.numbered += number - self._last if number > self._last else number + 1
        self._last = number


class DeliveredFrames:
    """Counts what a live segmenter delivers; a `ResultOutput`.

    Attributes
    ----------
    results, dropped_frames
        Results of frames that were done or failed, and frames in notices of those that were dropped.
    in_order
        Whether each frame came after the one before, none was left out, and none came twice.
    """

    def __init__(self) -> None:
        self.results = self.dropped_frames = 0
        self.in_order = True

    def result(self, result: LiveResult) -> None:
        """Count a result."""
        self._expect(result.number)
        self.results += 1

    def dropped(self, frames: DroppedFrames) -> None:
        """Count dropped frames."""
        self._expect(frames.first)
        self.dropped_frames += frames.count

    def sequence_started(self, sequence: LiveSequence) -> None:
        """Check that the sequence begins with the next frame."""
        self._expect(sequence.first)

    def sequence_finished(self, sequence: LiveSequence) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def _expect(self, number: int) -> None:
        self.in_order = self.in_order and number == self.results + self.dropped_frames


@dataclass(frozen=True)
class FramesAccounted(BenchCase):
    """Frames of hardware sequences, faster than they can be segmented: each is done, dropped or failed, once.

    Attributes
    ----------
    model
        An exported model; its tile is planned for the frames.
    side
        Height and width of the camera's frames, in pixels.
    count, per
        Frames in all, and frames of a hardware sequence.
    """

    NAME: ClassVar[str] = "accounting"
    MEASURES: ClassVar[str] = (
        "Frames of hardware sequences in Micro-Manager's core, faster than they are segmented: what the core acquired "
        "is what was submitted, and each frame is done, dropped or failed."
    )
    HELP: ClassVar[str] = "Count the frames of Micro-Manager's demo camera, and what becomes of them with MODEL."
    ROUNDS: ClassVar[int] = 1

    model: Path
    side: int = field(default=64, metadata={"--side": "Side of the camera's frames, pixels."})
    count: int = field(default=100_000, metadata={"--count": "Frames."})
    per: int = field(default=10_000, metadata={"--per": "Frames of a hardware sequence."})

    def facts(self) -> dict[str, Any]:
        """Return the options."""
        return {**asdict(self), "model": str(self.model)}

    def prepare(self, folder: Path) -> None:
        """Do nothing: the camera draws the frames."""

    def round(self, folder: Path) -> dict[str, Any]:  # noqa: ARG002
        """Acquire all frames; return the seconds of one, and the counts. Raises ParityError if they do not add up."""
        from useq import MDASequence, TIntervalLoops

        acquired, delivered = AcquiredFrames(), DeliveredFrames()
        with demo_core(self.side) as core:
            assert core.mda.engine is not None
            core.mda.engine.use_hardware_sequencing = True
            core.mda.events.frameReady.connect(acquired.frame)
            with LiveSegmenter(
                self.model, frame=(self.side, self.side), policy="latest", kind="instances", outputs=[delivered]
            ) as live:
                begin = time.perf_counter()
                for first in range(0, self.count, self.per):
                    plan = TIntervalLoops(interval=timedelta(0), loops=min(self.per, self.count - first))
                    core.mda.run(MDASequence(time_plan=plan), output=[live])
                seconds = (time.perf_counter() - begin) / self.count
                live.flush()
                status = live.status()
        counts = {
            name: getattr(status, name) for name in ("submitted", "done", "dropped", "failed", "pending", "missed")
        }
        counts |= {"announced": acquired.announced, "numbered": acquired.numbered}
        counts |= {"results delivered": delivered.results, "dropped, in notices": delivered.dropped_frames}
        _require_accounted(self.count, counts, delivered.in_order)
        return {"a frame": seconds, "counts": counts, "engine": live.segmenter.session.name}

    def figures(self, seconds: Figures) -> Iterator[Measure]:
        """Yield the time of a frame."""
        yield Measure.of("a frame of the camera", "s", seconds["a frame"])

    def detail(self, _seconds: Figures, rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return engine and counts."""
        return {"frame": [self.side, self.side], "per": self.per, **{n: rounds[0][n] for n in ("engine", "counts")}}


def _require_accounted(asked: int, counts: Mapping[str, int], in_order: bool) -> None:
    """Raise ParityError unless the frames that were acquired are those that were submitted, each with one outcome."""
    outcomes = counts["done"] + counts["dropped"] + counts["failed"]
    delivered = counts["results delivered"] + counts["dropped, in notices"]
    same = {asked, counts["announced"], counts["numbered"], counts["submitted"], outcomes, delivered}
    if len(same) > 1 or counts["dropped"] != counts["dropped, in notices"] or counts["pending"] or counts["missed"]:
        raise ParityError(f"{asked} frames were asked for, and the counts do not add up: {dict(counts)}")
    if not in_order:
        raise ParityError(f"results and notices of {asked} frames are not in order")

"""What a live segmenter is doing and how fast, as a snapshot.

Gaps in the numbers that a camera gives its images: frames that were exposed and never came.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from time import perf_counter
from typing import Any

import numpy as np

from unetrt.runtime.live.results import LiveResult, Outcome

# The keys of Micro-Manager's image metadata (MMCore, `g_Keyword_Metadata_ImageNumber` and `..._CameraLabel`).
NUMBER, CAMERA = "ImageNumber", "Camera"


class ImageNumbers:
    """Counts the images that are missing between those that come.

    A camera begins at 0 with each sequence, so a number that is not higher than the last begins anew. What is missing
    before the first image of a sequence, or after its last, leaves no gap and is not seen.

    Attributes
    ----------
    missed
        How many images were missing so far.
    """

    def __init__(self) -> None:
        self.missed = 0
        self._last: dict[str, int] = {}

    def restart(self) -> None:
        """Begin anew: the next image is the first."""
        self._last = {}

    def see(self, metadata: Mapping[str, Any] | None) -> int | None:
        """Take note of an image by its camera's metadata, and return its number; None where there is none."""
        try:
            number = int((metadata or {})[NUMBER])
            camera = str((metadata or {}).get(CAMERA, ""))
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        last = self._last.get(camera)
        if last is not None and number > last + 1:
            self.missed += number - last - 1
        self._last[camera] = number
        return number


# Results over which percentiles and the rate are taken: half a minute of a fast camera, seconds of a slow one.
RECENT = 1000
# Seconds over which the rate is taken.
RATE_SPAN = 5.0


class State(StrEnum):
    """What the thread does.

    `waiting` for frames; `segmenting`, or giving a result out; `closing`: doing what is left; `closed`.
    """

    WAITING = "waiting"
    SEGMENTING = "segmenting"
    CLOSING = "closing"
    CLOSED = "closed"


@dataclass(frozen=True)
class Percentiles:
    """Percentiles of a time, in seconds, over the last 1000 frames that were segmented; None before the first."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None


@dataclass(frozen=True)
class LiveStatus:
    """A live segmenter at one moment: submitted = done + dropped + failed + pending.

    Attributes
    ----------
    state
        What its thread does.
    submitted, done, dropped, failed, pending
        How many frames came, and what became of them; `pending` ones wait or are being segmented.
    missed
        Frames that never came: gaps in the numbers that the camera gives its images.
    output_errors
        How often an output, or `on_result`, raised.
    last_error
        The last error of a frame or an output, one line; empty where there was none.
    rate
        Frames done a second, over the last 5 seconds.
    queueing, compute, latency
        Seconds that frames waited, that the segmenter took, and from `submit` to the result.
    """

    state: State
    submitted: int
    done: int
    dropped: int
    failed: int
    pending: int
    missed: int
    output_errors: int
    last_error: str
    rate: float
    queueing: Percentiles
    compute: Percentiles
    latency: Percentiles

    def __str__(self) -> str:
        counts = ("submitted", "done", "dropped", "failed", "pending", "missed")
        said = [f"{self.state}: " + ", ".join(f"{getattr(self, name)} {name}" for name in counts), f"{self.rate:.1f}/s"]
        if self.latency.p50 is not None and self.latency.p99 is not None:
            said.append(f"latency p50 {1e3 * self.latency.p50:.0f} ms, p99 {1e3 * self.latency.p99:.0f} ms")
        if self.last_error:
            said.append(f"last error: {self.last_error}")
        return "; ".join(said)


class Record:
    """What a status says beside the counts; written by the worker, read by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._recent: deque[tuple[float, float, float, float]] = deque(maxlen=RECENT)
        self.output_errors, self.last_error = 0, ""

    def add(self, result: LiveResult) -> None:
        """Take note of a result."""
        with self._lock:
            if result.outcome is Outcome.DONE:
                self._recent.append((perf_counter(), result.queueing, result.compute, result.latency))
            if result.error is not None:
                self.last_error = one_line(result.error)

    def output_failed(self, error: BaseException) -> None:
        """Take note that an output raised."""
        with self._lock:
            self.output_errors += 1
            self.last_error = one_line(error)

    def times(self) -> tuple[float, Percentiles, Percentiles, Percentiles]:
        """Return frames a second, and the percentiles of queueing, compute and latency."""
        with self._lock:
            recent = list(self._recent)
        if not recent:
            return 0.0, Percentiles(), Percentiles(), Percentiles()
        ends, *seconds = np.array(recent).T
        queueing, compute, latency = (Percentiles(*np.percentile(each, (50, 95, 99)).tolist()) for each in seconds)
        return _rate(ends.tolist(), perf_counter()), queueing, compute, latency


def _rate(ends: list[float], now: float) -> float:
    """Return how many ended a second, lately; `ends` in seconds of `perf_counter`, the earliest first."""
    lately = [end for end in ends if end > now - RATE_SPAN]
    begin = max(ends[0], now - RATE_SPAN)
    return len(lately) / (now - begin) if len(ends) > 1 and now > begin else 0.0


def one_line(error: BaseException) -> str:
    """Return an error as one line, with its kind; never raises."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - somebody else's error
        text = ""
    return f"{type(error).__name__}: {text}".removesuffix(": ")

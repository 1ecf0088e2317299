"""A live segmentation at a terminal: a view updated in place, plain lines for a log, and a summary at the end.

An `Observer` takes results on any thread and combines them with a `LiveStatus` into `Figures`, a snapshot. A `View`
shows figures: `TerminalView` in place at a terminal, else `PlainLines`.

    observer = Observer()
    with LiveSegmenter(model, on_result=observer.result) as live, view_for(console, "title", "Ctrl-C ends it") as view:
        view.show(observer.look(live.status()))
"""

import threading
from collections import deque
from dataclasses import dataclass
from time import perf_counter

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import printable
from unetrt.runtime.live.results import LiveResult, LiveStatus, Outcome, Percentiles, decimal, frequency

# Number of results in the history of object counts: what fits the width of a terminal.
HISTORY = 40
# Averaging window of the camera's rate, in seconds.
SPAN = 5.0
# Seconds between two plain lines.
LINE_EVERY = 5.0
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


@dataclass(frozen=True)
class Figures:
    """Snapshot of a live segmentation.

    Attributes
    ----------
    status
        Counts and latencies.
    seconds
        Seconds since the first frame; 0 before it.
    camera
        Frames submitted per second, over the last 5 seconds or more; see `LiveStatus.rate`.
    frame
        Shape and dtype of the last segmented frame, such as "512 x 700 px, uint16"; empty before it.
    history
        Number of objects in each of the last 40 results, newest last; empty for class labels.
    objects
        Number of objects in all results.
    covered
        Fraction of the last class labels that is not background; None for object labels.
    """

    status: LiveStatus
    seconds: float
    camera: float
    frame: str
    history: tuple[int, ...]
    objects: int
    covered: float | None


class Observer:
    """Collects results on one thread, and returns figures on another.

    Attributes
    ----------
    failure
        The error of the last frame that failed.
    """

    def __init__(self) -> None:
        self.failure: BaseException | None = None
        self._lock = threading.Lock()
        self._last: LiveResult | None = None
        self._history: deque[int] = deque(maxlen=HISTORY)
        self._objects = 0
        self._submitted: deque[tuple[int, float]] = deque()  # number of frames, and when it was seen first
        self._first: float | None = None

    def result(self, result: LiveResult) -> None:
        """Collect a result; takes microseconds."""
        with self._lock:
            if result.outcome is Outcome.FAILED:
                self.failure = result.error
                return
            self._last = result
            if result.objects is not None:
                self._history.append(result.objects)
                self._objects += result.objects

    def look(self, status: LiveStatus) -> Figures:
        """Return the figures at this moment; call it regularly, on one thread, for the camera's rate."""
        now = perf_counter()
        if self._first is None and status.submitted:
            self._first = now
        with self._lock:
            last, history, objects = self._last, tuple(self._history), self._objects
        seconds = 0.0 if self._first is None else now - self._first
        rate = self._rate(now, status.submitted)
        return Figures(status, seconds, rate, _kind(last), history, objects, _covered(last))

    def _rate(self, now: float, submitted: int) -> float:
        if not self._submitted or submitted > self._submitted[-1][0]:
            self._submitted.append((submitted, now))
        while len(self._submitted) > 2 and self._submitted[1][1] < now - SPAN:
            self._submitted.popleft()
        return frequency(self._submitted, now, SPAN)


def _kind(result: LiveResult | None) -> str:
    return "" if result is None else f"{' x '.join(map(str, result.frame.shape))} px, {result.frame.dtype}"


def _covered(result: LiveResult | None) -> float | None:
    if result is None or result.labels is None or result.objects is not None:
        return None
    return float((result.labels > 0).mean())


def accounting(figures: Figures) -> str:
    """Return the number of frames and of each outcome; the parts add up to the whole."""
    status = figures.status
    parts = {"segmented": status.done, "dropped": status.dropped, "failed": status.failed, "pending": status.pending}
    shown = [f"{number} {name}" for name, number in parts.items() if number or name == "segmented"]
    missed = f"; {counted(status.missed, 'more image')} of the camera missed" if status.missed else ""
    return f"{counted(status.submitted, 'frame')}: {', '.join(shown)}{missed}"


def times(name: str, seconds: Percentiles) -> str:
    """Return percentiles of a duration in milliseconds; empty before the first segmented frame."""
    if seconds.p50 is None:
        return ""
    return (
        f"{name} p50 {milliseconds(seconds.p50)}, p95 {milliseconds(seconds.p95)}, p99 {milliseconds(seconds.p99)} ms"
    )


def milliseconds(seconds: float | None) -> str:
    """Return a duration in milliseconds, to three significant digits."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def counted(number: int, thing: str) -> str:
    """Return a number with its noun: `1 frame`, `2 frames`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def line(figures: Figures) -> str:
    """Return the figures in one line, for a log."""
    status = figures.status
    parts = [
        f"{figures.seconds:.0f} s",
        accounting(figures),
        f"{decimal(figures.camera)} frames/s, {decimal(status.rate)}/s segmented",
        times("latency", status.latency),
        found(figures),
        status.last_error and f"last error: {status.last_error}",
    ]
    return "; ".join(part for part in parts if part)


def found(figures: Figures) -> str:
    """Return the content of the last labels; empty before the first."""
    if figures.history:
        return counted(figures.history[-1], "object")
    return "" if figures.covered is None else f"{figures.covered:.1%} not background"


def summary(figures: Figures, session: str) -> list[str]:
    """Return the lines printed at the end: outcomes; objects, rate, latency and the name of the session."""
    status = figures.status
    speed = f"{decimal(status.done / figures.seconds)} segmented a second" if status.done and figures.seconds else ""
    objects = counted(figures.objects, "object") if figures.history else ""
    rest = [part for part in (objects, speed, times("latency", status.latency), session) if part]
    return [accounting(figures), ", ".join(rest)]


class View(Closable):
    """Shows figures during a run."""

    def show(self, figures: Figures) -> None:
        """Show figures, if the last ones are old enough."""
        raise NotImplementedError


def view_for(console: Console, title: str, hint: str) -> View:
    """Return a view that updates in place if the console is a terminal, else one that writes plain lines.

    Parameters
    ----------
    console
        Destination.
    title, hint
        First line, and last line of a view in place.
    """
    if console.is_interactive and console.file.isatty():  # not a file with forced colours
        return TerminalView(console, title, hint)
    return PlainLines(console, title)


class TerminalView(View):
    """Draws figures in place, and erases them at the end."""

    def __init__(self, console: Console, title: str, hint: str) -> None:
        self._title, self._hint = title, hint
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, figures: Figures) -> None:
        """Draw the figures."""
        self._live.update(drawing(figures, self._title, self._hint, self._live.console), refresh=True)

    def close(self) -> None:
        """Erase the figures; idempotent."""
        self._live.stop()


class PlainLines(View):
    """Writes a title, and a line every few seconds, without control characters."""

    def __init__(self, console: Console, title: str, every: float = LINE_EVERY) -> None:
        self._console, self._every = console, every
        self._next = perf_counter() + every
        self._write(title)

    def show(self, figures: Figures) -> None:
        """Write the figures, if the last line is old enough."""
        if perf_counter() >= self._next:
            self._next = perf_counter() + self._every
            self._write(line(figures))

    def close(self) -> None:
        """Do nothing."""

    def _write(self, text: str) -> None:
        print(printable(text), file=self._console.file, flush=True)


def drawing(figures: Figures, title: str, hint: str, console: Console) -> RenderableType:
    """Return a drawing of figures between a title and a hint, for a console of any width."""
    status = figures.status
    rows = [_rates(figures), Text(), _times(status), Text()]
    bars = ASCII_BARS if console.options.ascii_only else BARS
    rows.append(_pairs({"found": f"{found(figures) or '-':<14} {sparkline(figures.history, bars)}"}))
    rows.append(_pairs({"state": str(status.state), "last error": status.last_error or "none"}))
    return Group(Text(printable(title), "bold", no_wrap=True), Text(), *rows, Text(), Text(hint, "dim", no_wrap=True))


def sparkline(numbers: tuple[int, ...], bars: str = BARS) -> str:
    """Return numbers as a line of bars, scaled from 0 to their maximum."""
    top = max(numbers, default=0) or 1
    return "".join(bars[number * (len(bars) - 1) // top] for number in numbers)


def _rates(figures: Figures) -> RenderableType:
    status = figures.status
    # Fits 45 columns, half a screen.
    return _pairs(
        {
            "camera": f"{decimal(figures.camera):>6}/s  {status.submitted} came, {status.missed} missed",
            "segmented": f"{decimal(status.rate):>6}/s  {status.done} done, {status.pending} pending",
            "lost": f"{status.dropped} dropped, {status.failed} failed",
            "frame": figures.frame or "-",
        }
    )


def _times(status: "LiveStatus") -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(width=10, style="cyan")
    for _ in range(3):
        table.add_column(justify="right", min_width=6)
    table.add_row("", *(Text(name, "dim") for name in ("p50", "p95", "p99")), Text("ms", "dim"))
    for name in ("queueing", "compute", "latency"):
        times = getattr(status, name)
        table.add_row(name, *(milliseconds(value) for value in (times.p50, times.p95, times.p99)))
    return table


def _pairs(rows: dict[str, str]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(min_width=10, style="cyan", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for name, value in rows.items():
        table.add_row(name, Text(value))  # as Text: an error may contain markup
    return table

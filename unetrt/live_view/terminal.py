"""A live segmentation at a terminal: a view that is drawn anew in its place, or plain lines where nobody sees it.

What a person is shown of a live segmentation, at one moment.

A live segmentation in plain words, for logs and for its end.
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
from unetrt.runtime.live.results import LiveResult, Outcome
from unetrt.runtime.live.status import LiveStatus, Percentiles

# Results whose objects the history shows: as many as a line of a terminal has room for.
HISTORY = 40
# Seconds over which the camera's rate is taken.
SPAN = 5.0


@dataclass(frozen=True)
class Figures:
    """A live segmentation at one moment.

    Attributes
    ----------
    status
        Counts and times.
    seconds
        Since the first frame; 0 before it.
    camera
        Frames that came a second, over the last 5 seconds.
    frame
        The last result's frame, such as "512 x 700 px, uint16"; empty before it.
    history
        Objects in each of the last 40 results, the newest last; empty where labels name classes.
    objects
        Objects in all results together.
    covered
        The share of the last labels that is not background, where they name classes; else None.
    """

    status: LiveStatus
    seconds: float
    camera: float
    frame: str
    history: tuple[int, ...]
    objects: int
    covered: float | None


class Observer:
    """Takes note of results, on any thread, for who asks from another.

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
        self._came: deque[tuple[float, int]] = deque()
        self._first: float | None = None

    def result(self, result: LiveResult) -> None:
        """Take note of a result; quick."""
        with self._lock:
            if result.outcome is Outcome.FAILED:
                self.failure = result.error
                return
            self._last = result
            if result.objects is not None:
                self._history.append(result.objects)
                self._objects += result.objects

    def look(self, status: LiveStatus) -> Figures:
        """Return the figures of this moment, for one thread, regularly."""
        now = perf_counter()
        if self._first is None and status.submitted:
            self._first = now
        with self._lock:
            last, history, objects = self._last, tuple(self._history), self._objects
        seconds = 0.0 if self._first is None else now - self._first
        rate = self._rate(now, status.submitted)
        return Figures(status, seconds, rate, _kind(last), history, objects, _covered(last))

    def _rate(self, now: float, submitted: int) -> float:
        self._came.append((now, submitted))
        while self._came[0][0] < now - SPAN:
            self._came.popleft()
        begin, before = self._came[0]
        return (submitted - before) / (now - begin) if now > begin else 0.0


def _kind(result: LiveResult | None) -> str:
    return "" if result is None else f"{' x '.join(map(str, result.frame.shape))} px, {result.frame.dtype}"


def _covered(result: LiveResult | None) -> float | None:
    if result is None or result.labels is None or result.objects is not None:
        return None
    return float((result.labels > 0).mean())


def accounting(figures: Figures) -> str:
    """Return what became of the frames: the parts add up to the whole."""
    status = figures.status
    parts = {"segmented": status.done, "dropped": status.dropped, "failed": status.failed, "pending": status.pending}
    said = [f"{number} {name}" for name, number in parts.items() if number or name == "segmented"]
    missed = f"; {counted(status.missed, 'more image')} of the camera missed" if status.missed else ""
    return f"{counted(status.submitted, 'frame')}: {', '.join(said)}{missed}"


def times(name: str, seconds: Percentiles) -> str:
    """Return percentiles of a time in milliseconds; empty before the first frame was segmented."""
    if seconds.p50 is None:
        return ""
    return (
        f"{name} p50 {milliseconds(seconds.p50)}, p95 {milliseconds(seconds.p95)}, p99 {milliseconds(seconds.p99)} ms"
    )


def milliseconds(seconds: float | None) -> str:
    """Return seconds as milliseconds, to three figures."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def counted(number: int, thing: str) -> str:
    """Return a number with what it counts: `1 frame`, `2 frames`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def line(figures: Figures) -> str:
    """Return everything that matters now, on one line."""
    status = figures.status
    parts = [
        f"{figures.seconds:.0f} s",
        accounting(figures),
        f"{figures.camera:.1f} frames/s, {status.rate:.1f}/s segmented",
        times("latency", status.latency),
        found(figures),
        status.last_error and f"last error: {status.last_error}",
    ]
    return "; ".join(part for part in parts if part)


def found(figures: Figures) -> str:
    """Return what is in the last labels; empty before them."""
    if figures.history:
        return counted(figures.history[-1], "object")
    return "" if figures.covered is None else f"{figures.covered:.1%} not background"


def summary(figures: Figures, session: str) -> list[str]:
    """Return what there is to say when all is over: what became of the frames, how fast, and on what (`session`)."""
    status = figures.status
    speed = f"{status.done / figures.seconds:.1f} segmented a second" if status.done and figures.seconds else ""
    objects = counted(figures.objects, "object") if figures.history else ""
    rest = [part for part in (objects, speed, times("latency", status.latency), session) if part]
    return [accounting(figures), ", ".join(rest)]


# Seconds between two plain lines.
LINE_EVERY = 5.0
BARS, ASCII_BARS = "▁▂▃▄▅▆▇█", "_.-=+*#@"


class View(Closable):
    """What a person looks at during a run."""

    def show(self, figures: Figures) -> None:
        """Show how it stands, if it is time to."""
        raise NotImplementedError


def view_for(console: Console, title: str, hint: str) -> View:
    """Return a view that updates in place where the console is a terminal, else one that writes plain lines.

    Parameters
    ----------
    console
        Where it is shown.
    title, hint
        The first line, and the last one of a view in place.
    """
    if console.is_interactive and console.file.isatty():  # not where colours are merely forced upon a file
        return TerminalView(console, title, hint)
    return PlainLines(console, title)


class TerminalView(View):
    """Draws the figures in place, and takes them away at the end."""

    def __init__(self, console: Console, title: str, hint: str) -> None:
        self._title, self._hint = title, hint
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()

    def show(self, figures: Figures) -> None:
        """Draw the figures."""
        self._live.update(drawing(figures, self._title, self._hint, self._live.console), refresh=True)

    def close(self) -> None:
        """Leave the terminal as it was; idempotent."""
        self._live.stop()


class PlainLines(View):
    """Writes a first line, and one every few seconds, without control characters."""

    def __init__(self, console: Console, title: str, every: float = LINE_EVERY) -> None:
        self._console, self._every = console, every
        self._next = perf_counter() + every
        self._write(title)

    def show(self, figures: Figures) -> None:
        """Write the figures, if the last line is a while ago."""
        if perf_counter() >= self._next:
            self._next = perf_counter() + self._every
            print(line(figures), file=self._console.file, flush=True)

    def close(self) -> None:
        """Do nothing."""

    def _write(self, said: str) -> None:
        print(said, file=self._console.file, flush=True)


def drawing(figures: Figures, title: str, hint: str, console: Console) -> RenderableType:
    """Draw figures, between a first and a last line, for a console of any width."""
    status = figures.status
    rows = [_rates(figures), Text(), _times(status), Text()]
    bars = ASCII_BARS if console.options.ascii_only else BARS
    rows.append(_pairs({"found": f"{found(figures) or '-':<14} {sparkline(figures.history, bars)}"}))
    rows.append(_pairs({"state": str(status.state), "last error": status.last_error or "none"}))
    return Group(Text(title, "bold", no_wrap=True), Text(), *rows, Text(), Text(hint, "dim", no_wrap=True))


def sparkline(numbers: tuple[int, ...], bars: str = BARS) -> str:
    """Return numbers as a line of bars, from 0 to the highest."""
    top = max(numbers, default=0) or 1
    return "".join(bars[number * (len(bars) - 1) // top] for number in numbers)


def _rates(figures: Figures) -> RenderableType:
    status = figures.status
    # Short enough for half a screen: 45 columns.
    return _pairs(
        {
            "camera": f"{figures.camera:6.1f}/s  {status.submitted} came, {status.missed} missed",
            "segmented": f"{status.rate:6.1f}/s  {status.done} done, {status.pending} pending",
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
    for name, said in rows.items():
        table.add_row(name, Text(said))  # as text: an error may hold what looks like markup
    return table

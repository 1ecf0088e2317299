"""A live segmentation at a terminal: a view that is drawn anew in its place, or plain lines where nobody sees it."""

from time import perf_counter
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from unetrt.live_view.figures import Figures
from unetrt.live_view.lines import found, line, milliseconds
from unetrt.runtime.closing import Closable

if TYPE_CHECKING:
    from unetrt.runtime.live.status import LiveStatus

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

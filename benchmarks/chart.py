"""A result as a PNG: one bar a contender."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any, NamedTuple

from unetrt.benchmarks.result import SEGMENT, Measured, Result
from unetrt.benchmarks.verdict import case, doubts, headline, is_ours, shortest
from unetrt.benchmarks.wording import Unit, interval_name, unit_for
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

DPI = 150
# Inches: the width, a bar with its gap at least, what a line of a bar's title takes, what axis and legend take.
WIDTH, BAR, LINE, AROUND = 10.0, 0.46, 0.2, 1.15
# Letters a line, for the titles of bars and for the text above them.
TITLE_LETTERS, ABOVE_LETTERS = 34, 92
# Told apart with every kind of colour vision (M. Okabe, K. Ito, Color Universal Design, 2008); grey is not needed.
OURS, OTHERS, LIMIT, INK, QUIET = "#0072b2", "#b4bcc4", "#d55e00", "#1c2024", "#5a6470"


def save_png(result: Result, path: Path) -> None:
    """Write a PNG, 1500 pixels wide, with the time of a frame of every contender.

    Raises
    ------
    OptionError
        matplotlib is not installed.
    OutputError
        `path` cannot be written.
    """
    drawing = draw(result)
    with whole_file(path) as temporary:
        drawing.savefig(temporary, format="png", dpi=DPI)


def require_matplotlib() -> None:
    """Raise OptionError where matplotlib is not installed."""
    try:
        import_module("matplotlib.figure")
    except ImportError as error:
        raise OptionError(f"a PNG is drawn with matplotlib, which cannot be imported ({error})") from error


def draw(result: Result) -> "Drawing":
    """Return the drawing, apart from matplotlib's global state; raises OptionError where that is not installed."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    titles, above = [fill(one.title, TITLE_LETTERS) for one in result.contenders], list(_above(result))
    bars = len(titles) * max(BAR, LINE * (1 + max(title.count("\n") + 1 for title in titles)))
    height = bars + AROUND + sum(text.height for text in above)
    drawing = Drawing(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(drawing)
    axes = drawing.add_axes((0.3, 0.7 / height, 0.62, bars / height))
    _bars(axes, result.contenders)
    _name(axes, result.contenders, titles)
    _write(drawing, above, height)
    return drawing


class Above(NamedTuple):
    """A text above the bars: its lines, and how they are set."""

    text: str
    size: float
    weight: str
    colour: str

    @property
    def height(self) -> float:
        """Of all lines, in inches."""
        return (self.text.count("\n") + 1) * self.size * 1.6 / 72


def _above(result: Result) -> Iterator[Above]:
    """Yield what is shown, and what speaks against believing it."""
    yield Above(fill(headline(result), ABOVE_LETTERS - 12), 12.5, "bold", INK)
    yield Above(fill(case(result), ABOVE_LETTERS + 12), 9.5, "normal", QUIET)
    for doubt in doubts(result):
        yield Above(fill(doubt, ABOVE_LETTERS + 12), 9.5, "normal", QUIET)


def _write(drawing: "Drawing", above: Sequence[Above], height: float) -> None:
    down = 0.15
    for text, size, weight, colour in above:
        style: dict[str, Any] = {
            "fontsize": size,
            "fontweight": weight,
            "color": colour,
            "linespacing": 1.4,
            "va": "top",
        }
        drawing.text(0.02, 1 - down / height, text, parse_math=False, **style)
        down += Above(text, size, weight, colour).height


def _bars(axes: "Axes", contenders: Sequence[Measured]) -> None:
    seconds = [one.seconds[SEGMENT] for one in contenders]
    unit = unit_for(figure.median for figure in seconds)
    for row, (one, figure) in enumerate(zip(contenders, seconds, strict=True)):
        median, low, high = (value / unit.seconds for value in (figure.median, figure.low, figure.high))
        axes.barh(row, median, height=0.62, color=OURS if is_ours(one) else OTHERS)
        axes.errorbar(median, row, xerr=[[median - low], [high - median]], color=INK, capsize=3, linewidth=1.2)
        right = high + 0.012 * max(other.high for other in seconds) / unit.seconds
        axes.text(right, row, unit.of(figure), va="center", fontsize=9, color=INK, fontweight=_weight(one))
        _limit(axes, one, row, unit)
    _axis(axes, contenders, f"from {SEGMENT} ({unit.name}): median of all rounds and {interval_name(seconds)}")


def _limit(axes: "Axes", one: Measured, row: int, unit: Unit) -> None:
    least = shortest(one)
    if least is not None:
        axes.vlines(least.median / unit.seconds, row - 0.4, row + 0.4, color=LIMIT, linewidth=2)


def _axis(axes: "Axes", contenders: Sequence[Measured], label: str) -> None:
    axes.set_xlabel(label, color=INK)
    axes.set_ylim(len(contenders) - 0.45, -0.55)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.08)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if any(one.share for one in contenders):
        line = axes.plot([], [], color=LIMIT, linewidth=2, label="the least that its arithmetic takes at the limit")
        axes.legend(handles=line, frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1))


def _name(axes: "Axes", contenders: Sequence[Measured], titles: Sequence[str]) -> None:
    axes.set_yticks(range(len(titles)), titles, parse_math=False)
    axes.tick_params(axis="y", length=0)
    for text, one in zip(axes.get_yticklabels(), contenders, strict=True):
        text.set_fontweight(_weight(one))


def _weight(one: Measured) -> str:
    return "bold" if is_ours(one) else "normal"

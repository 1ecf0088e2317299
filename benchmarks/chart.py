"""A result as a PNG: a bar chart of the time from frame to labels, one bar a contender, drawn with matplotlib."""

from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

from unetrt.benchmarks.figures import interval_name, unit_for
from unetrt.benchmarks.findings import case, doubts, headline, shortest
from unetrt.benchmarks.result import SEGMENT, BenchResult, Measured
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

DPI = 150
# Inches: the width, a bar with its gap at least, a line of a bar's title, the axis and the legend.
WIDTH, BAR, LINE, AROUND = 10.0, 0.46, 0.2, 1.15
# Characters a line, for the titles of bars and for the text above them.
TITLE_LETTERS, ABOVE_LETTERS = 34, 92
# Distinguishable with every kind of colour vision (M. Okabe, K. Ito, Color Universal Design, 2008), and grey.
OURS, OTHERS, LIMIT, INK, QUIET = "#0072b2", "#b4bcc4", "#d55e00", "#1c2024", "#5a6470"


class Caption(NamedTuple):
    """A text above the bars."""

    text: str
    size: float = 9.5
    weight: str = "normal"
    colour: str = QUIET

    @property
    def height(self) -> float:
        """Height of all lines, in inches."""
        return (self.text.count("\n") + 1) * self.size * 1.6 / 72


def save_png(result: BenchResult, path: Path) -> None:
    """Write a PNG, 1500 pixels wide.

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
        raise OptionError(
            f"a PNG is drawn with matplotlib, which cannot be imported ({error}): pip install 'unetrt[train]'"
        ) from error


def draw(result: BenchResult) -> "Drawing":
    """Return the drawing, independent of matplotlib's global state; raises OptionError without matplotlib."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    titles, captions = [fill(one.title, TITLE_LETTERS) for one in result.contenders], list(_captions(result))
    bars = len(titles) * max(BAR, LINE * (1 + max(title.count("\n") + 1 for title in titles)))
    height = bars + AROUND + sum(caption.height for caption in captions)
    drawing = Drawing(figsize=(WIDTH, height), facecolor="white")
    FigureCanvasAgg(drawing)
    axes = drawing.add_axes((0.3, 0.7 / height, 0.62, bars / height))
    _bars(axes, result.contenders)
    _titles(axes, result.contenders, titles)
    down = 0.15
    for one in captions:
        drawing.text(
            0.02, 1 - down / height, one.text, parse_math=False, fontsize=one.size, fontweight=one.weight,
            color=one.colour, linespacing=1.4, va="top",
        )  # fmt: skip
        down += one.height
    return drawing


def _captions(result: BenchResult) -> Iterator[Caption]:
    """Yield the headline, the case, and the reasons to doubt them."""
    yield Caption(fill(headline(result), ABOVE_LETTERS - 12), 12.5, "bold", INK)
    for text in (case(result), *doubts(result)):
        yield Caption(fill(text, ABOVE_LETTERS + 12))


def _bars(axes: "Axes", contenders: Sequence[Measured]) -> None:
    seconds = [one.segment for one in contenders]
    unit = unit_for(figure.median for figure in seconds)
    farthest = max(figure.high for figure in seconds) / unit.seconds
    for row, (one, figure) in enumerate(zip(contenders, seconds, strict=True)):
        median, low, high = (value / unit.seconds for value in (figure.median, figure.low, figure.high))
        axes.barh(row, median, height=0.62, color=OURS if one.is_ours else OTHERS)
        axes.errorbar(median, row, xerr=[[median - low], [high - median]], color=INK, capsize=3, linewidth=1.2)
        text = unit.of(figure)
        axes.text(high + 0.012 * farthest, row, text, va="center", fontsize=9, color=INK, fontweight=_weight(one))
        if least := shortest(one):
            axes.vlines(least.median / unit.seconds, row - 0.4, row + 0.4, color=LIMIT, linewidth=2)
    axes.set_xlabel(f"from {SEGMENT} ({unit.name}): median of all rounds and {interval_name(seconds)}", color=INK)
    axes.set_ylim(len(contenders) - 0.45, -0.55)
    axes.set_xlim(0, axes.get_xlim()[1] * 1.08)
    axes.spines[["top", "right", "left"]].set_visible(False)
    if any(one.share for one in contenders):
        line = axes.plot([], [], color=LIMIT, linewidth=2, label="time of its arithmetic at the machine's limit")
        axes.legend(handles=line, frameon=False, fontsize=8.5, loc="lower right", bbox_to_anchor=(1, 1))


def _titles(axes: "Axes", contenders: Sequence[Measured], titles: Sequence[str]) -> None:
    axes.set_yticks(range(len(titles)), titles, parse_math=False)
    axes.tick_params(axis="y", length=0)
    for text, one in zip(axes.get_yticklabels(), contenders, strict=True):
        text.set_fontweight(_weight(one))


def _weight(one: Measured) -> str:
    return "bold" if one.is_ours else "normal"

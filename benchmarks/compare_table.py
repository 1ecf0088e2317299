"""A comparison for a terminal."""

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.text import Text

from unetrt.benchmarks.change import Change, Verdict
from unetrt.benchmarks.compare import Comparison
from unetrt.benchmarks.folding import FoldingTable
from unetrt.benchmarks.result import SEGMENT
from unetrt.benchmarks.wording import digits, rate, time

STYLES = {Verdict.FASTER: "bold green", Verdict.SLOWER: "bold red", Verdict.SAME: "", Verdict.TOO_FEW: "dim"}
HOW = (
    "outside the noise: the 95 % intervals do not overlap. Where the machine's limit itself changed so, the verdict is"
    " of the time held against it."
)


def compare_table(comparison: Comparison) -> RenderableType:
    """Return a renderable: warnings, what changed in sentences, then all figures and whatever else is not the same."""
    return Group(*_sentences(comparison), *_figures(comparison), *_rest(comparison))


def _sentences(comparison: Comparison) -> Iterator[Text]:
    for warning in comparison.warnings:
        yield Text(f"! {warning}", "yellow")
    for sentence in comparison.summary:
        yield Text(sentence, "bold")


def _figures(comparison: Comparison) -> Iterator[RenderableType]:
    if not comparison.changes:
        return
    drawn = FoldingTable("median", "before", "after", "after /\nbefore", "held against\nthe limit", "verdict")
    for change in comparison.changes:
        title = change.title if change.way == SEGMENT else f"{change.title}, {change.way}"
        drawn.add(title, _row(change), STYLES[change.verdict])
    yield drawn
    yield Text(HOW, "dim")


def _row(change: Change) -> list[str]:
    seconds = change.seconds
    held = digits(change.held.ratio) if change.held else ""
    times = [time(seconds.before.median), time(seconds.after.median)]
    return [*times, digits(seconds.ratio), held, change.verdict.value]


def _rest(comparison: Comparison) -> Iterator[Text]:
    for name, (shift, unit) in comparison.limits.items():
        known = "outside the noise" if shift.outside else "within the noise" if shift.enough else "too few rounds"
        told = f"{rate(shift.before.median, unit)} -> {rate(shift.after.median, unit)}, {known}"
        yield _item("limit", f"{name} {told}")
    for difference in comparison.differences:
        yield _item("differs", str(difference))
    for one in comparison.went:
        yield _item("only before", one)
    for one in comparison.came:
        yield _item("only after", one)


def _item(heading: str, what: str) -> Text:
    return Text.assemble((f"{heading}  ", "dim"), what)

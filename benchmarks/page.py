"""A result as one HTML page that holds all it shows and asks nothing of any network."""

import json
from base64 import b64encode
from importlib.resources import files
from pathlib import Path
from string import Template

from unetrt.benchmarks import page_sections as sections
from unetrt.benchmarks.markup import Markup, element, joined
from unetrt.benchmarks.result import SEGMENT, Result
from unetrt.benchmarks.verdict import case, doubts, headline, leader, least_rounds, reference_title
from unetrt.benchmarks.wording import Unit, digits, interval_name, percent, pixels, time
from unetrt.runtime.files.atomic import whole_file

# Functions of `sections`, and where the template has what they return.
SECTIONS = ("bars", "contenders", "own_ways", "phases", "latencies", "checks", "left_out", "limits", "environment")


def save_html(result: Result, path: Path) -> None:
    """Write the page; raises OutputError where `path` cannot be written."""
    with whole_file(path) as temporary:
        temporary.write_text(html(result), encoding="utf-8")


def html(result: Result) -> str:
    """Return the page."""
    folder = files("unetrt.benchmarks")
    parts = {
        "style": folder.joinpath("page.css").read_text(encoding="utf-8"),
        "headline": joined(headline(result)),
        "case": joined(f"{case(result)}, {result.when}"),
        "tiles": _tiles(result),
        "doubts": _doubts(result),
        "json": "data:application/json;base64," + b64encode(_json(result).encode()).decode(),
        "rounds": str(least_rounds(result)),
        **{name: getattr(sections, name)(result) for name in SECTIONS},
    }
    return Template(folder.joinpath("page.html").read_text(encoding="utf-8")).substitute(parts)


def _tiles(result: Result) -> Markup:
    """Return the figures to see first."""
    best = leader(result)
    speedup, seconds = best.speedup, best.seconds[SEGMENT]
    interval = f"{interval_name([speedup])} {Unit('', 1.0).interval(speedup)}"
    return joined(
        _tile(f"{digits(speedup.median)}x", f"as fast as {reference_title(result)}", interval),
        _tile(time(seconds.median), "a frame, to labels", best.title),
        _tile(percent(best.share.median), "of what the machine can do", best.limit) if best.share else Markup(""),
        _tile(pixels(best.pixels_off), "of the pixels off", "against one FP32 pass"),
    )


def _tile(value: str, what: str, small: str) -> Markup:
    return element("div", element("b", value), element("span", what), element("small", small))


def _doubts(result: Result) -> Markup:
    told = doubts(result)
    if not told:
        return Markup("")
    items = element("ul", *(element("li", doubt) for doubt in told))
    return element("aside", element("h2", "Before you believe it"), items)


def _json(result: Result) -> str:
    return json.dumps(result.to_dict(), indent=1)

"""Make docs/benchmarks.md from what lies in benchmarks/results, and nothing else.

Run with `python docs/benchmarks.py`; `make bench` does it at its end.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from unetrt.benchmarks.history import CPU, FILE, read
from unetrt.benchmarks.markdown import day, figures, history, interval, paragraph, table
from unetrt.benchmarks.record import Measure, Record
from unetrt.benchmarks.result import SEGMENT, Result, load
from unetrt.benchmarks.terminal import shown
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import whole_file

PAGE = Path(__file__).with_suffix(".md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
# Bytes that are read and written for a pixel: of uint16, of two float32 scores and a label, of labels; and by the copy.
MOVED = {"cut alone": 4, "stitch alone, logits": 9, "stitch alone, labels": 2}
COPIED = 4
HEAD = """# Benchmarks

Made by `python docs/benchmarks.py` from the files in [benchmarks/results](../benchmarks/results): change nothing here.
`make bench` measures everything anew, on a machine that does nothing else, and makes this page again.

Each figure is the median of several rounds, all in processes of their own, in which everything runs once for nothing
and what is compared takes turns. The interval is that of the median by order statistics, and holds it in at least 95 %
of all cases if there are 6 rounds or more. Figures of before 22 November 2026, 5:00, are not of this kind: their rounds
shared processes, a *range* is the smallest and the largest of them, and their date is that of the commit that holds
them. In the history, a change in **bold** is one whose intervals do not overlap.
"""
NOT_ON_GPU = "Not measured on a GPU yet: [`make gpu-check`](gpu-check.md) will do it.\n"
NOT_MEASURED = "Not measured yet with the present command: `make {}`.\n"


class Section(NamedTuple):
    """A benchmark: its title, its result's file, the target of make, and what its figures mean."""

    title: str
    file: str
    target: str
    meaning: str


MEANING = "From frame to labels, the same weights and the same frame; the share is that of the limit named there."
SECTIONS = {
    "weight-map": Section(
        "Weight map",
        "weight-map.json",
        "bench-weights",
        "The number is the side of the image, in pixels. *One transform* is a single distance transform of the "
        "whole image with SciPy, for scale. *A transform an object* is the straightforward way, one such transform for "
        "each, of which only the two smallest distances are kept. Before it is timed, both ways must give the same "
        "weights on the background, within 0.0001; inside an object unetrt counts the distance to its border too. At "
        "2048 the straightforward way would take thousands of transforms, and is not measured.",
    ),
    "augmentation": Section(
        "Augmentation",
        "augmentation.json",
        "bench-augmentation",
        "The number is the side of the tile, in pixels. unetrt interpolates displacements bicubically, grey values "
        "linearly, and takes classes and weights of the nearest pixel. SciPy (`map_coordinates`) draws "
        "displacements as cubic splines and grey values as linear or cubic ones, their coefficients worked out "
        "beforehand. Before it is timed, all must give the same tile at the same coordinates: linear within 0.0001 "
        "of the grey values' deviation, cubic within 0.1, as it keeps noise that linear interpolation takes out, "
        "and classes but for 1 pixel in 10000.",
    ),
    "host-path": Section(
        "Host path and stitching",
        "host.json",
        "bench-host",
        "The number is the side of the tile, in pixels, then what the network takes and what it gives. *Cut alone* "
        "moves raw grey values into tiles with mirrored borders; *stitch alone* writes labels, or finds the larger "
        "of two scores and writes that. Each frame is another one than the last.",
    ),
    "live": Section(
        "Live latency",
        "live.json",
        "bench-live",
        "Policy, and whether the frame is handed over by reference or copied.",
    ),
    CPU: Section(
        "Contenders on a CPU",
        "cpu.json",
        "bench-cpu",
        MEANING,
    ),
    "cpu-512": Section("Contenders on a CPU, small frames", "cpu-512.json", "bench-small", MEANING),
}


def page(results: Path = RESULTS) -> str:
    """Return the page for a folder of results."""
    runs = read(results / FILE)
    parts = [HEAD]
    for name, section in SECTIONS.items():
        body = contenders(results, section) if name.startswith(CPU) else measured(results, section)
        parts += [f"## {section.title}\n", *body, *history([run for run in runs if run.name == name])]
    return "\n".join([*parts, "## GPU\n", *gpu(results)])


def measured(results: Path, section: Section) -> Iterator[str]:
    """Yield the parts of a section: its figures, what they mean, and where they are from."""
    try:
        record = Record.load(results / section.file)
    except OptionError:
        yield NOT_MEASURED.format(section.target)
        return
    yield paragraph(record.measures)
    yield figures(record)
    yield paragraph(section.meaning)
    if "copy" in record.detail:
        yield from cases(record)
    yield source(record.when, record.environment, section)


def cases(record: Record) -> Iterator[str]:
    """Yield what moving pixels alone reaches of the copy's rate, and all cases of the host's path, phase by phase."""
    copied = COPIED * record.detail["copy"]["rate"]
    rows = []
    for figure in record.figures:
        size = next((size for name, size in MOVED.items() if figure.name.endswith(name)), None)
        if size is not None:
            rows.append(
                (figure.name, f"{size * figure.median / 1e3:.1f} GB/s", f"{100 * size * figure.median / copied:.0f} %")
            )
    yield f"Bytes read and written for the frame's pixels, and what that is of the copy's {copied / 1e3:.1f} GB/s:\n"
    yield table(("", "median", "of the copy"), rows)
    yield "All cases, medians in milliseconds; the phases are those of the host's clock:\n"
    phases = ("normalise", "cut", "stitch", "total")
    rows = []
    for case in record.detail["cases"]:
        medians = [f"{1e3 * case['seconds'][phase]['median']:.2f}" for phase in phases]
        tiles = f"{case['tiles']} of {case['tile']}"
        rows.append((tiles, case["input"], case["head"], *medians, f"{case['rate']:.0f}"))
    yield table(("tiles", "input", "head", *phases, "Mpixel/s"), rows)


def contenders(results: Path, section: Section) -> Iterator[str]:
    """Yield the parts of the section of `unetrt bench`."""
    try:
        result = load(results / section.file)
    except OptionError:
        yield NOT_MEASURED.format(section.target)
        return
    height, width = result.frame
    network = ", ".join(f"{name} {value}" for name, value in result.network.items())
    yield paragraph(f"One {height} x {width} uint16 frame; {network}. {section.meaning}")
    columns = ("", "precision", "tiles", "a frame", "interval", f"against {result.reference}", "share", "pixels off")
    yield table(columns, list(rows_of(result)))
    yield table(("limit", "median"), [(one.name, f"{one.rate.median / 1e9:.1f} G{one.unit}") for one in result.limits])
    if result.left_out:
        yield "".join(f"- {one.title} was left out: {one.reason}\n" for one in result.left_out)
    if section.file == SECTIONS[CPU].file and PAGE.with_suffix(".png").exists():
        yield f"![The contenders' times]({PAGE.stem}.png)\n"
    yield source(result.when, result.environment, section)


def rows_of(result: Result) -> Iterator[tuple[str, ...]]:
    """Yield a row for each contender."""
    for one in result.contenders:
        seconds = Measure.of(one.name, "s", vars(one.seconds[SEGMENT]))
        share = f"{100 * one.share.median:.1f} % of {one.limit}" if one.share else ""
        tiles = f"{one.tiles} of {one.tile[0]} x {one.tile[1]}"
        times = f"{one.speedup.median:.2f} x ({one.speedup.low:.2f} to {one.speedup.high:.2f})"
        frame = (shown(seconds.median, "s"), interval(seconds))
        yield (one.title, one.precision, tiles, *frame, times, share, f"{100 * one.pixels_off:.2f} %")


def gpu(results: Path) -> Iterator[str]:
    """Yield what GPUs showed: files that there are, or that there is none."""
    found = sorted(path.name for path in results.glob("*gpu.json"))
    yield from (f"- [{name}](../benchmarks/results/{name})\n" for name in found)
    if not found:
        yield NOT_ON_GPU


def source(when: str, environment: dict, section: Section) -> str:
    """Return when and on what a section was measured, and how to do it again."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("versions", {}).items())
    machine = f"{environment.get('processor', 'an unknown processor')}, {environment.get('threads', '?')} threads"
    again = f"`make {section.target}`; [all figures](../benchmarks/results/{section.file})."
    return paragraph(f"{day(when)} UTC, {machine}; {versions}. {again}")


if __name__ == "__main__":
    with whole_file(PAGE) as temporary:
        temporary.write_text(page(), encoding="utf-8")

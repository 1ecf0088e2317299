"""A benchmark's result, as JSON and as a table."""

import json
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from unetrt.benchmarks.job import CONTENDERS, SEGMENT, SESSION, USUAL
from unetrt.benchmarks.measure import Figure, ratio
from unetrt.runtime.artifacts import whole_file

SCHEMA = 1
PACKAGES = ("unetrt", "torch", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Result:
    """What one run of `unetrt bench` measured.

    Attributes
    ----------
    frame, tile
        Height and width, in pixels.
    network
        Depth, base, channels, classes.
    figures
        Seconds a frame, by contender.
    wrong
        Share of pixels that differ from one pass over the whole frame, by contender.
    """

    frame: tuple[int, int]
    tile: tuple[int, int]
    network: dict[str, int]
    figures: dict[str, Figure]
    wrong: dict[str, float]

    @property
    def speedup(self) -> Figure:
        """How many times as fast as the usual loop unetrt is, round by round."""
        return ratio(self.figures[USUAL], self.figures[SEGMENT])

    @property
    def overhead(self) -> float:
        """What unetrt adds to the session's own time, as a share of it: the ratio of the medians, less 1."""
        return self.figures[SEGMENT].median / self.figures[SESSION].median - 1

    def to_dict(self) -> dict[str, Any]:
        """Return everything, with the machine it was measured on."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "speedup": asdict(self.speedup),
            "overhead": self.overhead,
            "environment": environment(),
        }

    def save(self, path: Path) -> None:
        """Write JSON."""
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n")


def environment() -> dict[str, Any]:
    """Return what decides the figures: processor, threads, versions."""
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": versions(PACKAGES),
    }


def versions(packages: tuple[str, ...]) -> dict[str, str]:
    """Return the versions of those that are installed: of ONNX Runtime, each build is a package of its own."""
    known = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            known[package] = version(package)
    return known


def processor() -> str:
    """Return the processor's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def table(result: Result) -> Any:
    """Return a table for a terminal, a rich renderable."""
    from rich.table import Table

    height, width = result.frame
    title = f"{height} x {width}, depth {result.network['depth']}, base {result.network['base']}, {processor()}"
    drawn = Table("contender", "median", "range", "x usual loop", "pixels off", title=title)
    for name in CONTENDERS:
        figure = result.figures[name]
        off = f"{result.wrong[name]:.2%}" if name in result.wrong else ""
        times = ratio(result.figures[USUAL], figure).median
        drawn.add_row(name, f"{figure.median:.3f} s", f"{figure.low:.3f} - {figure.high:.3f}", f"{times:.2f}", off)
    return drawn

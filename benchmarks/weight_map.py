"""How long the weight map of drawn cells takes, beside a distance transform of the whole image for each object.

One process a round, on one core::

    python -m unetrt.benchmarks.weight_map --json benchmarks/results/weight-map.json
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.fresh import fresh, in_turn, one_core, store_drawn, stored
from unetrt.benchmarks.history import keep
from unetrt.benchmarks.one_line import OneLine
from unetrt.benchmarks.record import Measure, Record
from unetrt.benchmarks.terminal import table
from unetrt.runtime.errors import ParityError
from unetrt.runtime.files.atomic import require_writable
from unetrt.trainer.targets import Labels, separation_weights

NAME = "weight-map"
MEASURES = (
    "Working out the separation weights of a drawn micrograph, objects 35 % of it, beside one distance transform of "
    "the whole image and beside one for each object, on one core."
)
SIDES = (512, 2048)
# Pixels of a side above which no transform is taken for each object: at 2048 it would be thousands, for an hour.
MOST_FOR_EACH = 512
W0, SIGMA = 10.0, 5.0
# What `separation_weights` promises.
ALLOWED = 1e-4
OURS, ONE, EACH = "unetrt", "one transform", "a transform an object"


def for_each_object(objects: Labels, w0: float = W0, sigma: float = SIGMA) -> NDArray[np.float64]:
    """Return the weights w0 exp(-(d1 + d2)^2 / (2 sigma^2)) by a distance transform of the whole image an object.

    Parameters
    ----------
    objects
        (H, W), numbered from 1, 0 is the background; two or more.
    w0, sigma
        Weight where two objects touch, and its reach in pixels.

    Returns
    -------
    (H, W). Distances are to the nearest pixel of an object, as most code has it, so that they are the borders' outside
    the objects alone. The two smallest are kept as they come, which is faster than sorting all of them.
    """
    nearest, second = np.full((2, *objects.shape), np.inf)
    for number in range(1, int(objects.max()) + 1):
        distance = ndimage.distance_transform_edt(objects != number)
        second = np.minimum(second, np.maximum(nearest, distance))
        nearest = np.minimum(nearest, distance)
    weights: NDArray[np.float64] = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
    return weights


def require_equal(objects: Labels) -> None:
    """Raise ParityError where the two ways give different weights to a pixel of the background."""
    outside = objects == 0
    off = np.abs(separation_weights(objects, W0, SIGMA) - for_each_object(objects))[outside].max(initial=0)
    if off > ALLOWED:
        raise ParityError(f"weights differ by up to {off:.2g}: {ALLOWED:g} is allowed, and nothing is timed")


def weight_map(sides: Sequence[int] = SIDES, rounds: int = 9) -> Record:
    """Time the weight maps of drawn cells.

    Parameters
    ----------
    sides
        Height and width of the micrographs, pixels. Up to `MOST_FOR_EACH` the other way is checked and timed too.
    rounds
        Processes, one after another.

    Raises
    ------
    ParityError
        The weights are not those of the other way.
    """
    figures: list[Measure] = []
    for side in sides:
        with TemporaryDirectory() as folder:
            store_drawn(Path(folder), (side, side), 1)
            (drawing,) = stored(Path(folder))
            if side <= MOST_FOR_EACH:
                require_equal(drawing.labels)
            taken = [fresh(_round, Path(folder)) for _ in range(rounds)]
        figures += _figures(side, {name: Figure.of([one[name] for one in taken]) for name in taken[0]})
    detail = {"sides": list(sides), "w0": W0, "sigma": SIGMA}
    return Record.now(NAME, MEASURES, tuple(figures), detail)


def _round(folder: Path) -> dict[str, float]:
    (drawing,) = stored(folder)
    objects, background = drawing.labels, drawing.labels == 0
    runs = {
        OURS: lambda: separation_weights(objects, W0, SIGMA),
        ONE: lambda: ndimage.distance_transform_edt(background),
    }
    if len(objects) <= MOST_FOR_EACH:
        runs[EACH] = lambda: for_each_object(objects)
    with one_core():
        return in_turn(runs)


def _figures(side: int, seconds: dict[str, Figure]) -> Iterator[Measure]:
    ours = asdict(seconds[OURS])
    yield Measure.of(f"{side}: {OURS}", "s", ours)
    yield Measure.rate(f"{side}: {OURS}, rate", "Mpixel/s", side * side / 1e6, ours)
    for other in (ONE, EACH):
        if other in seconds:
            yield Measure.of(f"{side}: {other}", "s", asdict(seconds[other]))
            yield Measure.of(f"{side}: {OURS} against {other}", "x", asdict(seconds[other] / seconds[OURS]))


@click.command(cls=OneLine)
@click.option("--side", "sides", multiple=True, default=SIDES, show_default=True, help="Of drawn images, pixels.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Processes.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
def command(sides: tuple[int, ...], rounds: int, json_path: Path | None) -> None:
    """Time the weight map of drawn cells."""
    from rich.console import Console

    if json_path is not None:
        require_writable(json_path.parent)
    record = weight_map(sides, rounds)
    if json_path is not None:
        keep(record, json_path)
    Console(width=100).print(table(record))


if __name__ == "__main__":
    command()

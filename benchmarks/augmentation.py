"""How many deformed training tiles a core draws in a second, beside the same in SciPy.

One process a round, on one core::

    python -m unetrt.benchmarks.augmentation --json benchmarks/results/augmentation.json
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import torch

from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.fresh import fresh, in_turn, one_core, store_drawn, stored
from unetrt.benchmarks.history import keep
from unetrt.benchmarks.one_line import OneLine
from unetrt.benchmarks.record import Measure, Record
from unetrt.benchmarks.spline_tiles import SplineTiles
from unetrt.benchmarks.terminal import table
from unetrt.runtime.errors import ParityError
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.augmentation import coordinates, look_up
from unetrt.trainer.dataset import AnnotatedImage, Dataset, class_names
from unetrt.trainer.recipe import RECIPES, Recipe
from unetrt.trainer.samples import Sampler, TrainingSample, prepare

NAME = "augmentation"
MEASURES = (
    "Drawing augmented training tiles, with shift, rotation, reflection, displacements and grey values, classes and "
    "weights included, beside the same with SciPy's splines, on one core."
)
# Height and width of the micrograph that tiles are looked up in, pixels.
SIDE = 700
# Tiles that are drawn for one measurement.
TILES = 8
# Order of the spline through the pixels: that of `Sampler`, and that of most code.
ORDERS = {1: "SciPy, linear", 3: "SciPy, cubic"}
OURS = "unetrt"
# Difference of the pixels, root of the mean square as a share of their deviation: rounding of the coordinates alone,
# and what a cubic spline keeps of the noise that a linear one takes out (0.04 on these micrographs).
ALLOWED = {1: 1e-4, 3: 0.1}
# Share of the pixels that may lie so near to the middle between two that each takes another one.
ALLOWED_CLASSES = 1e-4


def require_alike(sample: TrainingSample, recipe: Recipe, seed: int = 0) -> None:
    """Raise ParityError where a tile of SciPy's is another one than ours, at the same coordinates."""
    side, halo = recipe.legal_tile(), recipe.shape(1, 2).geometry.halo
    generator = torch.Generator().manual_seed(seed)
    at = coordinates((side, side), sample.centre(generator), recipe.augmentation, generator)
    ours = look_up(sample.frame, at, "bilinear")[0].numpy()
    target = look_up(sample.target, at[halo:-halo, halo:-halo], "nearest").numpy()
    for order, name in ORDERS.items():
        image, planes = SplineTiles(sample, side, halo, recipe.augmentation, order).read(at.permute(2, 0, 1).numpy())
        off = float(np.sqrt(np.mean((image - ours) ** 2)) / ours.std())
        others = float((planes != target).any(axis=0).mean())
        if off > ALLOWED[order] or others > ALLOWED_CLASSES:
            raise ParityError(f"{name}: pixels are off by {off:.2g}, classes at {others:.2g}: nothing is timed")


def augmentation(recipes: Sequence[str] = tuple(RECIPES), rounds: int = 9, side: int = SIDE) -> Record:
    """Time the drawing of tiles.

    Parameters
    ----------
    recipes
        Names of recipes; each says how large tiles are and how much they vary.
    rounds
        Processes, one after another.
    side
        Height and width of the micrograph, pixels.

    Raises
    ------
    ParityError
        Tiles are not those of SciPy.
    """
    figures: list[Measure] = []
    with TemporaryDirectory() as folder:
        store_drawn(Path(folder), (side, side), 1)
        for name in recipes:
            require_alike(_sample(Path(folder), RECIPES[name]), RECIPES[name])
            taken = [fresh(_round, Path(folder), name) for _ in range(rounds)]
            figures += _figures(name, {way: Figure.of([one[way] for one in taken]) for way in taken[0]})
    detail = {"frame": [side, side], "recipes": {name: asdict(RECIPES[name]) for name in recipes}}
    return Record.now(NAME, MEASURES, tuple(figures), detail)


def _round(folder: Path, name: str) -> dict[str, float]:
    torch.set_num_threads(1)
    recipe = RECIPES[name]
    sample, halo = _sample(folder, recipe), recipe.shape(1, 2).geometry.halo
    runs: dict[str, Callable[[], object]] = {OURS: partial(_several, Sampler([sample], recipe, 0).batch)}
    for order, title in ORDERS.items():
        tiles = SplineTiles(sample, recipe.legal_tile(), halo, recipe.augmentation, order)
        runs[title] = partial(_several, tiles.draw)
    with one_core():
        return in_turn(runs)


def _sample(folder: Path, recipe: Recipe) -> TrainingSample:
    (drawing,) = stored(folder)
    image = AnnotatedImage("drawn", drawing.frame[None], drawing.labels)
    (sample,) = prepare(Dataset((image,), class_names(None), instances=True), recipe, Normalisation())
    return sample


def _several(draw: Callable[[int], object]) -> None:
    for step in range(TILES):
        draw(step)


def _figures(recipe: str, seconds: dict[str, Figure]) -> Iterator[Measure]:
    side = RECIPES[recipe].legal_tile()
    for way, figure in seconds.items():
        yield Measure.rate(f"{side}: {way}", "tiles/s", TILES, asdict(figure))
        if way != OURS:
            yield Measure.of(f"{side}: {OURS} against {way}", "x", asdict(figure / seconds[OURS]))
    yield Measure.rate(f"{side}: {OURS}, rate", "Mpixel/s", TILES * side * side / 1e6, asdict(seconds[OURS]))


@click.command(cls=OneLine)
@click.option("--recipe", "recipes", type=click.Choice(list(RECIPES)), multiple=True, default=tuple(RECIPES))
@click.option("--side", default=SIDE, show_default=True, help="Height and width of the micrograph, pixels.")
@click.option("--rounds", type=click.IntRange(1), default=9, show_default=True, help="Processes.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
def command(recipes: tuple[str, ...], side: int, rounds: int, json_path: Path | None) -> None:
    """Time the drawing of augmented tiles."""
    from rich.console import Console

    if json_path is not None:
        require_writable(json_path.parent)
    record = augmentation(recipes, rounds, side)
    if json_path is not None:
        keep(record, json_path)
    Console(width=100).print(table(record))


if __name__ == "__main__":
    command()

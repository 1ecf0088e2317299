"""`unetrt train`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import DatasetError, OutputError
from unetrt.runtime.normalisation import MODES

if TYPE_CHECKING:
    from unetrt.trainer.dataset import Dataset
    from unetrt.trainer.recipe import Recipe

# Without --minutes or --steps.
DEFAULT_MINUTES = 20.0


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--val", type=click.Path(path_type=Path), help="Validation folder; else a part of DATA is held back.")
@click.option("--val-fraction", default=0.2, show_default=True, help="Share of DATA held back without --val.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the run [default: runs/DATA-time].")
@click.option(
    "--minutes",
    type=float,
    help=f"How long to train, before a last validation and the export [default: {DEFAULT_MINUTES:g}].",
)
@click.option("--steps", type=int, help="How long to train, in steps, instead of minutes.")
@click.option("--recipe", "recipe_name", default="modern", show_default=True, help="modern, or paper: as in 2015.")
@click.option("--classes", type=int, help="Labels are class indices 0 ... N-1, not instances.")
@click.option("--depth", type=int, help="Poolings.")
@click.option("--base", type=int, help="Feature channels of the first level.")
@click.option("--tile", type=int, help="Side of the training tile, in pixels.")
@click.option("--batch", type=int, help="Tiles a step.")
@click.option("--rate", type=float, help="Learning rate.")
@click.option("--w0", type=float, help="Weight of the separation border.")
@click.option("--sigma", type=float, help="Reach of that weight, in pixels.")
@click.option("--separation-border", type=int, help="Background cut between touching objects, in pixels.")
@click.option("--normalisation", type=click.Choice(MODES), help="How grey values become network input.")
@click.option("--export/--no-export", "exporting", default=True, show_default=True, help="Write model.onnx too.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, samples and split.")
def command(
    data: Path,
    val: Path | None,
    val_fraction: float,
    out: Path | None,
    minutes: float | None,
    steps: int | None,
    exporting: bool,
    seed: int,
    **choices: Any,
) -> None:
    """Train a U-Net on DATA, a folder with images/ and labels/ (TIFF or PNG, paired by name).

    Labels are instances, one number an object, or masks, unless --classes is given. The folder of the run gets
    best.safetensors, last.safetensors, curves.png, history.csv, and model.onnx, ready for `unetrt predict`.
    """
    from unetrt.trainer.budget import Budget
    from unetrt.trainer.training import Training

    folder = out or Path("runs") / f"{data.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"
    require_writable(folder)
    if (folder / "best.safetensors").exists():
        raise OutputError(f"{folder} already holds a training: choose another folder with -o")
    recipe = _recipe(choices)
    if minutes is None and steps is None:
        minutes = DEFAULT_MINUTES
    budget = Budget(minutes=minutes, steps=steps)
    train, validation = _data(data, val, val_fraction, choices["classes"], seed)
    click.echo(f"training on   {train}\nvalidating on {validation}")
    training = Training(train, validation, recipe, folder, seed)
    best = run_with_bar(training, budget)
    click.echo(f"best: {training.history.best_scores} -> {best}")
    if exporting:
        _export(best, folder / "model.onnx")


def run_with_bar(training: Any, budget: Any) -> Path:
    """Run a training with a progress bar on standard error; return the best checkpoint."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("training", total=1.0)

        def report(progress: Any) -> None:
            bar.update(task, completed=progress.spent, description=f"step {progress.step}  loss {progress.loss:.3f}")
            if scores := progress.scores:
                bar.console.print(f"step {progress.step:6d}  {scores}")

        best: Path = training.run(budget, report)
    return best


def _export(best: Path, model: Path) -> None:
    """Export with a planned tile, in FP32; where the exporter is not installed, say how to get there."""
    try:
        from unetrt.export.exporter import Options, export, planned_tile
    except ModuleNotFoundError as error:
        click.echo(f"not exported ({error.name} is missing): pip install 'unetrt[export]', then unetrt export {best}")
        return
    from unetrt.trainer.checkpoint import load

    trained = load(best)
    tile = planned_tile(trained)
    parity = export(trained, model, Options(tile))
    click.echo(f"{model}: tile {tile[0]}x{tile[1]}, fp32; parity with the network: {parity}")
    click.echo(f"next: unetrt predict {model} IMAGES -o DIR")


def _recipe(choices: dict[str, Any]) -> "Recipe":
    from unetrt.runtime.errors import OptionError
    from unetrt.trainer.recipe import RECIPES

    options = {name: value for name, value in choices.items() if name not in ("recipe_name", "classes")}
    name = choices["recipe_name"]
    if name not in RECIPES:
        raise OptionError(f"recipe {name!r} is unknown: use one of {', '.join(RECIPES)}")
    return RECIPES[name].with_options(**options)


def _data(data: Path, val: Path | None, fraction: float, classes: int | None, seed: int) -> tuple["Dataset", "Dataset"]:
    from unetrt.trainer import dataset

    train = dataset.load(data, classes)
    if val is None:
        return train.split(fraction, seed)
    validation = dataset.load(val, classes)
    if validation.channels != train.channels:
        raise DatasetError(f"{val} has {validation.channels} channels, {data} has {train.channels}: they must agree")
    return train, validation

"""`unetrt train`."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt._exit_codes import STOPPED
from unetrt.cli.training_bar import run_with_bar
from unetrt.runtime.errors import DatasetError, OptionError, OutputError, TrainingStoppedError
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.pixels.normalisation import MODES

if TYPE_CHECKING:
    from collections.abc import Callable

    from unetrt.trainer.budget import Budget
    from unetrt.trainer.dataset import Dataset
    from unetrt.trainer.job import Job
    from unetrt.trainer.recipe import Recipe
    from unetrt.trainer.team import Team

# Without --minutes or --steps.
DEFAULT_MINUTES = 20.0
# Options that a continued run may be given again; all others are those that it began with.
WITH_RESUME = {"data", "val", "val_list", "resume", "minutes", "steps", "exporting", "tensorboard"}


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("--val", type=click.Path(path_type=Path), help="Validation folder; else a part of DATA is held back.")
@click.option("--val-fraction", default=0.2, show_default=True, help="Share of DATA held back without --val.")
@click.option(
    "--val-list",
    type=click.Path(path_type=Path),
    help="Text file: names of images of DATA to hold back, one a line.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the run [default: runs/DATA-time].")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Continue the run in this folder as it began; give DATA, --val, --val-list if they have moved, --minutes or "
    "--steps for more.",
)
@click.option(
    "--minutes",
    type=float,
    help=f"How long to train, before a last validation and the export [default: {DEFAULT_MINUTES:g}].",
)
@click.option("--steps", type=int, help="How long to train, in steps, instead of minutes.")
@click.option(
    "--recipe",
    "recipe_name",
    default="modern",
    show_default=True,
    help="modern, or paper: as in 2015; sets defaults.",
)
@click.option("--classes", type=int, help="Labels are class indices 0 ... N-1, not instances.")
@click.option("--ignore-label", type=int, help="Label of what is not annotated [default: 255 with --classes].")
@click.option("--depth", type=int, help="Poolings.")
@click.option("--base", type=int, help="Feature channels of the first level.")
@click.option("--dropout", type=float, help="Rate at the end of the contracting path.")
@click.option("--tile", type=int, help="Side of the training tile, in pixels.")
@click.option("--batch", type=int, help="Tiles a step.")
@click.option("--optimiser", type=click.Choice(["sgd", "adamw"]), help="sgd has a momentum of 0.99.")
@click.option("--rate", type=float, help="Learning rate.")
@click.option("--schedule", type=click.Choice(["constant", "cosine", "poly"]), help="How the rate falls.")
@click.option("--average", type=float, help="Decay of the weights' moving average, 0 to below 1; 0: none.")
@click.option("--balance/--no-balance", default=None, help="Weigh classes by their frequency (w_c).")
@click.option("--w0", type=float, help="Weight of the separation border.")
@click.option("--sigma", type=float, help="Reach of that weight, in pixels.")
@click.option("--separation-border", type=int, help="Background cut between touching objects, in pixels.")
@click.option("--zoom", type=float, help="Vary the scale by up to this factor, 1 or more.")
@click.option("--mixed/--no-mixed", default=None, help="Compute in 16 bits where the device has them.")
@click.option("--normalisation", type=click.Choice(MODES), help="How grey values become network input.")
@click.option("--compile", "compiled", is_flag=True, help="Translate the network with torch.compile first.")
@click.option("--tta", is_flag=True, help="Validate with averaging over 8 rotated and reflected copies.")
@click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard too.")
@click.option("--export/--no-export", "exporting", default=True, show_default=True, help="Write model.onnx too.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of weights, samples and split.")
def command(exporting: bool, tensorboard: bool, **choices: Any) -> None:
    """Train a U-Net on DATA, a folder with images/ and labels/ (paired by name), or a Cell Tracking Challenge's.

    TIFF, PNG, NPY and Zarr; stacks with stacks. Labels are instances, one number an object, or masks, unless --classes
    is given; a third folder, ignore/, may mark what is not annotated. The folder of the run gets best.safetensors,
    last.safetensors, curves.png, validation.png, history.csv, and model.onnx, ready for `unetrt predict`.

    What is not given is the recipe's. modern: depth 3, base 16, tile 284, AdamW at 1e-3, cosine, average 0.999, 16
    bits; paper: depth 4, base 64, tile 572, drop-out 0.5, SGD at 1e-3, constant, class weights. Both: batch 1, w0 10,
    sigma 5, separation border 2, percentile normalisation.

    Ctrl-C stops after the step in hand and saves; --resume continues, after a crash too. Several GPUs:
    torchrun --nproc-per-node 4 -m unetrt train DATA --batch 4.
    """
    from unetrt.trainer.team import leads, team

    if tensorboard:
        import tensorboard as _  # noqa: F401 - says so now if it is missing, not after minutes
    job = _continued(choices) if choices["resume"] else _begun(choices)
    try:
        with team() as members:
            best = _train(job, members, tensorboard)
    except TrainingStoppedError:
        if leads():
            raise
        raise click.exceptions.Exit(STOPPED) from None  # the leader says it
    if exporting and leads():
        _export(best, job.run.folder / "model.onnx")


def _train(job: "Job", members: "Team", tensorboard: bool) -> Path:
    """Train as one of a team, of which the leader speaks; return the best checkpoint."""
    say: Callable[[str], None] = click.echo if members.leads else lambda _: None
    train, validation = _loaded(job)
    say(f"training on   {train}\nvalidating on {validation}")
    for doubt in (*train.doubts(), *job.source.doubts()):
        say(f"note: {doubt}")
    training = job.training(train, validation, members)
    if job.last is not None:
        say(f"continuing after step {training.steps}")
    best = run_with_bar(training, job.budget, tensorboard=tensorboard, quiet=not members.leads)
    if members.leads:
        click.echo(f"best: {training.history.best_scores} -> {best}")
    return best


def _loaded(job: "Job") -> "tuple[Dataset, Dataset]":
    """Read the data; where a run goes on without them, say how to name their new place."""
    try:
        return job.source.load(job.run.seed)
    except DatasetError as error:
        if job.last is None or job.source.data.exists():
            raise
        raise DatasetError(f"{error}; if it has moved: unetrt train NEW-PLACE --resume {job.run.folder}") from error


def _begun(choices: dict[str, Any]) -> "Job":
    from unetrt.trainer.budget import Budget
    from unetrt.trainer.job import Job, Source
    from unetrt.trainer.run import Run

    data: Path | None = choices["data"]
    if data is None:
        raise OptionError("give DATA, a folder with images/ and labels/, or --resume RUN")
    folder = choices["out"] or Path("runs") / f"{data.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"
    require_writable(folder)
    if any((folder / name).exists() for name in ("best.safetensors", "last.safetensors")):
        raise OutputError(f"{folder} already holds a training: choose another folder with -o, or --resume {folder}")
    if all((folder / part).is_dir() for part in ("images", "labels")):
        raise OutputError(f"{folder} holds images/ and labels/: a run goes into a folder of its own, give another -o")
    recipe = _recipe(choices)
    budget = _budget(choices) or Budget(minutes=DEFAULT_MINUTES)
    source = Source(
        data, choices["val"], choices["val_fraction"], choices["val_list"], choices["classes"], choices["ignore_label"]
    )
    run = Run(folder, choices["seed"], choices["tta"], choices["compiled"], source.to_dict())
    return Job(source, recipe, run, budget)


def _continued(choices: dict[str, Any]) -> "Job":
    from unetrt.trainer.job import Job

    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and option.name not in WITH_RESUME:
            raise OptionError(
                f"{option.opts[0]} cannot change in the middle of a run: --resume keeps what the run began with"
            )
    require_writable(choices["resume"])
    moved = {"data": choices["data"], "val": choices["val"], "listed": choices["val_list"]}
    return Job.to_continue(choices["resume"], _budget(choices), moved)


def _budget(choices: dict[str, Any]) -> "Budget | None":
    from unetrt.trainer.budget import Budget

    minutes, steps = choices["minutes"], choices["steps"]
    return None if minutes is None and steps is None else Budget(minutes=minutes, steps=steps)


def _recipe(choices: dict[str, Any]) -> "Recipe":
    from unetrt.trainer.recipe import RECIPES, options_of

    name = choices["recipe_name"]
    if name not in RECIPES:
        raise OptionError(f"recipe {name!r} is unknown: use one of {', '.join(RECIPES)}")
    return RECIPES[name].with_options(**{option: choices.get(option) for option in options_of()})


def _export(best: Path, model: Path) -> None:
    """Export with a planned tile, in FP32; where the exporter is not installed, say how to get there."""
    try:
        from unetrt.export.exporter import export, planned_tile
        from unetrt.export.options import Options
    except ModuleNotFoundError as error:
        click.echo(f"not exported ({error.name} is missing): pip install 'unetrt[export]', then unetrt export {best}")
        return
    from unetrt.trainer.checkpoint import load

    trained = load(best)
    tile = planned_tile(trained)
    parity = export(trained, model, Options(tile))
    click.echo(f"{model}: tile {tile[0]}x{tile[1]}, fp32; parity with the network: {parity}")
    click.echo(f"next: unetrt predict {model} IMAGES -o DIR")

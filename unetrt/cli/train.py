"""`unetrt train`: the command, its progress bar, and the export at its end."""

import signal
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt._exit_codes import STOPPED
from unetrt.cli import MODEL, echo, label_rule_options, reading_options, real, whole
from unetrt.cli._shutdown import StopSignal, shutdown_request
from unetrt.runtime.errors import DatasetError, OptionError, OutputError, TrainingStoppedError
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.pixels.normalisation import MODES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from unetrt.runtime.files.formats import Reading
    from unetrt.trainer.dataset import Dataset
    from unetrt.trainer.history import TrainingProgress
    from unetrt.trainer.learner import Team
    from unetrt.trainer.run import TrainingBudget, TrainingJob
    from unetrt.trainer.training import Training

# Budget without --minutes and --steps.
DEFAULT_MINUTES = 20.0
# Options that may be given with --resume; the run keeps all others.
WITH_RESUME = {"data", "val", "val_list", "resume", "minutes", "steps", "exporting", "tensorboard"}


@dataclass(frozen=True)
class TrainOptions:
    """Options of the command that are not the recipe's, by their names."""

    data: Path | None
    val: Path | None
    val_fraction: float | None
    val_list: Path | None
    out: Path | None
    resume: Path | None
    minutes: float | None
    steps: int | None
    recipe_name: str
    start: Path | None
    classes: int | None
    ignore_label: int | None
    masks: bool | None
    threshold: float | None
    reading: "Reading"
    compiled: bool
    tta: bool
    seed: int

    @property
    def budget(self) -> "TrainingBudget | None":
        """The budget, if one is given."""
        from unetrt.trainer.run import TrainingBudget

        if self.minutes is None and self.steps is None:
            return None
        return TrainingBudget(self.minutes, self.steps)


@click.command("train")
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option(
    "--val", type=click.Path(path_type=Path), help="Validation folder. [default: a part of DATA is held back]"
)
@click.option(
    "--val-fraction",
    type=real(),
    help="Share of DATA held back without --val. [default: 0.2 of the images, a third of a single image]",
)
@click.option(
    "--val-list",
    type=click.Path(path_type=Path),
    help="Text file with the names of the images of DATA to hold back, one per line.",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Folder of the run. [default: runs/DATA-time]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    help="Continue the run in this folder with its own options. DATA, --val and --val-list set new paths, --minutes "
    "and --steps a longer budget.",
)
@click.option(
    "--minutes",
    type=real(),
    help=f"Length of the training, without the last validation and the export. [default: {DEFAULT_MINUTES:g}]",
)
@click.option("--steps", type=whole(), help="Length of the training in steps, instead of minutes.")
@click.option(
    "--recipe",
    "recipe_name",
    default="modern",
    show_default=True,
    help="modern or paper: the defaults of the options below.",
)
@click.option(
    "--from",
    "start",
    type=MODEL,
    metavar="MODEL",
    help="Start from the weights of a model file, a checkpoint, a run's folder, or a model that `unetrt models` lists.",
)
@click.option("--classes", type=whole(), help="Labels are class indices 0 ... N-1, not instances.")
@click.option("--ignore-label", type=whole(), help="Label of unannotated pixels. [default: 255 with --classes]")
@label_rule_options
@reading_options
@click.option("--depth", type=whole(), help="Number of poolings.")
@click.option("--base", type=whole(), help="Feature channels of the first level.")
@click.option("--dropout", type=real(), help="Drop-out rate at the end of the contracting path.")
@click.option("--tile", type=whole(), help="Side of the training tile, in pixels; rounded down to a legal side.")
@click.option("--batch", type=whole(), help="Tiles in one step.")
@click.option("--optimiser", type=click.Choice(["sgd", "adamw"]), help="Optimiser; sgd has momentum 0.99.")
@click.option("--rate", type=real(), help="Learning rate.")
@click.option("--schedule", type=click.Choice(["constant", "cosine", "poly"]), help="Decay of the learning rate.")
@click.option(
    "--average", type=real(), help="Decay of the weights' moving average, at least 0 and below 1; 0: no average."
)
@click.option("--balance/--no-balance", default=None, help="Balance the classes' frequencies with class weights (w_c).")
@click.option("--foreground", type=real(), help="Weight of the pixels of instances relative to background.")
@click.option("--core", type=real(), help="Weight of the pixels of cores relative to rims.")
@click.option("--w0", type=real(), help="Largest weight between neighbouring objects.")
@click.option("--sigma", type=real(), help="Reach of that weight, in pixels.")
@click.option(
    "--target",
    type=click.Choice(["cores", "border"]),
    help="What is learnt from instances: cores (background, rim and core), or the paper's separation border.",
)
@click.option("--rim", type=real(), help="Width of the rim at most, as a share of the objects' median diameter.")
@click.option(
    "--separation-border",
    type=whole(),
    help="Width of the background that --target border cuts between touching objects, in pixels.",
)
@click.option("--zoom", type=real(), help="Largest factor of random scaling, 1 or more.")
@click.option("--gamma", type=real(), help="Standard deviation of the logarithm of a random gamma, 0 or more.")
@click.option("--invert", type=real(), help="Share of the tiles whose grey values are inverted, 0 to 1.")
@click.option("--mixed/--no-mixed", default=None, help="Compute in 16 bits if the device supports them in hardware.")
@click.option("--normalisation", type=click.Choice(MODES), help="Normalisation of grey values.")
@click.option("--compile", "compiled", is_flag=True, help="Compile the network with torch.compile.")
@click.option("--tta", is_flag=True, help="In validation, average over 8 rotated and reflected copies.")
@click.option("--tensorboard", is_flag=True, help="Also write events for TensorBoard.")
@click.option("--export/--no-export", "exporting", default=True, show_default=True, help="Also write model.onnx.")
@click.option("--seed", type=whole(0), default=0, show_default=True, help="Seed of weights, samples and split.")
def command(exporting: bool, tensorboard: bool, **choices: Any) -> None:
    """Train a U-Net on DATA: a folder with images/ and labels/, paired by name, or with images beside NAME_mask.

    Read too are masks/ with a file for each object (Data Science Bowl 2018) and Cell Tracking Challenge data sets.

    Images are TIFF, PNG, NPY, Zarr and others, single or stacks. Labels are instances, one number for each object, in
    however many pieces. If no label file has more than one value besides 0, they are masks, whose connected components
    are the objects, and a note says so. With --classes they are class indices. A third folder, ignore/, may hold masks
    of unannotated pixels. The run's folder receives best.safetensors, last.safetensors, curves.png, validation.png,
    history.csv, and model.onnx for `unetrt predict`.

    Defaults come from the recipe. modern: depth 3, base 16, tile 284, AdamW at 1e-3, cosine, average 0.999, 16 bits,
    cores with a rim of 0.2, w0 16, foreground 1.6, core 2.5, zoom 1.3; paper: depth 4, base 64, tile 572, drop-out 0.5,
    SGD at 1e-3, constant, class weights, separation border 2, w0 10. Both: batch 1, sigma 5, percentile normalisation.

    --from continues with the weights of another training, whose depth, base and normalisation it takes; that needs
    fewer images and steps.

    Ctrl-C finishes the current step, saves and stops; --resume continues, also after a crash. Several GPUs:
    torchrun --nproc-per-node 4 -m unetrt train DATA --batch 4.
    """
    from unetrt.trainer.learner import is_leader, team
    from unetrt.trainer.recipe import options_of

    if tensorboard:
        import_module("tensorboard")  # fails now if it is missing, not after minutes
    of_recipe = {name: choices.pop(name) for name in options_of() if name in choices}
    options = TrainOptions(**choices)
    job = _new_job(options, of_recipe) if options.resume is None else _resumed_job(options, options.resume)
    model = job.run.folder / "model.onnx"
    try:
        with team() as members:
            best = _train(job, members, tensorboard, [model] if exporting else [])
    except TrainingStoppedError:
        if is_leader():
            raise
        raise click.exceptions.Exit(STOPPED) from None  # the leader prints the message
    if exporting and is_leader():
        _export(best, model)


def _new_job(options: TrainOptions, of_recipe: dict[str, Any]) -> "TrainingJob":
    from unetrt.trainer.label_values import LabelRule
    from unetrt.trainer.pretrained import Pretrained
    from unetrt.trainer.recipe import RECIPES
    from unetrt.trainer.run import DataSource, TrainingBudget, TrainingJob, TrainingRun

    data = options.data
    if data is None:
        raise OptionError("give DATA, a folder with images/ and labels/, or --resume RUN")
    folder = options.out or Path("runs") / f"{data.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"
    require_writable(folder)
    if any((folder / name).exists() for name in ("best.safetensors", "last.safetensors")):
        raise OutputError(f"{folder} already holds a training: choose another folder with -o, or --resume {folder}")
    if all((folder / part).is_dir() for part in ("images", "labels")):
        raise OutputError(f"{folder} holds images/ and labels/: a run needs its own folder, choose another with -o")
    if options.recipe_name not in RECIPES:
        raise OptionError(f"recipe {options.recipe_name!r} is unknown: use one of {', '.join(RECIPES)}")
    start = None if options.start is None else Pretrained.read(options.start)
    recipe = RECIPES[options.recipe_name].with_options(**(start.options(of_recipe) if start else of_recipe))
    budget = options.budget or TrainingBudget(minutes=DEFAULT_MINUTES)
    source = DataSource(
        data,
        options.val,
        options.val_fraction,
        options.val_list,
        options.classes,
        options.ignore_label,
        options.reading,
        LabelRule(options.masks, options.threshold),
    )
    origin = start.origin if start else None
    run = TrainingRun(folder, options.seed, options.tta, options.compiled, origin, source)
    return TrainingJob(source, recipe, run, budget, start)


def _resumed_job(options: TrainOptions, folder: Path) -> "TrainingJob":
    from unetrt.trainer.run import TrainingJob

    context = click.get_current_context()
    for option in context.command.params:
        given = context.get_parameter_source(option.name or "") is click.core.ParameterSource.COMMANDLINE
        if given and option.name not in WITH_RESUME:
            raise OptionError(
                f"{option.opts[0]} cannot change in the middle of a run: --resume keeps what the run began with"
            )
    require_writable(folder)
    moved = {"data": options.data, "val": options.val, "listed": options.val_list}
    return TrainingJob.resumed(folder, options.budget, moved)


def _train(job: "TrainingJob", members: "Team", tensorboard: bool, derived: list[Path]) -> Path:
    """Train as a member of a team, whose leader prints; return the path of the best checkpoint."""
    from unetrt.trainer.checkpoint import BEST
    from unetrt.trainer.training import Training

    say: Callable[[str], None] = echo if members.leads else lambda _: None
    train, validation = _read(job)
    say(f"training on   {train}\nvalidating on {validation}")
    for warning in dict.fromkeys((*train.warnings(), *validation.notes, *job.source.warnings())):
        say(f"note: {warning}")
    training = Training(train, validation, job.recipe, job.run, members, job.start)
    if job.start is not None:
        say(f"starting from {job.start.describe(train.channels, training.class_names)}")
    if job.last is not None:
        training.restore(job.last)
        say(f"continuing after step {training.steps}")
        if training.complete(job.budget, *derived):
            return training.folder / BEST
    best = run_with_bar(training, job.budget, tensorboard=tensorboard, quiet=not members.leads)
    if members.leads:
        echo(f"best: {training.history.best_scores} -> {best}")
    return best


def _read(job: "TrainingJob") -> "tuple[Dataset, Dataset]":
    """Read the images; if those of a resumed run are missing, say how to give their new path."""
    try:
        return job.source.read(job.run.seed)
    except DatasetError as error:
        if job.last is None or job.source.data.exists():
            raise
        raise DatasetError(f"{error}; if it has moved: unetrt train NEW-PLACE --resume {job.run.folder}") from error


def _export(best: Path, model: Path) -> None:
    """Export in FP32 with a planned tile; without the exporter's packages, print how to export later."""
    try:
        from unetrt.export.exporter import Options, export, planned_tile
    except ModuleNotFoundError as error:
        echo(f"not exported ({error.name} is missing): pip install 'unetrt[export]', then unetrt export {best}")
        return
    from unetrt.trainer.checkpoint import load

    trained = load(best)
    tile = planned_tile(trained)
    parity = export(trained, model, Options(tile))
    echo(f"{model}: tile {tile[0]}x{tile[1]}, fp32; parity with the network: {parity}")
    echo(f"next: unetrt predict {model} IMAGES -o DIR")


def run_with_bar(
    training: "Training", budget: "TrainingBudget", *, tensorboard: bool = False, quiet: bool = False
) -> Path:
    """Run a training with a progress bar on standard error; return the path of the best checkpoint.

    On Ctrl-C, SIGTERM and SIGHUP the training finishes the current step, saves, and raises TrainingStoppedError. The
    process keeps freed memory from here on.
    """
    from unetrt.trainer.learner import keep_freed_memory

    keep_freed_memory()
    with ExitStack() as stack:
        reporters: list[Callable[[TrainingProgress], None]] = [] if quiet else [stack.enter_context(_bar())]
        if tensorboard and not quiet:
            from unetrt.trainer.history import TensorBoard

            reporters.append(stack.enter_context(TensorBoard(training.folder, training.steps)))
        request = stack.enter_context(shutdown_request())

        def report(progress: "TrainingProgress") -> None:
            for reporter in reporters:
                reporter(progress)

        try:
            return training.run(budget, report, lambda: request.made)
        except TrainingStoppedError as error:
            raise error from StopSignal(request.number or signal.SIGINT)


@contextmanager
def _bar() -> "Iterator[Callable[[TrainingProgress], None]]":
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
    bar = Progress(*columns, console=Console(stderr=True))
    task = bar.add_task("training", total=1.0)

    def report(progress: "TrainingProgress") -> None:
        bar.start()  # not before the first step: an error until then is printed without a bar
        bar.update(task, completed=progress.spent, description=f"step {progress.step}  loss {progress.loss:.3f}")
        if scores := progress.scores:
            bar.console.print(f"step {progress.step:6d}  {scores}")

    try:
        yield report
    finally:
        bar.stop()

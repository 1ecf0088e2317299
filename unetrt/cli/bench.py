"""`unetrt bench`: contenders, comparisons of results, and on request the goals of a GPU, training steps or blocks."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli import SIZE, echo, real, whole
from unetrt.runtime.errors import InferenceError, OptionError, printable
from unetrt.runtime.files.atomic import require_place

if TYPE_CHECKING:
    from unetrt.benchmarks.bench import Bench
    from unetrt.benchmarks.contenders import Device
    from unetrt.benchmarks.journal import Patience
    from unetrt.benchmarks.result import BenchResult

# The fewest rounds whose median has a 95 % interval.
ROUNDS = 6
# Height and width of the image in blocks by default: four blocks.
BLOCKS_FRAME = (4096, 4096)
PATH = click.Path(path_type=Path)
# What the command does instead of timing contenders, by the option that asks for it, and the other options that apply.
INSTEAD = {
    "compare": (),
    "listed": ("device",),
    "goals": ("base", "depth", "rounds", "only", "json_path", "seconds", "resume"),
    "training": ("base", "depth", "rounds", "tile", "json_path", "seconds", "resume"),
    "blocks": ("checkpoint", "frame", "rounds", "json_path", "seconds", "resume"),
}


@dataclass(frozen=True)
class BenchOptions:
    """The options of the command line, by the names of their parameters."""

    checkpoint: Path | None
    frame: tuple[int, int]
    tile: tuple[int, int] | None
    base: int
    depth: int
    rounds: int
    device: "Device | None"
    only: tuple[str, ...]
    seconds: float | None
    resume: bool
    listed: bool
    json_path: Path | None
    png: Path | None
    floors: tuple[str, ...]
    compare: tuple[Path, Path] | None
    goals: bool
    training: bool
    blocks: bool

    @property
    def patience(self) -> "Patience":
        """The time limit, and whether to resume."""
        from unetrt.benchmarks.journal import Patience

        return Patience(self.seconds, self.resume)

    @property
    def where(self) -> "Device":
        """The device: a GPU by default where torch finds one."""
        from unetrt.benchmarks.contenders import torch_gpu

        return self.device or ("cpu" if torch_gpu() else "gpu")

    def require_valid(self) -> None:
        """Raise OptionError for values that cannot be used together, before anything is measured."""
        if self.resume and self.json_path is None:
            raise OptionError("--resume continues the file of an earlier run: name it with --json")
        if self.rounds < 1:
            raise OptionError(f"{self.rounds} rounds measure nothing: use 1 or more")
        files = [path for path in (self.json_path, self.png) if path is not None]
        for path in files:
            require_place(path, [self.checkpoint] if self.checkpoint and self.checkpoint.exists() else [])
        if len({path.absolute() for path in files}) < len(files):
            raise OptionError(f"--json and --png are both {files[0]}: use two names")

    def report_missing(self, names: Sequence[str]) -> None:
        """Print on standard error which steps were not begun, and how to continue."""
        if names:
            advice = f" (--json {self.json_path} --resume continues)" if self.json_path else ""
            echo(f"the time was up before: {', '.join(names)}{advice}", err=True)


@click.command("bench")
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--frame", type=SIZE, default="2048x2048", show_default=True, help="Size of the drawn frame.")
@click.option("--tile", type=SIZE, help="unetrt's tile. [default: planned]")
@click.option(
    "--base",
    type=whole(),
    default=16,
    show_default=True,
    help="Feature channels of the first level, without CHECKPOINT.",
)
@click.option("--depth", type=whole(), default=4, show_default=True, help="Number of poolings, without CHECKPOINT.")
@click.option(
    "--rounds",
    type=whole(),
    default=ROUNDS,
    show_default=True,
    help="Fresh processes of each contender; a 95 % interval needs 6.",
)
@click.option(
    "--device", type=click.Choice(["cpu", "gpu"]), help="Device of all contenders. [default: gpu where torch finds one]"
)
@click.option("--only", multiple=True, metavar="NAME", help="Time only this contender and the usual loop; repeatable.")
@click.option(
    "--seconds", type=real(), help="Start no step after this time; --json keeps the figures measured by then."
)
@click.option("--resume", is_flag=True, help="Continue the --json file of an unfinished run.")
@click.option("--list", "listed", is_flag=True, help="List the contenders, and why some cannot be timed here.")
@click.option("--json", "json_path", type=PATH, help="Write all figures as JSON.")
@click.option("--png", type=PATH, help="Write a chart.")
@click.option(
    "--floor",
    "floors",
    multiple=True,
    metavar="[NAME[/OTHER]=]RATIO",
    help="Fail (exit 1) unless unetrt's fastest, or NAME, is RATIO times as fast as the usual loop, or OTHER.",
)
@click.option("--compare", type=PATH, nargs=2, metavar="A.json B.json", help="Show what changed from A to B.")
@click.option("--goals", is_flag=True, help="On a GPU: time lanes, batches and inputs, and check the runtime's goals.")
@click.option("--training", is_flag=True, help="Time training steps and the wait for tiles instead.")
@click.option("--blocks", is_flag=True, help="Time an image in blocks, from store to store, with an exported model.")
@click.pass_context
def command(context: click.Context, /, **given: Any) -> None:
    """Time unetrt and other implementations on this machine.

    All implementations run the same weights on the same frame, in turn. Their labels are checked first.

    With --compare: show what changed between two results, and whether it is more than noise.

    With --training: time steps of the recipe `modern` on drawn cells, in float32, in 16 bits and compiled, beside
    matrix products, and validations. --base, --depth and --tile replace the recipe's.

    With --blocks: time an image of nuclei in blocks from Zarr to OME-Zarr, beside a part of it in memory, and measure
    the peak of the memory. CHECKPOINT is then an exported model, or the name of one that comes with unetrt; by default
    `nuclei`. The image has 4096 x 4096 pixels by default.
    """
    options = BenchOptions(**given)
    options.require_valid()
    what = next((name for name in INSTEAD if given[name]), "bench")
    _require_applicable(context, what, options.checkpoint)
    actions = {"compare": compare, "listed": listed, "goals": goals, "training": training, "blocks": blocks}
    actions.get(what, bench)(options)


def _require_applicable(context: click.Context, what: str, checkpoint: Path | None) -> None:
    """Raise OptionError for options that would be ignored: a gate, for one, must not vanish."""
    names = {str(one.name): one.opts[0] for one in context.command.params}
    of_untrained = ("base", "depth") if checkpoint else ()
    for name, written in names.items():
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if what in INSTEAD and name not in (what, *INSTEAD[what]):
            raise OptionError(f"{names[what]} takes no {written}: leave one of them out")
        if name in of_untrained:
            raise OptionError(
                f"{written} is for an untrained network, and {checkpoint} is given: leave one of them out"
            )


def bench(options: BenchOptions) -> None:
    """Time the contenders, show and write the result, and check the floors."""
    from unetrt.benchmarks.bench import Bench
    from unetrt.benchmarks.chart import require_matplotlib, save_png
    from unetrt.benchmarks.findings import Floor, check_all
    from unetrt.benchmarks.networks import undecided
    from unetrt.benchmarks.terminal import bench_table
    from unetrt.trainer.checkpoint import load

    floors = [Floor.parse(text) for text in options.floors]
    network = load(options.checkpoint) if options.checkpoint else undecided(options.base, options.depth)
    bench = Bench(network, options.frame, options.rounds, options.where, options.tile, options.only)
    for floor in floors:
        floor.require(bench.chosen, bench.device)
    if options.png is not None:
        require_matplotlib()
    result = _measured(bench, options)
    _print(bench_table(result))
    options.report_missing(result.missing)
    if options.json_path is not None and not result.missing:  # else the file holds what --resume needs
        result.save(options.json_path)
    if options.png is not None:
        save_png(result, options.png)
    _echo(check_all(floors, result))


def _measured(bench: "Bench", options: BenchOptions) -> "BenchResult":
    """Measure, with a bar on standard error; raises InferenceError where the time was up before the first figure."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    share, step = TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}")
    columns = (BarColumn(), share, TimeRemainingColumn(), step)
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1) as bar:
        task = bar.add_task("", total=bench.steps, completed=-1)

        def progress(step: str) -> None:
            bar.update(task, advance=1, description=step)

        result = bench.measure(progress, options.json_path, options.patience)
    if result is None:
        advice = f", or continue with --json {options.json_path} --resume" if options.json_path else ""
        raise InferenceError(
            f"{options.seconds:g} seconds were over before anything was timed: give more --seconds{advice}"
        )
    return result


def listed(options: BenchOptions) -> None:
    """Print the contenders, and whether each can be timed here."""
    from rich.markup import escape
    from rich.table import Table

    from unetrt.benchmarks.contenders import CONTENDERS

    table = Table("name", "contender", "here", box=None)
    for one in CONTENDERS:
        reason = one.why_not(options.where)
        table.add_row(one.name, one.title, escape(reason) if reason else "yes")  # "[gpu]" is an extra, not a style
    _print(table)


def compare(options: BenchOptions) -> None:
    """Show what changed between two results."""
    from unetrt.benchmarks import compare as comparing
    from unetrt.benchmarks.result import load
    from unetrt.benchmarks.terminal import compare_table

    before, after = map(load, options.compare or ())
    _print(compare_table(comparing.compare(before, after)))


def goals(options: BenchOptions) -> None:
    """Measure the cases of the runtime's goals on a GPU; raises InferenceError where one could not be measured."""
    from unetrt.benchmarks import gpu_case
    from unetrt.benchmarks.gpu_goals import lines, table

    def show(case: dict[str, Any]) -> None:
        _print(table(case))
        _echo(lines(case))

    network = (options.base, options.depth, options.rounds)
    result = gpu_case.goals(*network, options.only, show, path=options.json_path, patience=options.patience)
    options.report_missing(result["missing"])
    if failed := result["failed"]:
        raise InferenceError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))


def training(options: BenchOptions) -> None:
    """Time training steps."""
    from unetrt.benchmarks.cases import measure
    from unetrt.benchmarks.training_cases import TrainingSteps
    from unetrt.trainer.recipe import DEFAULT_RECIPE, RECIPES

    source = click.get_current_context().get_parameter_source
    given: dict[str, Any] = {
        name: getattr(options, name)
        for name in ("base", "depth")
        if source(name) is click.core.ParameterSource.COMMANDLINE
    }
    if options.tile:
        given["tile"] = options.tile[0]
    case = TrainingSteps(RECIPES[DEFAULT_RECIPE].with_options(**given))
    result = measure(case, options.rounds, options.json_path, options.patience)
    if result.detail:
        recipe = case.recipe
        echo(f"depth {recipe.depth}, base {recipe.base}, tile {recipe.tile}, on {result.detail['device']}:")
    for way, figure in result.detail.get("ways", {}).items():
        seconds = figure["seconds"]
        echo(
            f"  {way:18s} {1 / seconds['median']:7.2f} steps/s in {figure['dtype']} "
            f"({1 / seconds['high']:.2f} to {1 / seconds['low']:.2f}), {figure['waiting']:.1%} waiting for tiles, "
            f"{figure['share']:.0%} of matrix products' {figure['limit']:.0f} GFLOP/s"
        )
        validation = figure["validation"]
        echo(
            f"  {'':18s} a validation of 2 Mpixel takes {validation['seconds']:.2f} s: {validation['times']} in "
            f"{validation['steps']} steps, {validation['share']:.1%} of the time (at most 10%)"
        )
    options.report_missing(result.missing)


def blocks(options: BenchOptions) -> None:
    """Time an image in blocks, and measure its memory."""
    from unetrt.benchmarks.blocks import BlockSpeed
    from unetrt.benchmarks.cases import measure
    from unetrt.benchmarks.terminal import figures_table

    source = click.get_current_context().get_parameter_source("frame")
    height, width = options.frame if source is click.core.ParameterSource.COMMANDLINE else BLOCKS_FRAME
    model: dict[str, Any] = {} if options.checkpoint is None else {"model": str(options.checkpoint)}
    result = measure(
        BlockSpeed(**model, height=height, width=width), options.rounds, options.json_path, options.patience
    )
    _print(figures_table(result))
    options.report_missing(result.missing)


def _print(renderable: Any) -> None:
    from rich.console import Console
    from rich.segment import Segment, Segments

    console = Console()
    drawn = console.render(renderable)
    console.print(Segments(Segment(printable(text, keep="\n"), style) for text, style, _ in drawn), end="")


def _echo(lines: Iterable[str]) -> None:
    for line in lines:
        echo(line)

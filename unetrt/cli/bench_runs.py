"""What `unetrt bench` does, one function each; all take its options by name."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from unetrt.benchmarks.bench import Bench
    from unetrt.benchmarks.journal import Patience
    from unetrt.benchmarks.result import Result

# Training steps that are timed together.
STEPS = 20


def bench(choices: dict[str, Any]) -> None:
    """Time the contenders, show and write what came of it, and hold it against the floors."""
    from rich.console import Console

    from unetrt.benchmarks.bench import Bench
    from unetrt.benchmarks.chart import require_matplotlib
    from unetrt.benchmarks.floors import Floor, check_all
    from unetrt.benchmarks.networks import undecided
    from unetrt.benchmarks.table import table
    from unetrt.runtime.errors import InferenceError
    from unetrt.trainer.checkpoint import load

    floors = [Floor.parse(text) for text in choices["floors"]]
    checkpoint = choices["checkpoint"]
    network = load(checkpoint) if checkpoint else undecided(choices["base"], choices["depth"])
    device = choices["device"] or _device()
    bench = Bench(network, choices["frame"], choices["rounds"], device, choices["tile"], choices["only"])
    for floor in floors:
        floor.require(bench.wanted(), device)
    if choices["png"] is not None:
        require_matplotlib()
    result = _measured(bench, choices)
    if result is None:
        goes_on = f", or go on with --json {choices['json_path']} --resume" if choices["json_path"] else ""
        raise InferenceError(
            f"{choices['seconds']:g} seconds were over before anything was timed: give more --seconds{goes_on}"
        )
    Console().print(table(result))
    _say_missing(result.missing, choices)
    _write(result, choices)
    for line in check_all(floors, result):
        click.echo(line)


def _device() -> Any:
    from unetrt.benchmarks.probes import torch_gpu

    return "cpu" if torch_gpu() else "gpu"


def _measured(bench: "Bench", choices: dict[str, Any]) -> "Result | None":
    """Measure, with a bar on standard error; None where the time was up too soon for any figure."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    share, step = TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}")
    columns = (BarColumn(), share, TimeRemainingColumn(), step)
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1) as bar:
        task = bar.add_task("", total=bench.steps(), completed=-1)
        told = lambda step: bar.update(task, advance=1, description=step)  # noqa: E731 - a callback of one line
        return bench.measure(told, choices["json_path"], _patience(choices))


def _write(result: "Result", choices: dict[str, Any]) -> None:
    if choices["json_path"] is not None and not result.missing:  # else the file holds what --resume needs
        result.save(choices["json_path"])
    if choices["png"] is not None:
        from unetrt.benchmarks.chart import save_png

        save_png(result, choices["png"])
    if choices["report"] is not None:
        from unetrt.benchmarks.page import save_html

        save_html(result, choices["report"])


def listed(choices: dict[str, Any]) -> None:
    """Print the contenders, and whether each can be timed here."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from unetrt.benchmarks.contenders import CONTENDERS

    table = Table("name", "contender", "here", box=None)
    for one in CONTENDERS:
        reason = one.why_not(choices["device"] or _device())
        table.add_row(one.name, one.title, escape(reason) if reason else "yes")  # "[gpu]" is an extra, not a style
    Console().print(table)


def compare(choices: dict[str, Any]) -> None:
    """Tell what changed between two results."""
    from rich.console import Console

    from unetrt.benchmarks import compare as comparing
    from unetrt.benchmarks.compare_table import compare_table
    from unetrt.benchmarks.result import load

    before, after = map(load, choices["compare"])
    Console().print(compare_table(comparing.compare(before, after)))


def goals(choices: dict[str, Any]) -> None:
    """Measure the cases of the runtime's goals on a GPU, and fail where one of them could not be measured."""
    from rich.console import Console

    from unetrt.benchmarks import gpu_runtime
    from unetrt.benchmarks.gpu_goals import lines, table
    from unetrt.runtime.errors import InferenceError

    console = Console()

    def show(case: dict[str, Any]) -> None:
        console.print(table(case))
        for line in lines(case):
            click.echo(line)

    base, depth, rounds, only = (choices[name] for name in ("base", "depth", "rounds", "only"))
    kept = {"path": choices["json_path"], "patience": _patience(choices)}
    result = gpu_runtime.goals(base, depth, rounds, only, show, **kept)
    _say_missing(result["missing"], choices)
    if failed := result["failed"]:
        raise InferenceError("; ".join(f"{name}: {reason}" for name, reason in failed.items()))


def _patience(choices: dict[str, Any]) -> "Patience":
    from unetrt.benchmarks.journal import Patience

    return Patience(choices["seconds"], choices["resume"])


def _say_missing(names: Sequence[str], choices: dict[str, Any]) -> None:
    """Say on standard error what was not begun, and how to go on where that is possible."""
    if names:
        goes_on = f" (--json {choices['json_path']} --resume goes on)" if choices["json_path"] else ""
        click.echo(f"the time was up before: {', '.join(names)}{goes_on}", err=True)


def training(choices: dict[str, Any]) -> None:
    """Time training steps."""
    from unetrt.benchmarks.training_speed import training_speed
    from unetrt.trainer.recipe import RECIPES

    options = {name: choices[name] for name in ("base", "depth")}
    options |= {"tile": choices["tile"][0]} if choices["tile"] else {}
    recipe, kept = (
        RECIPES["paper"].with_options(**options),
        {"path": choices["json_path"], "patience": _patience(choices)},
    )
    result = training_speed(recipe, STEPS, choices["rounds"], **kept)
    click.echo(f"depth {choices['depth']}, base {choices['base']}, on {result['device']}:")
    for way, figure in result["ways"].items():
        seconds = figure["seconds"]
        click.echo(
            f"  {way:18s} {1 / seconds['median']:7.2f} steps/s in {figure['dtype']} "
            f"({1 / seconds['high']:.2f} to {1 / seconds['low']:.2f}), {figure['waiting']:.1%} waiting for tiles"
        )
    _say_missing(result["missing"], choices)

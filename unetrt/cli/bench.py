"""`unetrt bench`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli.options import SIZE
from unetrt.runtime.artifacts import require_place
from unetrt.runtime.errors import OptionError

if TYPE_CHECKING:
    from unetrt.benchmarks.bench import Bench
    from unetrt.benchmarks.result import Result

# Training steps that are timed together.
STEPS = 20
# A median of so many rounds has a 95 % interval.
ROUNDS = 6
PATH = click.Path(path_type=Path)
# What besides timing frames there is to do, and the options that it takes.
OTHERWISE = {
    "compare": (),
    "listed": ("device",),
    "goals": ("base", "depth", "rounds", "json_path"),
    "training": ("base", "depth", "rounds", "tile", "json_path"),
}


@click.command("bench")
@click.argument("checkpoint", type=PATH, required=False)
@click.option("--frame", type=SIZE, default="2048x2048", show_default=True, help="Size of the drawn frame.")
@click.option("--tile", type=SIZE, help="unetrt's tile [default: planned].")
@click.option("--base", default=16, show_default=True, help="Of an untrained network, without CHECKPOINT.")
@click.option("--depth", default=4, show_default=True, help="Of an untrained network, without CHECKPOINT.")
@click.option("--rounds", default=ROUNDS, show_default=True, help="Fresh starts of each contender; 6 give 95 %.")
@click.option("--device", type=click.Choice(["cpu", "gpu"]), help="[default: gpu where torch finds one]")
@click.option("--only", multiple=True, metavar="NAME", help="Time this contender, and the usual loop; repeatable.")
@click.option("--list", "listed", is_flag=True, help="List the contenders, and why some cannot be timed here.")
@click.option("--json", "json_path", type=PATH, help="Write all figures as JSON.")
@click.option("--png", type=PATH, help="Write a chart.")
@click.option("--report", type=PATH, help="Write a page with plots, one HTML file.")
@click.option(
    "--floor",
    "floors",
    multiple=True,
    metavar="[NAME[/OTHER]=]RATIO",
    help="Fail (exit 1) unless unetrt's fastest, or NAME, is so many times as fast as the usual loop, or OTHER.",
)
@click.option("--compare", type=PATH, nargs=2, metavar="A.json B.json", help="Tell what changed from A to B.")
@click.option("--goals", is_flag=True, help="On a GPU: lanes, batches and inputs against the runtime's goals.")
@click.option("--training", is_flag=True, help="Time training instead: steps a second, and waiting for tiles.")
@click.pass_context
def command(context: click.Context, /, **choices: Any) -> None:
    """Time unetrt and others on this machine: same weights, same frame, in turn, labels checked first.

    With --compare: tell what changed between two results, and whether that is more than noise.

    With --training: time steps of the paper's recipe, in float32, in 16 bits and compiled, on drawn cells.
    """
    if choices["rounds"] < 1:
        raise OptionError(f"{choices['rounds']} rounds measure nothing: use 1 or more")
    checkpoint = choices["checkpoint"]
    for place in ("json_path", "png", "report"):
        if choices[place] is not None:
            require_place(choices[place], [checkpoint] if checkpoint and checkpoint.exists() else [])
    what = next(filter(choices.get, OTHERWISE), None)
    if what is None:
        _bench(choices)
        return
    _require_meant(context, what)
    {"compare": _compare, "listed": _list, "goals": _goals, "training": _training}[what](choices)


def _require_meant(context: click.Context, what: str) -> None:
    """Raise OptionError for options that would be passed over: a gate, for one, must not vanish."""
    names = {one.name: one.opts[0] for one in context.command.params}
    for name, written in names.items():
        given = context.get_parameter_source(str(name)) is click.core.ParameterSource.COMMANDLINE
        if given and name not in (what, *OTHERWISE[what]):
            raise OptionError(f"{names[what]} takes no {written}: leave one of them out")


def _bench(choices: dict[str, Any]) -> None:
    from rich.console import Console

    from unetrt.benchmarks.bench import Bench
    from unetrt.benchmarks.chart import require_matplotlib
    from unetrt.benchmarks.floors import Floor, check_all
    from unetrt.benchmarks.networks import undecided
    from unetrt.benchmarks.table import table
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
    result = _measured(bench)
    Console().print(table(result))
    _write(result, choices)
    for line in check_all(floors, result):
        click.echo(line)


def _device() -> Any:
    from unetrt.benchmarks.probes import torch_gpu

    return "cpu" if torch_gpu() else "gpu"


def _measured(bench: "Bench") -> "Result":
    """Measure, with a bar on standard error."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    share, step = TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}")
    columns = (BarColumn(), share, TimeRemainingColumn(), step)
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1) as bar:
        task = bar.add_task("", total=bench.steps(), completed=-1)
        return bench.measure(lambda step: bar.update(task, advance=1, description=step))


def _write(result: "Result", choices: dict[str, Any]) -> None:
    if choices["json_path"] is not None:
        result.save(choices["json_path"])
    if choices["png"] is not None:
        from unetrt.benchmarks.chart import save_png

        save_png(result, choices["png"])
    if choices["report"] is not None:
        from unetrt.benchmarks.page import save_html

        save_html(result, choices["report"])


def _list(choices: dict[str, Any]) -> None:
    """Print the contenders, and whether each can be timed here."""
    from rich.console import Console
    from rich.table import Table

    from unetrt.benchmarks.contenders import CONTENDERS

    table = Table("name", "contender", "here", box=None)
    for one in CONTENDERS:
        table.add_row(one.name, one.title, one.why_not(choices["device"] or _device()) or "yes")
    Console().print(table)


def _compare(choices: dict[str, Any]) -> None:
    from rich.console import Console

    from unetrt.benchmarks.compare import compare
    from unetrt.benchmarks.compare_table import compare_table
    from unetrt.benchmarks.result import load

    before, after = map(load, choices["compare"])
    Console().print(compare_table(compare(before, after)))


def _goals(choices: dict[str, Any]) -> None:
    """Measure the cases of the runtime's goals on a GPU, and fail where one of them could not be measured."""
    from rich.console import Console

    from unetrt.benchmarks.gpu_report import lines, table
    from unetrt.benchmarks.gpu_runtime import goals
    from unetrt.runtime.errors import InferenceError

    console = Console()

    def show(case: dict[str, Any]) -> None:
        console.print(table(case))
        for line in lines(case):
            click.echo(line)

    result = goals(choices["base"], choices["depth"], choices["rounds"], show)
    _save(result, choices["json_path"])
    if result["failed"]:
        raise InferenceError("; ".join(f"{name}: {reason}" for name, reason in result["failed"].items()))


def _training(choices: dict[str, Any]) -> None:
    from unetrt.benchmarks.training_speed import training_speed
    from unetrt.trainer.recipe import RECIPES

    options = {name: choices[name] for name in ("base", "depth")}
    options |= {"tile": choices["tile"][0]} if choices["tile"] else {}
    result = training_speed(RECIPES["paper"].with_options(**options), STEPS, choices["rounds"])
    _save(result, choices["json_path"])
    click.echo(f"depth {choices['depth']}, base {choices['base']}, on {result['device']}:")
    for way, figure in result["ways"].items():
        seconds = figure["seconds"]
        click.echo(
            f"  {way:18s} {1 / seconds['median']:7.2f} steps/s in {figure['dtype']} "
            f"({1 / seconds['high']:.2f} to {1 / seconds['low']:.2f}), {figure['waiting']:.1%} waiting for tiles"
        )


def _save(result: dict[str, Any], path: Path | None) -> None:
    from unetrt.runtime.artifacts import whole_file

    if path is not None:
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")

"""`unetrt bench`."""

from pathlib import Path
from typing import Any

import click

from unetrt.cli.options import SIZE
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place

# A median of so many rounds has a 95 % interval.
ROUNDS = 6
PATH = click.Path(path_type=Path)
# What besides timing frames there is to do, and the options that it takes.
OTHERWISE = {
    "compare": (),
    "listed": ("device",),
    "goals": ("base", "depth", "rounds", "only", "json_path", "seconds", "resume"),
    "training": ("base", "depth", "rounds", "tile", "json_path", "seconds", "resume"),
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
@click.option("--seconds", type=float, help="Start no step after this time; --json holds what was measured by then.")
@click.option("--resume", is_flag=True, help="Go on with the --json of a run that was ended: measure what is missing.")
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
    if choices["resume"] and choices["json_path"] is None:
        raise OptionError("--resume goes on with the file of an earlier run: name it with --json")
    if choices["rounds"] < 1:
        raise OptionError(f"{choices['rounds']} rounds measure nothing: use 1 or more")
    checkpoint = choices["checkpoint"]
    for place in ("json_path", "png", "report"):
        if choices[place] is not None:
            require_place(choices[place], [checkpoint] if checkpoint and checkpoint.exists() else [])
    files = [choices[place].absolute() for place in ("json_path", "png", "report") if choices[place] is not None]
    if len(set(files)) < len(files):
        raise OptionError(f"two of --json, --png and --report are {max(files, key=files.count)}: use two names")
    what = next(filter(choices.get, OTHERWISE), "bench")
    _require_meant(context, what, checkpoint)
    from unetrt.cli import bench_runs

    getattr(bench_runs, what)(choices)


def _require_meant(context: click.Context, what: str, checkpoint: Path | None) -> None:
    """Raise OptionError for options that would be passed over: a gate, for one, must not vanish."""
    names = {str(one.name): one.opts[0] for one in context.command.params}
    of_untrained = ("base", "depth") if checkpoint else ()
    for name, written in names.items():
        if context.get_parameter_source(name) is not click.core.ParameterSource.COMMANDLINE:
            continue
        if what in OTHERWISE and name not in (what, *OTHERWISE[what]):
            raise OptionError(f"{names[what]} takes no {written}: leave one of them out")
        if name in of_untrained:
            raise OptionError(
                f"{written} is for an untrained network, and {checkpoint} is given: leave one of them out"
            )

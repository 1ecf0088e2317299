"""`unetrt bench`."""

import json
from pathlib import Path

import click

from unetrt.cli.options import SIZE, Size
from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import OptionError, ParityError

# Training steps that are timed together.
STEPS = 20


@click.command("bench")
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("--frame", type=SIZE, default="2048x2048", show_default=True, help="Size of the drawn frame.")
@click.option("--tile", type=SIZE, help="unetrt's tile [default: planned].")
@click.option("--base", default=16, show_default=True, help="Of an untrained network, without CHECKPOINT.")
@click.option("--depth", default=4, show_default=True, help="Of an untrained network, without CHECKPOINT.")
@click.option("--rounds", default=3, show_default=True, help="Fresh starts of each contender, timed twice each.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
@click.option("--training", is_flag=True, help="Time training instead: steps a second, and waiting for tiles.")
@click.option("--floor", type=float, help="Fail (exit 1) if unetrt is not this many times as fast as the usual loop.")
def command(
    checkpoint: Path | None,
    frame: Size,
    tile: Size | None,
    rounds: int,
    json_path: Path | None,
    training: bool,
    floor: float | None,
    **shape: int,
) -> None:
    """Time unetrt against the usual loop: same weights, same frame, interleaved, labels checked first.

    With --training: time steps of the paper's recipe, in float32, in 16 bits and compiled, on drawn cells.
    """
    from rich.console import Console
    from rich.progress import Progress

    from unetrt.benchmarks.bench import bench, untrained
    from unetrt.benchmarks.job import CONTENDERS
    from unetrt.benchmarks.measure import COUNTED, WARM_UP
    from unetrt.benchmarks.report import table
    from unetrt.trainer.checkpoint import load

    if rounds < 1:
        raise OptionError(f"{rounds} rounds measure nothing: use 1 or more")
    if json_path is not None:
        require_writable(json_path.parent)
    if training:
        _training(shape, tile, rounds, json_path)
        return
    network = load(checkpoint) if checkpoint else untrained(shape["base"], shape["depth"])
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("exporting and checking", total=len(CONTENDERS) * (WARM_UP + COUNTED) * rounds)
        result = bench(
            network, frame, rounds, tile=tile, done=lambda: bar.update(task, advance=1, description="timing")
        )
    if json_path is not None:
        result.save(json_path)
    Console().print(table(result))
    speed = result.speedup
    click.echo(f"unetrt is {speed.median:.2f} times as fast as the usual loop ({speed.low:.2f} to {speed.high:.2f})")
    click.echo(f"and costs {result.overhead:+.1%} on top of the session's own time")
    if floor is not None and speed.median < floor:
        raise ParityError(f"{speed.median:.2f} times the usual loop is below the floor of {floor:g}")


def _training(shape: dict[str, int], tile: Size | None, rounds: int, json_path: Path | None) -> None:
    from unetrt.benchmarks.training_speed import training_speed
    from unetrt.runtime.artifacts import whole_file
    from unetrt.trainer.recipe import RECIPES

    options = shape | ({"tile": tile[0]} if tile else {})
    result = training_speed(RECIPES["paper"].with_options(**options), STEPS, rounds)
    if json_path is not None:
        with whole_file(json_path) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    click.echo(f"depth {shape['depth']}, base {shape['base']}, on {result['device']}:")
    for way, figure in result["ways"].items():
        seconds = figure["seconds"]
        click.echo(
            f"  {way:18s} {1 / seconds['median']:7.2f} steps/s in {figure['dtype']} "
            f"({1 / seconds['high']:.2f} to {1 / seconds['low']:.2f}), {figure['waiting']:.1%} waiting for tiles"
        )

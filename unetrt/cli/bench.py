"""`unetrt bench`."""

from pathlib import Path

import click

from unetrt.cli.options import SIZE, Size
from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import OptionError, ParityError


@click.command("bench")
@click.argument("checkpoint", type=click.Path(path_type=Path), required=False)
@click.option("--frame", type=SIZE, default="2048x2048", show_default=True, help="Size of the drawn frame.")
@click.option("--tile", type=SIZE, help="unetrt's tile [default: planned].")
@click.option("--base", default=16, show_default=True, help="Of an untrained network, without CHECKPOINT.")
@click.option("--depth", default=4, show_default=True, help="Of an untrained network, without CHECKPOINT.")
@click.option("--rounds", default=3, show_default=True, help="Fresh starts of each contender, timed twice each.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write all figures as JSON.")
@click.option("--floor", type=float, help="Fail (exit 1) if unetrt is not this many times as fast as the usual loop.")
def command(
    checkpoint: Path | None,
    frame: Size,
    tile: Size | None,
    base: int,
    depth: int,
    rounds: int,
    json_path: Path | None,
    floor: float | None,
) -> None:
    """Time unetrt against the usual loop: same weights, same frame, interleaved, labels checked first."""
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
    network = load(checkpoint) if checkpoint else untrained(base, depth)
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

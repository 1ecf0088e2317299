"""`unetrt plan`."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from unetrt.cli.options import MEMORY, SIZE, Size
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.errors import OptionError

ROWS = 8


@click.command("plan")
@click.argument("frames", type=SIZE, nargs=-1, required=True)
@click.option("--model", type=click.Path(path_type=Path), help="Plan for this model or checkpoint.")
@click.option("--depth", default=4, show_default=True, help="Poolings, without --model.")
@click.option("--base", default=64, show_default=True, help="Feature channels of the first level, without --model.")
@click.option("--channels", default=1, show_default=True, help="Of a frame, without --model.")
@click.option("--classes", default=2, show_default=True, help="Without --model.")
@click.option("--memory", type=MEMORY, default="8GiB", show_default=True, help="For activations of all lanes.")
@click.option("--batch", default=1, show_default=True, help="Tiles in one pass.")
@click.option("--lanes", default=1, show_default=True, help="Passes in flight at once; 1 on a CPU.")
@click.option("--precision", type=click.Choice(["fp32", "fp16"]), default="fp32", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(frames: tuple[Size, ...], model: Path | None, as_json: bool, **choices: Any) -> None:
    """Show the legal tiles for FRAMES, sizes such as 2048x2048, cheapest first."""
    from unetrt.runtime.planner import Budget, best_tile, candidates, cost_of

    bytes_of = {"fp32": 4, "fp16": 2}
    budget = Budget(choices["memory"], choices["batch"], choices["lanes"], bytes_of[choices["precision"]])
    shape = _shape(model) if model else UNetShape(*(choices[key] for key in ("depth", "base", "channels", "classes")))
    best = best_tile(frames, shape, budget)
    rows = _front(candidates(frames, shape, budget), best)
    usual = cost_of((572, 572), frames, shape, budget) if shape.geometry.is_legal(572) else None
    if as_json:
        click.echo(json.dumps({"best": asdict(best), "candidates": [asdict(row) for row in rows]}, indent=2))
        return
    _print(rows, best, usual, budget)


def _front(ranked: list[Any], best: Any) -> list[Any]:
    """Keep the tiles that no other beats in both arithmetic and memory: the best, its forerunner, and some below it."""
    front: list[Any] = []
    for one in ranked:
        if not front or one.memory < front[-1].memory:
            front.append(one)
    at = front.index(best)
    return front[max(0, at - 1) : at + ROWS]


def _shape(path: Path) -> UNetShape:
    if path.suffix.lower() != ".onnx":
        from unetrt.trainer.checkpoint import load

        return load(path).shape
    from unetrt.runtime.model_files.onnx_file import read_spec

    shape = read_spec(path).shape
    if shape is None:
        raise OptionError(f"{path} is no U-Net of ours, so its cost is unknown")
    return shape


def _print(rows: list[Any], best: Any, usual: Any, budget: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("tile", "passes", "GMAC", "useful", "memory", "")
    listed = [*rows, *([usual] if usual and usual not in rows else [])]
    for row in listed:
        fits = "" if row.memory <= budget.memory else "does not fit"
        mark = "best" if row == best else ("the paper's tile" if row is usual else fits)
        height, width = row.tile
        table.add_row(
            f"{height}x{width}", str(row.passes), f"{row.macs / 1e9:.0f}", f"{row.useful:.1%}",
            f"{row.memory / 2**30:.2f} GiB", mark,
        )  # fmt: skip
    Console().print(table)
    if usual:
        click.echo(f"the best tile needs {best.macs / usual.macs:.0%} of the arithmetic of 572-tiles")

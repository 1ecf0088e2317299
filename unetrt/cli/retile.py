"""The command `unetrt retile`: a model file with another tile."""

from pathlib import Path

import click

from unetrt.cli import MEMORY, MODEL, SIZE, Size, echo, whole
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place


@click.command("retile")
@click.argument("model", type=MODEL)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The new model file.")
@click.option("--frame", type=SIZE, multiple=True, help="Plan the tile for frames of this size; repeatable.")
@click.option("--tile", type=SIZE, help="Input size of the network in pixels: 572 or HEIGHTxWIDTH; must be legal.")
@click.option("--batch", type=whole(1), metavar="N", help="Tiles in one pass. [default: that of MODEL]")
@click.option(
    "--memory", type=MEMORY, default="8GiB", show_default=True, help="Memory limit for the activations of a pass."
)
def command(model: Path, out: Path, frame: tuple[Size, ...], tile: Size | None, batch: int | None, memory: int) -> None:
    """Write MODEL, a file of `unetrt export`, with another tile; needs neither the checkpoint nor torch.

    With --frame the tile is planned as `unetrt plan` does. The file is written only if it gives the same result for a
    drawn frame as MODEL, computed on the CPU.
    """
    from unetrt.runtime.geometry.planner import Budget, best_tile
    from unetrt.runtime.model.retiled import require_retilable
    from unetrt.runtime.sessions.retile import retile

    if bool(frame) == bool(tile):
        raise OptionError("give either --frame, the size of your frames, or --tile, a legal tile")
    spec, shape = require_retilable(model)
    if out.suffix.lower() in SUFFIXES:
        raise OptionError(f"{out} is the name of an engine: use {out.with_suffix('.onnx')}")
    require_place(out, (model,))
    batch = batch or spec.batch
    height, width = tile or best_tile(frame, shape, Budget(memory, batch)).tile
    retile(model, out, (height, width), batch)
    was = f"{spec.tile[0]}x{spec.tile[1]}"
    echo(f"{out}: tile {height}x{width} (was {was}), {spec.precision}, {spec.head}; verified on a drawn frame")

"""`unetrt export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from unetrt.cli.options import SIZE, Size
from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import OptionError
from unetrt.runtime.spec import HEADS, PRECISIONS


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default="model.onnx", show_default=True)
@click.option("--tile", type=SIZE, help="The network's input, 572 or HEIGHTxWIDTH in pixels; must be legal.")
@click.option("--frame", type=SIZE, multiple=True, help="Plan the tile for frames of this size; may be repeated.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--head", type=click.Choice(HEADS), default="logits", show_default=True, help="What comes out.")
@click.option("--batch", default=1, show_default=True, help="Tiles in one pass.")
@click.option("--images", type=click.Path(path_type=Path), help="Verify on these images, not on the checkpoint's.")
def command(
    checkpoint: Path, out: Path, tile: Size | None, frame: tuple[Size, ...], images: Path | None, **kind: Any
) -> None:
    """Turn CHECKPOINT, a training's folder or a .safetensors file, into an ONNX file with a fixed tile.

    Without --tile or --frame the tile is planned for the frames that the network was trained on. The file appears only
    if it answers as the network does, on real frames.
    """
    from unetrt.export.exporter import Options, export, planned_tile
    from unetrt.trainer.checkpoint import load

    if tile and frame:
        raise OptionError("--tile and --frame exclude each other: a planned tile, or one of your choice")
    require_writable(out.parent)
    trained = load(checkpoint)
    chosen = tile or planned_tile(trained, frame, kind["batch"])
    verified = _frames(images, trained.shape.channels) if images else None
    parity = export(trained, out, Options(tile=chosen, **kind), frames=verified)
    size = out.stat().st_size / 1e6
    click.echo(f"{out}: tile {chosen[0]}x{chosen[1]}, {kind['precision']}, {kind['head']}, {size:.1f} MB")
    click.echo(f"parity with the network in FP32: {parity}")
    click.echo(f"next: unetrt predict {out} IMAGES -o DIR")


def _frames(images: Path, channels: int) -> Iterator[Any]:
    """Read images one by one, of a stack the first frame."""
    from unetrt.runtime.frames import as_frame
    from unetrt.runtime.images import list_images
    from unetrt.runtime.prediction import read_frames

    frame_axes = 2 if channels == 1 else 3
    for path in list_images(images):
        stack = read_frames(path, channels)
        yield as_frame(stack if stack.ndim == frame_axes else stack[0], channels)

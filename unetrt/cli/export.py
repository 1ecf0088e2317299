"""`unetrt export`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from unetrt.cli.options import SIZE, Size
from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import OptionError
from unetrt.runtime.spec import HEADS, INPUT_TYPES, PRECISIONS

LIMITS = ("max_error", "max_flips", "min_iou")


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default="model.onnx", show_default=True)
@click.option("--tile", type=SIZE, help="The network's input, 572 or HEIGHTxWIDTH in pixels; must be legal.")
@click.option("--frame", type=SIZE, multiple=True, help="Plan the tile for frames of this size; may be repeated.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--head", type=click.Choice(HEADS), default="logits", show_default=True, help="What comes out.")
@click.option("--batch", default=1, show_default=True, help="Tiles in one pass.")
@click.option(
    "--input",
    type=click.Choice(INPUT_TYPES),
    default="float32",
    show_default=True,
    help="What goes in: normalised float32, or a camera's raw pixels, normalised in the graph.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["fixed"]),
    help="Freeze what is measured on each frame, as raw input needs it.",
)
@click.option("--images", type=click.Path(path_type=Path), help="Verify on these images, not on the checkpoint's.")
@click.option("--max-error", type=float, help="Largest difference of a probability. [default: by precision]")
@click.option("--max-flips", type=float, help="Share of pixels that may change class. [default: by precision]")
@click.option("--min-iou", type=float, help="Least IoU of the worst class. [default: by precision]")
def command(
    checkpoint: Path, out: Path, tile: Size | None, frame: tuple[Size, ...], images: Path | None, **choices: Any
) -> None:
    """Turn CHECKPOINT, a training's folder or a .safetensors file, into an ONNX file with a fixed tile.

    fp32, fp16 and int8 run everywhere; bf16 has the range of fp32 and needs TensorRT. int8 takes the ranges of its
    values from the images that it is verified on.

    Without --tile or --frame the tile is planned for the frames that the network was trained on. The file appears only
    if it answers as the network does, on real frames.
    """
    from unetrt.export.exporter import Options, export, planned_tile
    from unetrt.export.parity import Thresholds
    from unetrt.trainer.checkpoint import load

    if tile and frame:
        raise OptionError("--tile and --frame exclude each other: a planned tile, or one of your choice")
    require_writable(out.parent)
    trained = load(checkpoint)
    thresholds = Thresholds.of(choices["precision"], **{name: choices.pop(name) for name in LIMITS})
    options = Options(tile=tile or planned_tile(trained, frame, choices["batch"]), **choices)
    verified = _frames(images, trained.shape.channels) if images else None
    parity = export(trained, out, options, frames=verified, thresholds=thresholds)
    size = out.stat().st_size / 1e6
    click.echo(f"{out}: tile {options.tile[0]}x{options.tile[1]}, {options.precision}, {options.head}, {size:.1f} MB")
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

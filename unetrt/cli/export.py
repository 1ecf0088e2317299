"""`unetrt export`."""

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import click

from unetrt.cli import SIZE, Size
from unetrt.cli.package import (
    SEARCHED,
    package_place,
    raw_frames,
    require_options,
)
from unetrt.export.packages import KINDS, write
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place
from unetrt.runtime.model.spec import HEADS, INPUT_TYPES, PRECISIONS, Head, InputType, Precision

if TYPE_CHECKING:
    from unetrt.export.exporter import Options


class ExportArguments(TypedDict):
    """Options of `unetrt export` beside the tile; the first five are fields of `exporter.Options`."""

    precision: Precision
    head: Head
    batch: int
    input: InputType
    normalisation: Literal["fixed"] | None
    images: Path | None
    max_error: float | None
    max_flips: float | None
    min_iou: float | None
    package: str | None
    name: str | None
    authors: tuple[str, ...]
    license: str | None


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="[default: model.onnx]")
@click.option("--tile", type=SIZE, help="Input of the network, 572 or HEIGHTxWIDTH in pixels; must be legal.")
@click.option("--frame", type=SIZE, multiple=True, help="Plan the tile for frames of this size; repeatable.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--head", type=click.Choice(HEADS), default="logits", show_default=True, help="Output of the network.")
@click.option("--batch", default=1, show_default=True, help="Tiles in one pass.")
@click.option(
    "--input",
    type=click.Choice(INPUT_TYPES),
    default="float32",
    show_default=True,
    help="Input of the network: normalised float32, or a camera's raw pixels, normalised in the graph.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["fixed"]),
    help="Freeze a normalisation that is measured on each frame, as raw input requires.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Verify on up to 16 of these images instead of the checkpoint's frames.",
)
@click.option("--max-error", type=float, help="Largest difference of a probability. [default: by precision]")
@click.option("--max-flips", type=float, help="Share of pixels that may change class. [default: by precision]")
@click.option("--min-iou", type=float, help="Least IoU of the worst class. [default: by precision]")
@click.option(
    "--package",
    type=click.Choice([kind.name for kind in KINDS]),
    help="Write a package instead of a file; see `unetrt package`.",
)
@click.option("--name", help="Name of the package.")
@click.option("--author", "authors", multiple=True, help="Name of an author (bioimageio); repeatable.")
@click.option("--license", metavar="SPDX", help="Licence (bioimageio), such as CC-BY-4.0.")
def command(
    checkpoint: Path,
    out: Path | None,
    tile: Size | None,
    frame: tuple[Size, ...],
    **given: Unpack[ExportArguments],
) -> None:
    """Turn CHECKPOINT, a training's folder or a .safetensors file, into an ONNX file with a fixed tile.

    fp32, fp16 and int8 run everywhere; bf16 has the range of fp32 and needs TensorRT. int8 measures the ranges of its
    values on every other image that it is verified on.

    Without --tile or --frame the tile is planned for the frames of the training. The file is written only if it gives
    the same as the network on real frames.
    """
    from unetrt.export.exporter import Options, export, planned_tile
    from unetrt.export.gate import Thresholds
    from unetrt.trainer.checkpoint import load

    if tile and frame:
        raise OptionError("--tile and --frame exclude each other: a planned tile, or one of your choice")
    package, images = given["package"], given["images"]
    about = {"name": given["name"], "authors": given["authors"], "license": given["license"]}
    about = {name: value for name, value in about.items() if value}
    if package or about:
        require_options(package, about)
    trained = load(checkpoint)
    if package:
        out = package_place(package, out)
    else:
        out = require_place(out or "model.onnx", (checkpoint,) if checkpoint.is_file() else ())
    if package == "bioimageio" and given["precision"] == "bf16":
        raise OptionError("bioimage.io's programs compute no bfloat16: use --precision fp32 or fp16")
    thresholds = Thresholds.of(given["precision"], given["max_error"], given["max_flips"], given["min_iou"])
    options = Options(
        tile=tile or planned_tile(trained, frame, given["batch"]),
        precision=given["precision"],
        head=given["head"],
        batch=given["batch"],
        input=given["input"],
        normalisation=given["normalisation"],
    )
    with TemporaryDirectory(prefix="unetrt-") as folder:
        model = Path(folder) / "model.onnx" if package else out
        verified = raw_frames(images, trained.shape.channels) if images else None
        parity = export(trained, model, options, frames=verified, thresholds=thresholds)
        click.echo(f"{_summary(out, model, options)}\nparity with the network in FP32: {parity}")
        if not package:
            click.echo(f"next: {_next(out, options)}")
            return
        frames = raw_frames(images, trained.shape.channels) if images else iter(trained.frames)
        written = write(package, model, out, list(islice(frames, SEARCHED)), **about)
    click.echo(f"{written}: a package for {package}")


def _next(out: Path, options: "Options") -> str:
    if options.precision == "bf16":
        return f"unetrt build {out} -o {out.with_suffix('.engine')}"
    return f"unetrt predict {out} IMAGES -o DIR"


def _summary(out: Path, model: Path, options: "Options") -> str:
    height, width = options.tile
    kind = f"tile {height}x{width}, {options.precision}, {options.head}"
    return f"{out}: {kind}, {model.stat().st_size / 1e6:.1f} MB"

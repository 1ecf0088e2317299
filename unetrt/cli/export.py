"""`unetrt export`."""

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack

import click

from unetrt.cli import SIZE, Size, echo, reading_options, real, whole
from unetrt.cli.package import (
    SEARCHED,
    package_place,
    raw_frames,
    require_options,
)
from unetrt.export.packages import KINDS, write
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place, scratch_folder
from unetrt.runtime.model.spec import HEADS, INPUT_TYPES, PRECISIONS, Head, InputType, Precision

if TYPE_CHECKING:
    from unetrt.export.exporter import Options
    from unetrt.runtime.files.formats import Reading


class ExportArguments(TypedDict):
    """Options of `unetrt export` beside the tile; the first five are fields of `exporter.Options`."""

    precision: Precision
    head: Head
    batch: int
    input: InputType
    normalisation: Literal["fixed"] | None
    images: Path | None
    reading: "Reading"
    max_error: float | None
    max_flips: float | None
    min_iou: float | None
    package: str | None
    name: str | None
    authors: tuple[str, ...]
    license: str | None


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="The model file. [default: model.onnx]")
@click.option("--tile", type=SIZE, help="Input size of the network in pixels: 572 or HEIGHTxWIDTH; must be legal.")
@click.option("--frame", type=SIZE, multiple=True, help="Plan the tile for frames of this size; repeatable.")
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    default="fp32",
    show_default=True,
    help="Type of the layers between input and head.",
)
@click.option("--head", type=click.Choice(HEADS), default="logits", show_default=True, help="Output of the network.")
@click.option("--batch", type=whole(), default=1, show_default=True, help="Tiles in one pass.")
@click.option(
    "--input",
    type=click.Choice(INPUT_TYPES),
    default="float32",
    show_default=True,
    help="Type of the input: normalised float32, or a camera's raw pixels, which the graph normalises.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["fixed"]),
    help="Replace a normalisation that is measured on each frame by constants; raw input requires it.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Verify on up to 16 of these images instead of the checkpoint's frames.",
)
@reading_options
@click.option("--max-error", type=real(), help="Largest allowed difference of a probability. [default: by precision]")
@click.option(
    "--max-flips", type=real(), help="Largest allowed share of pixels that change class. [default: by precision]"
)
@click.option("--min-iou", type=real(), help="Smallest allowed IoU of the worst class. [default: by precision]")
@click.option(
    "--package",
    type=click.Choice([kind.name for kind in KINDS]),
    help="Write a package instead of a file; see `unetrt package`.",
)
@click.option("--name", help="Name of the model in the package.")
@click.option("--author", "authors", multiple=True, help="Name of an author; repeatable (bioimageio).")
@click.option("--license", metavar="SPDX", help="Licence, such as CC-BY-4.0 (bioimageio).")
def command(
    checkpoint: Path,
    out: Path | None,
    tile: Size | None,
    frame: tuple[Size, ...],
    **given: Unpack[ExportArguments],
) -> None:
    """Convert CHECKPOINT, the folder of a run or a .safetensors file, to an ONNX file with a fixed tile.

    fp32, fp16 and int8 run everywhere; bf16 has the range of fp32 and needs TensorRT or OpenVINO. int8 measures the
    ranges of activations on every other verification image.

    Without --tile or --frame the tile is planned for the frames of the training. The file is written only if its output
    agrees with that of the network on real frames.
    """
    from unetrt.export.exporter import Options, export, planned_tile
    from unetrt.export.gate import Thresholds
    from unetrt.trainer.checkpoint import load

    if tile and frame:
        raise OptionError("--tile and --frame exclude each other: a planned tile, or one of your choice")
    package, images, reading = given["package"], given["images"], given["reading"]
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
    with scratch_folder() as folder:
        model = folder / "model.onnx" if package else out
        verified = raw_frames(images, trained.shape.channels, reading) if images else None
        parity = export(trained, model, options, frames=verified, thresholds=thresholds)
        echo(f"{_summary(out, model, options)}\nparity with the network in FP32: {parity}")
        if not package:
            echo(f"next: {_next(out, options)}")
            return
        frames = raw_frames(images, trained.shape.channels, reading) if images else iter(trained.frames)
        written = write(package, model, out, list(islice(frames, SEARCHED)), **about)
    echo(f"{written}: a package for {package}")


def _next(out: Path, options: "Options") -> str:
    if options.precision == "bf16":
        return f"unetrt build {out} -o {out.with_suffix('.engine')}"
    return f"unetrt predict {out} IMAGES -o DIR"


def _summary(out: Path, model: Path, options: "Options") -> str:
    height, width = options.tile
    kind = f"tile {height}x{width}, {options.precision}, {options.head}"
    return f"{out}: {kind}, {model.stat().st_size / 1e6:.1f} MB"

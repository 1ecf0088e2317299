"""`unetrt export`."""

from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli.frames import raw_frames
from unetrt.cli.options import SIZE, Size
from unetrt.cli.package import LOOKED_AT, PLACES, require_about, require_package_place
from unetrt.runtime.artifacts import require_place
from unetrt.runtime.errors import OptionError
from unetrt.runtime.spec import HEADS, INPUT_TYPES, PRECISIONS

if TYPE_CHECKING:
    from unetrt.export.exporter import Options

LIMITS = ("max_error", "max_flips", "min_iou")
ABOUT = ("name", "authors", "license")


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="[default: model.onnx]")
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
@click.option("--images", type=click.Path(path_type=Path), help="Verify on up to 16 of these, not on the checkpoint's.")
@click.option("--max-error", type=float, help="Largest difference of a probability. [default: by precision]")
@click.option("--max-flips", type=float, help="Share of pixels that may change class. [default: by precision]")
@click.option("--min-iou", type=float, help="Least IoU of the worst class. [default: by precision]")
@click.option("--package", type=click.Choice(list(PLACES)), help="Write this instead of a file; see `unetrt package`.")
@click.option("--name", help="What the package is called.")
@click.option("--author", "authors", multiple=True, help="Of a bioimageio package; may be repeated.")
@click.option("--license", metavar="SPDX", help="Of a bioimageio package, such as CC-BY-4.0.")
def command(
    checkpoint: Path, out: Path | None, tile: Size | None, frame: tuple[Size, ...], images: Path | None, **choices: Any
) -> None:
    """Turn CHECKPOINT, a training's folder or a .safetensors file, into an ONNX file with a fixed tile.

    fp32, fp16 and int8 run everywhere; bf16 has the range of fp32 and needs TensorRT. int8 takes the ranges of its
    values from every other image that it is verified on.

    Without --tile or --frame the tile is planned for the frames that the network was trained on. The file appears only
    if it answers as the network does, on real frames.
    """
    from unetrt.export.exporter import Options, export, planned_tile
    from unetrt.export.gate import Thresholds
    from unetrt.export.packages import write
    from unetrt.trainer.checkpoint import load

    if tile and frame:
        raise OptionError("--tile and --frame exclude each other: a planned tile, or one of your choice")
    package = choices.pop("package")
    about = {name: value for name in ABOUT if (value := choices.pop(name))}
    require_about(package, about)
    out = out or PLACES.get(package, Path("model.onnx"))
    trained = load(checkpoint)
    _require_place(package, out, checkpoint)
    _require_precision(package, choices["precision"])
    thresholds = Thresholds.of(choices["precision"], **{name: choices.pop(name) for name in LIMITS})
    options = Options(tile=tile or planned_tile(trained, frame, choices["batch"]), **choices)
    with TemporaryDirectory(prefix="unetrt-") as folder:
        model = Path(folder) / "model.onnx" if package else out
        verified = raw_frames(images, trained.shape.channels) if images else None
        parity = export(trained, model, options, frames=verified, thresholds=thresholds)
        click.echo(f"{_said(out, model, options)}\nparity with the network in FP32: {parity}")
        if not package:
            click.echo(f"next: {_next(out, options)}")
            return
        frames = raw_frames(images, trained.shape.channels) if images else iter(trained.frames)
        written = write(package, model, out, list(islice(frames, LOOKED_AT)), **about)
    click.echo(f"{written}: a package for {package}")


def _require_place(package: str | None, out: Path, checkpoint: Path) -> None:
    if package is None:
        require_place(out, (checkpoint,) if checkpoint.is_file() else ())
    else:
        require_package_place(package, out)


def _require_precision(package: str | None, precision: str) -> None:
    if package == "bioimageio" and precision == "bf16":
        raise OptionError("bioimage.io's programs compute no bfloat16: use --precision fp32 or fp16")


def _next(out: Path, options: "Options") -> str:
    if options.precision == "bf16":
        return f"unetrt build {out} -o {out.with_suffix('.engine')}"
    return f"unetrt predict {out} IMAGES -o DIR"


def _said(out: Path, model: Path, options: "Options") -> str:
    height, width = options.tile
    kind = f"tile {height}x{width}, {options.precision}, {options.head}"
    return f"{out}: {kind}, {model.stat().st_size / 1e6:.1f} MB"

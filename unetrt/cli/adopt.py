"""`unetrt adopt`."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli import MEMORY, SIZE
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.geometry.plan import BORDERS
from unetrt.runtime.model.spec import ANNOTATIONS, HEADS
from unetrt.runtime.pixels.normalisation import Normalisation

if TYPE_CHECKING:
    from unetrt.export.adoption import Adoption


def _normalisation(_context: click.Context, _option: click.Parameter, value: str) -> Normalisation:
    """Parse `fixed:OFFSET:SCALE` (a number each, or one for each channel), `percentile[:LOW:HIGH]` or `zscore`."""
    mode, *constants = value.split(":")
    try:
        numbers = [tuple(float(number) for number in part.split(",")) for part in constants]
    except ValueError:
        numbers = [()]
    match mode, numbers:
        # A scale of 0 would make all pixels equal.
        case "fixed", [offset, scale] if all(map(isfinite, (*offset, *scale))) and 0 not in scale:
            return Normalisation("fixed", offset=offset, scale=scale)
        case "percentile", []:
            return Normalisation("percentile")
        case "percentile", [(low,), (high,)]:
            return Normalisation("percentile", low, high)
        case "zscore", []:
            return Normalisation("zscore")
    raise OptionError(
        f"{value!r} is not a normalisation: write fixed:OFFSET:SCALE for (grey value - OFFSET) * SCALE, with a SCALE "
        "other than 0, percentile, percentile:LOW:HIGH or zscore"
    )


def _names(_context: click.Context, _option: click.Parameter, value: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    names = tuple(name.strip() for name in value.split(","))
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise OptionError(f"{value!r} are not class names: write two or more, background first: background,nuclei")
    return names


@click.command("adopt")
@click.argument("foreign", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), default="model.onnx", show_default=True, help="The model file."
)
@click.option(
    "--tile",
    type=SIZE,
    help="Input size of the network in pixels: 572 or HEIGHTxWIDTH. [default: the size that FOREIGN fixes]",
)
@click.option("--halo", type=click.IntRange(0), help="Context on each side, in pixels. [default: measured]")
@click.option("--grid", type=click.IntRange(1), help="Product of strides and poolings, in pixels. [default: measured]")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Tiles in one pass.")
@click.option(
    "--normalisation",
    callback=_normalisation,
    required=True,
    metavar="MODE",
    help="Normalisation of grey values: fixed:OFFSET:SCALE, percentile[:LOW:HIGH] or zscore.",
)
@click.option(
    "--classes", callback=_names, required=True, metavar="A,B,...", help="Names of the classes, background first."
)
@click.option(
    "--head",
    type=click.Choice(HEADS),
    required=True,
    help="Output of the network; with labels, a network that outputs scores gets a head that picks the best class.",
)
@click.option(
    "--border",
    type=click.Choice(BORDERS),
    default="reflect",
    show_default=True,
    help="Mirroring beyond the frame; symmetric repeats the edge pixel.",
)
@click.option(
    "--annotation",
    type=click.Choice(ANNOTATIONS),
    default="instances",
    show_default=True,
    help="Annotation the network was trained on: objects, or classes only.",
)
@click.option(
    "--separation-border",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Width of the background that training cuts between touching objects, in pixels.",
)
@click.option("--memory", type=MEMORY, help="Memory limit for the first opening of FOREIGN. [default: what is free]")
@click.option(
    "--time-limit",
    type=click.FloatRange(0, min_open=True),
    default=600,
    show_default=True,
    help="Seconds that the first opening may take.",
)
def command(foreign: Path, out: Path, memory: int | None, time_limit: float, **choices: Any) -> None:
    """Convert FOREIGN, an ONNX file of another toolkit, to a model file with a fixed tile.

    The network's receptive field and grid are measured. A halo that is too small is refused, and so is a network whose
    output depends on the whole image. The file is written only if tiled inference agrees with one pass over a larger
    image. A graph that computes with its own shapes is first opened in a separate process, within --memory and
    --time-limit.
    """
    from unetrt.export.adoption import Choices, Limits, adopt

    require_writable(out.parent)
    _report(adopt(foreign, out, Choices(**choices), Limits(memory, time_limit)), out)


def _report(adoption: "Adoption", out: Path) -> None:
    spec, field = adoption.spec, adoption.field
    tile, core = ("x".join(map(str, sides)) for sides in (spec.tile, spec.core))
    size = out.stat().st_size / 1e6
    click.echo(
        f"{out}: tile {tile}, core {core}, halo {spec.halo}, grid {spec.grid}, {spec.precision}, {spec.head}, "
        f"{size:.1f} MB"
    )
    grid = "is given as" if adoption.given_grid else "is"
    click.echo(
        f"measured: an output pixel depends on pixels up to {field.radius} px away; the grid {grid} {field.grid} px"
    )
    click.echo(f"tiles against {adoption.reference}: max difference {adoption.difference:.1e} of the output's range")
    for remark in adoption.remarks:
        click.echo(f"remark: {remark}")
    click.echo(f"next: unetrt predict {out} IMAGES -o DIR")

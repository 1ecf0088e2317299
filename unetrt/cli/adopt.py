"""`unetrt adopt`."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli import MEMORY, SIZE, Parsed, echo, reading_options, real, whole
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_writable
from unetrt.runtime.geometry.plan import BORDERS
from unetrt.runtime.model.spec import ANNOTATIONS, HEADS
from unetrt.runtime.pixels.normalisation import Normalisation

if TYPE_CHECKING:
    from unetrt.export.adoption import Adoption
    from unetrt.runtime.files.formats import Reading


# The type of one number of a normalisation.
NUMBER = real()


def _normalisation_of(value: str) -> Normalisation:
    """Parse `fixed:OFFSET:SCALE` (a number each, or one for each channel), `percentile[:LOW:HIGH]` or `zscore`."""
    mode, *constants = value.split(":")
    try:
        numbers = [tuple(NUMBER(number) for number in part.split(",")) for part in constants]
    except OptionError:
        numbers = [()]
    match mode, numbers:
        # A scale of 0 would make all pixels equal.
        case "fixed", [offset, scale] if 0 not in scale:
            return Normalisation("fixed", offset=offset, scale=scale)
        case "percentile", []:
            return Normalisation("percentile")
        case "percentile", [(low,), (high,)]:
            return Normalisation("percentile", low, high)
        case "zscore", []:
            return Normalisation("zscore")
    raise OptionError(
        f"{value!r:.60} is not a normalisation: write fixed:OFFSET:SCALE for (grey value - OFFSET) * SCALE, with a "
        "SCALE other than 0, percentile, percentile:LOW:HIGH or zscore"
    )


def _names_of(value: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    names = tuple(name.strip() for name in value.split(","))
    if len(names) < 2 or "" in names or len(set(names)) < len(names):
        raise OptionError(f"{value!r:.60} are not class names: write two or more, background first: background,nuclei")
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
@click.option("--halo", type=whole(0), help="Context on each side, in pixels. [default: measured]")
@click.option("--grid", type=whole(1), help="Product of strides and poolings, in pixels. [default: measured]")
@click.option("--batch", type=whole(1), default=1, show_default=True, help="Tiles in one pass.")
@click.option(
    "--normalisation",
    type=Parsed("MODE", _normalisation_of),
    required=True,
    metavar="MODE",
    help="Normalisation of grey values: fixed:OFFSET:SCALE, percentile[:LOW:HIGH] or zscore.",
)
@click.option(
    "--classes",
    type=Parsed("A,B,...", _names_of),
    required=True,
    metavar="A,B,...",
    help="Names of the classes, background first.",
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
    type=whole(0),
    default=0,
    show_default=True,
    help="Width of the background that training cuts between touching objects, in pixels.",
)
@click.option("--output", metavar="NAME", help="The output to use, of a network that has several.")
@click.option(
    "--approximate",
    type=whole(0),
    metavar="OVERLAP",
    help="Accept a network that sees the whole image: its tiles get OVERLAP pixels of context on each side, and differ "
    "from one pass.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    help="Raw image or folder on which --approximate is measured: up to 16, larger than a tile.",
)
@reading_options
@click.option("--memory", type=MEMORY, help="Memory limit for the first opening of FOREIGN. [default: what is free]")
@click.option(
    "--time-limit",
    type=real(above=0),
    default=600,
    show_default=True,
    help="Seconds that the first opening may take.",
)
def command(
    foreign: Path,
    out: Path,
    images: Path | None,
    reading: "Reading",
    memory: int | None,
    time_limit: float,
    **choices: Any,
) -> None:
    """Convert FOREIGN, an ONNX file of another toolkit, to a model file with a fixed tile.

    The network's receptive field and grid are measured. A halo that is too small is refused, and so is a network whose
    output depends on the whole image, unless --approximate is given. The file is written only if tiled inference agrees
    with one pass over a larger image. A graph that computes with its own shapes is first opened in a separate process,
    within --memory and --time-limit.
    """
    from unetrt.cli.package import raw_frames
    from unetrt.export.adoption import Choices, TrialLimits, adopt

    require_writable(out.parent)
    frames = None if images is None else partial(raw_frames, images, reading=reading)
    _report(adopt(foreign, out, Choices(**choices), frames, TrialLimits(memory, time_limit)), out)


def _report(adoption: "Adoption", out: Path) -> None:
    spec, field = adoption.spec, adoption.field
    tile, core = ("x".join(map(str, sides)) for sides in (spec.tile, spec.core))
    size = out.stat().st_size / 1e6
    echo(
        f"{out}: tile {tile}, core {core}, halo {spec.halo}, grid {spec.grid}, {spec.precision}, {spec.head}, "
        f"{size:.1f} MB"
    )
    grid = "is given as" if adoption.given_grid else "is"
    if field is None:
        echo(f"the grid {grid} {spec.grid} px; {spec.approximate}")
    else:
        echo(
            f"measured: an output pixel depends on pixels up to {field.radius} px away; the grid {grid} {field.grid} px"
        )
        echo(f"tiles against {adoption.reference}: max difference {adoption.difference:.1e} of the output's range")
    for remark in adoption.remarks:
        echo(f"remark: {remark}")
    echo(f"next: unetrt predict {out} IMAGES -o DIR")

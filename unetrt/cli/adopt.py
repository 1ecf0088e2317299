"""`unetrt adopt`."""

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli.options import SIZE
from unetrt.runtime.artifacts import require_writable
from unetrt.runtime.errors import OptionError
from unetrt.runtime.mirror import BORDERS
from unetrt.runtime.normalisation import Normalisation
from unetrt.runtime.spec import ANNOTATIONS, HEADS

if TYPE_CHECKING:
    from unetrt.export.adoption import Adoption


class NormalisationType(click.ParamType):  # type: ignore[type-arg]
    """`fixed:OFFSET:SCALE`, one number each or one a channel with commas; `percentile[:LOW:HIGH]`; `zscore`."""

    name = "MODE"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Normalisation:  # noqa: ARG002
        """Return the normalisation."""
        if isinstance(value, Normalisation):
            return value
        mode, *constants = str(value).split(":")
        try:
            numbers = [tuple(float(number) for number in part.split(",")) for part in constants]
        except ValueError:
            numbers = [()]
        match mode, numbers:
            case "fixed", [offset, scale] if _usable(offset, scale):
                return Normalisation("fixed", offset=offset, scale=scale)
            case "percentile", []:
                return Normalisation("percentile")
            case "percentile", [(low,), (high,)]:
                return Normalisation("percentile", low, high)
            case "zscore", []:
                return Normalisation("zscore")
        raise OptionError(
            f"{value!r} is no normalisation: write fixed:OFFSET:SCALE for (grey value - OFFSET) * SCALE, with a SCALE "
            "other than 0, percentile, percentile:LOW:HIGH or zscore"
        )


def _usable(offset: tuple[float, ...], scale: tuple[float, ...]) -> bool:
    """Tell whether constants are finite, and leave pixels that differ different."""
    return all(map(isfinite, (*offset, *scale))) and 0 not in scale


class NamesType(click.ParamType):  # type: ignore[type-arg]
    """Names with commas between them."""

    name = "A,B,..."

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, ...]:  # noqa: ARG002
        """Return the names."""
        names = tuple(name.strip() for name in str(value).split(","))
        if len(names) < 2 or "" in names or len(set(names)) < len(names):
            raise OptionError(f"{value!r} are no class names: write two or more, background first: background,nuclei")
        return names


@click.command("adopt")
@click.argument("foreign", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), default="model.onnx", show_default=True)
@click.option("--tile", type=SIZE, help="The network's input, 512 or HEIGHTxWIDTH in pixels.")
@click.option("--halo", type=click.IntRange(0), help="Context on each side, in pixels; measured without it.")
@click.option("--grid", type=click.IntRange(1), help="The product of strides and poolings; measured without it.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Tiles in one pass.")
@click.option(
    "--normalisation",
    type=NormalisationType(),
    required=True,
    help="fixed:OFFSET:SCALE, percentile[:LOW:HIGH] or zscore.",
)
@click.option("--classes", type=NamesType(), required=True, help="Names, background first.")
@click.option(
    "--head",
    type=click.Choice(HEADS),
    required=True,
    help="What the output is; labels of a network of scores are the best classes.",
)
@click.option("--border", type=click.Choice(BORDERS), default="reflect", show_default=True, help="Beyond the frame.")
@click.option(
    "--annotation", type=click.Choice(ANNOTATIONS), default="instances", show_default=True, help="What it learned."
)
@click.option(
    "--separation-border",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Background cut between objects, in pixels.",
)
def command(foreign: Path, out: Path, **choices: Any) -> None:
    """Turn FOREIGN, an ONNX file of another toolkit, into a model file with a fixed tile.

    The network's receptive field and grid are measured; a halo that is too small is refused, and so is a network that
    looks at the whole image. The file appears only if its tiles answer as one pass over a larger image does.
    """
    from unetrt.export.adoption import Choices, adopt

    require_writable(out.parent)
    _tell(adopt(foreign, out, Choices(**choices)), out)


def _tell(adoption: "Adoption", out: Path) -> None:
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
    click.echo(f"tiles against {adoption.reference}: max difference {adoption.difference:.1e} of the answer's range")
    for remark in adoption.remarks:
        click.echo(f"remark: {remark}")
    click.echo(f"next: unetrt predict {out} IMAGES -o DIR")

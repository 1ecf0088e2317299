"""`unetrt package`, and what `unetrt export --package` shares with it."""

from itertools import islice
from pathlib import Path
from typing import Any

import click

from unetrt.cli.options import raw_frames
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place, require_writable

# Where a kind of package goes unless told otherwise.
PLACES = {"bioimageio": Path("model.zip"), "triton": Path("models")}
# How many frames are looked at for one that shows something.
LOOKED_AT = 4

# The options of each kind, by what they are called in Python.
OPTIONS = {
    "bioimageio": {"name": "--name", "authors": "--author", "license": "--license", "description": "--description"},
    "triton": {
        "name": "--name",
        "max_batch_size": "--max-batch",
        "max_queue_delay_microseconds": "--queue-delay",
        "instances": "--instances",
        "device": "--device",
    },
}


@click.command("package")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("kind", type=click.Choice(list(PLACES)))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="[default: model.zip, or the folder models]")
@click.option("--images", type=click.Path(path_type=Path), help="A raw image to show the model on (bioimageio).")
@click.option("--name", help="What the model is called.")
@click.option("--author", "authors", multiple=True, help="May be repeated (bioimageio).")
@click.option("--license", metavar="SPDX", help="Such as CC-BY-4.0 (bioimageio).")
@click.option("--description", help="A sentence or two (bioimageio).")
@click.option("--max-batch", "max_batch_size", type=int, help="Tiles that are gathered to one pass (triton).")
@click.option("--queue-delay", "max_queue_delay_microseconds", type=int, help="Microseconds to gather for (triton).")
@click.option("--instances", type=int, help="Copies of the model on each device (triton).")
@click.option("--device", type=click.Choice(["gpu", "cpu"]), help="Where they run (triton).")
def command(model: Path, kind: str, out: Path | None, images: Path | None, **choices: Any) -> None:
    """Put MODEL, an ONNX file or (for triton) an engine, into the form that other programs load.

    \b
    bioimageio  a .zip for the bioimage.io model zoo and the programs that read it
    triton      a folder in a model repository of NVIDIA's Triton inference server
    """  # noqa: D301 - click's own mark
    chosen = {name: value for name, value in choices.items() if value not in (None, ())}
    require_about(kind, chosen)
    out = out or PLACES[kind]
    require_package_place(kind, out)
    write = _write_engine if model.suffix.lower() in SUFFIXES else _write_model
    click.echo(f"{write(model, kind, out, images, chosen)}: a package for {kind}")


def require_about(kind: str | None, chosen: dict[str, Any]) -> None:
    """Raise OptionError where options are given that a kind of package, or None, does not have, or not so."""
    from unetrt.export.packages import named_kind

    known = OPTIONS[kind] if kind else {}
    names = {name: option for options in OPTIONS.values() for name, option in options.items()}
    for name in chosen:
        if name not in known:
            of = " or ".join(place for place, options in OPTIONS.items() if name in options)
            raise OptionError(f"{names[name]} is for packages of {of}, not for {kind or 'a single file'}: leave it out")
    if kind:
        named_kind(kind).choose(**chosen)


def require_package_place(kind: str, out: Path) -> None:
    """Raise an error where no package of that kind can be written."""
    from unetrt.export.packages import named_kind

    suffix = named_kind(kind).suffix
    if not suffix:
        require_writable(out)
        return
    require_place(out)
    if out.suffix != suffix:
        raise OptionError(f"a {kind} package is a {suffix}: use {out.with_suffix(suffix)}")


def _write_engine(model: Path, kind: str, out: Path, _images: Path | None, chosen: dict[str, Any]) -> Path:
    from unetrt.export.packages import write

    if kind != "triton":
        raise OptionError(f"a {kind} package holds an ONNX file: give the one that {model} was built from")
    return write(kind, model, out, **chosen)


def _write_model(model: Path, kind: str, out: Path, images: Path | None, chosen: dict[str, Any]) -> Path:
    from unetrt.export.packages import named_kind, write
    from unetrt.runtime.model.onnx_file import read_spec

    if named_kind(kind).needs_frame and images is None:
        raise OptionError(f"a {kind} package shows the model on a raw image: give one with --images")
    channels = read_spec(model).channels
    frames = list(islice(raw_frames(images, channels), LOOKED_AT)) if images else []
    return write(kind, model, out, frames, **chosen)

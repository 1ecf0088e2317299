"""`unetrt package`, and the parts that `unetrt export --package` shares with it."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli import MODEL, echo, reading_options, whole
from unetrt.export.packages import KINDS, named_kind, write
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import require_place, require_writable

if TYPE_CHECKING:
    from unetrt.runtime.files.formats import Reading

# Most images of a folder that are read, evenly spaced.
SAMPLES = 16
# Most frames that are searched for one in which the model finds something.
SEARCHED = 4

# Kind -> field of its choices -> option.
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
@click.argument("model", type=MODEL)
@click.argument("kind", type=click.Choice([kind.name for kind in KINDS]))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="The package. [default: model.zip, or the folder models]"
)
@click.option("--images", type=click.Path(path_type=Path), help="Raw image or folder for the example (bioimageio).")
@reading_options
@click.option("--name", help="Name of the model in the package.")
@click.option("--author", "authors", multiple=True, help="Name of an author; repeatable (bioimageio).")
@click.option("--license", metavar="SPDX", help="Licence, such as CC-BY-4.0 (bioimageio).")
@click.option("--description", help="One or two sentences about the model (bioimageio).")
@click.option("--max-batch", "max_batch_size", type=whole(), help="Largest number of tiles in one pass (triton).")
@click.option(
    "--queue-delay",
    "max_queue_delay_microseconds",
    type=whole(),
    help="Longest wait for other requests, in microseconds (triton).",
)
@click.option("--instances", type=whole(), help="Copies of the model on each device (triton).")
@click.option("--device", type=click.Choice(["gpu", "cpu"]), help="Device of the copies (triton).")
def command(model: Path, kind: str, out: Path | None, images: Path | None, reading: "Reading", **choices: Any) -> None:
    """Package MODEL in the format of another program.

    bioimageio is a .zip for the bioimage.io model zoo and the programs that read it. triton is a folder in a model
    repository of NVIDIA's Triton inference server. MODEL is an ONNX file or, for triton, a TensorRT engine.
    """
    chosen = {name: value for name, value in choices.items() if value not in (None, ())}
    require_options(kind, chosen)
    out = package_place(kind, out)
    frames: list[Any] = []
    if model.suffix.lower() in SUFFIXES:
        if kind != "triton":
            raise OptionError(f"a {kind} package holds an ONNX file: give the one that {model} was built from")
    else:
        from unetrt.runtime.model.onnx_file import read_spec

        if named_kind(kind).needs_frame and images is None:
            raise OptionError(f"a {kind} package shows the model on a raw image: give one with --images")
        channels = read_spec(model).channels
        frames = list(islice(raw_frames(images, channels, reading), SEARCHED)) if images else []
    echo(f"{write(kind, model, out, frames, **chosen)}: a package for {kind}")


def require_options(kind: str | None, chosen: dict[str, Any]) -> None:
    """Raise OptionError for an option that a kind of package (None: a single file) does not have, or a bad value."""
    known = OPTIONS[kind] if kind else {}
    names = {name: option for options in OPTIONS.values() for name, option in options.items()}
    for name in chosen:
        if name not in known:
            of = " or ".join(other for other, options in OPTIONS.items() if name in options)
            raise OptionError(f"{names[name]} is for packages of {of}, not for {kind or 'a single file'}: leave it out")
    if kind:
        named_kind(kind).choose(**chosen)


def package_place(kind: str, out: Path | None) -> Path:
    """Return the place of a package, the default if none is given; raises an error where it cannot be written."""
    package = named_kind(kind)
    out = out or package.place
    if not package.suffix:
        return require_writable(out)
    require_place(out)
    if out.suffix != package.suffix:
        raise OptionError(f"a {kind} package is a {package.suffix}: use {out.with_suffix(package.suffix)}")
    return out


def raw_frames(images: Path, channels: int, reading: "Reading | None" = None) -> Iterator[Any]:
    """Iterate over images of a file or folder as raw frames (C, H, W): at most `SAMPLES`, of a stack the first."""
    from unetrt.runtime.files.formats import AS_STORED
    from unetrt.runtime.files.images import read_frames
    from unetrt.runtime.files.sources import list_images
    from unetrt.runtime.pixels.frames import as_frame, stack_of

    reading = reading or AS_STORED
    paths = list_images(images, reading)
    for path in paths[:: -(-len(paths) // SAMPLES)]:
        yield as_frame(stack_of(read_frames(path, channels, reading), channels)[0], channels)

"""`unetrt convert`: files for other programs, made from existing labels."""

from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import click

from unetrt.cli import echo, montage_option, reading_options, saved_option
from unetrt.cli.predict import report_failures
from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.atomic import require_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unetrt.runtime.files.formats import Reading
    from unetrt.runtime.files.outputs.labelled_image import LabelledImage
    from unetrt.runtime.files.sources import ImageSource
    from unetrt.runtime.model.spec import Annotation


@click.command("convert")
@click.argument("labels", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), required=False)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for the files."
)
@saved_option
@click.option(
    "--as",
    "kind",
    type=click.Choice(["instances", "classes"]),
    default="instances",
    show_default=True,
    help="What labels are: numbers of objects, or classes.",
)
@montage_option
@click.option("--overlays/--no-overlays", default=False, show_default=True, help="Write overlays/NAME.png.")
@reading_options
def command(
    labels: Path,
    images: Path | None,
    out: Path,
    saved: tuple[str, ...],
    kind: "Annotation",
    montage: bool,
    overlays: bool,
    reading: "Reading",
) -> None:
    """Write files for other programs from LABELS, a file or folder of label images.

    IMAGES are the images that the labels belong to, paired by name: their grey values are measured, drawn and, with
    --save ome-zarr, stored. Without them, tables have no intensities, and outlines are drawn on black.

    Labels keep their numbers. Axes and pixel size are those of the label file or, if it has none, of the image.
    """
    from unetrt.runtime.files.images import require_distinct
    from unetrt.runtime.files.outputs import opened_outputs, places, require_instances, require_kinds
    from unetrt.runtime.files.sources import list_images

    kinds = require_kinds(saved or ["labels"])
    require_instances(kinds, kind)
    sources = list_images(labels, reading, results=out, annotations=True)
    partners = _partners(sources, images, reading)
    require_writable(out)
    written = partial(places, kinds, overlays=overlays, sheet=montage)
    require_distinct(sources, out, written, inputs=partners.values())
    channels = _channels(partners, reading)
    failures: list[FrameError] = []
    sheet = len(sources) if montage else 0
    with opened_outputs(out, kinds, channels=channels, overlays=overlays, sheet=sheet) as files:
        for source in sources:
            try:
                files.write(_labelled(source, partners.get(source.name), channels, kind, reading))
            except FrameError as error:
                failures.append(error)
    if done := len(sources) - len(failures):
        echo(f"{done} label image{'s' * (done != 1)} -> {out} ({', '.join(kinds)})")
    report_failures(failures, len(sources), "converted")


def _partners(sources: "Sequence[ImageSource]", images: Path | None, reading: "Reading") -> "dict[str, ImageSource]":
    """Return the image of each label image by its name; empty without images.

    A single file belongs to a single file, whatever their names.
    """
    from unetrt.runtime.files.sources import list_images

    if images is None:
        return {}
    found = list_images(images, reading)
    if len(sources) == len(found) == 1:
        return {sources[0].name: found[0]}
    by_name = {source.name: source for source in found}
    for source in sources:
        if source.name not in by_name:
            raise FrameError(f"{images} has no image for {source}: each needs one of the same name, {source.name}")
    return {source.name: by_name[source.name] for source in sources}


def _channels(partners: "dict[str, ImageSource]", reading: "Reading") -> int:
    """Return the channels of the first image that can be read; 0 without images."""
    from unetrt.runtime.files.images import fitting, read_image

    for partner in partners.values():
        with suppress(FrameError):  # reported later
            return int(fitting(read_image(partner, reading), 1).shape[1])
    return 0


def _labelled(
    source: "ImageSource", partner: "ImageSource | None", channels: int, kind: "Annotation", reading: "Reading"
) -> "LabelledImage":
    """Read a label image, and the image that it belongs to."""
    from unetrt.runtime.files.images import fitting, layout_of, read_image, read_label_stack, stacked_axes_of
    from unetrt.runtime.files.outputs.label_tiff import highest_of
    from unetrt.runtime.files.outputs.labelled_image import LabelledImage
    from unetrt.runtime.pixels.frames import as_frame

    planes = read_label_stack(source, reading)
    try:
        highest_of(planes)
    except FrameError as error:
        raise FrameError(f"{source}: {error}") from error
    image = None if partner is None else read_image(partner, reading)
    pixels = None if image is None else fitting(image, channels)
    for frame in () if pixels is None else pixels:
        try:
            as_frame(frame, len(frame))
        except FrameError as error:
            raise FrameError(f"{partner}: {error}") from error
    layouts = [layout for layout in (layout_of(source, reading), image and image.layout) if layout is not None]
    named = [stacked_axes_of(layout) for layout in layouts]
    # Of the axes that fit, those whose names OME knows come first.
    candidates = sorted(
        (each for each in named if prod(each[1]) == len(planes)), key=lambda each: not {*each[0]} <= {*"TZYX"}
    )
    axes, lengths = candidates[0] if candidates else ("TYX", planes.shape[:1])
    return LabelledImage(
        source.name,
        planes.reshape(*lengths, *planes.shape[-2:]),
        kind,
        frames=pixels,
        axes=axes,
        pixel_size=next((layout.pixel_size for layout in layouts if layout.pixel_size), None),
        source=(partner or source).file_name,
    )

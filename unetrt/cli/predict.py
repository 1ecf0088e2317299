"""`unetrt predict`: label TIFFs and overlays of image files."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from unetrt.cli import MODEL, EngineOptions, engine_options, kind_option
from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.atomic import require_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetrt.runtime.model.spec import Annotation


@click.command("predict")
@click.argument("model", type=MODEL)
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for labels and overlays."
)
@kind_option
@click.option("--min-area", default=0, show_default=True, metavar="PIXELS", help="Drop instances smaller than this.")
@click.option("--tta", is_flag=True, help="Average over 8 rotated and reflected copies; takes 8 times as long.")
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Write overlays/NAME.png.")
@engine_options
def command(
    model: Path,
    images: tuple[Path, ...],
    out: Path,
    kind: "Annotation | None",
    min_area: int,
    tta: bool,
    overlays: bool,
    engine: EngineOptions,
) -> None:
    """Segment IMAGES, files or folders (TIFF, PNG, NPY, Zarr), with MODEL.

    MODEL is an ONNX file written by `unetrt export`, a TensorRT engine built by `unetrt build`, or a name that `unetrt
    models` lists. On a machine with a
    GPU and TensorRT, the engine of an ONNX file is built first and cached.

    Writes DIR/NAME.tif (labels) and DIR/overlays/NAME.png for each image. Stacks are segmented frame by frame. Images
    that cannot be segmented are skipped and listed at the end.
    """
    from unetrt.runtime.files.images import Output, list_images, predict_file, require_distinct

    engine.require_backend()
    sources = [file for place in images for file in list_images(place)]
    require_writable(out)
    require_distinct(sources, out, overlays=overlays)
    failures: list[FrameError] = []
    with engine.segmenter(model) as segmenter, _bar(len(sources)) as progress_of:
        output = Output(out, kind or segmenter.spec.annotation, min_area, overlays, tta)
        begin, pixels, objects = time.perf_counter(), 0, 0
        for source in sources:
            try:
                labels = predict_file(segmenter, source, output, progress_of(source.name))
            except FrameError as error:
                failures.append(error)
                continue
            pixels += labels.size
            objects += _objects(labels)
        seconds = time.perf_counter() - begin
        name = segmenter.session.name
    if segmented := len(sources) - len(failures):
        found = f", {objects} objects" if output.kind == "instances" else ""
        speed = f"{seconds:.1f} s, {pixels / seconds / 1e6:.1f} Mpixel/s"
        click.echo(f"{segmented} images{found} -> {out} ({speed}, {name})")
    _report(failures, len(sources))


def _report(failures: list[FrameError], images: int) -> None:
    """Raise the error of a single image; of several, list each on a line and raise their number."""
    if len(failures) == images == 1:
        raise failures[0]
    for failure in failures:
        click.echo(f"skipped: {failure}", err=True)
    if failures:
        rest = ", the others are done" if len(failures) < images else ""
        raise FrameError(f"{len(failures)} of {images} images could not be segmented{rest}")


def _objects(labels: "NDArray[Any]") -> int:
    """Return the number of instances in labels (H, W) or (N, H, W); each frame counts from 1."""
    return sum(int(frame.max()) for frame in labels.reshape(-1, *labels.shape[-2:]))


@contextmanager
def _bar(images: int) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Show a progress bar over images on standard error; yield what makes the progress callback of the next image."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("segmenting", total=images)
        numbers = count()

        def start(name: str) -> Callable[[int, int], None]:
            before = next(numbers)
            bar.update(task, description=name, completed=before)
            return lambda done, total: bar.update(task, completed=before + done / total)

        yield start

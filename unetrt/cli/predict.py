"""`unetrt predict`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import click

from unetrt.cli.options import backend_option, given_options
from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.atomic import require_writable


@click.command("predict")
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for labels and overlays."
)
@click.option(
    "--as", "kind", type=click.Choice(["instances", "classes"]), help="[default: what the model was trained on]"
)
@click.option("--min-area", default=0, show_default=True, help="Drop instances of fewer pixels.")
@click.option("--tta", is_flag=True, help="Average over 8 rotated and reflected copies; takes 8 times as long.")
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Write overlays/NAME.png.")
@click.option("--backend", default="auto", show_default=True, help="tensorrt, onnxruntime-cuda, onnxruntime (CPU), ...")
@backend_option
@click.option("--device", type=int, metavar="N", help="GPU, as CUDA counts [default: the first, or the CPU].")
@click.option("--lanes", type=int, default=2, show_default=True, help="Passes in flight at once.")
def command(model: Path, images: tuple[Path, ...], out: Path, **choices: Any) -> None:
    """Segment IMAGES, files or folders (TIFF, PNG, NPY, Zarr), with MODEL.

    MODEL is an ONNX file that `unetrt export` wrote, or a TensorRT engine that `unetrt build` did. On a machine with a
    GPU and TensorRT, the engine of an ONNX file is built first and kept.

    Writes DIR/NAME.tif (labels) and DIR/overlays/NAME.png for each image. Stacks are segmented frame by frame. An image
    that cannot be segmented is left out and named at the end.
    """
    from unetrt.runtime.files.images import Output, list_images, predict_file, require_distinct
    from unetrt.runtime.segment.segmenter import Segmenter
    from unetrt.runtime.sessions import engines, unknown

    place = {name: choices.pop(name) for name in ("backend", "device", "lanes")}
    place["backend_options"] = given_options(choices.pop("backend_options"))
    if place["backend"] not in engines():
        raise unknown(place["backend"])
    sources = [file for given in images for file in list_images(given)]
    require_writable(out)
    require_distinct(sources, out, overlays=choices["overlays"])
    with Segmenter(model, **place) as segmenter:
        kind = choices.pop("kind") or segmenter.spec.annotation
        output = Output(out, kind, **choices)
        begin, pixels, objects = time.perf_counter(), 0, 0
        failures: list[FrameError] = []
        with _bar(len(sources)) as progress_of:
            for source in sources:
                try:
                    labels = predict_file(segmenter, source, output, progress_of(source.name))
                except FrameError as error:
                    failures.append(error)
                    continue
                pixels += labels.size
                objects += _highest(labels)
        seconds = time.perf_counter() - begin
        found = f", {objects} objects" if kind == "instances" else ""
        speed = f"{seconds:.1f} s, {pixels / seconds / 1e6:.1f} Mpixel/s"
        if len(failures) < len(sources):
            done = len(sources) - len(failures)
            click.echo(f"{done} images{found} -> {out} ({speed}, {segmenter.session.name})")
    _report(failures, len(sources))


def _report(failures: list[FrameError], images: int) -> None:
    """Raise what went wrong with one image; with several, name each on a line and say how many."""
    if len(failures) == images == 1:
        raise failures[0]
    for failure in failures:
        click.echo(f"left out: {failure}", err=True)
    if failures:
        rest = ", the others are done" if len(failures) < images else ""
        raise FrameError(f"{len(failures)} of {images} images could not be segmented{rest}")


def _highest(labels: Any) -> int:
    planes = labels[None] if labels.ndim == 2 else labels
    return sum(int(plane.max()) for plane in planes)


@contextmanager
def _bar(images: int) -> Iterator[Callable[[str], Callable[[int, int], None]]]:
    """Show a bar over images on standard error; what it yields makes the progress callback of one image."""
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

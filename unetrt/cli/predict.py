"""`unetrt predict`: label TIFFs and overlays of image files."""

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial, wraps
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

import click

from unetrt.cli import (
    MODEL,
    SIZE,
    EngineOptions,
    echo,
    engine_options,
    kind_option,
    montage_option,
    reading_options,
    saved_option,
    whole,
)
from unetrt.runtime.errors import FrameError, UnetrtError, printable
from unetrt.runtime.files.atomic import require_writable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from unetrt.runtime.blockwise.run import RunSummary
    from unetrt.runtime.files.formats import Reading
    from unetrt.runtime.files.images import Output
    from unetrt.runtime.files.outputs import Outputs
    from unetrt.runtime.files.sources import ImageSource
    from unetrt.runtime.model.spec import Annotation, ModelSpec
    from unetrt.runtime.segment.segmenter import Segmenter

log = logging.getLogger("unetrt")

# Frames of a file by which a tile is planned at most; more of the same size change nothing.
MANY = 100_000


@dataclass(frozen=True)
class BlockwiseOptions:
    """Options of how images are processed in blocks; see `runtime.blockwise.run.Blockwise`.

    Attributes
    ----------
    given
        Those that the user gave; with one of them all images are processed in blocks.
    """

    given: Mapping[str, Any]

    @property
    def side(self) -> int:
        """The longer side of a block that is wished for, in pixels."""
        from unetrt.runtime.blockwise.run import BLOCK

        block: tuple[int, int] = self.given.get("block", BLOCK)
        return max(block)

    def applies_to(self, source: "ImageSource", reading: "Reading") -> bool:
        """Whether an image is processed in blocks: on request, or if it is large."""
        from unetrt.runtime.blockwise import missing_packages
        from unetrt.runtime.files.images import is_large, stack_shape

        if self.given:
            return True
        shape = stack_shape(source, reading)
        if shape is None or not is_large(shape):
            return False
        missing = missing_packages()
        if missing:
            log.warning(
                "%s is large, and segmented as a whole: pip install 'unetrt[distributed]' does it in blocks, in less "
                "memory",
                printable(str(source)),
            )
        return not missing

    def unfinished_tile(self, names: Collection[str], out: Path) -> tuple[tuple[int, int], int] | None:
        """Return the tile, and the batch, of the first unfinished run of these images that `--resume` goes on with."""
        if not self.given.get("resume"):
            return None
        from unetrt.runtime.blockwise.run import unfinished_tile

        found = (unfinished_tile(name, out, self.given.get("scratch")) for name in names)
        return next(filter(None, found), None)

    def predict(
        self,
        segmenter: "Segmenter",
        model: Path,
        source: "ImageSource",
        output: "Output",
        reading: "Reading",
        engine: EngineOptions,
        progress: Callable[[float, float], None],
    ) -> "RunSummary":
        """Segment an image in blocks."""
        from unetrt.runtime.blockwise.run import Blockwise, predict_blocks
        from unetrt.runtime.machine import return_freed_memory

        return_freed_memory()
        return predict_blocks(
            segmenter,
            model,
            source,
            output,
            Blockwise(**self.given),
            reading=reading,
            engine=asdict(engine),
            progress=lambda share: progress(share, 1),
        )


def blockwise_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of blocks to a command, which gets them as `blockwise`, a `BlockwiseOptions`."""

    @wraps(command)
    def with_blocks(
        *,
        block: tuple[int, int] | None,
        workers: int | None,
        scheduler: str | None,
        scratch: str | None,
        resume: bool | None,
        zarr_version: str | None,
        **others: Any,
    ) -> Any:
        given = {
            "block": block,
            "workers": workers,
            "scheduler": scheduler,
            "scratch": scratch,
            "resume": resume,
            "version": zarr_version,
        }
        given = {name: value for name, value in given.items() if value is not None}
        return command(blockwise=BlockwiseOptions(given), **others)

    options = (
        click.option(
            "--block",
            type=SIZE,
            help="Process images in blocks of about this many pixels. [default: 2048x2048, for large images]",
        ),
        click.option(
            "--workers",
            type=whole(1, 1024),
            metavar="N",
            help="Blocks that this process works on at once. [default: 3]",
        ),
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Process the blocks on a Dask cluster, by the address of its scheduler: tcp://HOST:PORT.",
        ),
        click.option(
            "--scratch",
            metavar="DIR|ADDRESS",
            help="Where computed blocks are kept until the run ends. [default: a hidden folder beside the results]",
        ),
        click.option(
            "--resume/--restart",
            default=None,
            help="Go on with an unfinished run of the image if there is one, or start again.",
        ),
        click.option(
            "--zarr-version",
            type=click.Choice(["0.4", "0.5"]),
            help="Version of OME-Zarr of labels that are written in blocks. [default: 0.4]",
        ),
    )
    for option in reversed(options):
        with_blocks = option(with_blocks)
    return with_blocks


class Written(TypedDict):
    """Options of `unetrt predict` about what is computed and written; see `runtime.files.images.Output`."""

    kind: "Annotation | None"
    min_area: int
    tta: bool
    overlays: bool
    saved: tuple[str, ...]
    table: bool
    montage: bool


@click.command("predict")
@click.argument("model", type=MODEL)
@click.argument("images", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, metavar="DIR", help="Folder for labels and overlays."
)
@kind_option
@click.option(
    "--min-area",
    type=whole(),
    default=0,
    show_default=True,
    metavar="PIXELS",
    help="Drop instances that would be written with fewer pixels than this.",
)
@click.option("--tta", is_flag=True, help="Average over 8 rotated and reflected copies; takes 8 times as long.")
@click.option(
    "--tile",
    "choice",
    type=click.Choice(["auto", "planned", "model"]),
    default="auto",
    show_default=True,
    help="The tile planned for the images, or the model file's; auto: the faster one, but the file's on a GPU.",
)
@saved_option
@click.option("--table", is_flag=True, help="The same as --save table, besides the other files.")
@montage_option
@click.option("--overlays/--no-overlays", default=True, show_default=True, help="Write overlays/NAME.png.")
@reading_options
@blockwise_options
@engine_options
def command(
    model: Path,
    images: tuple[Path, ...],
    out: Path,
    choice: str,
    reading: "Reading",
    blockwise: BlockwiseOptions,
    engine: EngineOptions,
    **written: Unpack[Written],
) -> None:
    """Segment IMAGES, files or folders (TIFF, PNG, NPY, Zarr and others), with MODEL.

    MODEL is an ONNX file written by `unetrt export`, a TensorRT engine built by `unetrt build`, or a name that `unetrt
    models` lists. On a machine with a GPU and TensorRT, the engine of an ONNX file is built first and cached.

    On a CPU the tile is planned for the sizes of the images, if that saves time. The first time, a drawn frame verifies
    that the result with this tile is the same.

    Writes DIR/NAME.tif (labels) and DIR/overlays/NAME.png for each image; --save chooses other files, whose labels have
    the axes and the pixel size of the image. Images in subfolders are read too, and their results are in subfolders of
    the same names; results, and annotations beside images, are left out. Stacks are segmented frame by frame. Images
    that cannot be segmented are skipped and listed at the end.

    Images larger than 64 Mpixel are processed in blocks, with the same result: memory does not grow with the image, and
    --resume goes on after a kill. --scheduler distributes the blocks over a Dask cluster.

    With --table, DIR/objects.csv lists area, centroid, bounding box, intensities and shape of each instance, and its
    confidence from 0 to 1 unless the model's head is labels.
    """
    from unetrt.runtime.files.images import Output, predict_file, require_distinct
    from unetrt.runtime.files.outputs import places, require_instances, require_kinds
    from unetrt.runtime.files.sources import list_images, named_apart

    tta = written["tta"]
    engine.require_backend()
    kinds = require_kinds([*(written["saved"] or ["labels"]), *["table"] * written["table"]])
    sources = named_apart([file for place in images for file in list_images(place, reading, results=out)])
    require_writable(out)
    require_distinct(sources, out, partial(places, kinds, overlays=written["overlays"], sheet=written["montage"]))
    failures: list[FrameError] = []
    by_blocks = dict.fromkeys(source.name for source in sources if blockwise.applies_to(source, reading))
    if choice != "model":
        sizes = _frame_sizes(sources, tta, reading, blockwise.side if by_blocks else None)
        model = _with_tile(choice, model, sizes, engine, blockwise.unfinished_tile(by_blocks, out))
    with ExitStack() as opened:
        segmenter = opened.enter_context(engine.segmenter(model))
        kind = written["kind"] or segmenter.spec.annotation
        require_instances(kinds, kind)
        files = opened.enter_context(_files(out, kinds, segmenter.spec, written, len(sources)))
        progress_of = opened.enter_context(_bar(len(sources)))
        output = Output(files, kind, written["min_area"], tta)
        begin, pixels, objects, blocks, computed = time.perf_counter(), 0, 0, 0, 0
        for source in sources:
            try:
                if source.name in by_blocks:
                    done = blockwise.predict(
                        segmenter, model, source, output, reading, engine, progress_of(source.name)
                    )
                    pixels, objects = pixels + done.pixels, objects + done.objects
                    blocks, computed = blocks + done.blocks, computed + done.computed
                    continue
                labels = predict_file(segmenter, source, output, progress_of(source.name), reading)
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
        parts = f", {blocks} blocks, {blocks - computed} of them from an unfinished run" if blocks else ""
        echo(f"{segmented} images{found}{parts} -> {out} ({speed}, {name})")
    report_failures(failures, len(sources), "segmented")


def _with_tile(
    choice: str,
    model: Path,
    frames: list[tuple[int, int]],
    engine: EngineOptions,
    unfinished: tuple[tuple[int, int], int] | None,
) -> Path:
    """Return a file of the model with the tile to use, which is `model` itself or is in the cache.

    `frames` holds (H, W) of each frame that is computed; without any, the file's own tile is used. `unfinished` is the
    tile, and the batch, of a run that goes on.
    """
    from unetrt.runtime.sessions.retile import model_for, model_if_worth, model_with

    if not frames:
        return model
    if unfinished is not None:
        try:
            return model_with(model, *unfinished)
        except UnetrtError as error:  # it is the run of another model, which is refused later
            log.info("the tile of the unfinished run is not used: %s", error)
    if choice == "planned":
        chosen = model_for(model, frames, engine.backend, engine.device, engine.lanes)
    else:
        try:
            chosen = model_if_worth(model, frames, engine.backend, engine.device)
        except UnetrtError as error:
            log.info("the file's own tile is used: %s", error)
            return model
    if chosen != model:
        _say_which_tile(chosen, model)
    return chosen


def _say_which_tile(chosen: Path, model: Path) -> None:
    from unetrt.runtime.model.onnx_file import read_spec

    planned, own = ("{}x{}".format(*read_spec(path).tile) for path in (chosen, model))
    echo(f"tile {planned}, planned for these images; --tile model uses the file's, {own}", err=True)


def _frame_sizes(
    sources: "list[ImageSource]", tta: bool, reading: "Reading", most: int | None
) -> list[tuple[int, int]]:
    """Return (H, W) of each frame that is computed, from the headers of the images; unreadable ones are left out.

    `most` is the largest side of a part that is computed at once; None: frames are.
    """
    from unetrt.runtime.files.images import stack_shape

    sizes = []
    for shape in filter(None, (stack_shape(source, reading) for source in sources)):
        number, _, height, width = min(shape[0], MANY), *shape[1:]
        if most is not None:
            height, width = min(height, most), min(width, most)
        # Half of the rotated and reflected copies have rows and columns exchanged.
        sizes += [(height, width), (width, height)] * (4 * number) if tta else [(height, width)] * number
    return sizes


def _files(
    out: Path, kinds: list[str], spec: "ModelSpec", written: Written, images: int
) -> "AbstractContextManager[Outputs]":
    """Return what writes the files of the run, to be opened."""
    from unetrt.runtime.files.outputs import opened_outputs

    return opened_outputs(
        out,
        kinds,
        channels=spec.channels,
        confident=spec.head != "labels",
        overlays=written["overlays"],
        sheet=images if written["montage"] else 0,
    )


def report_failures(failures: list[FrameError], images: int, done: str) -> None:
    """Raise the error of a single image; of several, list each on a line and raise their number.

    Parameters
    ----------
    failures
        The errors.
    images
        Number of all images.
    done
        What could not be done with some of them, such as ``"segmented"``.
    """
    if len(failures) == images == 1:
        raise failures[0]
    for failure in failures:
        echo(f"skipped: {failure}", err=True)
    if failures:
        rest = ", the others are done" if len(failures) < images else ""
        raise FrameError(f"{len(failures)} of {images} images could not be {done}{rest}")


def _objects(labels: "NDArray[Any]") -> int:
    """Return the number of instances in labels (H, W) or (N, H, W); each frame counts from 1."""
    return sum(int(frame.max()) for frame in labels.reshape(-1, *labels.shape[-2:]))


@contextmanager
def _bar(images: int) -> Iterator[Callable[[str], Callable[[float, float], None]]]:
    """Show a progress bar over images on standard error; yield what makes the progress callback of the next image."""
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("segmenting", total=images)
        numbers = count()

        def start(name: str) -> Callable[[float, float], None]:
            before = next(numbers)
            if not bar.disable:
                bar.update(task, description=escape(printable(name)), completed=before)
            return lambda done, total: bar.update(task, completed=before + done / total)

        yield start

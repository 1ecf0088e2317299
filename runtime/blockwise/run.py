"""A run over the blocks of an image: what is done before, the graph of its tasks, and what is done after.

Each block is a chain of tasks (`stages`), which only depend on those of the blocks around it, so that reading,
computing and writing of different blocks overlap. Two things wait for all blocks of a frame: its normalisation, unless
it is fixed, is measured before, and objects are numbered once all are known.

What is computed is kept in a folder beside the results, and removed at the end. After a kill, or an error, `resume`
goes on from there.
"""

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.blockwise.processes import (
    begin_work,
    end_work,
    require_fit,
    require_sendable,
    run_stage,
    send_model,
)
from unetrt.runtime.blockwise.results import Results
from unetrt.runtime.blockwise.scheduling import Scheduler, scheduler_at
from unetrt.runtime.blockwise.scratch import RUN, link_below, run_folder, scratch_of
from unetrt.runtime.blockwise.stages import RECORDS, BlockWorker, Job, LabelArrays
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import FrameError, OptionError, OutputError, UnetrtError, printable, shown
from unetrt.runtime.files.atomic import locked, writable_folder
from unetrt.runtime.files.formats import AS_STORED, Layout, Reading
from unetrt.runtime.files.images import readable
from unetrt.runtime.files.outputs import TABLES, require_by_windows
from unetrt.runtime.files.outputs.zarr_pyramid import FORMATS, Version
from unetrt.runtime.files.sources import AnyPath, ImageSource, source_of
from unetrt.runtime.files.windows import ArraySource, open_windows
from unetrt.runtime.geometry.plan import is_size
from unetrt.runtime.model.integrity import sha256_of_model
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.pixels.frames import require_numbers

if TYPE_CHECKING:
    from unetrt.runtime.files.images import Output
    from unetrt.runtime.segment.segmenter import Segmenter

log = logging.getLogger("unetrt")
Array = NDArray[Any]
Size = tuple[int, int]

# Share of the work that is done at the beginning and at the end of each step, as far as it is known.
SEGMENT, WRITE, COARSEN = (0.0, 0.9), (0.9, 0.96), (0.96, 1.0)
# Height and width of blocks by default: objects of one take some 50 MB while they are decoded.
BLOCK = (2048, 2048)
# Blocks at once by default: one is computed while the next is read and the last one decoded or written.
WORKERS, MOST_WORKERS = 3, 1024
# Tasks that count the grey values of a frame on a cluster; each takes some 0.5 MB for each channel.
COUNTERS = 64
# Kinds of files that need measurements of the objects.
MEASURED = {*TABLES, "rois", "geojson"}


@dataclass(frozen=True)
class Blockwise:
    """How an image is processed in blocks.

    Attributes
    ----------
    block
        Height and width of a block that are wished for, in pixels; the nearest multiples of the distance of tiles are
        used. Results do not depend on it.
    workers
        Blocks that this process works on at once, without `scheduler`.
    scheduler
        Address of the scheduler of a Dask cluster, such as ``tcp://10.0.0.1:8786``; None: this process.
    scratch
        Folder, or address of fsspec, for what is computed so far; None: a hidden folder beside the results.
    resume
        Whether to go on with an unfinished run of the image, if there is one; None: raise OptionError if there is one;
        False: start again.
    version
        Version of OME-Zarr of the labels, see `Pyramid`.
    """

    block: Size = BLOCK
    workers: int = WORKERS
    scheduler: str | None = None
    scratch: str | Path | None = None
    resume: bool | None = None
    version: Version = "0.4"

    def __post_init__(self) -> None:
        if type(self.workers) is not int or not 1 <= self.workers <= MOST_WORKERS:
            raise OptionError(f"workers must be an integer from 1 to {MOST_WORKERS} (got {shown(self.workers)})")
        if not is_size(self.block) or min(self.block) < 1:
            raise OptionError(f"block must be a height and a width in pixels, from 1 (got {shown(self.block)})")
        if not isinstance(self.version, str) or self.version not in FORMATS:
            raise OptionError(f"version must be {' or '.join(FORMATS)} (got {shown(self.version)})")
        if not isinstance(self.scheduler, str | None):
            raise OptionError(f"scheduler must be an address, such as tcp://HOST:PORT (got {shown(self.scheduler)})")
        if not isinstance(self.scratch, str | Path | None):
            raise OptionError(f"scratch must be a folder or an address (got {shown(self.scratch)})")
        if not isinstance(self.resume, bool | None):
            raise OptionError(f"resume must be True, False or None (got {shown(self.resume)})")


@dataclass(frozen=True)
class RunSummary:
    """What a run did.

    Attributes
    ----------
    pixels
        Pixels of all frames.
    objects
        Objects of all frames; 0 for classes.
    blocks, computed
        Number of blocks, and of those whose classes this run computed.
    """

    pixels: int
    objects: int
    blocks: int
    computed: int


def predict_blocks(
    segmenter: "Segmenter",
    model: Path | None,
    image: AnyPath | ArraySource,
    output: "Output",
    how: Blockwise = Blockwise(),
    *,
    reading: Reading = AS_STORED,
    engine: Mapping[str, Any] | None = None,
    progress: Callable[[float], None] | None = None,
) -> RunSummary:
    """Segment one image of any size in blocks, and write its labels and other files under the output folder.

    Labels and tables equal those of `predict_file`.

    Parameters
    ----------
    segmenter
        The model, used in this process.
    model
        Its file, of which workers of a cluster get a copy; None: not known, and no cluster is used.
    image
        The image.
    output
        What is written.
    how
        How the image is processed.
    reading
        How it is read.
    engine
        Arguments of `Segmenter` for workers of a cluster.
    progress
        Called with the share of the work that is done, from 0 to 1, on any thread.

    Raises
    ------
    FrameError
        The image cannot be read or does not fit the model.
    OptionError
        A file cannot be written by blocks, or there is an unfinished run of the image; see `Blockwise`.
    OutputError
        A file cannot be written, or another process works on the same image.
    BackendUnavailableError
        No scheduler answers at the address, or its workers have another version of unetrt.
    InferenceError
        Workers were lost again and again while they computed the same block.
    """
    source = image if isinstance(image, ArraySource) else _absolute_source(source_of(image))
    if how.scheduler is not None:
        require_sendable(source, model)
    require_by_windows(output.files.kinds, source.name)
    work = run_folder(source.name, output.files.folder)
    scratch = scratch_of(source.name, output.files.folder, how.scratch)
    if how.scheduler and not scratch.is_shared:
        raise OptionError(f"{scratch.address} is in the memory of this process: give --scratch a folder, or an address")
    _require_outside(source, output.files.folder, scratch.folder)
    with ExitStack() as opened:
        windows = opened.enter_context(open_windows(source, reading, segmenter.spec.channels))
        try:
            require_numbers(windows.dtype)
        except FrameError as error:
            raise FrameError(f"{source}: {error}") from error
        for place in dict.fromkeys((str(work), scratch.address if how.scratch else str(work))):
            opened.enter_context(locked(place, wait=0))
        scheduler = opened.enter_context(scheduler_at(how.scheduler, how.workers))
        is_measured = bool(MEASURED & {*output.files.kinds})
        is_confident = output.kind == "instances" and output.files.shows_confidence
        job = Job(
            scratch,
            model.name if model and how.scheduler else "",
            source,
            windows.shape,
            how.block,
            reading,
            output.kind,
            output.min_area,
            output.tta,
            is_measured=is_measured,
            is_confident=is_confident and segmenter.spec.head != "labels",
            engine=dict(engine or {}),
        )
        worker = BlockWorker(job, segmenter)
        run = _Run(worker, model, windows.layout, work, output, how, progress or _ignore)
        with worker, run.kept(scheduler):
            return run.finish(scheduler)


def unfinished_tile(name: str, folder: Path, place: str | Path | None = None) -> tuple[Size, int] | None:
    """Return the tile and the batch that an unfinished run of an image computes with; None where there is no such run.

    A run goes on with them alone: the tile that is planned depends on the memory that is free, and on the cache.
    """
    stored = scratch_of(name, folder, place).get_json(RUN)
    match stored:
        case {"tile": [int(height), int(width)], "batch": int(batch)}:
            return (height, width), batch
    return None


def _require_outside(source: ImageSource | ArraySource, folder: Path, scratch: Path | None) -> None:
    """Raise OptionError for folders of a run that lie in the image, a Zarr, which may not change meanwhile."""
    if not isinstance(source, ImageSource):
        return
    for used, given in ((folder, folder), (scratch, scratch and scratch.parents[source.name.count("/")])):
        if used is not None and used.resolve().is_relative_to(source.path.resolve()):
            raise OptionError(f"{given} lies in the image {source}: choose another folder")


class _Run:
    """A run of a job."""

    def __init__(
        self,
        worker: BlockWorker,
        model: Path | None,
        layout: Layout,
        work: Path,
        output: "Output",
        how: Blockwise,
        progress: Callable[[float], None],
    ) -> None:
        self._worker, self._model, self._work = worker, model, work
        self._folder, self._how, self._progress = output.files.folder.absolute(), how, progress
        self._results = Results(worker, layout, work, output.files, how.version)
        self._job, self._source = worker.job, worker.job.image
        self._frames, self._blocks = range(worker.job.shape[0]), range(len(worker.plan))

    # Before

    @contextmanager
    def kept(self, scheduler: Scheduler) -> Iterator[None]:
        """Prepare the folder of the run, and remove it at the end, or say that it is kept for `resume`.

        A run that has not computed any block leaves nothing.
        """
        missing = _missing(self._folder) + _missing(self._job.scratch.folder)
        goes_on = self._can_go_on()
        begin_work(self._worker)
        try:
            self._prepare(goes_on)
            if self._how.scheduler and self._model:
                writable_folder(self._work)
                send_model(self._model, self._job.scratch)
                require_fit(scheduler, self._job, self._work)
            yield
        except BaseException:
            if self._is_unfinished():
                log.warning(
                    "what was computed of %s is kept in %s: --resume (resume) goes on with it, --restart starts again",
                    printable(str(self._source)),
                    printable(self._job.scratch.address),
                )
            else:
                with suppress(OutputError):
                    self._remove(missing)
            raise
        else:
            self._remove(missing)
        finally:
            end_work(self._job.name)

    def _is_unfinished(self) -> bool:
        """Whether the folder of the run holds a block that was computed."""
        return self._job.scratch.holds(f"{RECORDS}/classify")

    def _can_go_on(self) -> bool:
        """Return whether to go on with an unfinished run; raises OptionError for one that may not be removed."""
        scratch = self._job.scratch
        if self._how.resume is False or not self._is_unfinished():
            return False
        if self._how.resume is None:
            raise OptionError(
                f"{scratch.address} holds an unfinished run of {self._source}: --resume (resume) goes on with it, "
                "--restart starts again"
            )
        about, stored = self._about, scratch.get_json(RUN)
        if not isinstance(stored, dict):
            raise OptionError(f"{scratch.address}/{RUN} is damaged: start again with --restart")
        if other := [name for name in about if about[name] != stored.get(name)]:
            raise OptionError(
                f"the unfinished run in {scratch.address} has another {', '.join(other)}: repeat its command with "
                "--resume, or start again with --restart"
            )
        for folder in (scratch.folder, self._work):
            if folder is not None and (link := link_below(folder)):
                raise OutputError(f"{link} is a link, and an unfinished run has none: start again with --restart")
        return True

    def _prepare(self, goes_on: bool) -> None:
        scratch = self._job.scratch
        if not goes_on:
            self._remove()
            spec = self._worker.spec
            scratch.put_json(RUN, self._about | {"tile": list(spec.tile), "batch": spec.batch})
        with scratch.writing():
            self._worker.create_arrays()

    @cached_property
    def _about(self) -> dict[str, Any]:
        """What a run has to have in common with an unfinished one to go on with it, in types of JSON."""
        job = self._job
        return {
            "model": _identity_of_model(self._model, self._worker.spec),
            "engine": self._worker.segmenter.session.name,
            "image": self._files_of_image(),
            "reading": repr(job.reading),
            "shape": list(job.shape),
            "block": list(self._worker.plan.size),
            "labels": [job.kind, job.min_area, job.tta, job.is_measured, job.is_confident, self._how.version],
        }

    def _files_of_image(self) -> list[Any]:
        """Return what tells the image from others, and from itself before a change."""
        with readable(str(self._source)):
            return list(self._source.identity())

    def _remove(self, made: Sequence[Path] = ()) -> None:
        """Remove the folders of the run, and empty folders among those that hold them and those that it has made."""
        self._job.scratch.remove()
        shutil.rmtree(self._work, ignore_errors=True)
        inside = [above for above in self._work.parents if self._folder in above.parents]
        for above in (*inside, *made):  # deepest first
            with suppress(OSError):
                above.rmdir()

    def _require_unchanged(self) -> None:
        """Raise FrameError if a file of the image has changed since the run began; what was computed is removed."""
        if self._files_of_image() != self._about["image"]:
            self._remove()
            raise FrameError(f"{self._source} was changed while it was segmented: segment it again")

    # Tasks

    def finish(self, scheduler: Scheduler) -> RunSummary:
        """Run all tasks, and write the files."""
        try:
            return self._finish(scheduler)
        finally:
            with suppress(UnetrtError, OSError):  # a cluster that was lost
                scheduler.everywhere(end_work, self._job.name)

    def _finish(self, scheduler: Scheduler) -> RunSummary:
        classified, numbered = self._objects()
        found = scheduler.compute([*classified, *numbered], self._within(SEGMENT))
        computed, counts = found[: len(classified)], found[len(classified) :]
        labels = self._results.label_arrays(max(counts, default=len(self._worker.spec.classes) - 1))
        self._results.create(labels.pyramid)
        written = [self._task("write", (frame, index, labels)) for frame in self._frames for index in self._blocks]
        scheduler.compute(written, self._within(WRITE))
        for level in range(1, len(labels.pyramid.shapes)):
            coarser = [
                self._task("coarsen", (level, rows, columns, plane, labels))
                for plane in np.ndindex(labels.pyramid.shape[:-2])
                for rows, columns in labels.pyramid.regions(level)
            ]
            scheduler.compute(coarser, self._within(COARSEN if level == 1 else (1.0, 1.0)))
        self._require_unchanged()
        self._results.write(labels, counts)
        self._progress(1.0)
        number, _, height, width = self._job.shape
        return RunSummary(number * height * width, sum(counts), len(classified), sum(computed))

    def _within(self, step: tuple[float, float]) -> Callable[[int, int], None]:
        """Return the callback of a step, for the number of its finished tasks and of all."""
        begin, end = step
        return lambda done, total: self._progress(begin + (end - begin) * done / total)

    def _objects(self) -> tuple[list[Any], list[Any]]:
        """Return the tasks that end with the class map of each block, and those with the objects of each frame."""
        classified, numbered = [], []
        for frame in self._frames:
            measured = self._measured(frame)
            classes = [self._task("classify", (frame, index), measured) for index in self._blocks]
            classified += classes
            if self._job.kind == "instances":
                numbered.append(self._numbered(frame, classes))
        return classified, numbered

    def _measured(self, frame: int) -> list[Any]:
        """Return the task that ends with the normalisation of a frame."""
        after: list[Any] = []
        for passed in range(0 if self._worker.spec.takes_raw else self._worker.statistics(frame).passes):
            counters = min(self._worker.plan.shape[0], COUNTERS if self._how.scheduler else self._how.workers)
            counted = [self._task("count", (frame, first, passed, counters), after) for first in range(counters)]
            after = [self._task("measure", (frame, passed), counted)]
        return after

    def _numbered(self, frame: int, classes: Sequence[Any]) -> Any:
        """Return the task that ends with the number of objects of a frame."""
        around, margins = self._worker.plan.around, self._worker.margins
        decoded = [
            self._task("decode", (frame, index), [classes[near] for near in around(index, margins.decode)])
            for index in self._blocks
        ]
        merged = self._task("merge", (frame,), decoded)
        if not margins.grow:
            return merged
        grown = [self._task("grow", (frame, index), [merged]) for index in self._blocks]
        return self._task("regrow", (frame,), grown)

    def _task(self, stage: str, arguments: tuple[Any, ...], after: Sequence[Any] = ()) -> Any:
        """Return a task that runs a stage after others."""
        function = dask.delayed(partial(run_stage, self._job, stage, arguments), pure=False, traverse=False)
        place = [str(each) for each in arguments if not isinstance(each, LabelArrays)]
        return function(*after, dask_key_name="-".join([stage, self._job.name, *place]))


def _missing(folder: Path | None) -> list[Path]:
    """Return which of a folder and those that hold it do not exist, the deepest first."""
    return [] if folder is None else [part for part in (folder, *folder.parents) if not part.exists()]


def _absolute_source(source: ImageSource) -> ImageSource:
    return replace(source, path=source.path.absolute(), files=tuple(file.absolute() for file in source.files))


def _identity_of_model(path: Path | None, spec: ModelSpec) -> str:
    """Return a digest of a model file, or of the spec, which has that of the weights, where there is no such file."""
    if path is None or path.suffix.lower() in SUFFIXES:
        return sha256(spec.to_json().encode()).hexdigest()
    return sha256_of_model(path)


def _ignore(_done: float) -> None:
    pass

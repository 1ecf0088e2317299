"""The files of a run over blocks: the arrays that its labels go to, and what is written from them at the end.

Labels are OME-Zarr arrays in the folder of the run, which become the result or are read by windows for other files.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.blockwise.stages import CHUNK, BlockWorker, LabelArrays
from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.atomic import whole_folder, writable_folder
from unetrt.runtime.files.formats import Layout
from unetrt.runtime.files.images import stacked_axes_of
from unetrt.runtime.files.outputs import KINDS, OVERLAY
from unetrt.runtime.files.outputs.label_tiff import smallest_dtype, stacked_axes, write_label_levels
from unetrt.runtime.files.outputs.label_zarr import write_metadata
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.files.outputs.object_rows import assembled
from unetrt.runtime.files.outputs.pictures import counted, overview, overview_step, write_png
from unetrt.runtime.files.outputs.zarr_pyramid import TYPES, Pyramid, Version
from unetrt.runtime.model.measurements import MeasuredPart

if TYPE_CHECKING:
    from unetrt.runtime.files.outputs import Outputs

Array = NDArray[Any]

# Labels in the folder of a run, and the measurements of their objects.
LABELS, ROWS = "labels.ome.zarr", "measurements"


class Results:
    """The files of an image.

    Parameters
    ----------
    worker
        Its run in this process.
    layout
        What is known about the image.
    work
        Folder of the run, on the disk of the results.
    files
        What is written, and where to.
    version
        Version of OME-Zarr.
    """

    def __init__(self, worker: BlockWorker, layout: Layout, work: Path, files: "Outputs", version: Version) -> None:
        self._worker, self._layout, self._work, self._files, self._version = worker, layout, work, files, version
        self._job, self._source = worker.job, worker.job.image

    def label_arrays(self, highest: int) -> LabelArrays:
        """Return where the labels go, in the smallest dtype that holds the highest one."""
        axes, lengths = stacked_axes_of(self._layout)
        letters = stacked_axes(len(axes), axes)[:-2]
        lengths = lengths if len(letters) == len(lengths) else (self._job.shape[0],)
        order = tuple(sorted(range(len(letters)), key=lambda axis: list(TYPES).index(letters[axis].lower())))
        pyramid = Pyramid(
            str(self._work / LABELS),
            (*(lengths[axis] for axis in order), *self._job.size),
            smallest_dtype(highest),
            "".join(letters[axis] for axis in order) + "YX",
            self._layout.pixel_size,
            self._worker.plan.chunk(CHUNK),
            self._worker.plan.size,
            self._version,
            name=str(self._place("ome-zarr") if "ome-zarr" in self._files.kinds else self._work),
        )
        return LabelArrays(pyramid, lengths, order)

    def create(self, labels: Pyramid) -> None:
        """Create the arrays of the labels; those of an unfinished run that are damaged, or finished, are replaced."""
        try:
            labels.create()
        except OutputError:
            shutil.rmtree(self._work / LABELS, ignore_errors=True)
            labels.create()

    def _place(self, kind: str) -> Path:
        return self._files.folder / KINDS[kind].place.format(self._source.name)

    def write(self, labels: LabelArrays, counts: Sequence[int]) -> None:
        """Write the files of the image from its labels."""
        files, pyramid = self._files, labels.pyramid
        kinds = [kind for kind in files.kinds if kind not in ("labels", "ome-zarr")]
        others = replace(files, kinds=kinds, overlays=False, sheet=None)
        if others.kinds:
            others.write(self._labelled(labels))
        if files.overlays or files.sheet is not None:
            self._draw(labels, counts)
        if "labels" in files.kinds:
            write_label_levels(
                self._place("labels"), pyramid.levels, axes=pyramid.axes, pixel_size=self._layout.pixel_size
            )
        if "ome-zarr" in files.kinds:
            classes = None if self._job.kind == "instances" else range(1, len(self._worker.spec.classes))
            write_metadata(pyramid, self._source.name.rpartition("/")[2], classes=classes)
            for cut_off in (self._work / LABELS).rglob("*.partial"):  # zarr's, of a process that was killed
                cut_off.unlink()
            with whole_folder(self._place("ome-zarr"), replace=(".zgroup", "zarr.json")) as temporary:
                temporary.rmdir()
                (self._work / LABELS).rename(temporary)

    def _labelled(self, labels: LabelArrays) -> LabelledImage:
        """Return the labels with what was measured of their objects."""
        axes, lengths = stacked_axes_of(self._layout)
        folder = writable_folder(self._work / ROWS)  # not among temporary files, which may be in the memory
        rows = [assembled(folder / str(frame), _Parts(self._worker, frame)) for frame in range(self._job.shape[0])]
        confidence = None
        if self._job.is_confident:
            confidence = [self._worker.confidence(frame) for frame in range(self._job.shape[0])]
        number, channels, *size = self._job.shape
        by_windows: Any = _StackedLabels(labels, (*lengths, *size))
        return LabelledImage(
            self._source.name,
            by_windows,
            self._job.kind,
            frames=np.broadcast_to(np.zeros((), self._worker.image.dtype), (number, channels, *size)),
            axes=axes,
            pixel_size=self._layout.pixel_size,
            confidence=confidence,
            source=self._source.file_name,
            rows=rows,
        )

    def _draw(self, labels: LabelArrays, counts: Sequence[int]) -> None:
        """Write the overview of the first frame, and add it to the sheet of all images."""
        step, files = overview_step(self._job.size), self._files
        size = tuple(-(-side // step) for side in self._job.size)
        frame = np.empty((self._job.shape[1], *size), self._worker.image.dtype)
        shown = np.empty(size, labels.pyramid.dtype)
        for block in self._worker.plan:
            place = tuple(slice(-(-part.start // step), -(-part.stop // step)) for part in (block.rows, block.columns))
            frame[(slice(None), *place)], shown[place] = self._worker.overview(block)
        picture = overview(shown, frame)
        found = counts if self._job.kind == "instances" else [len(np.unique(shown[shown > 0]))]
        del frame, shown
        if files.overlays:
            write_png(files.folder / OVERLAY.format(self._source.name), picture)
        if files.sheet is not None:
            files.sheet.add_overview(self._source.name, counted(self._job.kind, found), picture)


class _Parts(Sequence[MeasuredPart]):
    """What was measured of the blocks of a frame; each is read when it is asked for."""

    def __init__(self, worker: BlockWorker, frame: int) -> None:
        self._worker, self._frame = worker, frame

    def __len__(self) -> int:
        return len(self._worker.plan)

    def __getitem__(self, index: Any) -> Any:
        return self._worker.measured_part(self._frame, range(len(self))[index])


class _StackedLabels:
    """The labels of an image, with its axes in their order; they are read by windows."""

    def __init__(self, labels: LabelArrays, shape: tuple[int, ...]) -> None:
        self._labels, self.shape, self.ndim = labels, shape, len(shape)

    def __getitem__(self, index: Any) -> Any:
        *leading, rows, columns = index
        frame = int(np.ravel_multi_index(leading, self.shape[:-2])) if leading else 0
        return self._labels.pyramid.levels[0][(*self._labels.plane(frame), rows, columns)]

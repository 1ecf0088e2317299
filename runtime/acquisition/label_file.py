"""The labels of one acquisition beside its raw data, with a table of its frames."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.frame_table import FrameTable
from unetrt.runtime.acquisition.label_layout import LabelLayout
from unetrt.runtime.acquisition.label_stream import LabelStream
from unetrt.runtime.acquisition.position_streams import PositionStreams
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveResult, LiveSequence, Outcome

# Of a frame of the plan that never came.
MISSING = "missing"


class LabelFile(Closable):
    """A file of labels, made with the first of them, and its table of frames, filled in the order of the frames.

    Parameters
    ----------
    path
        Where the labels go, `*.ome.zarr`, `*.ome.tif` or `*.ome.tiff`; what is there is replaced.
    table
        Where the table of frames goes, `*.csv`; what is there is replaced.
    sequence
        The sequence that the frames belong to; None where none was announced.
    instances
        The dtype of labels that number objects.

    Raises
    ------
    OutputError
        The table cannot be written.
    """

    def __init__(self, path: Path, table: Path, sequence: LiveSequence | None, instances: str) -> None:
        self._path, self._instances = path, np.dtype(instances)
        self._layout = LabelLayout(sequence)
        self._table, self._table_name = FrameTable(table), table.name
        self._stream: LabelStream | PositionStreams | None = None
        self._shape: tuple[int, ...] = ()
        self._last = None if sequence is None else sequence.first - 1  # number of the last frame that was told
        self._stored = self._known = 0  # the place after the last labels, and after the last frame that was told

    def add(self, result: LiveResult) -> None:
        """Store labels where they belong, and tell what became of the frame and of those before it.

        Raises
        ------
        OutputError
            They cannot be stored; their place stays empty, and the table says why.
        """
        untold = 0 if self._last is None else result.number - self._last - 1
        self._last = result.number
        place = None
        try:
            place, skipped = self._layout.places.place(result)
            for at, passed in enumerate(skipped, place - len(skipped)):
                self._table.add_absent(at, passed, Outcome.DROPPED if untold >= len(skipped) else MISSING)
            self._known = place + 1
            if result.labels is not None:
                self._store(place, result.labels)
        except OutputError as error:
            if result.labels is not None:
                self._table.add(place, result, Outcome.FAILED, error)
                raise
        self._table.add(place, result, result.outcome, result.error)

    def close(self) -> None:
        """Finish the file and its table; idempotent. Raises OutputError where not all could be written."""
        with self._table, self._stream or nullcontext() as stream:
            while stream is not None and self._stored < self._known:
                stream.pass_over(self._stored)
                self._stored += 1

    def _store(self, number: int, labels: NDArray[Any]) -> None:
        dtype = labels.dtype if labels.dtype == np.uint8 else self._instances
        if self._stream is None:
            self._stream = self._open(labels.shape, dtype)
            self._shape = labels.shape
        if labels.shape != self._shape:
            came, holds = (" x ".join(map(str, shape)) for shape in (labels.shape, self._shape))
            raise OutputError(
                f"labels of {came} pixels do not fit {self._path.name}, which holds {holds}: begin another sequence"
            )
        if (highest := int(labels.max(initial=0))) > np.iinfo(dtype).max:
            raise OutputError(
                f"{highest} objects are more than {dtype} can number: use LabelWriter(..., dtype='uint32')"
            )
        self._stream.put(number, labels.astype(dtype))
        self._stored = number + 1

    def _open(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> LabelStream | PositionStreams:
        kind = "classes" if dtype == np.uint8 else "instances"
        settings = self._layout.settings(self._path, shape, dtype.name)
        several = settings.format.name == "ome-tiff" and len(settings.positions) > 1
        stream = PositionStreams if several else LabelStream
        return stream(settings, {"labels": kind, "frames": self._table_name})

"""The labels of one acquisition beside its raw data, with a table of its frames."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.acquisition.frame_table import FrameTable
from unetrt.runtime.acquisition.label_layout import LabelLayout
from unetrt.runtime.acquisition.label_stream import LabelStream
from unetrt.runtime.acquisition.position_streams import PositionStreams
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OutputError
from unetrt.runtime.live.results import LiveResult, LiveSequence, Outcome

if TYPE_CHECKING:
    from unetrt.runtime.acquisition.places import Index


class LabelFile(Closable):
    """A file of labels and its table of frames, filled in the order of the frames; made with the first labels.

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

    def add(self, result: LiveResult) -> None:
        """Store labels where they belong, and tell what became of the frame and of those before it.

        Raises
        ------
        OutputError
            They cannot be stored; their place stays empty, and the table says why.
        """
        number, skipped = self._layout.places.place(result)
        for at, passed in enumerate(skipped, number - len(skipped)):
            self._table.add(at, passed, "dropped" if result.dropped >= len(skipped) else "missing")
        index: Index = result.index if isinstance(result.index, dict) else {}
        try:
            if result.labels is not None:
                self._store(number, result.labels)
        except OutputError as error:
            self._table.add(number, index, Outcome.FAILED, result.objects, error)
            raise
        self._table.add(number, index, result.outcome, result.objects, result.error)

    def close(self) -> None:
        """Finish the file and its table; idempotent. Raises OutputError where not all could be written."""
        with self._table:
            if self._stream is not None:
                self._stream.close()

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

    def _open(self, shape: tuple[int, ...], dtype: "np.dtype[Any]") -> LabelStream | PositionStreams:
        kind = "classes" if dtype == np.uint8 else "instances"
        settings = self._layout.settings(self._path, shape, dtype.name)
        several = settings.format.name == "ome-tiff" and len(settings.positions) > 1
        stream = PositionStreams if several else LabelStream
        return stream(settings, {"labels": kind, "frames": self._table_name})

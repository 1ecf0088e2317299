"""Tables of objects, one row for each: CSV for spreadsheets, pandas and R, or Parquet for many of them.

Columns have the names of scikit-image's `regionprops_table`, where it has them; pixels are counted from 0, rows before
columns, and a bounding box ends before its upper bounds:

    image, frame, label, area, centroid-0, centroid-1, bbox-0, bbox-1, bbox-2, bbox-3, mean_intensity, confidence,
    area_um2, max_intensity, integrated_intensity, eccentricity, solidity

`area` is in pixels, and `area_um2`, in µm², is empty where the pixel size is unknown. Intensities are those of the raw
frame; for several channels there are `mean_intensity-0`, `mean_intensity-1` and so on, and none without an image.
`confidence` exists only where it was measured. `frame` counts the frames of a stack, the last axis fastest.
"""

import csv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError, printable
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.files.outputs.labelled_image import LabelledImage
from unetrt.runtime.model.measurements import columns, measurements

Array = NDArray[Any]

# How columns are written as text, by the part of their name before "-"; others are integers. Sums keep all digits.
TEXT = {
    "area_um2": ".6g",
    "centroid": ".3f",
    "confidence": ".4f",
    "eccentricity": ".4f",
    "integrated_intensity": ".15g",
    "max_intensity": ".12g",
    "mean_intensity": ".6g",
    "solidity": ".4f",
}


class RowWriter(Protocol):
    """Where rows of a table go."""

    def write(self, image: str, frame: int, measured: Mapping[str, Array]) -> None:
        """Write rows of a frame, after those that were written before: columns by name, of the same length."""


class ObjectTable:
    """Writes rows of objects to a file.

    Parameters
    ----------
    writer
        Where they go.
    names
        Names of the columns but `image` and `frame`.

    Attributes
    ----------
    is_empty
        Whether no image was added.
    """

    def __init__(self, writer: RowWriter, names: list[str]) -> None:
        self._writer, self._names = writer, names
        self.is_empty = True

    def add(self, image: LabelledImage) -> None:
        """Write the objects of an image; raises FrameError if it has other channels than the table."""
        for frame in range(image.count):
            for measured in image.columns(frame):
                if list(measured) != self._names:
                    raise self._misfit(image)
                self._writer.write(printable(image.source or image.name), frame, measured)
                self.is_empty = False

    def _misfit(self, image: LabelledImage) -> FrameError:
        wanted = sum(name.startswith("mean_intensity") for name in self._names)
        return FrameError(
            f"{image.source or image.name} has {image.channels} channels, and the table {wanted}: give images of the "
            "same channels"
        )


class _Csv:
    """Writes rows to an open text file, after the names of the columns."""

    def __init__(self, file: Any, names: list[str]) -> None:
        self._rows = csv.writer(file)
        self._rows.writerow(["image", "frame", *names])

    def write(self, image: str, frame: int, measured: Mapping[str, Array]) -> None:
        texts = [texts_of(name, values) for name, values in measured.items()]
        self._rows.writerows([image, frame, *row] for row in zip(*texts, strict=True))


def texts_of(name: str, values: Array) -> list[str]:
    """Return the values of a column as they are written; NaN is empty."""
    form = TEXT.get(name.partition("-")[0], ".6g" if values.dtype.kind == "f" else "d")
    return ["" if value != value else format(value, form) for value in values.tolist()]  # noqa: PLR0124 - NaN


class _Parquet:
    """Writes rows to a Parquet file; groups of rows have at most `measurements.GROUP` rows of a frame."""

    def __init__(self, path: Path, names: list[str]) -> None:
        import pyarrow as pa
        from pyarrow.parquet import ParquetWriter

        is_real = {name: name.partition("-")[0] in TEXT for name in names}
        fields = [(name, pa.float64() if real else pa.int64()) for name, real in is_real.items()]
        self._schema = pa.schema([("image", pa.string()), ("frame", pa.int64()), *fields])
        self._file = ParquetWriter(path, self._schema)

    def write(self, image: str, frame: int, measured: Mapping[str, Array]) -> None:
        import pyarrow as pa

        count = len(measured["label"])
        arrays = [pa.array([image] * count, pa.string()), pa.array(np.full(count, frame, np.int64))]
        for field, values in zip(list(self._schema)[2:], measured.values(), strict=True):
            is_real = pa.types.is_floating(field.type)
            arrays.append(pa.array(values.astype(np.float64 if is_real else np.int64), field.type, from_pandas=True))
        self._file.write_table(pa.table(arrays, self._schema))

    def close(self) -> None:
        self._file.close()


class _EmptyError(Exception):
    """There is nothing to write."""


@contextmanager
def object_table(path: Path, channels: int, confident: bool) -> Iterator[ObjectTable]:
    """Yield a table that is written to `path` atomically at the end.

    Nothing is written, and an earlier table stays, after an exception and where no image was added.

    Parameters
    ----------
    path
        `*.parquet` for Parquet, else CSV.
    channels
        Channels of the images; 0 without images.
    confident
        Whether the objects have a confidence.
    """
    none = measurements(np.zeros((1, 1), np.int32), np.zeros((channels, 1, 1)) if channels else None)
    names = list(columns(none, None, np.zeros(0) if confident else None))
    with suppress(_EmptyError), whole_file(path) as temporary:
        if path.suffix == ".parquet":
            rows = _Parquet(temporary, names)
            try:
                yield (table := ObjectTable(rows, names))
            finally:
                rows.close()
        else:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                yield (table := ObjectTable(_Csv(file, names), names))
        if table.is_empty:
            raise _EmptyError

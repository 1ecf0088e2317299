"""Measurements of the objects of a frame that was measured by parts, in the order of their labels.

There may be more objects than fit in the memory. `assembled` goes through the parts of a frame one by one and keeps the
objects that later parts go on with; an object without a later part is complete, and its measurements are written to a
file, at the place of its label. With parts in the order of a plan of blocks, row by row, the memory is bounded by the
objects that a row of blocks shares with the next one, and by 4 bytes for each label.

>>> rows = assembled(Path("rows"), SavedParts(paths))  # doctest: +SKIP
>>> for found in rows.groups():  # doctest: +SKIP
...     print(found.labels, found.area)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.model.measurements import GROUP, MeasuredPart, Measurements, finished, merged

Array = NDArray[Any]


@dataclass(frozen=True)
class ObjectRows:
    """A file of measurements, a record for each of the labels 1 ... n.

    Attributes
    ----------
    path
        The file.
    record
        Fields of a record, which are those of `Measurements`; `area` is 0 in the record of a label without pixels.
    highest
        The highest label, n.
    """

    path: Path
    record: "np.dtype[np.void]"
    highest: int

    def groups(self) -> Iterator[Measurements]:
        """Yield the measurements of at most `GROUP` labels at a time, in ascending order; at least once.

        Raises
        ------
        FrameError
            The file is not complete.
        """
        size, wanted = self.path.stat().st_size, self.highest * self.record.itemsize
        if size != wanted:
            raise FrameError(f"{self.path} has {size} bytes, not {wanted}: measure the objects again")
        with self.path.open("rb") as file:
            for _ in range(0, max(self.highest, 1), GROUP):
                records = np.fromfile(file, self.record, GROUP)
                records = records[records["area"] > 0]
                yield Measurements._make(records[name] for name in Measurements._fields)


class SavedParts(Sequence[MeasuredPart]):
    """Parts of a frame in files that `MeasuredPart.save` wrote; each is read when it is asked for.

    Parameters
    ----------
    paths
        The files.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> MeasuredPart: ...
    @overload
    def __getitem__(self, index: slice) -> "SavedParts": ...
    def __getitem__(self, index: int | slice) -> "MeasuredPart | SavedParts":
        if isinstance(index, slice):
            return SavedParts(self._paths[index])
        with self._paths[index].open("rb") as file:
            return MeasuredPart.load(file)


def assembled(path: Path, parts: Sequence[MeasuredPart]) -> ObjectRows:
    """Write the measurements of all objects of a frame to a file, atomically.

    Parameters
    ----------
    path
        The file.
    parts
        Parts of all pixels of the frame, each pixel in one part; at least one part, in any order. They are gone through
        twice. Labels are 1 ... n.

    Raises
    ------
    FrameError
        There are no parts, or they have different numbers of channels.
    OutputError
        The file cannot be written.
    """
    last = _last_parts(parts)
    pending = parts[0].only(np.zeros(len(parts[0].labels), bool))
    with whole_file(path) as temporary, temporary.open("wb") as file:
        record = _record(finished(pending))
        for index, part in enumerate(parts):
            is_new = ~np.isin(part.labels, pending.labels)
            is_inside = is_new & (last[part.labels] == index)
            _place(file, record, finished(part.only(is_inside)))
            pending = merged([pending, part.only(~is_inside)])
            is_complete = last[pending.labels] == index
            _place(file, record, finished(pending.only(is_complete)))
            pending = pending.only(~is_complete)
    return ObjectRows(path, record, len(last) - 1)


def _last_parts(parts: Sequence[MeasuredPart]) -> NDArray[np.int32]:
    """Return the index of the last part that each label occurs in, (n + 1,)."""
    if not parts:
        raise FrameError("a frame has at least one part (got none)")
    last, highest = np.zeros(1, np.int32), 0
    for index, part in enumerate(parts):
        highest = max(highest, int(part.labels.max(initial=0)))
        if highest >= len(last):
            last = np.concatenate([last, np.zeros(max(highest + 1 - len(last), len(last)), np.int32)])
        last[part.labels] = index
    return last[: highest + 1]


def _record(found: Measurements) -> "np.dtype[np.void]":
    return np.dtype([(name, values.dtype, values.shape[1:]) for name, values in found._asdict().items()])


def _place(file: BinaryIO, record: "np.dtype[np.void]", found: Measurements) -> None:
    """Write measurements at the places of their labels; labels in sequence are written at once."""
    records = np.zeros(len(found.labels), record)
    for name, values in found._asdict().items():
        records[name] = values
    labels = found.labels.astype(np.int64)
    for some in np.split(np.arange(len(labels)), np.flatnonzero(np.diff(labels) != 1) + 1):
        if len(some):
            file.seek((int(labels[some[0]]) - 1) * record.itemsize)
            file.write(records[some[0] : some[-1] + 1].tobytes())

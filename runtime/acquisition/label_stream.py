"""A store of labels that is complete after each frame: OME-Zarr, which ome-writers lays out.

Groups, arrays and metadata are written first, under a temporary name: a store appears with all of them. A frame is one
chunk, and chunks and metadata are replaced atomically, so that a process can be killed at any moment: the store is
valid, and has each frame whose `put` has returned. A skipped frame has no chunk, and reads as background.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.errors import OutputError, one_line
from unetrt.runtime.files.atomic import whole_folder

if TYPE_CHECKING:
    import zarr
    from ome_writers import AcquisitionSettings

# Key of our metadata in a store, and the file that holds them.
NAMESPACE, METADATA = "unetrt", "zarr.json"
# Key of those metadata that a store of labels alone has; one of an acquisition has frames, which exist nowhere else.
LABELS_ONLY = "labels"
# Rows of a chunk of the table of objects.
ROWS = 1024
# A stage position and the index of a frame on the axes of its array before (H, W).
Slot = tuple[int, tuple[int, ...]]


class LabelStream:
    """An OME-Zarr of labels, an array for each stage position; frames without labels are background, 0.

    It buffers nothing: there is nothing to close.

    Parameters
    ----------
    path
        The store; one of labels at this path is replaced.
    settings
        Axes and dtype.
    metadata
        Stored in each image under the key `unetrt`.

    Raises
    ------
    OutputError
        The store cannot be created, or `path` is something else; from any method: it cannot be written.
    """

    def __init__(self, path: Path, settings: "AcquisitionSettings", metadata: Mapping[str, Any]) -> None:
        self._path = path
        self._arrays: dict[int, zarr.Array[Any]] = {}
        self._objects: zarr.Array[Any] | None = None
        self._objects_end = 0  # rows
        self._columns: tuple[str, ...] = ()
        require_replaceable(path)
        with self._failures(), whole_folder(path, replace=(METADATA,)) as temporary:
            temporary.rmdir()  # yaozarrs creates the folder
            self._groups = _create(settings.model_copy(update={"root_path": str(temporary.absolute())}), metadata)

    def put(self, slot: Slot, labels: NDArray[Any]) -> None:
        """Store the labels of a frame, (H, W) in the dtype of the store."""
        position, index = slot
        with self._failures():
            self.reach(slot)
            self._array(position)[index] = labels

    def reach(self, slot: Slot) -> None:
        """Extend an array of unknown length up to a frame."""
        position, index = slot
        with self._failures():
            array = self._array(position)
            if any(at >= length for at, length in zip(index, array.shape, strict=False)):
                before = (max(at + 1, length) for at, length in zip(index, array.shape, strict=False))
                array.resize((*before, *array.shape[-2:]))

    def add_objects(self, frame: int, measured: Mapping[str, NDArray[Any]]) -> None:
        """Append the objects of a frame to the array `tables/objects`, float64, (objects, columns).

        Its attribute `columns` names the columns: `frame`, the place of the frame, then the measurements. A process
        that was killed may leave rows of a frame that is not in the table of frames, and rows of NaN, at the end.

        Parameters
        ----------
        frame
            Place of the frame in the order of acquisition.
        measured
            Columns by name, of the same length.
        """
        if not measured:
            return
        with self._failures():
            if self._objects is None:
                self._columns = tuple(measured)
                self._objects = self._new_objects()
            require_columns(self._columns, measured)
            values = list(measured.values())
            rows = np.column_stack([np.full(len(values[0]), frame, np.float64), *values])
            end = self._objects_end + len(rows)
            if len(rows):
                self._objects.resize((end, rows.shape[1]))
                self._objects[self._objects_end : end] = rows
            self._objects_end = end

    def _new_objects(self) -> "zarr.Array[Any]":
        import zarr

        tables = zarr.create_group(self._path / "tables", attributes={"tables": ["objects"]})
        return tables.create_array(
            "objects",
            shape=(0, 1 + len(self._columns)),
            chunks=(ROWS, 1 + len(self._columns)),
            dtype="float64",
            fill_value=float("nan"),
            dimension_names=("object", "column"),
            attributes={"columns": ["frame", *self._columns]},
        )

    def _array(self, position: int) -> "zarr.Array[Any]":
        import zarr

        if position not in self._arrays:
            path = self._path / self._groups[position] / "0"
            # A frame without objects has a chunk too: it was segmented.
            self._arrays[position] = zarr.open_array(path, mode="r+").with_config({"write_empty_chunks": True})
        return self._arrays[position]

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Convert the exceptions of ome-writers and zarr to OutputError."""
        try:
            yield
        except OutputError:
            raise
        except (OSError, ValueError, RuntimeError, IndexError, NotImplementedError) as error:
            raise OutputError(f"cannot write {self._path}: {one_line(error)}") from error


def _create(settings: "AcquisitionSettings", metadata: Mapping[str, Any]) -> list[str]:
    """Create an empty store, and return the path of the image of each position in it.

    Each image is an `image-label` (https://ngff.openmicroscopy.org/0.5), so that readers show it as labels and take a
    chunk that is not stored for background.
    """
    from ome_writers import create_stream

    with create_stream(settings) as stream:
        stream.set_global_metadata(NAMESPACE, metadata)
        images: dict[str, dict[str, Any]] = stream.get_metadata()
        for attributes in images.values():
            attributes[NAMESPACE] = dict(metadata)
            attributes["ome"]["image-label"] = {"version": "0.5"}
        stream.update_metadata(images)
    return list(images)


class StoreKind(StrEnum):
    """What a store of this package holds; the value is its name in messages."""

    LABELS = "store of labels"
    ACQUISITION = "store of an acquisition"


def require_replaceable(path: Path, kind: StoreKind = StoreKind.LABELS) -> None:
    """Raise OutputError if something is at `path` that is not a store of a kind, or a link to one."""
    import zarr

    if not path.is_symlink() and not path.exists():
        return
    try:
        about: Any = zarr.open_group(path, mode="r").attrs[NAMESPACE]
        if (LABELS_ONLY in about) is (kind is StoreKind.LABELS):
            return
    except (OSError, ValueError, TypeError, KeyError):  # what zarr raises for other folders and damaged metadata
        pass
    raise OutputError(f"{path} is not a {kind}, and is not replaced: give another name, or remove it")


def remove_store(path: Path, kind: StoreKind = StoreKind.LABELS) -> None:
    """Remove a store of a kind, or a link to one; raises OutputError if it is something else or cannot be removed."""
    require_replaceable(path, kind)
    try:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            shutil.rmtree(path)
    except OSError as error:
        raise OutputError(f"cannot replace {path}: {error.strerror or error}") from error


def require_columns(names: Sequence[str], measured: Mapping[str, Any]) -> None:
    """Raise OutputError unless the measurements of a frame are those that a table has."""
    if tuple(measured) != tuple(names):
        raise OutputError(
            f"objects with the measurements {', '.join(measured)} do not fit a table of {', '.join(names)}: "
            "begin another sequence"
        )

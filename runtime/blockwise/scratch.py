"""The scratch store of a run over blocks: what is computed so far, so that the run can go on after a kill.

It is a folder, or any address that fsspec knows. Pixels are Zarr arrays; all else are small files of numpy arrays, with
a checksum in front. A block is done once the record of its pixels' checksum is there, which is written after them:
after a kill, a block that has no record, or whose pixels differ from it, is computed again.

    SCRATCH/
        run.json               what is computed, and from what
        model/                 the files of the model, for workers of a cluster
        statistics/FRAME       what the normalisation of a frame is measured from
        classes, objects, ...  Zarr arrays (N, H, W)
        confidence/FRAME       of the objects of a frame
        records/STAGE/FRAME/BLOCK
"""

import io
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import fsspec
import numpy as np
import zarr
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from numpy.typing import DTypeLike, NDArray

from unetrt.runtime.errors import OptionError, OutputError, one_line
from unetrt.runtime.files.atomic import scratch_folder

Array = NDArray[Any]

# Length of the checksum in front of a file: CRC-32, in hexadecimal.
CHECKSUM = 8
# The file that makes a folder a store: the first one that is written, and the last one that is removed.
RUN = "run.json"
# Folder beside the results that holds unfinished runs.
UNFINISHED = ".unfinished"
# What Zarr raises for damaged chunks and metadata.
DAMAGED = (OSError, ValueError, RuntimeError, LookupError)


@dataclass(frozen=True)
class Scratch:
    """The store at an address; can be pickled, and used by several threads and processes at once.

    Attributes
    ----------
    address
        A folder, or an address such as ``s3://bucket/folder``.
    """

    address: str

    @cached_property
    def _files(self) -> tuple[Any, str]:
        """The file system, and the path in it."""
        if "://" not in self.address:  # a name with "::" or "#" is no chain of file systems
            return fsspec.filesystem("file"), str(Path(self.address).absolute())
        try:
            fs, root = fsspec.core.url_to_fs(self.address)
        except (ImportError, OSError, ValueError) as error:
            raise OptionError(
                f"{self.address} cannot hold unfinished blocks ({one_line(error)}): give a folder, or an address of "
                "fsspec such as s3://bucket/folder"
            ) from error
        return fs, root.rstrip("/")

    @property
    def folder(self) -> Path | None:
        """The store as a folder of this machine; None where it is not on its disks."""
        fs, root = self._files
        return Path(root) if isinstance(fs, LocalFileSystem) else None

    @property
    def is_shared(self) -> bool:
        """Whether other processes can reach it, as far as is known here."""
        return not isinstance(self._files[0], MemoryFileSystem)

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def create(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, chunks: tuple[int, ...]) -> None:
        """Create an array of zeros, unless it is there; damaged metadata are written again, and chunks stay."""
        fs, root = self._files
        metadata = f"{root}/{name}/zarr.json"
        if fs.exists(metadata):
            with suppress(*DAMAGED):
                found = self.array(name)
                if (found.shape, found.dtype, found.chunks) == (shape, np.dtype(dtype), chunks):
                    return
            fs.rm_file(metadata)
        zarr.create_array(self._store_of(name), shape=shape, dtype=dtype, chunks=chunks)

    def array(self, name: str) -> Any:
        """Open an array to read and write regions."""
        return zarr.open_array(self._store_of(name), mode="r+")

    def _store_of(self, name: str) -> Path | str:
        """Return an array's store for zarr, whose stores of fsspec create no folders: a local one is a path."""
        return f"{self.address.rstrip('/')}/{name}" if self.folder is None else self.folder / name

    def get(self, key: str) -> dict[str, Array] | None:
        """Return the arrays of a file; None where there is none, or it is not complete."""
        content = self._read(key)
        if content is None:
            return None
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                return dict(arrays)
        except (ValueError, TypeError, EOFError, BadZipFile):
            return None

    def put(self, key: str, arrays: Mapping[str, Any]) -> None:
        """Write arrays to a file."""
        file = io.BytesIO()
        np.savez(file, **arrays)
        self._write(key, file.getvalue())

    def get_json(self, key: str) -> Any:
        """Return the content of a file that `put_json` wrote; None where there is none, or it is not complete."""
        content = self._read(key)
        try:
            return None if content is None else json.loads(content)
        except ValueError:
            return None

    def put_json(self, key: str, stored: object) -> None:
        """Write an object that JSON has to a file."""
        self._write(key, json.dumps(stored).encode())

    def put_file(self, key: str, file: Path) -> None:
        """Copy a file to the store."""
        fs, root = self._files
        with self.writing():
            fs.makedirs(f"{root}/{key}".rpartition("/")[0], exist_ok=True)
            fs.put_file(str(file), f"{root}/{key}")

    @contextmanager
    def fetched(self, key: str) -> Iterator[Path]:
        """Yield a folder of the store as one of this machine, which is temporary unless the store is on its disks."""
        if self.folder is not None:
            yield self.folder / key
            return
        fs, root = self._files
        with scratch_folder() as folder:
            fs.get(f"{root}/{key}", str(folder / "copy"), recursive=True)
            yield folder / "copy"

    def holds(self, key: str = "") -> bool:
        """Whether there is a file, or a folder that holds something; by default, the store itself."""
        fs, root = self._files
        fs.invalidate_cache()  # other processes write to it too
        path = f"{root}/{key}" if key else root
        return bool(fs.exists(path) and (fs.isfile(path) or fs.ls(path, detail=False)))

    def remove(self) -> None:
        """Remove the store.

        Raises
        ------
        OutputError
            It cannot be removed, or is not a store but a folder that holds other files.
        """
        if not self.holds():
            return
        if not self.holds(RUN):
            raise OutputError(
                f"{self.address} holds files, and no {RUN} of an unfinished run: give another folder with --scratch"
            )
        fs, root = self._files
        with self.writing():
            for path in fs.ls(root, detail=False):
                if path.rpartition("/")[2] != RUN:  # last: without it, the rest is not known for a store
                    fs.rm(path, recursive=True)
            fs.rm(root, recursive=True)

    def _read(self, key: str) -> bytes | None:
        """Return the content of a file; None where there is none, or it does not fit its checksum."""
        fs, root = self._files
        try:
            stored: bytes = fs.cat_file(f"{root}/{key}")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise OutputError(f"cannot read {root}/{key}: {error.strerror or one_line(error)}") from error
        content = stored[CHECKSUM:]
        return content if stored[:CHECKSUM] == _checksum(content) else None

    def _write(self, key: str, content: bytes) -> None:
        fs, root = self._files
        path = f"{root}/{key}"
        with self.writing():
            fs.makedirs(path.rpartition("/")[0], exist_ok=True)
            fs.pipe_file(path, _checksum(content) + content)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn the failure of a write into OutputError."""
        try:
            yield
        except OSError as error:
            raise OutputError(f"cannot write {self.address}: {error.strerror or one_line(error)}") from error


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def scratch_of(name: str, folder: Path, place: str | Path | None = None) -> Scratch:
    """Return the scratch store of the run of an image.

    Parameters
    ----------
    name
        Name of the image.
    folder
        Folder of the results.
    place
        Folder, or address of fsspec, of the scratch stores of all images; None: a hidden one beside the results.
    """
    return Scratch(_inside(place, _part_of(name)) if place else str(run_folder(name, folder) / "scratch"))


def run_folder(name: str, folder: Path) -> Path:
    """Return the folder beside the results for the unfinished run of an image."""
    return folder.absolute() / UNFINISHED / _part_of(name)


def _part_of(name: str) -> str:
    """Return the path of an image's run; folders in the name get a dot: no run lies in that of another image.

    >>> _part_of("plate"), _part_of("plate/well")
    ('plate', '.plate/well')
    """
    *above, last = name.split("/")
    return "/".join([*(f".{folder}" for folder in above), last])


def _inside(address: str | Path, folder: str) -> str:
    """Return the address of a folder in another one, absolute if it is not one of fsspec."""
    is_address = "://" in str(address)
    return f"{str(address).rstrip('/')}/{folder}" if is_address else str(Path(address).absolute() / folder)


def link_below(folder: Path) -> Path | None:
    """Return a symbolic link below a folder, through which a run would write to other folders; None for none."""
    entries = (Path(place, name) for place, folders, files in os.walk(folder) for name in (*folders, *files))
    return next((entry for entry in entries if entry.is_symlink()), None)

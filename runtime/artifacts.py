"""Files that are whole or not there: everything is written beside its place and renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp

from unetrt.runtime.errors import OutputError


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path on the same disk; on success it becomes `path`, on any exception it is gone.

    The temporary file has the same name, in a hidden folder of its own beside the target, so that writers that look
    at the name do what they would do at the final place.

    Raises
    ------
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    folder = writable_folder(path.parent)
    try:
        hidden = Path(mkdtemp(prefix=".unetrt-", dir=folder))
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield hidden / path.name
        _share(hidden / path.name)
        (hidden / path.name).replace(path)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if not path.exists():
            _remove_empty(made)


def writable_folder(path: str | Path) -> Path:
    """Return `path` as a folder that exists, created if need be; raises OutputError where that cannot be."""
    path = require_writable(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    return path


def require_writable(path: str | Path) -> Path:
    """Return `path`, or raise OutputError if it is no folder that can be written to or created; creates nothing.

    To be asked before long work whose result goes there.
    """
    path = Path(path)
    there = next(part for part in (path, *path.absolute().parents) if part.exists())
    if not there.is_dir():
        raise OutputError(f"cannot write to {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {path}: no permission for {there}")
    return path


def _share(path: Path) -> None:
    """Give a file the mode of any new file here: some writers make theirs readable for its owner alone."""
    usual = path.with_name(".mode")
    usual.touch()
    path.chmod(usual.stat().st_mode)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, deepest first, that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()

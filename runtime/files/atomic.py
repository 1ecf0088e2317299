"""Files that are whole or not there: everything is written beside its place and renamed.

Where things are kept that can be made again.
"""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from getpass import getuser
from hashlib import sha256
from os.path import normcase
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from filelock import FileLock
from platformdirs import user_cache_path

from unetrt.runtime.errors import OutputError

# How the names of folders begin in which files are written.
HIDDEN = ".unetrt-"
# Seconds after which what is not finished was a killed process's: no writing takes a day.
FORGOTTEN = 86400.0


@contextmanager
def whole_file(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path on the same disk; on success it becomes `path`, on any exception it is gone.

    The temporary file has the same name, in a hidden folder of its own beside the target, so that writers that look
    at the name do what they would do at the final place. What killed processes left there a day ago is removed.

    Parameters
    ----------
    path
        The target.
    durable
        Whether to wait until the disk has it: what is whole then stays whole when the power fails.

    Raises
    ------
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    path = Path(os.path.realpath(require_place(path)))  # behind a link lies what is meant
    with _beside(path) as temporary:
        yield temporary
        _share(temporary)
        if durable:
            _sync(temporary)
        temporary.replace(path)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty folder on the same disk; on success it becomes `path`, on any exception it is gone.

    Raises
    ------
    OutputError
        `path` exists, its folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    if os.path.lexists(path):
        raise OutputError(f"{path} exists: give another name, or remove it first")
    with _beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        temporary.rename(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path named as `path` in a hidden folder beside it, which is gone afterwards with all it holds."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not os.path.lexists(folder)]
    folder = writable_folder(path.parent)
    _forget(folder)
    try:
        hidden = Path(mkdtemp(prefix=HIDDEN, dir=folder))
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield hidden / path.name
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(hidden, ignore_errors=True)
        if not path.exists():
            _remove_empty(made)


def clear_unfinished(folder: str | Path, older: float = 0) -> None:
    """Remove what killed processes had not finished writing to a folder.

    Parameters
    ----------
    folder
        Where they wrote.
    older
        Seconds that it must be old; 0 where the folder is nobody else's now.
    """
    for hidden in Path(folder).glob(f"{HIDDEN}*"):
        with suppress(OSError):
            if time.time() - hidden.stat().st_mtime >= older:
                shutil.rmtree(hidden, ignore_errors=True)


@cache
def _forget(folder: Path) -> None:
    """Remove what nobody will finish; once a process, as a folder may hold a hundred thousand files."""
    clear_unfinished(folder, older=FORGOTTEN)


def writable_folder(path: str | Path) -> Path:
    """Return `path` as a folder that exists, created if need be; raises OutputError where that cannot be."""
    path = require_writable(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    return path


def require_place(path: str | Path, sources: Iterable[str | Path] = ()) -> Path:
    """Return `path`, or raise OutputError if no file can be written there; creates nothing.

    To be asked before long work whose result goes there.

    Parameters
    ----------
    path
        Where a file is to appear, new or in the place of another.
    sources
        Files that the work reads.
    """
    path = Path(path)
    there = os.path.exists(path)  # noqa: PTH110 - Path.exists() raises below a folder that may not be entered
    if there and path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if there and not path.is_file():
        raise OutputError(f"{path} is no regular file, and would be replaced by one: name another")
    for source in sources:
        if there and path.samefile(source):
            raise OutputError(f"{path} is read for this, and would be overwritten: give another name with -o")
    require_writable(path.parent)
    return path


def require_writable(path: str | Path) -> Path:
    """Return `path`, or raise OutputError if it is no folder that can be written to or created; creates nothing.

    To be asked before long work whose result goes there.
    """
    path = Path(path)
    # Not Path.exists(): below a folder that may not be entered it raises.
    there = next(part for part in (path, *path.absolute().parents) if os.path.exists(part))  # noqa: PTH110
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


def _sync(path: Path) -> None:
    """Wait until a file's contents are on the disk."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, deepest first, that hold nothing."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def cache_folder(part: str) -> Path:
    """Return the folder of one part of the user's cache, such as `engines`; it may not exist yet."""
    return user_cache_path("unetrt", appauthor=False) / part


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a file, whether or not that exists; one process of this user on this machine has it at a time.

    The lock is a file in the user's cache, or in the folder of temporary files where that cannot be written to, so that
    nothing is left beside `path`; it ends with its process.

    Raises
    ------
    OutputError
        Neither can be written to, or the disk has no locks.
    """
    name = sha256(normcase(Path(path).resolve()).encode()).hexdigest()[:32]
    lock = FileLock(_folder_of_locks() / f"{name}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise OutputError(f"cannot lock {lock.lock_file}: {error}; its disk has no locks") from error
    try:
        yield
    finally:
        lock.release()


def _folder_of_locks() -> Path:
    try:
        return writable_folder(cache_folder("locks"))
    except OutputError:
        user = os.getuid() if hasattr(os, "getuid") else getuser()
        return writable_folder(Path(gettempdir()) / f"unetrt-locks-{user}")

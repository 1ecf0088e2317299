"""Atomic file writes: a file appears complete or not at all. Also the user's cache folder, and locks.

`whole_file` writes to a temporary path beside the target and renames it on success; `whole_folder` does the same for a
folder. Functions named `require_...` check a path before long work, without creating anything.
"""

import os
import shutil
import stat
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

from unetrt.runtime.errors import FrameError, OutputError

# Prefix of the folders that hold temporary files.
HIDDEN = ".unetrt-"
# What a path is, by the file type of its mode, if it is not a regular file.
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# Age in seconds from which a temporary file is known to be that of a killed process: no write takes a day.
FORGOTTEN = 86400.0


@contextmanager
def whole_file(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path on the same disk; it is renamed to `path` on success and removed on any exception.

    The temporary file has the name of the target, for writers that depend on it, and lies in a hidden folder beside
    it. Temporary files that a killed process left there more than a day ago are removed.

    Parameters
    ----------
    path
        The target.
    durable
        Whether to wait until the disk has stored the file, so that it survives a power failure.

    Raises
    ------
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    path = Path(os.path.realpath(require_place(path)))  # replace the file, not a link to it
    with _beside(path) as temporary:
        yield temporary
        _share(temporary)
        if durable:
            _sync(temporary)
        temporary.replace(path)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new, empty folder on the same disk; it is renamed to `path` on success and removed on any exception.

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
    """Yield a path named as `path` in a hidden folder beside it, which is removed afterwards."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not os.path.lexists(folder)]
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
            for made in missing:  # deepest first
                with suppress(OSError):
                    made.rmdir()


def clear_unfinished(folder: str | Path, older: float = 0) -> None:
    """Remove temporary files that killed processes left in a folder.

    Parameters
    ----------
    folder
        Folder of the targets.
    older
        Minimum age in seconds; 0 is safe only where no other process writes to the folder.
    """
    for hidden in Path(folder).glob(f"{HIDDEN}*"):
        with suppress(OSError):
            if time.time() - hidden.stat().st_mtime >= older:
                shutil.rmtree(hidden, ignore_errors=True)


@cache
def _forget(folder: Path) -> None:
    """Remove abandoned temporary files, once per process and folder: a folder may hold a hundred thousand files."""
    clear_unfinished(folder, older=FORGOTTEN)


def writable_folder(path: str | Path) -> Path:
    """Create a folder where it is missing, and return its path; raises OutputError where it cannot be written to."""
    path = require_writable(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror or error}") from error
    return path


def require_place(path: str | Path, sources: Iterable[str | Path] = ()) -> Path:
    """Return `path`, or raise OutputError where no file can be written there; creates nothing.

    Parameters
    ----------
    path
        The file to be written or replaced.
    sources
        Files that are read, which must not be overwritten.
    """
    path = Path(path)
    there = _exists(path)
    if there and path.is_dir():
        raise OutputError(f"{path} is a folder: name a file in it")
    if there and not path.is_file():
        raise OutputError(f"{path} is not a regular file, and would be replaced by one: name another")
    for source in sources:
        if there and path.samefile(source):
            raise OutputError(f"{path} is read for this, and would be overwritten: give another name with -o")
    require_writable(path.parent)
    return path


def require_regular(path: str | Path, subject: str = "") -> Path:
    """Return `path`, or raise FrameError unless it is a regular file, or a symbolic link to one.

    Reading a named pipe or a terminal waits, and a device such as /dev/zero never ends. The message begins with
    `subject` and lacks the path, so that it can follow the name of a file.
    """
    path = Path(path)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise FrameError(f"{subject}cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise FrameError(f"{subject}is {KINDS.get(stat.S_IFMT(mode), 'of an unknown kind')}: give a regular file")
    return path


def require_writable(path: str | Path) -> Path:
    """Return `path`, or raise OutputError unless it is a folder that can be written to or created; creates nothing."""
    path = Path(path)
    there = next(part for part in (path, *path.absolute().parents) if _exists(part))
    if not there.is_dir():
        raise OutputError(f"cannot write to {path}: {there} is not a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write to {path}: no permission for {there}")
    return path


def _exists(path: Path) -> bool:
    """Return whether a path exists; unlike Path.exists(), False below a folder without permission to enter."""
    try:
        return path.exists()
    except OSError:
        return False


def _share(path: Path) -> None:
    """Give a file the permissions of any new file there: some writers make theirs readable by the owner only."""
    usual = path.with_name(".mode")
    usual.touch()
    path.chmod(usual.stat().st_mode)


def _sync(path: Path) -> None:
    """Wait until the disk has stored a file."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def cache_folder(part: str) -> Path:
    """Return the folder of one part of the user's cache, such as `engines`; it may not exist."""
    return user_cache_path("unetrt", appauthor=False) / part


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock of a path, which need not exist, among the processes of this user on this machine.

    The lock is a file in the user's cache, or in the system's temporary folder where the cache cannot be written to,
    so nothing is left beside `path`. It is released when its process ends.

    Raises
    ------
    OutputError
        Neither folder can be written to, or the disk does not support locks.
    """
    name = sha256(normcase(Path(path).resolve()).encode()).hexdigest()[:32]
    lock = FileLock(_folder_of_locks() / f"{name}.lock")
    try:
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        raise OutputError(
            f"cannot lock {lock.lock_file}: {error}; its disk does not support locks: use a cache folder on "
            "another one (XDG_CACHE_HOME on Linux)"
        ) from error
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

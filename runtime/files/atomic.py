"""Atomic file writes: a file appears complete or not at all. Also scratch folders, the user's cache folder, and locks.

`whole_file` writes to a temporary path beside the target and renames it on success; `whole_folder` does the same for a
folder. Functions named `require_...` check a target before long work, without creating anything.

Temporary files lie in hidden folders, `.unetrt-MACHINE-RANDOM`, each of which holds a lock that ends with its process.
A killed process cannot remove its own; the next one that writes into the same folder removes those that nobody locks.
"""

import os
import platform
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

# Prefix of the folders that hold temporary files, and the file in them that their process locks.
HIDDEN, LOCK = ".unetrt-", ".unetrt-lock"
# Seconds without a change after which another machine's temporary files on a shared disk are considered abandoned: not
# every such disk shows one machine the locks of the others.
FORGOTTEN = 7 * 86400.0


@contextmanager
def whole_file(path: str | Path, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path on the same disk; it is renamed to `path` on success and removed on any exception.

    The temporary file has the name of the target, for writers that depend on it, and lies in a hidden folder beside
    it. Temporary files that killed processes left there are removed, see `clear_unfinished`.

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
def scratch_folder() -> Iterator[Path]:
    """Yield a new, empty folder among the system's temporary files, and remove it with its content afterwards.

    As for `whole_file`, what a killed process could not remove is removed by the next call of any process.

    Raises
    ------
    OutputError
        The system's folder of temporary files cannot be written to.
    """
    with _hidden(Path(gettempdir())) as hidden:
        (folder := hidden / "scratch").mkdir()
        yield folder


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """Yield a path named as `path` in a hidden folder beside it, which is removed afterwards."""
    missing = [folder for folder in (path.parent, *path.parent.parents) if not os.path.lexists(folder)]
    try:
        with _hidden(writable_folder(path.parent)) as hidden:
            yield hidden / path.name
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if not path.exists():
            for made in missing:  # deepest first
                with suppress(OSError):
                    made.rmdir()


@contextmanager
def _hidden(folder: Path) -> Iterator[Path]:
    """Yield a new hidden folder that this process has locked, and remove it afterwards."""
    _forget(folder)
    try:
        hidden, lock = _claimed(folder)
    except OSError as error:
        raise OutputError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield hidden
    finally:
        lock.release()
        shutil.rmtree(hidden, ignore_errors=True)


def _claimed(folder: Path) -> tuple[Path, FileLock]:
    """Create a hidden folder and lock it; where the disk has no locks, it is not locked."""
    hidden = Path(mkdtemp(prefix=f"{HIDDEN}{_machine()}-", dir=folder))
    lock = FileLock(hidden / LOCK)
    with suppress(OSError, NotImplementedError):
        lock.acquire()  # creates the folder again if another process removed it while it was not locked
    return hidden, lock


@cache
def _machine() -> str:
    """Return 16 hexadecimal digits: 8 of the machine's name, and 8 of its start, which containers on it share."""
    name = start = platform.node().encode()
    with suppress(OSError):
        start = Path("/proc/sys/kernel/random/boot_id").read_bytes()  # random(4): drawn each time that Linux starts
    return sha256(name).hexdigest()[:8] + sha256(start).hexdigest()[:8]


def clear_unfinished(folder: str | Path) -> None:
    """Remove temporary files that killed processes left in a folder.

    Those of a running process are locked, and stay. Locks of other machines may be invisible on a shared disk: their
    files stay until nothing in them has changed for a week. A machine is known by its name and by its start, so that
    neither a restart nor containers with changing names make it another one.
    """
    for hidden in Path(folder).glob(f"{HIDDEN}*"):
        with suppress(OSError):
            if hidden.is_symlink() or not hidden.is_dir():
                continue
            machine, here = hidden.name.removeprefix(HIDDEN).partition("-")[0], _machine()
            if machine[:8] == here[:8] or machine[8:] == here[8:]:
                _remove_unlocked(hidden)
            elif time.time() - max(path.stat().st_mtime for path in (hidden, *hidden.rglob("*"))) > FORGOTTEN:
                shutil.rmtree(hidden, ignore_errors=True)


def _remove_unlocked(hidden: Path) -> None:
    """Remove a hidden folder of this machine unless its process still runs; raises OSError where that is unknown."""
    with FileLock(hidden / LOCK, timeout=0):  # its Timeout is an OSError
        shutil.rmtree(hidden, ignore_errors=True)
    if os.name == "nt":  # where an open file, such as the lock, cannot be removed
        shutil.rmtree(hidden, ignore_errors=True)


@cache
def _forget(folder: Path) -> None:
    """Remove abandoned temporary files, once per process and folder: a folder may hold a hundred thousand files."""
    clear_unfinished(folder)


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
    """Return the folder of one part of the user's cache, such as `engines`; it may not exist.

    Temporary files that killed processes left there are removed: a later run finds its result there and writes nothing.
    """
    folder = user_cache_path("unetrt", appauthor=False) / part
    _forget(folder)
    return folder


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

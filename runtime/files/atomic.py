"""Atomic file writes: a file appears complete or not at all. Also scratch folders, the user's cache, and locks.

`whole_file` writes to a temporary path beside the target and renames it on success; `whole_folder` does the same for a
folder, and `replace_file` for small files that are written often. Functions named `require_...` check a path before
long work, without creating anything.

Temporary files lie in hidden folders, `.unetrt-MACHINE-RANDOM`, each of which holds a lock that ends with its process.
A killed process cannot remove its own; the next one that writes into the same folder removes those that nobody locks.

A cache lies in a folder that this user alone can enter (`private_folder`). `cached_file` writes to it and replaces a
link instead of following it; `read_cached` reads from it, but neither a link nor a file of another user. `locked` holds
a lock in such a folder, for a limited time.
"""

import logging
import os
import platform
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from os.path import normcase
from pathlib import Path
from tempfile import gettempdir, mkdtemp

from filelock import BaseFileLock, FileLock, Timeout
from platformdirs import user_cache_path

from unetrt.runtime.errors import FrameError, OutputError, printable
from unetrt.runtime.records import read_regular

log = logging.getLogger("unetrt")

# Prefix of the folders that hold temporary files, and the file in them that their process locks.
HIDDEN, LOCK = ".unetrt-", ".unetrt-lock"
# What a folder that is replaced is called in there; its own name may be as long as names can be.
REPLACED = ".unetrt-replaced"
# Seconds without a change after which another machine's temporary files on a shared disk are considered abandoned: not
# every such disk shows one machine the locks of the others.
FORGOTTEN = 7 * 86400.0
# Seconds that `locked` waits by default, and after which it logs for which process it waits.
WAIT, SILENT = 30.0, 5.0
# Suffix of a file that `replace_file` writes; seconds for which it tries again while a reader holds the target open,
# which Windows does not allow, and seconds between two attempts.
PARTIAL, UNSHARED, PAUSE = ".partial", 2.0, 0.01
# What a path is, by the file type of its mode, if it is not a regular file.
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


@contextmanager
def whole_file(path: str | Path, durable: bool = False, follow: bool = True) -> Iterator[Path]:
    """Yield a temporary path on the same disk; it is renamed to `path` on success and removed on any exception.

    The temporary file has the name of the target, for writers that depend on it, and lies in a hidden folder beside
    it. Temporary files that killed processes left there are removed, see `clear_unfinished`.

    Parameters
    ----------
    path
        The target.
    durable
        Whether to wait until the disk has stored the file, so that it survives a power failure.
    follow
        Whether a link at `path` stays, and the file that it leads to is replaced; else the link is replaced.

    Raises
    ------
    OutputError
        The folder cannot be written to, or the disk is full.
    """
    path = Path(os.path.realpath(require_place(path))) if follow else Path(path)
    with _beside(path) as temporary:
        yield temporary
        _share(temporary)
        if durable:
            _sync(temporary)
        temporary.replace(path)


@contextmanager
def whole_folder(path: str | Path, replace: Iterable[str] = ()) -> Iterator[Path]:
    """Yield a new, empty folder on the same disk; it is renamed to `path` on success and removed on any exception.

    Parameters
    ----------
    path
        The target.
    replace
        Names of files: an existing folder that holds one of them is replaced.

    Raises
    ------
    OutputError
        `path` exists and is not replaced, its folder cannot be written to, or the disk is full.
    """
    path = Path(path)
    if os.path.lexists(path) and not any((path / name).is_file() for name in replace):
        raise OutputError(f"{path} exists: give another name, or remove it first")
    with _beside(path) as temporary:
        temporary.mkdir()
        yield temporary
        if os.path.lexists(path):
            path.rename(temporary.with_name(REPLACED))  # removed with the hidden folder
        temporary.rename(path)


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file, and the folders it is in, atomically, for files that are replaced after each frame.

    It does without the hidden folder and the lock of `whole_file`. A process that is killed leaves a file
    `NAME.partial` at most, which the next write of the file replaces. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + PARTIAL)
    temporary.write_bytes(content)
    end = time.monotonic() + UNSHARED
    while True:
        try:
            temporary.replace(path)
        except PermissionError:
            if os.name != "nt" or time.monotonic() > end:
                raise
            time.sleep(PAUSE)
        else:
            return


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
        if not _exists(path):
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
        try:
            lock.release()
        finally:
            _discard(hidden)


def _claimed(folder: Path) -> tuple[Path, FileLock]:
    """Create a hidden folder and lock it; where the disk has no locks, it is not locked."""
    hidden = Path(mkdtemp(prefix=f"{HIDDEN}{_machine()}-", dir=folder))
    try:
        lock = FileLock(hidden / LOCK)
        with suppress(OSError, NotImplementedError):
            lock.acquire()  # creates the folder again if another process removed it while it was not locked
    except BaseException:  # a signal
        _discard(hidden)
        raise
    return hidden, lock


def _discard(hidden: Path) -> None:
    """Remove a hidden folder; a signal meanwhile, which ends the command, does not keep it."""
    try:
        shutil.rmtree(hidden, ignore_errors=True)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise


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
    found: list[Path] = []
    with suppress(OSError):  # a folder that may not be entered
        found = list(Path(folder).glob(f"{HIDDEN}*"))
    for hidden in found:
        with suppress(OSError):
            if hidden.is_symlink() or not hidden.is_dir() or not _owned(hidden):
                continue
            machine, here = hidden.name.removeprefix(HIDDEN).partition("-")[0], _machine()
            if machine[:8] == here[:8] or machine[8:] == here[8:]:
                _remove_unlocked(hidden)
            elif time.time() - max(path.stat().st_mtime for path in (hidden, *hidden.rglob("*"))) > FORGOTTEN:
                shutil.rmtree(hidden, ignore_errors=True)


def _owned(folder: Path) -> bool:
    """Return whether a folder is this user's: in a temporary folder of all users, another's lock is not opened."""
    return not hasattr(os, "geteuid") or folder.lstat().st_uid == os.geteuid()


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
    """Return the folder of one part of the user's cache, such as `engines`; it may not exist.

    Without a home folder, it lies in the system's temporary folder. Temporary files that killed processes left in it
    are removed: a later run finds its result there and writes nothing.
    """
    try:
        root = user_cache_path("unetrt", appauthor=False)
    except RuntimeError:  # there is no home folder
        root = Path()
    folder = (root if root.is_absolute() else _temporary_cache()) / part
    _forget(folder)
    return folder


def _temporary_cache() -> Path:
    """Return a folder in the system's temporary folder, which has a known name: `private_folder` checks its owner."""
    user = f"-{os.geteuid()}" if hasattr(os, "geteuid") else ""
    try:
        return Path(gettempdir()) / f"unetrt{user}"
    except FileNotFoundError as error:
        raise OutputError("there is no temporary folder that can be written to: set TMPDIR to one") from error


def private_folder(path: str | Path) -> Path:
    """Create a folder that only this user can enter, or make one of theirs so, and return its path.

    A link of this user is followed to a folder of theirs to which no others can write, and which stays as it is. In the
    user's cache, the folder of the whole cache is made private too. On Windows, folders have the permissions of the
    folder above: those of the user's profile.

    Raises
    ------
    OutputError
        The folder cannot be created or written to, or belongs to another user.
    """
    path = Path(path)
    root = cache_folder("")
    for folder in (root, path) if root in path.parents else (path,):
        require_writable(folder)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            reason = _why_not_private(folder)
        except OSError as error:
            reason = error.strerror or str(error)
        if reason:
            raise OutputError(
                f"{folder} is not usable as a cache: {reason}; use another cache folder (XDG_CACHE_HOME on Linux)"
            )
    return path


def _why_not_private(folder: Path) -> str | None:
    """Take the permissions of others away from a folder; return why that is not possible, None where it was."""
    if not hasattr(os, "geteuid"):
        return None
    about = folder.lstat()
    linked = stat.S_ISLNK(about.st_mode)
    for owned in (about, folder.stat()):
        if owned.st_uid != os.geteuid():
            return f"it belongs to user {owned.st_uid}, and you are user {os.geteuid()}"
    if linked:
        return "others can write to the folder that it links to" if folder.stat().st_mode & 0o022 else None
    if about.st_mode & 0o077:
        folder.chmod(0o700)
    return None


@contextmanager
def cached_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path as `whole_file` does, for a file of a cache: a link at `path` is replaced.

    Raises
    ------
    OutputError
        The folder is not private or cannot be written to, or the disk is full.
    """
    private_folder(path.parent)
    with whole_file(path, follow=False) as temporary:
        yield temporary


def read_cached(path: Path, limit: int) -> bytes:
    """Return the content of a file of a cache, neither a link nor another user's; raises OSError as `read_regular`."""
    return read_regular(path, limit, own=True)


@contextmanager
def locked(path: str | Path, wait: float = WAIT) -> Iterator[None]:
    """Hold the lock of a path, which need not exist, among the processes of this user on this machine.

    The lock is a file in the user's cache, or in the system's temporary folder where the cache cannot be written to,
    so nothing is left beside `path`. It is released when its process ends. A stopped process keeps it.

    Parameters
    ----------
    path
        What is locked.
    wait
        Seconds to wait for a process that holds the lock; a longer wait than `SILENT` is logged as a warning.

    Raises
    ------
    OutputError
        Another process has held the lock all the time, neither folder can be written to, or the disk does not support
        locks.
    """
    name = sha256(os.fsencode(normcase(os.path.realpath(path)))).hexdigest()[:32]
    file = _folder_of_locks() / f"{name}.lock"
    holder = file.with_suffix(".holder")
    lock = FileLock(file, mode=0o600)
    try:
        if file.is_symlink():
            file.unlink()
        _acquire(lock, holder, path, wait)
    except OutputError:
        raise
    except (OSError, NotImplementedError) as error:
        raise OutputError(
            f"cannot lock {file}: {error}; its disk does not support locks: use a cache folder on another one "
            "(XDG_CACHE_HOME on Linux)"
        ) from error
    try:
        with suppress(OSError), cached_file(holder) as temporary:  # for messages only
            temporary.write_bytes(str(os.getpid()).encode())
        yield
    finally:
        lock.release()


def _acquire(lock: BaseFileLock, holder: Path, path: str | Path, wait: float) -> None:
    """Acquire a lock; the error after `wait` seconds names the process whose number is in the file `holder`."""
    try:
        lock.acquire(timeout=min(SILENT, wait))
        return
    except Timeout:
        if wait > SILENT:
            log.warning("waiting for %s, which works on %s, %g s at most", _name_of(holder), printable(str(path)), wait)
    try:
        lock.acquire(timeout=max(0.0, wait - SILENT))
    except Timeout as error:
        raise OutputError(
            f"{_name_of(holder)} has worked on {path} for more than {wait:g} s, and holds its lock, "
            f"{lock.lock_file}: wait until it ends, or end it where it is stopped"
        ) from error


def _name_of(holder: Path) -> str:
    """Return the name of the process whose number is in a file."""
    with suppress(OSError, ValueError):
        return f"process {int(read_cached(holder, 20))}"
    return "another process"


def _folder_of_locks() -> Path:
    try:
        return private_folder(cache_folder("locks"))
    except OutputError:
        return private_folder(private_folder(_temporary_cache()) / "locks")

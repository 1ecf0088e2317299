"""Where things are kept that can be made again."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from getpass import getuser
from hashlib import sha256
from os.path import normcase
from pathlib import Path
from tempfile import gettempdir

from filelock import FileLock
from platformdirs import user_cache_path

from unetrt.runtime.artifacts import writable_folder
from unetrt.runtime.errors import OutputError


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

"""Where things are kept that can be made again."""

from contextlib import AbstractContextManager
from hashlib import sha256
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from unetrt.runtime.artifacts import writable_folder


def cache_folder(part: str) -> Path:
    """Return the folder of one part of the user's cache, such as `engines`; it may not exist yet."""
    return user_cache_path("unetrt", appauthor=False) / part


def locked(path: str | Path) -> AbstractContextManager[object]:
    """Return a lock that one process at a time can hold for a file, whether or not that exists.

    The lock is a file in the user's cache, so that nothing is left beside `path`; it ends with its process.

    Raises
    ------
    OutputError
        The user's cache cannot be written to.
    """
    name = sha256(str(Path(path).absolute()).encode()).hexdigest()[:32]
    return FileLock(writable_folder(cache_folder("locks")) / f"{name}.lock")

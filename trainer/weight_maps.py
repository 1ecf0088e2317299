"""Separation weights, worked out once for an image and kept: a file for each set of labels and options."""

import hashlib
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from platformdirs import user_cache_path

from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.atomic import whole_file
from unetrt.trainer.targets import Labels, separation_weights

# Part of every key: another way of working weights out must not find these.
METHOD = 1
# Bytes of weight maps that are kept; the longest unused go first.
KEEP = 2 * 2**30


def cached_separation_weights(
    objects: Labels, w0: float, sigma: float, folder: Path | None = None
) -> NDArray[np.float32]:
    """Return `separation_weights`, from the cache if these labels and options have been seen.

    Parameters
    ----------
    objects, w0, sigma
        As for `separation_weights`.
    folder
        Of the cache; None: `unetrt/weight-maps` in the user's cache folder. One that cannot be written to, or a file
        that is damaged, costs the time of working the weights out and nothing else.
    """
    folder = default_folder() if folder is None else folder
    path = folder / f"{_key(objects, w0, sigma)}.npy"
    weights = _read(path, objects.shape)
    if weights is None:
        weights = separation_weights(objects, w0, sigma)
        with suppress(OutputError), whole_file(path) as temporary:
            np.save(temporary, weights)
    return weights


def default_folder() -> Path:
    """Return where weight maps are kept unless told otherwise."""
    return user_cache_path("unetrt", appauthor=False) / "weight-maps"


def prune(folder: Path | None = None, keep: int = KEEP) -> None:
    """Delete the longest unused weight maps beyond `keep` bytes."""
    folder = default_folder() if folder is None else folder
    kept = 0
    with suppress(OSError):
        for path in sorted(folder.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True):
            kept += path.stat().st_size
            if kept > keep:
                path.unlink()


def _key(objects: Labels, w0: float, sigma: float) -> str:
    digest = hashlib.sha256(f"{METHOD} {objects.shape} {objects.dtype.str} {w0!r} {sigma!r}".encode())
    digest.update(np.ascontiguousarray(objects).data)
    return digest.hexdigest()


def _read(path: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
    try:
        weights: NDArray[np.float32] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    with suppress(OSError):
        os.utime(path)  # used now
    return weights if weights.shape == shape and weights.dtype == np.float32 else None

"""Another tile for a model file: planned for the frames at hand, verified, and kept in the user's cache.

A U-Net is the same network with every legal tile, so its tile can be chosen when it is loaded. `retile` writes a model
file with another tile, `model_for` returns one that is planned for frames, and `model_if_worth` does so only where that
saves time. Each session still has one fixed tile.

A new file is kept only if a drawn frame has the same result with it as with the original, within the tolerance of the
precision. Both files are run on the CPU, once: a file of the cache is believed if its bytes are those that would be
written again.

>>> with Segmenter(model_for(Path("model.onnx"), [(512, 512)])) as segmenter:  # doctest: +SKIP
...     labels = segmenter.segment(frame).labels
"""

import logging
import operator
import os
from collections.abc import Collection, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from hashlib import sha256
from math import prod
from pathlib import Path
from stat import S_ISREG
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unetrt.runtime.candidates import first_usable
from unetrt.runtime.engines import SUFFIXES
from unetrt.runtime.errors import (
    BackendUnavailableError,
    GateError,
    InferenceError,
    ModelFileError,
    OptionError,
    OutOfMemoryError,
    one_line,
    printable,
    shown,
)
from unetrt.runtime.files.atomic import cache_folder, cached_file, locked, read_cached, whole_file
from unetrt.runtime.geometry.planner import Budget, FrameSize, best_tile, cost_of
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.retiled import require_retilable, retiled
from unetrt.runtime.model.spec import ModelSpec
from unetrt.runtime.sessions import AUTO, BACKENDS, Backend, Session, chosen_backend
from unetrt.runtime.sessions.agreement import difference, drawn, shows_classes

Array = NDArray[Any]

log = logging.getLogger("unetrt")

# Bytes of model files that are kept; the least recently used are deleted first.
KEEP = 4 * 2**30
# Share of the arithmetic of the planned tile by which that of the file's own tile must exceed it.
WORTH = 0.1
# Pixels of the tiles in one pass, where tiles are small, and passes that are worth it.
PASS, MANY = 1 << 14, 16
# Seconds to wait for another process that verifies the same tile.
VERIFICATION_WAIT = 600.0
# Least side of the drawn frame, in pixels, where the tiles allow it: some objects are then in it.
DRAWN = 256


def retile(model: Path, out: Path, tile: FrameSize, batch: int) -> None:
    """Write a model file with another tile, once it is verified.

    Parameters
    ----------
    model
        A U-Net's file that `unetrt export` wrote.
    out
        The new file; on an error it is not written.
    tile
        Height and width, in pixels.
    batch
        Tiles in one pass.

    Raises
    ------
    ModelFileError
        The tile of this file cannot be changed.
    TileError
        The tile is not legal.
    GateError
        The result on a drawn frame differs from that with the file's own tile.
    BackendUnavailableError
        No backend on the CPU runs the file.
    OutOfMemoryError
        One of the tiles does not fit into the host's memory.
    OutputError
        The file cannot be written.
    """
    _write(out, model, retiled(model, tile, batch), cached=False)


def model_for(
    model: Path, frames: Collection[FrameSize], backend: str = AUTO, device: int | None = None, lanes: int = 1
) -> Path:
    """Return a file of a model whose tile is planned for frames: `model` itself, or a verified one from the cache.

    Parameters
    ----------
    model
        A U-Net's file that `unetrt export` wrote.
    frames
        Height and width of each frame, at least one; a repeated size counts once per occurrence.
    backend, device, lanes
        Where it will run, see `Segmenter`. On the CPU the tile fits into the memory that is free.

    Raises
    ------
    OptionError
        `model` is an engine, or there is no such backend.
    FrameError
        A frame has no pixels, or too many.
    UnetrtError
        What `retile` raises.
    """
    if model.suffix.lower() in SUFFIXES:
        raise OptionError(
            f"{model} is an engine, whose tile is fixed: open the ONNX file that it was built from, or build an engine "
            "of the file that `unetrt retile` writes for these frames"
        )
    spec, shape = require_retilable(model)
    budget = _budget(spec, chosen_backend(backend, device), lanes)
    return model_with(model, best_tile(frames, shape, budget).tile, spec.batch)


def model_with(model: Path, tile: FrameSize, batch: int) -> Path:
    """Return a file of a model with a tile and a batch: `model` itself, or a verified one from the cache.

    Raises what `retile` does.
    """
    spec = read_spec(model)
    return model if (tile, batch) == (spec.tile, spec.batch) else _cached(model, tile, batch)


def model_if_worth(model: Path, frames: Collection[FrameSize], backend: str = AUTO, device: int | None = None) -> Path:
    """Return what `model_for` does where that saves time, else `model`; raises as `model_for` does.

    The file's own tile is kept if it needs at most `WORTH` more arithmetic than the planned one, or if so few frames
    are given that verification costs more than it saves. It is kept on a GPU, where another tile means building an
    engine, which takes minutes.
    """
    if model.suffix.lower() in SUFFIXES or not frames:
        return model
    chosen = chosen_backend(backend, device)
    if chosen.gpu:
        return model
    spec, shape = require_retilable(model)
    budget = _budget(spec, chosen, lanes=1)
    own, best = cost_of(spec.tile, frames, shape, budget), best_tile(frames, shape, budget)
    if own.macs <= (1 + WORTH) * best.macs:
        return model
    costly = own.macs - best.macs <= _macs_of_verification(spec, replace(spec, tile=best.tile), shape)
    batch = _batch_of_small(spec, best.tile, frames)
    if costly and not _holds(_place(model, best.tile, batch), retiled(model, best.tile, batch)):
        return model
    return _cached(model, best.tile, batch)


def _batch_of_small(spec: ModelSpec, tile: FrameSize, frames: Collection[FrameSize]) -> int:
    """Return the tiles in one pass on a CPU: more than the model file has, where tiles are small and frames many.

    Each pass takes about 0.1 ms besides its arithmetic, to hand it to the engine and its threads.
    """
    batch = 1 << (max(1, PASS // prod(tile))).bit_length() - 1
    return max(batch, spec.batch) if len(frames) >= MANY * batch else spec.batch


def frame_size(frame: object) -> FrameSize:
    """Return the height and width that a user gave; raises OptionError unless they are two positive integers."""
    if isinstance(frame, Sequence | np.ndarray) and not isinstance(frame, str | bytes):
        with suppress(TypeError, ValueError):
            height, width = (operator.index(side) for side in frame if not isinstance(side, bool))
            if len(frame) == 2 and min(height, width) >= 1:
                return height, width
    raise OptionError(
        f"frame must be the height and width of your frames in pixels, such as (512, 512) (got {shown(frame)})"
    )


def folder() -> Path:
    """Return the folder of model files with other tiles."""
    return cache_folder("tiles")


def kept() -> list[Path]:
    """Return the files of the cache, the last used first; other processes may delete some at any time."""
    found = []
    for path in folder().glob("*.onnx"):
        with suppress(OSError):
            about = path.lstat()
            found += [(about.st_mtime, path)] if S_ISREG(about.st_mode) else []
    return [path for _, path in sorted(found, reverse=True)]


def clear(keys: tuple[str, ...] = ()) -> list[Path]:
    """Delete the files whose keys begin with one of `keys`, or all; return those that are gone."""
    return [path for path in kept() if (not keys or path.name.startswith(keys)) and _delete(path)]


def _budget(spec: ModelSpec, backend: Backend, lanes: int) -> Budget:
    """Return what a tile must fit into: on the CPU, where passes run one after another, what is free.

    Free memory changes from run to run, so it is rounded down to a power of 2: the plan is then mostly the same.
    """
    if backend.gpu:
        return Budget(batch=spec.batch, lanes=lanes)
    budget = Budget(batch=spec.batch).within_free_memory()
    return replace(budget, memory=1 << budget.memory.bit_length() - 1)


def _cached(model: Path, tile: FrameSize, batch: int) -> Path:
    """Return the file of the cache with another tile, which is written and verified where it is missing or damaged."""
    content, path = retiled(model, tile, batch), _place(model, tile, batch)
    if not _holds(path, content):
        with locked(path, VERIFICATION_WAIT):  # another process may be verifying it
            if not _holds(path, content):
                log.info("tile %dx%d of %s is verified, once", *tile, printable(str(model)))
                _write(path, model, content, cached=True)
    with suppress(OSError):
        os.utime(path)
    _prune()
    return path


def _place(model: Path, tile: FrameSize, batch: int) -> Path:
    about = (sha256(model.read_bytes()).hexdigest(), tile, batch)
    return folder() / f"{sha256(repr(about).encode()).hexdigest()[:32]}.onnx"


def _holds(path: Path, content: bytes) -> bool:
    """Return whether a file of the cache has this content."""
    with suppress(OSError):
        return read_cached(path, len(content)) == content
    return False


def _delete(path: Path) -> bool:
    with suppress(OSError):
        path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def _prune(keep: int = KEEP) -> None:
    """Delete the least recently used files beyond `keep` bytes; never the last used one."""
    size = 0
    for number, path in enumerate(kept()):
        with suppress(OSError):
            size += path.lstat().st_size
        if number and size > keep:
            _delete(path)


def _write(out: Path, model: Path, content: bytes, cached: bool) -> None:
    with (cached_file if cached else whole_file)(out) as temporary:
        temporary.write_bytes(content)
        _verify(model, temporary)


def _verify(model: Path, other: Path) -> None:
    """Raise GateError unless a drawn frame has the same result with two files; see `retile`."""
    spec, changed = read_spec(model), read_spec(other)
    results: list[str] = []

    def refusal(backend: Backend) -> str | None:
        try:
            if reason := backend.probe():
                return f"{backend.name}: {reason}"
            results.append(_disagreement(backend, model, other, drawn(spec, 1, _drawn_size(spec, changed))))
        except BackendUnavailableError as error:
            return f"{backend.name}: {error}"
        return None

    on_cpu = [backend for backend in BACKENDS if backend.automatic and not backend.gpu]
    first_usable(on_cpu, refusal, f"another tile of {model} is verified on the CPU, and no engine for it is usable")
    if results[0]:
        tiles = ["{}x{}".format(*one.tile) for one in (changed, spec)]
        raise GateError(
            f"{model} with tile {tiles[0]} is not verified against its own tile {tiles[1]}: {results[0]}; keep its own "
            "tile, or export its network again with --tile"
        )


def _disagreement(backend: Backend, model: Path, other: Path, images: Iterable[Array]) -> str:
    """Return one phrase that says how two files differ on the first drawn image that shows it; empty if they agree."""
    with backend.open(model) as session:
        for image in images:
            expected = _stitched(session, image)
            if shows_classes(session.spec, expected):
                break
        else:
            return "its output for drawn frames is the same at every pixel, NaN or infinity, which verifies nothing"
    try:
        with backend.open(other) as session:
            return difference(session.spec, expected, _stitched(session, image))
    except OutOfMemoryError:
        raise
    except (InferenceError, ModelFileError) as error:
        return f"it does not run ({one_line(error, 200)})"


def _stitched(session: Session, image: Array) -> Array:
    """Return a session's output for images (1, C, H, W) of its input dtype: (1, classes, H, W), or labels (1, H, W)."""
    spec, size = session.spec, image.shape[-2:]
    (lane,) = session.lanes(1)
    out = np.empty((*lane.output.shape[:-2], *size), lane.output.dtype)[:1]
    with closing(lane):
        for tiles in spec.plan(size).batches(spec.batch):
            for slot, tile in enumerate(tiles):
                tile.cut(image[0], lane.input[slot])
            lane.launch()
            lane.wait()
            for slot, tile in enumerate(tiles):
                tile.stitch(lane.output[slot], out[0])
    return out


def _drawn_size(spec: ModelSpec, other: ModelSpec) -> FrameSize:
    """Return the size of the drawn frame: one tile of the larger side, and a seam between two of the smaller side."""
    height, width = (_drawn_side(spec, sides) for sides in zip(spec.tile, other.tile, strict=True))
    return height, width


def _drawn_side(spec: ModelSpec, sides: tuple[int, ...]) -> int:
    smaller, larger = min(sides), max(sides)
    core, stride = spec.geometry.core(smaller), spec.geometry.stride(smaller)
    # Without a stride, a tile can only cover a frame alone.
    return min(max(core + stride, DRAWN), spec.geometry.core(larger)) if stride else core


def _macs_of_verification(spec: ModelSpec, other: ModelSpec, shape: UNetShape) -> int:
    size = [_drawn_size(spec, other)]
    return sum(cost_of(one.tile, size, shape, Budget(batch=spec.batch)).macs for one in (spec, other))

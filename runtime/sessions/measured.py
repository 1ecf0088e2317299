"""Measured tiles: times the few best tiles of a plan on the backend that runs them, and keeps the times.

A round opens the model of each tile in turn, in random order, so that only one is in memory at a time and a temporary
slowdown of the machine affects all tiles equally. It times passes on random input, with one pass in flight per lane.
The time of a tile is the median of the rounds. Times are valid for one `Setting`, and are kept in the user's cache, one
JSON file per setting.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from math import ceil
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np

from unetrt.runtime.engines.flavours import usable_flavour
from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.files.atomic import cache_folder, cached_file, locked, read_cached, scratch_folder
from unetrt.runtime.geometry.planner import Budget, FrameSize, TileTime
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.machine import cores, processor, this_machine
from unetrt.runtime.model.retiled import retiled
from unetrt.runtime.records import from_json, to_json
from unetrt.runtime.sessions import AUTO, Backend, Lane, open_session

# Rounds, and seconds from the end of the first after which no other begins.
ROUNDS, PATIENCE = 5, 60.0
# Seconds of passes of one tile in a round, within these numbers of passes in each lane.
LONG, FEWEST, MOST = 0.4, 2, 30
# A first pass of more seconds counts: what it allocates is little against that.
SLOW = 4.0
# Uncertainty of a median at least, as a share of it: rounds that agree by chance show none.
LEAST_NOISE = 0.01
# Limit of a file of times in bytes; a tile takes about 100.
LARGEST = 1 << 20

Progress = Callable[[int, int], None]  # passes timed, and their number in all rounds


@dataclass(frozen=True)
class Setting:
    """Everything that a tile's time depends on, apart from the tile.

    Attributes
    ----------
    backend, version
        The inference engine, as `BACKENDS` names it, and its release.
    device
        Name of the processor, or of the GPU.
    threads
        Logical cores that the process may use.
    precision
        Precision of the graph's arithmetic.
    batch
        Tiles in one pass.
    lanes
        Passes in flight at once.
    depth, base, channels, classes
        The network's shape.
    """

    backend: str
    version: str
    device: str
    threads: int
    precision: str
    batch: int
    lanes: int
    depth: int
    base: int
    channels: int
    classes: int

    @classmethod
    def here(
        cls, backend: Backend, shape: UNetShape, precision: str, budget: Budget, device: int | None = None
    ) -> "Setting":
        """Return the setting of this machine; `device` is the CUDA index of the GPU."""
        place = this_machine(device or 0).gpu if backend.gpu else processor()
        release = _release(backend, device)
        return cls(backend.name, release, place, cores(), precision, budget.batch, budget.lanes, **asdict(shape))

    @property
    def path(self) -> Path:
        """Where the times of this setting are kept."""
        return folder() / f"{sha256(repr(self).encode()).hexdigest()[:32]}.json"

    def __str__(self) -> str:
        engine = f"{self.backend} {self.version}".strip()
        return f"{engine}, {self.precision}, {self.device}, {self.threads} threads"


@dataclass(frozen=True)
class TileTimes:
    """The file of a setting: tiles measured there.

    Attributes
    ----------
    setting
        Where the times hold.
    tiles
        A tile is in it once.
    """

    setting: Setting
    tiles: tuple[TileTime, ...]
    schema: Literal[1] = 1


def folder() -> Path:
    """Return the folder of measured times."""
    return cache_folder("tile-times")


def kept(setting: Setting) -> tuple[TileTime, ...]:
    """Return the tiles measured in a setting so far; raises ModelFileError where their file cannot be read."""
    try:
        text = read_cached(setting.path, LARGEST)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise ModelFileError(f"{setting.path} cannot be read: {error.strerror or error}") from error
    found = from_json(text, TileTimes, str(setting.path))
    return found.tiles if found.setting == setting else ()


def keep(setting: Setting, measured: Iterable[TileTime]) -> tuple[TileTime, ...]:
    """Add times to those of a setting, for later plans, and return all; a tile measured again replaces the earlier one.

    Raises OutputError where the user's cache cannot be written to.
    """
    with locked(setting.path):
        before: tuple[TileTime, ...] = ()
        with suppress(ModelFileError):  # a damaged file is replaced
            before = kept(setting)
        tiles = tuple({one.tile: one for one in chain(before, measured)}.values())
        with cached_file(setting.path) as temporary:
            temporary.write_text(to_json(TileTimes(setting, tiles)) + "\n", encoding="utf-8")
    return tiles


def measure(
    model: Path,
    tiles: Sequence[FrameSize],
    setting: Setting,
    device: int | None = None,
    progress: Progress = lambda *_: None,
) -> list[TileTime]:
    """Time passes of a network with several tiles.

    Parameters
    ----------
    model
        A model file with any tile and batch.
    tiles
        Height and width of each tile.
    setting
        Names the backend, the batch and the lanes.
    device
        CUDA index of the GPU.
    progress
        Called after each tile of each round.

    Raises
    ------
    TileError
        A tile is not legal.
    OutOfMemoryError
        A tile does not fit.
    BackendUnavailableError, EngineError
        The backend does not run this network.
    """
    rounds: list[list[float]] = [[] for _ in tiles]
    order, total = np.random.default_rng(0), ROUNDS * len(tiles)
    with scratch_folder() as folder:
        files = [folder / f"{height}x{width}.onnx" for height, width in tiles]
        for file, tile in zip(files, tiles, strict=True):
            file.write_bytes(retiled(model, tile, setting.batch))
        end = float("inf")
        while len(rounds[0]) < ROUNDS and time.monotonic() < end:
            for which in order.permutation(len(tiles)).tolist():
                with open_session(files[which], setting.backend, device) as session:
                    rounds[which].append(pass_seconds(session.lanes(setting.lanes)) / setting.batch)
                progress(sum(map(len, rounds)), total)
            end = min(end, time.monotonic() + PATIENCE)
    return [tile_time(tile, times) for tile, times in zip(tiles, rounds, strict=True)]


def pass_seconds(lanes: Sequence[Lane]) -> float:
    """Return the seconds of a pass on random input, all lanes in flight: elapsed time by number of passes."""
    random = np.random.default_rng(0)
    for lane in lanes:
        raw, shape = lane.input.dtype.kind == "u", lane.input.shape
        lane.input[...] = random.integers(0, 256, shape) if raw else random.standard_normal(shape, np.float32)
    first = _elapsed(lanes, 1)
    if first > SLOW:
        return first / len(lanes)
    count = min(MOST, max(FEWEST, ceil(LONG / first)))
    return _elapsed(lanes, count) / (count * len(lanes))


def tile_time(tile: FrameSize, rounds: Sequence[float]) -> TileTime:
    """Return the time of a tile from the seconds of its rounds."""
    middle = median(rounds)
    noise = max(LEAST_NOISE * middle, median(abs(one - middle) for one in rounds))
    return TileTime(tile, middle, noise, date.today().isoformat())


def _elapsed(lanes: Sequence[Lane], count: int) -> float:
    """Return the seconds of `count` passes in each lane; a lane is launched again as soon as it is its turn."""
    begin = time.perf_counter()
    for turn in range(count):
        for lane in lanes:
            if turn:
                lane.wait()
            lane.launch()
    for lane in lanes:
        lane.wait()
    return time.perf_counter() - begin


def _release(backend: Backend, device: int | None) -> str:
    """Return the release of a backend's engine; empty where its package has another name than the backend."""
    if backend.runs_engines:
        flavour = usable_flavour(AUTO, this_machine(device or 0))
        return f"{flavour.title} {flavour.version}"
    package = backend.name.partition("-")[0]
    for candidate in (package, f"{package}-gpu"):
        with suppress(PackageNotFoundError):
            return version(candidate)
    return ""

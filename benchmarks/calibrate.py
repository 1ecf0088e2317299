"""The calibration behind `unetrt plan --measure`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, cast

from unetrt.benchmarks.tile_choice import FITTED, choose, smallest
from unetrt.benchmarks.tile_models import TileModels
from unetrt.benchmarks.tile_passes import Place, pass_seconds, settled, time_passes
from unetrt.runtime.calibration import Calibration, Compared
from unetrt.runtime.cost_model import CostModel, TileSeconds
from unetrt.runtime.machine import free_memory
from unetrt.runtime.planner import Budget, FrameSize
from unetrt.runtime.setting import Setting
from unetrt.trainer.checkpoint import Checkpoint

if TYPE_CHECKING:
    from unetrt.runtime.model.spec import Precision

# Seconds of the longest pass that is measured, about; what is larger is predicted only.
LONGEST = 8.0
# Share of the free memory that a pass may take: what a tile needs is known roughly.
SHARE = 0.8

# Told what is done, how much of it and out of how much.
Progress = Callable[[str, int, int], None]


def calibrate(
    checkpoint: Checkpoint,
    setting: Setting,
    frames: Sequence[FrameSize],
    budget: Budget,
    device: int | None = None,
    progress: Progress = lambda *_: None,
) -> Calibration:
    """Measure passes of tiles, fit a cost model to some, and hold it against the others.

    Parameters
    ----------
    checkpoint
        The network that is measured.
    setting
        Engine, precision and batch.
    frames
        Height and width of the frames that are planned for: their tiles are measured.
    budget
        No tile over its memory is measured, and none over what is free.
    device
        The number of the GPU, as CUDA counts.
    progress
        Told of every step.

    Raises
    ------
    TileError
        Too few different tiles fit.
    OutOfMemoryError
        A tile did not fit although it should.
    BackendUnavailableError, EngineError
        The engine does not run this network.
    """
    with TemporaryDirectory(prefix="unetrt-plan-") as folder:
        models = TileModels(checkpoint, cast("Precision", setting.precision), setting.batch, Path(folder))
        tiles = _tiles(models, setting, frames, budget if setting.on_gpu else _within_free(budget), device)
        rounds = _times(models, tiles, Place(setting.backend, device), progress)
    shape = checkpoint.shape
    seconds = [TileSeconds(tile, min(times) / setting.batch) for tile, times in zip(tiles, rounds, strict=True)]
    model = CostModel.fit(seconds[:FITTED], shape)
    compared = [Compared(one.tile, one.seconds, model.seconds(one.tile, shape)) for one in seconds[FITTED:]]
    unsettled = sum(not settled(times) for times in rounds)
    return Calibration(setting, model, tuple(compared), tiles[FITTED - 1], unsettled, date.today().isoformat())


def _within_free(budget: Budget) -> Budget:
    free = free_memory()
    return budget if free is None else replace(budget, memory=max(1, min(budget.memory, int(SHARE * free))))


def _tiles(
    models: TileModels, setting: Setting, frames: Sequence[FrameSize], budget: Budget, device: int | None
) -> list[FrameSize]:
    """Return the tiles to measure, those to fit to first; none of them takes much longer than `LONGEST`."""
    shape = models.checkpoint.shape
    choose(frames, shape, budget)  # enough fit, the smallest among them
    first = smallest(shape)
    rate = shape.macs(*first) / pass_seconds(models.write(first), Place(setting.backend, device))
    fitted, held_out = choose(frames, shape, budget, most=int(LONGEST * rate))
    return [*fitted, *held_out]


def _times(models: TileModels, tiles: Sequence[FrameSize], place: Place, progress: Progress) -> list[list[float]]:
    """Export and time all tiles."""
    files = []
    for number, tile in enumerate(tiles):
        progress("exporting", number, len(tiles))
        files.append(models.write(tile))
    return time_passes(files, place, lambda done, total: progress("timing", done, total))

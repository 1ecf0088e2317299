"""The benchmark behind `unetrt bench`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unetrt.benchmarks.job import PREDICT, SEGMENT, SESSION, USUAL, Job
from unetrt.benchmarks.measure import Figure, Runs, interleaved
from unetrt.benchmarks.report import Result
from unetrt.benchmarks.usual_loop import TILE
from unetrt.benchmarks.whole_frame import whole_frame_scores, wrong_pixels
from unetrt.benchmarks.worker import Worker
from unetrt.export.exporter import export, planned_tile
from unetrt.export.options import Options
from unetrt.runtime.cost import UNetShape
from unetrt.runtime.errors import OptionError, ParityError
from unetrt.runtime.normalisation import Normalisation
from unetrt.trainer.checkpoint import Checkpoint, state_of
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.unet import UNet

# module -> the contenders that it loads, in the order in which they run.
PROCESSES = {"unetrt.benchmarks.usual_loop": (USUAL,), "unetrt.benchmarks.ours": (SESSION, SEGMENT, PREDICT)}


def bench(
    checkpoint: Checkpoint,
    size: tuple[int, int],
    rounds: int,
    *,
    tile: tuple[int, int] | None = None,
    done: Callable[[], None] = lambda: None,
) -> Result:
    """Time all contenders on a drawn uint16 frame of `size` (H, W).

    Parameters
    ----------
    checkpoint
        The network that all of them run.
    rounds
        Fresh starts of each.
    tile
        unetrt's tile; planned by default.
    done
        Called after every single run.

    Raises
    ------
    ParityError
        unetrt's labels are not those of one pass over the whole frame; nothing is timed then.
    InferenceError
        A contender failed.
    """
    shape = checkpoint.shape
    if not shape.geometry.is_legal(TILE):
        raise OptionError(f"the usual loop's tile of {TILE} px is too small at depth {shape.depth}: up to 5 works")
    frame = drawn_frame(size, shape.channels)
    chosen = tile or planned_tile(checkpoint, [size])
    with TemporaryDirectory(prefix="unetrt-bench-") as scratch:
        job = Job(Path(scratch))
        checkpoint.save(job.checkpoint)
        job.write_frame(frame)
        export(checkpoint, job.model, Options(chosen), frames=[frame.reshape(shape.channels, *size)])
        figures, wrong = _measure(job, whole_frame_scores(checkpoint, frame), rounds, done)
    network = {"depth": shape.depth, "base": shape.base, "channels": shape.channels, "classes": shape.classes}
    return Result(size, chosen, network, figures, wrong)


def drawn_frame(size: tuple[int, int], channels: int) -> NDArray[Any]:
    """Return a drawn frame, (H, W) or (C, H, W), uint16."""
    planes = [draw(size, seed=1 + channel).frame for channel in range(channels)]
    return planes[0] if channels == 1 else np.stack(planes)


def untrained(base: int, depth: int, seed: int = 0) -> Checkpoint:
    """Return a network with random weights: as fast as a trained one."""
    shape = UNetShape(depth, base)
    net = UNet(shape).initialise(torch.Generator().manual_seed(seed))
    return Checkpoint(
        shape, state_of(net), ("background", "foreground"), Normalisation(), "instances", separation_border=2
    )


def _measure(
    job: Job, truth: NDArray[np.float32], rounds: int, done: Callable[[], None]
) -> tuple[dict[str, Figure], dict[str, float]]:
    """Hold the contenders' labels against the truth, then time them."""
    wrong: dict[str, float] = {}
    for module, names in PROCESSES.items():
        with Worker(module, job) as worker:
            wrong |= {name: wrong_pixels(worker.labels(name), truth) for name in names if name != SESSION}
    if (worst := max(wrong[SEGMENT], wrong[PREDICT])) > 0:
        raise ParityError(f"{worst:.3%} of unetrt's labels are not those of one pass over the whole frame")
    return interleaved([partial(_side, module, job) for module in PROCESSES], rounds, done), wrong


@contextmanager
def _side(module: str, job: Job) -> Iterator[Runs]:
    """Start the process of a module's contenders."""
    with Worker(module, job) as worker:
        yield {name: partial(worker.seconds, name) for name in PROCESSES[module]}

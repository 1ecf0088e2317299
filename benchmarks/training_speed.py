"""How fast a network trains on a device, in steps a second, and how long the device waits for tiles."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from unetrt.benchmarks.environment import environment
from unetrt.benchmarks.figure import Figure
from unetrt.runtime.normalisation import Normalisation
from unetrt.trainer.dataset import Annotated, Dataset, class_names
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.learner import Learner
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.samples import Sampler, prepare
from unetrt.trainer.team import Team, alone

# Drawn images that tiles are taken from, and their side in pixels.
IMAGES, SIDE = 8, 700
# Steps before anything is timed: kernels are chosen and compiled in them.
WARM_UP = 5
# name -> (16 bits, torch.compile)
WAYS = {"eager": (False, False), "eager, 16 bits": (True, False), "compiled, 16 bits": (True, True)}


@dataclass(frozen=True)
class TrainingSpeed:
    """What was measured of one way to train.

    Attributes
    ----------
    dtype
        What the network computes in.
    seconds
        Of one step: drawing the tile, forward, backward and update.
    waiting
        Share of that in which the device waits for tiles: what a step saves that uses the same tile again.
    """

    dtype: str
    seconds: Figure
    waiting: float


def training_speed(recipe: Recipe, steps: int, rounds: int, ways: tuple[str, ...] = tuple(WAYS)) -> dict[str, Any]:
    """Train drawn cells in each way, interleaved round by round.

    Parameters
    ----------
    recipe
        Network, tile, batch, optimiser.
    steps
        Timed together in a round, once with new tiles and once with the same.
    rounds
        How often.
    ways
        Names of WAYS.

    Returns
    -------
    What JSON stores: the figures by way, the recipe, and the machine.
    """
    team = alone()
    sampler = Sampler(prepare(_drawn(), recipe, Normalisation()), recipe, 0, team.device)
    runs = {way: _Run(recipe, way, sampler, team) for way in ways}
    for run in runs.values():
        run.take(WARM_UP, fresh=True)
    rounds_of: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, run in runs.items():
            rounds_of[way].append((run.take(steps, fresh=True), run.take(steps, fresh=False)))
    figures = {way: runs[way].figure(seconds) for way, seconds in rounds_of.items()}
    return {
        "ways": {way: asdict(figure) for way, figure in figures.items()},
        "recipe": recipe.to_dict(),
        "device": _name(team.device),
        # Convolutions in float32 use TF32 where the hardware has it, unless told otherwise: torch's own default.
        "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32) and team.device.type == "cuda",
        "environment": environment(),
    }


class _Run:
    """One way to train, ready to take steps."""

    def __init__(self, recipe: Recipe, way: str, sampler: Sampler, team: Team) -> None:
        mixed, compiled = WAYS[way]
        recipe = replace(recipe, mixed=mixed)
        self._learner = Learner(recipe.shape(1, 2), recipe, 0, team, compiled)
        self._sampler, self._rate, self._device, self._step = sampler, recipe.rate, team.device, 0

    def take(self, steps: int, fresh: bool) -> float:
        """Take steps with new tiles or with one; return the seconds of a step."""
        kept = self._sampler.batch(0)
        self._synchronise()
        begin = time.perf_counter()
        for _ in range(steps):
            self._step += 1
            self._learner.step(self._sampler.batch(self._step) if fresh else kept, self._step, self._rate)
        self._synchronise()
        return (time.perf_counter() - begin) / steps

    def figure(self, seconds: list[tuple[float, float]]) -> TrainingSpeed:
        """Return the figure of the seconds of a step with new tiles and with one, round by round."""
        fresh, kept = (Figure.of(side) for side in zip(*seconds, strict=True))
        dtype = str(self._learner.dtype).removeprefix("torch.")
        return TrainingSpeed(dtype, fresh, max(0.0, 1 - kept.median / fresh.median))

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _drawn() -> Dataset:
    drawings = [draw((SIDE, SIDE), seed=number) for number in range(IMAGES)]
    images = tuple(Annotated(str(number), each.frame[None], each.labels) for number, each in enumerate(drawings))
    return Dataset(images, class_names(None), instances=True)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

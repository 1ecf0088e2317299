"""How fast a network trains on a device, in steps a second, and how long the device waits for tiles."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from unetrt.benchmarks.environment import environment
from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.journal import Journal, Patience
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.dataset import AnnotatedImage, Dataset, class_names
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.learner import Learner, Team, alone
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.samples import Sampler, prepare

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


def training_speed(
    recipe: Recipe,
    steps: int,
    rounds: int,
    ways: tuple[str, ...] = tuple(WAYS),
    path: Path | None = None,
    patience: Patience | None = None,
) -> dict[str, Any]:
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
    path
        Where each round is stored before the next begins; None: nowhere.
    patience
        Nothing new is begun when it is over; rounds that the file holds are not measured again.

    Returns
    -------
    What JSON stores: the figures by way, the recipe, and the machine.
    """
    team, here = alone(), environment()
    fixed = {
        "recipe": asdict(recipe),
        "device": _name(team.device),
        # Convolutions in float32 use TF32 where the hardware has it, unless told otherwise: torch's own default.
        "tf32_convolutions": bool(torch.backends.cudnn.allow_tf32) and team.device.type == "cuda",
    }
    about = {**fixed, "steps": steps, "processor": here["processor"], "versions": here["versions"]}
    journal = Journal(
        path, about, patience, lambda journal: {"ways": _figures(journal, ways), **fixed, "environment": here}
    )
    sampler = Sampler(prepare(_drawn(), recipe, Normalisation()), recipe, 0, team.device)
    runs: dict[str, _Run] = {}
    for number in range(rounds):
        for way in ways:

            def one_round(way: str = way) -> dict[str, Any]:
                if way not in runs:
                    runs[way] = _Run(recipe, way, sampler, team)
                return runs[way].round(steps)

            journal.take(f"round {number + 1}: {way}", one_round)
    return journal.to_dict()


def _figures(journal: Journal, ways: tuple[str, ...]) -> dict[str, Any]:
    """Return the figures of the ways of which a round has been measured."""
    figures = {}
    for way in ways:
        rounds = [one for name, one in journal.results.items() if name.endswith(f": {way}")]
        if rounds:
            fresh, kept = (Figure.of([one[tiles] for one in rounds]) for tiles in ("new tiles", "one tile"))
            waiting = max(0.0, 1 - kept.median / fresh.median)
            figures[way] = asdict(TrainingSpeed(rounds[0]["dtype"], fresh, waiting))
    return figures


class _Run:
    """One way to train, warmed up."""

    def __init__(self, recipe: Recipe, way: str, sampler: Sampler, team: Team) -> None:
        mixed, compiled = WAYS[way]
        recipe = replace(recipe, mixed=mixed)
        self._learner = Learner(recipe.shape(1, 2), recipe, 0, team, compiled)
        self._sampler, self._rate, self._device, self._step = sampler, recipe.rate, team.device, 0
        self._take(WARM_UP, fresh=True)

    def round(self, steps: int) -> dict[str, Any]:
        """Return what the network computes in, and the seconds of a step with new tiles and with one."""
        return {
            "dtype": str(self._learner.dtype).removeprefix("torch."),
            "new tiles": self._take(steps, fresh=True),
            "one tile": self._take(steps, fresh=False),
        }

    def _take(self, steps: int, fresh: bool) -> float:
        """Take steps with new tiles or with one; return the seconds of a step."""
        kept = self._sampler.batch(0)
        self._synchronise()
        begin = time.perf_counter()
        for _ in range(steps):
            self._step += 1
            self._learner.step(self._sampler.batch(self._step) if fresh else kept, self._step, self._rate)
        self._synchronise()
        return (time.perf_counter() - begin) / steps

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def _drawn() -> Dataset:
    drawings = [draw((SIDE, SIDE), seed=number) for number in range(IMAGES)]
    images = tuple(AnnotatedImage(str(number), each.frame[None], each.labels) for number, each in enumerate(drawings))
    return Dataset(images, class_names(None), instances=True)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

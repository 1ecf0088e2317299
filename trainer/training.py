"""The training loop: steps, validations and checkpoints until the budget is spent.

>>> training = Training(train, validation, RECIPES["modern"], TrainingRun(Path("run")))
>>> training.run(TrainingBudget(minutes=20))
PosixPath('run/best.safetensors')
"""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from unetrt.runtime.errors import DatasetError, ModelFileError, OptionError, TrainingStoppedError, one_line
from unetrt.runtime.files.atomic import clear_unfinished
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.trainer.checkpoint import BEST, LAST, Checkpoint, load, state_of
from unetrt.trainer.dataset import Dataset
from unetrt.trainer.history import CURVES, History, TrainingProgress
from unetrt.trainer.learner import Learner, Team, alone
from unetrt.trainer.pretrained import Pretrained
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.run import ResumeState, TrainingBudget, TrainingRun, recipe_of
from unetrt.trainer.samples import Sampler, normalisation_for, prepare, target_for
from unetrt.trainer.torch_session import torch_errors
from unetrt.trainer.unet import UNet
from unetrt.trainer.validation import Scores, ValidatedImage, Validator, draw_sheet

log = logging.getLogger("unetrt")
# Seconds between two saves of the last checkpoint, the work that a power cut can cost, and between two drawings.
SAVE_EVERY = 60.0
# Number of validations of a run at most, and the share of the run that they may take together.
VALIDATIONS, VALIDATE_AT_MOST = 10, 0.1
# Forward and backward: the gradients of the inputs and those of the weights take a forward pass each.
PASSES_OF_A_STEP = 3
# Name of the array of losses in `Checkpoint.state`.
LOSSES = "losses"
SHEET = "validation.png"


class Training:
    """A training.

    Parameters
    ----------
    train, validation
        Images with the same channels and classes.
    recipe
        Network, loss and optimisation.
    run
        Folder and seed.
    team
        The processes that train together; None: this process alone.
    start
        A trained network of the recipe's depth and base, from whose weights a new training starts.
    """

    def __init__(
        self,
        train: Dataset,
        validation: Dataset,
        recipe: Recipe,
        run: TrainingRun,
        team: Team | None = None,
        start: Pretrained | None = None,
    ) -> None:
        self._train, self._validation, self._recipe, self._run = train, validation, recipe, run
        self._team = team or alone()
        self._indices = self._team.share(recipe.batch)
        self._normalisation = normalisation_for(recipe, train)
        self._target = target_for(recipe, train)
        shape = recipe.shape(train.channels, len(self._target.class_names))
        self._started_from = start.origin if start else run.started_from
        initial = start.weights_for(train.channels, self._target.class_names) if start else {}
        with torch_errors("building the network", "use a smaller --base or --depth"):
            self._learner = Learner(shape, recipe, run.seed, self._team, run.compiled, initial)
            samples = prepare(train, recipe, self._normalisation, self._target)
            self._sampler = Sampler(samples, recipe, run.seed, self._team.device)
        self.history = History()
        self._seconds = 0.0
        self._saved_at = self._drawn_at = time.perf_counter()
        self._best: list[ValidatedImage] = []  # the best network's results, until they are drawn
        self._validated_at = 0, 0.0  # steps and seconds

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return self._run.folder

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that the network learns, background first."""
        return self._target.class_names

    @property
    def net(self) -> UNet:
        """The network with its current weights."""
        return self._learner.net

    @property
    def steps(self) -> int:
        """Number of steps done."""
        return len(self.history.losses)

    def restore(self, last: Checkpoint) -> None:
        """Continue the run that wrote `last`. On a CPU the result equals that of an uninterrupted run, bit for bit.

        Raises
        ------
        ModelFileError
            The checkpoint holds no state to continue from, or another network or recipe.
        DatasetError
            The images are not those of the run.
        """
        path = self.folder / LAST
        state = ResumeState.of(last, path)
        if recipe_of(last, path) != self._recipe:
            raise ModelFileError(f"{path} was trained by another recipe: start a new training")
        if state.data != self._digests():
            raise DatasetError(
                "images or labels differ from those that the run began with: restore them, or start a new training"
            )
        try:
            self._learner.restore({name: torch.from_numpy(array) for name, array in last.state.items()})
            self.history = History(last.state[LOSSES].tolist(), list(state.scores))
        except (KeyError, RuntimeError, ValueError) as error:
            reason = one_line(error, first=True)
            raise ModelFileError(f"{path} holds another network ({reason}): start a new training") from error
        self._seconds, self._validated_at = state.seconds, state.validated_at

    def complete(self, budget: TrainingBudget, *derived: Path) -> bool:
        """Write the curves and pictures of a restored training that was killed after its last step.

        Parameters
        ----------
        budget
            Length of the training.
        derived
            Files that the caller makes from the best checkpoint.

        Returns
        -------
        Whether the budget is spent, and curves, pictures or a derived file were missing or older than the checkpoint.
        """
        best, last = self.folder / BEST, self.folder / LAST
        drawn = not (_outdated(self.folder / CURVES, last) or _outdated(self.folder / SHEET, best))
        spent = budget.spent(self.steps, self._seconds) >= 1
        (undone,) = self._team.from_leader(spent and not (drawn and not any(_outdated(path, best) for path in derived)))
        if self._team.leads:
            clear_unfinished(self.folder)
            if undone and not drawn:
                self._draw()
        return bool(undone)

    def run(
        self,
        budget: TrainingBudget,
        report: Callable[[TrainingProgress], object] = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Path:
        """Train until the budget is spent; return the path of the best checkpoint.

        Parameters
        ----------
        budget
            Length of the training, including steps or minutes done before `restore`.
        report
            Called after each step, in the leading process.
        should_stop
            Called after each step; true ends the training.

        Raises
        ------
        TrainingError
            The loss is not finite. Checkpoints written before remain valid.
        TrainingStoppedError
            `should_stop` returned true; the current state is saved in the last checkpoint.
        OptionError
            The budget is already spent.
        OutputError
            The folder cannot be written to.
        """
        (spent,) = self._team.from_leader(budget.spent(self.steps, self._seconds))
        if spent >= 1:
            raise OptionError(
                f"the run has spent its budget ({self.steps} steps done): extend it with --minutes or --steps"
            )
        validations = self._validations(budget)
        if self._team.leads:
            clear_unfinished(self.folder)
        begin = time.perf_counter() - self._seconds
        try:
            if self._team.leads and self.steps:
                self._validate_if_due(validations, spent)  # a validation that the stop had skipped
            while spent < 1:
                rate = self._recipe.rate_at(spent)
                loss = self._step(rate)
                self._seconds = time.perf_counter() - begin
                spent, stop = self._team.from_leader(budget.spent(self.steps, self._seconds), should_stop())
                if self._team.leads:
                    scores = self._validate_and_save(validations, spent, budget, stop > 0)
                    report(TrainingProgress(self.steps, min(spent, 1), loss, rate, scores))
                if stop and spent < 1:
                    raise TrainingStoppedError(
                        f"stopped after step {self.steps}; its state is saved{self._how_to_resume()}"
                    )
        finally:
            if self.history.losses and self._team.leads:
                self._draw()
        return self.folder / BEST

    def _how_to_resume(self) -> str:
        several = ", under torchrun again" if self._team.size > 1 else ""
        return f"; to resume: unetrt train --resume {self.folder}{several}" if self._run.source else ""

    def _step(self, rate: float) -> float:
        step = self.steps
        with torch_errors(f"training step {step + 1}", "use a smaller --tile, --batch or --base"):
            loss = self._learner.step(self._sampler.batch(step, self._indices), step + 1, rate)
        self.history.losses.append(loss)
        return loss

    def _validations(self, budget: TrainingBudget) -> "_Validations":
        """Return the validations of a run with this budget."""
        validator = self._validator(self._learner.result)
        step = macs_of_step(self._learner.net.shape, self._recipe.legal_tile(), len(self._indices))
        return _Validations(validator, budget, validator.macs / step, budget.spent(*self._validated_at))

    def _validator(self, net: UNet) -> Validator:
        return Validator(self._validation, net, self._normalisation, self._target, self._run.tta)

    def _validate_and_save(
        self, validations: "_Validations", spent: float, budget: TrainingBudget, stop: bool
    ) -> Scores | None:
        """Validate if due, unless the training stops early, and save the last checkpoint if due."""
        scores = None if stop and spent < 1 else self._validate_if_due(validations, spent)
        if scores or stop or self.steps == 1 or time.perf_counter() - self._saved_at > SAVE_EVERY:
            self._last(budget).save(self.folder / LAST)
            self._saved_at = time.perf_counter()
        if scores and time.perf_counter() - self._drawn_at > SAVE_EVERY:
            self._draw()
        return scores

    def _validate_if_due(self, validations: "_Validations", spent: float) -> Scores | None:
        """Score the network if that is due, and save it if it is the best so far."""
        if not validations.due(spent, self.steps, self._seconds):
            return None
        scores, results = validations(spent)
        self._validated_at = self.steps, self._seconds
        if self.history.add_scores(self.steps, scores):
            self._checkpoint(scores).save(self.folder / BEST)
            self._best = results
        return scores

    def _draw(self) -> None:
        """Write the history, its curves, and the sheet of the best network; takes as long as a small validation.

        What cannot be written is logged: it can be written later, and the checkpoints need none of it.
        """
        try:
            self.history.save(self.folder)
            if not self._best and _outdated(self.folder / SHEET, self.folder / BEST):  # those of a process before
                self._best = self._validator(load(self.folder / BEST).network())()[1]
            if self._best:
                draw_sheet(self.folder / SHEET, self._best)
                self._best = []
        except Exception as error:  # noqa: BLE001 - matplotlib's, too
            log.warning("curves and pictures of the training are not written: %s", one_line(error))
        self._drawn_at = time.perf_counter()

    def _checkpoint(self, scores: Scores | None) -> Checkpoint:
        net = self._learner.result
        return Checkpoint(
            shape=net.shape,
            weights=state_of(net),
            class_names=self._target.class_names,
            normalisation=self._normalisation,
            annotation="instances" if self._train.instances else "classes",
            decoding=self._target.decoding,
            frames=self._validation.some_frames(),
            frame_sizes=tuple((height, width, often) for (height, width), often in self._train.whole_sizes.items()),
            training={
                "steps": self.steps,
                "seconds": round(self._seconds, 1),
                "seed": self._run.seed,
                "images": len(self._train.images),
                "validation": asdict(scores) if scores else None,
                "recipe": asdict(self._recipe),
                **self._origin(),
            },
        )

    def _last(self, budget: TrainingBudget) -> Checkpoint:
        """Return a checkpoint with everything that `restore` needs."""
        arrays = {name: tensor.numpy() for name, tensor in self._learner.state().items()}
        state = ResumeState(
            scores=tuple(self.history.scores),
            seconds=self._seconds,
            validated_at=self._validated_at,
            budget=budget,
            data=self._digests(),
            run={
                "seed": self._run.seed,
                "tta": self._run.tta,
                "compiled": self._run.compiled,
                **self._origin(),
            },
            origin=self._run.source.to_dict() if self._run.source else {},
        )
        checkpoint = self._checkpoint(self.history.latest_scores)
        return replace(checkpoint, state=arrays | {LOSSES: np.array(self.history.losses)}, progress=asdict(state))

    def _origin(self) -> dict[str, dict[str, str]]:
        """Return the origin of the initial weights as JSON, by its name; empty where they were drawn."""
        return {"started_from": asdict(self._started_from)} if self._started_from else {}

    def _digests(self) -> tuple[str, str]:
        return self._train.digest, self._validation.digest


def _outdated(path: Path, source: Path) -> bool:
    """Return whether a file is missing or older than the file that it is made from, if that exists."""
    return source.exists() and not (path.exists() and path.stat().st_mtime_ns >= source.stat().st_mtime_ns)


class _Validations:
    """The validations of a run: when they are due, and what they cost.

    They are evenly spaced, the last at the end, and as many as fit into `VALIDATE_AT_MOST` of the run, at most
    `VALIDATIONS` and at least one. Each is of all images, so that any two can be compared.

    With a budget in steps their cost is counted in arithmetic, so that every machine validates at the same steps. With
    a budget in minutes it is measured: before the first validation by the steps, then by the last validation.

    Parameters
    ----------
    validator
        Scores the network.
    budget
        Budget of the training.
    steps
        Arithmetic of a validation, in steps of training.
    spent
        Share of the budget spent at the last validation.
    """

    def __init__(self, validator: Validator, budget: TrainingBudget, steps: float, spent: float) -> None:
        self._validator, self._budget, self._steps, self._spent = validator, budget, steps, spent
        self._cost = 0.0  # seconds of the last validation

    def __call__(self, spent: float) -> tuple[Scores, list[ValidatedImage]]:
        """Validate when `spent` of the budget is spent; return what the validator returns."""
        begin = time.perf_counter()
        result = self._validator()
        self._spent, self._cost = spent, time.perf_counter() - begin
        return result

    def due(self, spent: float, steps: int, seconds: float) -> bool:
        """Return whether a validation is due when `spent` of the budget is spent, after these steps and seconds."""
        if spent >= 1:
            return True
        count = validations_of(self._share(steps, seconds))
        return _parts(spent, count) > _parts(self._spent, count)

    def _share(self, steps: int, seconds: float) -> float:
        """Return the cost of a validation as a share of the whole budget."""
        if self._budget.steps is not None:
            return self._budget.spent(1, 0) * self._steps
        return self._budget.spent(0, self._cost or self._steps * seconds / steps)


def macs_of_step(shape: UNetShape, side: int, tiles: int) -> int:
    """Return the multiply-accumulates of a step of training with this number of square tiles."""
    return PASSES_OF_A_STEP * shape.macs(side, side) * tiles


def validations_of(cost: float) -> int:
    """Return how many validations a run has, each of which costs this share of its steps."""
    return max(1, min(VALIDATIONS, int(VALIDATE_AT_MOST / cost)))


def _parts(spent: float, count: int) -> int:
    """Return how many of `count` equal parts of the budget are spent."""
    return int(spent * count + 1e-9)  # 10 * 0.1 is below 1 in floating point

"""The training loop: steps, validations and checkpoints until the budget is spent.

>>> training = Training(train, validation, RECIPES["modern"], TrainingRun(Path("run")))
>>> training.run(TrainingBudget(minutes=20))
PosixPath('run/best.safetensors')
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch

from unetrt.runtime.errors import DatasetError, ModelFileError, OptionError, TrainingStoppedError, one_line
from unetrt.runtime.files.atomic import clear_unfinished
from unetrt.trainer.checkpoint import BEST, LAST, Checkpoint, state_of
from unetrt.trainer.dataset import Dataset
from unetrt.trainer.history import History, TrainingProgress
from unetrt.trainer.learner import Learner, Team, alone
from unetrt.trainer.pretrained import Pretrained
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.run import ResumeState, TrainingBudget, TrainingRun, recipe_of
from unetrt.trainer.samples import Sampler, normalisation_for, prepare, target_for
from unetrt.trainer.torch_session import torch_errors
from unetrt.trainer.unet import UNet
from unetrt.trainer.validation import Scores, Validator, draw_sheet

# Seconds between two saves of the last checkpoint: the work that a power cut can cost.
SAVE_EVERY = 60.0
# The network is validated each time this share of the budget is spent, for at most this share of the time.
VALIDATE_EVERY, VALIDATE_AT_MOST = 0.1, 0.1
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
        self._validator: Validator | None = None
        self._seconds, self._saved_at = 0.0, time.perf_counter()
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
        clock = _ValidationClock(budget, budget.spent(*self._validated_at))
        (spent,) = self._team.from_leader(budget.spent(self.steps, self._seconds))
        if spent >= 1:
            raise OptionError(
                f"the run has spent its budget ({self.steps} steps done): extend it with --minutes or --steps"
            )
        if self._team.leads:
            clear_unfinished(self.folder)
        begin = time.perf_counter() - self._seconds
        try:
            if self._team.leads and self.steps:
                self._validate_if_due(clock, spent)  # a validation that the stop had skipped
            while spent < 1:
                rate = self._recipe.rate_at(spent)
                loss = self._step(rate)
                self._seconds = time.perf_counter() - begin
                spent, stop = self._team.from_leader(budget.spent(self.steps, self._seconds), should_stop())
                if self._team.leads:
                    scores = self._validate_and_save(clock, spent, budget, stop > 0)
                    report(TrainingProgress(self.steps, min(spent, 1), loss, rate, scores))
                if stop and spent < 1:
                    raise TrainingStoppedError(
                        f"stopped after step {self.steps}; its state is saved{self._how_to_resume()}"
                    )
        finally:
            if self._validator is not None:
                self._validator.close()
                self._validator = None
            if self.history.losses and self._team.leads:
                self.history.save(self.folder)
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

    def _validate_and_save(
        self, clock: "_ValidationClock", spent: float, budget: TrainingBudget, stop: bool
    ) -> Scores | None:
        """Validate if due, unless the training stops early, and save the last checkpoint if due."""
        scores = None if stop and spent < 1 else self._validate_if_due(clock, spent)
        if scores or stop or self.steps == 1 or time.perf_counter() - self._saved_at > SAVE_EVERY:
            self._last(budget).save(self.folder / LAST)
            self._saved_at = time.perf_counter()
        return scores

    def _validate_if_due(self, clock: "_ValidationClock", spent: float) -> Scores | None:
        if not clock.due(spent):
            return None
        with clock.validating(spent):
            scores = self._validate()
        self._validated_at = self.steps, self._seconds
        return scores

    def _validate(self) -> Scores:
        """Score the network; save it and the sheet if it is the best so far."""
        if self._validator is None:
            self._validator = Validator(
                self._validation, self._learner.result, self._normalisation, self._target, self._run.tta
            )
        scores, results = self._validator()
        if self.history.add_scores(self.steps, scores):
            self._checkpoint(scores).save(self.folder / BEST)
            draw_sheet(self.folder / SHEET, results)
        self.history.save(self.folder)
        return scores

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


class _ValidationClock:
    """Decides when to validate: each time a share of the budget is spent, and at the end.

    With a budget in minutes a validation waits until validations take at most `VALIDATE_AT_MOST` of the time. With a
    budget in steps it does not, so that a run validates at the same steps each time.

    Parameters
    ----------
    budget
        Budget of the training.
    spent
        Share of the budget spent at the last validation.
    """

    def __init__(self, budget: TrainingBudget, spent: float) -> None:
        self._by_steps = budget.steps is not None
        self._spent, self._ended, self._cost = spent, time.perf_counter(), 0.0

    def due(self, spent: float) -> bool:
        """Return whether a validation is due when `spent` of the budget is spent."""
        if spent >= 1:
            return True
        rested = self._by_steps or time.perf_counter() - self._ended >= self._cost * (1 / VALIDATE_AT_MOST - 1)
        return rested and _parts(spent) > _parts(self._spent)

    @contextmanager
    def validating(self, spent: float) -> Iterator[None]:
        """Time the validation that runs inside."""
        begin = time.perf_counter()
        yield
        self._spent, self._ended = spent, time.perf_counter()
        self._cost = self._ended - begin


def _parts(spent: float) -> int:
    """Return the number of whole shares VALIDATE_EVERY in `spent`."""
    return int(spent / VALIDATE_EVERY + 1e-9)  # 10 * 0.1 is below 1 in floating point

"""The training loop."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetrt.runtime.errors import DatasetError, ModelFileError, OptionError, TrainingStoppedError
from unetrt.runtime.files.atomic import clear_unfinished
from unetrt.trainer import sheet
from unetrt.trainer.budget import Budget, ValidationClock
from unetrt.trainer.checkpoint import BEST, LAST, Checkpoint, state_of
from unetrt.trainer.dataset import Dataset
from unetrt.trainer.failures import translated
from unetrt.trainer.history import History
from unetrt.trainer.learner import Learner
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.run import Progress, Reporter, Run
from unetrt.trainer.samples import Sampler, normalisation_for, prepare
from unetrt.trainer.team import Team, alone
from unetrt.trainer.unet import UNet
from unetrt.trainer.validation import Scores, Validator

# Seconds between two saves of the last checkpoint: what a power cut may cost.
SAVE_EVERY = 60.0
LOSSES = "losses"
SHEET = "validation.png"


class Training:
    """One training run.

    Parameters
    ----------
    train, validation
        The data; same channels and classes.
    recipe
        How to train.
    run
        Where, and from which seed.
    team
        The processes that train together; None: this one.
    """

    def __init__(self, train: Dataset, validation: Dataset, recipe: Recipe, run: Run, team: Team | None = None) -> None:
        self._train, self._validation, self._recipe, self._run = train, validation, recipe, run
        self._team = team or alone()
        self._indices = self._team.share(recipe.batch)
        self._normalisation = normalisation_for(recipe, train)
        self._border = recipe.separation_border if train.instances else 0
        shape = recipe.shape(train.channels, len(train.class_names))
        with translated("building the network", "use a smaller --base or --depth"):
            self._learner = Learner(shape, recipe, run.seed, self._team, run.compiled)
            samples = prepare(train, recipe, self._normalisation)
            self._sampler = Sampler(samples, recipe, run.seed, self._team.device)
        self.history = History()
        self._validator: Validator | None = None
        self._seconds, self._saved_at = 0.0, time.perf_counter()
        self._validated_at = 0, 0.0  # after how many steps and seconds

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return self._run.folder

    @property
    def net(self) -> UNet:
        """The network, as it is now."""
        return self._learner.net

    def restore(self, last: Checkpoint) -> None:
        """Continue where the run that wrote `last` stopped: on a CPU bit for bit as if it had not.

        Raises
        ------
        ModelFileError
            The checkpoint has nothing to continue from, or is of another network or recipe.
        DatasetError
            The data are not those of the run.
        """
        if not last.progress:
            raise ModelFileError(f"{self._run.folder / LAST} does not say how to continue: train anew")
        if last.training["recipe"] != json.loads(json.dumps(self._recipe.to_dict())):
            raise ModelFileError(f"{self._run.folder / LAST} was trained by another recipe: train anew")
        if last.progress["data"] != self._digests():
            raise DatasetError("images or labels are not those that the run began with: put them back, or train anew")
        try:
            self._learner.restore({name: torch.from_numpy(array) for name, array in last.state.items()})
        except (KeyError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise ModelFileError(f"{self._run.folder / LAST} holds another network: {reason}") from error
        self.history = History.from_dict(last.progress, last.state[LOSSES])
        self._seconds = last.progress["seconds"]
        steps, seconds = last.progress["validated_at"]
        self._validated_at = steps, seconds

    def run(
        self,
        budget: Budget,
        report: Reporter = lambda _: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Path:
        """Train until the budget is spent; return the best checkpoint.

        Parameters
        ----------
        budget
            What is spent of it already counts, after `restore`.
        report
            Told of each step.
        should_stop
            Asked after each step.

        Raises
        ------
        TrainingError
            The loss is not finite. The checkpoints written before it are whole.
        TrainingStoppedError
            `should_stop` said so; the last checkpoint is up to date.
        OutputError
            The folder cannot be written to.
        """
        clock = ValidationClock(budget, budget.spent(*self._validated_at))
        (spent,) = self._team.led(budget.spent(self.steps, self._seconds))
        if spent >= 1:
            raise OptionError(f"the run has done its {self.steps} steps: give it more with --minutes or --steps")
        if self._team.leads:
            clear_unfinished(self._run.folder)
        begin = time.perf_counter() - self._seconds
        try:
            if self._team.leads and self.steps:
                self._validate_if_due(clock, spent)  # a stop does not wait for a validation
            while spent < 1:
                rate = self._recipe.rate_at(spent)
                loss = self._step(rate)
                self._seconds = time.perf_counter() - begin
                spent, stop = self._team.led(budget.spent(self.steps, self._seconds), should_stop())
                if self._team.leads:
                    scores = self._look_after(clock, spent, budget, stop > 0)
                    report(Progress(self.steps, min(spent, 1), loss, rate, scores))
                if stop and spent < 1:
                    raise TrainingStoppedError(
                        f"stopped after step {self.steps}, all of it saved{self._how_to_go_on()}"
                    )
        finally:
            if self._validator is not None:
                self._validator.close()
                self._validator = None
            if self.history.losses and self._team.leads:
                self.history.save(self._run.folder)
        return self._run.folder / BEST

    @property
    def steps(self) -> int:
        """Steps done."""
        return len(self.history.losses)

    def _how_to_go_on(self) -> str:
        several = ", under torchrun again" if self._team.size > 1 else ""
        return f"; to go on: unetrt train --resume {self._run.folder}{several}" if self._run.origin else ""

    def _step(self, rate: float) -> float:
        step = self.steps
        with translated(f"training step {step + 1}", "use a smaller --tile, --batch or --base"):
            loss = self._learner.step(self._sampler.batch(step, self._indices), step + 1, rate)
        self.history.losses.append(loss)
        return loss

    def _look_after(self, clock: ValidationClock, spent: float, budget: Budget, stop: bool) -> Scores | None:
        """Validate and save where it is time to."""
        scores = None if stop and spent < 1 else self._validate_if_due(clock, spent)
        if scores or stop or self.steps == 1 or time.perf_counter() - self._saved_at > SAVE_EVERY:
            self._checkpoint(self.history.latest_scores, budget).save(self._run.folder / LAST)
            self._saved_at = time.perf_counter()
        return scores

    def _validate_if_due(self, clock: ValidationClock, spent: float) -> Scores | None:
        if not clock.due(spent):
            return None
        with clock.validating(spent):
            scores = self._validate()
        self._validated_at = self.steps, self._seconds
        return scores

    def _validate(self) -> Scores:
        """Score the network, and keep it where it is the best so far."""
        if self._validator is None:
            self._validator = Validator(
                self._validation, self._learner.result, self._normalisation, self._border, self._run.tta
            )
        scores, results = self._validator()
        if self.history.add_scores(self.steps, scores):
            self._checkpoint(scores).save(self._run.folder / BEST)
            sheet.draw(self._run.folder / SHEET, results)
        self.history.save(self._run.folder)
        return scores

    def _checkpoint(self, scores: Scores | None, budget: Budget | None = None) -> Checkpoint:
        """Return the network to use; with a budget, all that it takes to continue as well."""
        net = self._learner.result
        checkpoint = Checkpoint(
            shape=net.shape,
            weights=state_of(net),
            class_names=self._train.class_names,
            normalisation=self._normalisation,
            annotation="instances" if self._train.instances else "classes",
            separation_border=self._border,
            frames=self._validation.some_frames(),
            frame_sizes=tuple((height, width, often) for (height, width), often in self._train.sizes.items()),
            training={
                "steps": self.steps,
                "seconds": round(self._seconds, 1),
                "seed": self._run.seed,
                "images": len(self._train.images),
                "validation": asdict(scores) if scores else None,
                "recipe": self._recipe.to_dict(),
            },
        )
        return checkpoint if budget is None else replace(checkpoint, **self._resumable(budget))

    def _resumable(self, budget: Budget) -> dict[str, Any]:
        state = {name: tensor.numpy() for name, tensor in self._learner.state().items()}
        progress = self.history.to_dict() | {
            "seconds": self._seconds,
            "validated_at": self._validated_at,
            "budget": budget.to_dict(),
            "data": self._digests(),
            "run": {"seed": self._run.seed, "tta": self._run.tta, "compiled": self._run.compiled},
            "origin": dict(self._run.origin),
        }
        return {"state": state | {LOSSES: np.array(self.history.losses)}, "progress": progress}

    def _digests(self) -> list[str]:
        return [self._train.digest, self._validation.digest]

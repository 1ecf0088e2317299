"""A run as the command line describes it: where its data are, how it trains; to begin, or to continue."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unetrt.runtime.errors import DatasetError, ModelFileError, OptionError
from unetrt.trainer import checkpoint, reading
from unetrt.trainer.budget import Budget
from unetrt.trainer.dataset import Dataset
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.run import Run
from unetrt.trainer.team import Team
from unetrt.trainer.training import Training


@dataclass(frozen=True)
class Source:
    """Where training and validation data come from.

    Attributes
    ----------
    data
        Folder to train on.
    val
        Folder to validate on; None: a part of `data` is held back.
    fraction
        How large that part is, unless a list names it.
    listed
        Text file that names the images to validate on, a line each; None: they are drawn.
    classes
        How many classes labels have; None: labels are instances.
    ignore
        Label of pixels that are not annotated; None: 255 for class maps, none for instances.
    """

    data: Path
    val: Path | None = None
    fraction: float = 0.2
    listed: Path | None = None
    classes: int | None = None
    ignore: int | None = None

    def load(self, seed: int) -> tuple[Dataset, Dataset]:
        """Read both sets.

        Raises
        ------
        DatasetError, FrameError, OptionError
            What is there does not fit.
        """
        if self.val is not None and self.listed is not None:
            raise OptionError("give either a validation folder (--val) or a list of images (--val-list), not both")
        train = reading.load(self.data, self.classes, self.ignore)
        if self.listed is not None:
            return train.split_by(reading.read_names(self.listed))
        if self.val is None:
            return train.split(self.fraction, seed)
        validation = reading.load(self.val, self.classes, self.ignore)
        if validation.channels != train.channels:
            raise DatasetError(
                f"{self.val} has {validation.channels} channels, {self.data} has {train.channels}: they must agree"
            )
        return train, validation

    def doubts(self) -> list[str]:
        """Return what looks odd about where the data come from, a sentence each."""
        if self.val is not None and self.val.resolve() == self.data.resolve():
            return ["training and validation are the same images: the scores say nothing about others"]
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON stores; paths are made absolute, so that a run continues from any folder."""
        paths = {name: value.absolute() for name, value in vars(self).items() if isinstance(value, Path)}
        return vars(self) | {name: str(path) for name, path in paths.items()}

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Source":
        """Return what `to_dict` gave."""
        paths = {name: Path(stored[name]) for name in ("data", "val", "listed") if stored[name] is not None}
        return cls(**{**stored, **paths})


@dataclass(frozen=True)
class Job:
    """All that makes a training.

    Attributes
    ----------
    source
        Where the data come from.
    recipe
        How to train.
    run
        Where to, from which seed.
    budget
        For how long.
    last
        The checkpoint to continue from; None: begin.
    """

    source: Source
    recipe: Recipe
    run: Run
    budget: Budget
    last: checkpoint.Checkpoint | None = field(default=None, repr=False)

    @classmethod
    def to_continue(cls, folder: Path, budget: Budget | None, moved: Mapping[str, Path | None]) -> "Job":
        """Read from a run's folder how it goes on.

        Parameters
        ----------
        folder
            Of the run.
        budget
            Instead of the run's own; None: that.
        moved
            Paths of `Source`, by name, that are no longer what the run says; None: they are.

        Raises
        ------
        ModelFileError
            There is no last checkpoint, or it is not whole, or of a version that could not continue.
        """
        path = folder / checkpoint.LAST
        if not path.is_file():
            raise ModelFileError(f"{folder} holds no {checkpoint.LAST} to continue from: train anew, with -o {folder}")
        last = checkpoint.load(path)
        try:
            progress = last.progress
            source = Source.from_dict(progress["origin"] | {name: str(path) for name, path in moved.items() if path})
            recipe = Recipe.from_dict(last.training["recipe"])
            run = Run(folder, origin=source.to_dict(), **progress["run"])
            return cls(source, recipe, run, budget or Budget(**progress["budget"]), last)
        except (KeyError, TypeError) as error:
            raise ModelFileError(f"{path} does not say how to continue ({error}): train anew") from error

    def training(self, train: Dataset, validation: Dataset, team: Team) -> Training:
        """Return the training of these sets, ready to run."""
        training = Training(train, validation, self.recipe, self.run, team)
        if self.last is not None:
            training.restore(self.last)
        return training

"""A training run as data: its images, its budget, its folder, and what its last checkpoint stores to resume it.

The last checkpoint's JSON is validated when it is read: the annotations below are its schema.

>>> job = TrainingJob.resumed(Path("run"), budget=None, moved={})
>>> train, validation = job.source.read(job.run.seed)
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from typing import Any

from unetrt.runtime.errors import DatasetError, ModelFileError, OptionError
from unetrt.runtime.files.formats import AS_STORED, Reading
from unetrt.runtime.records import validated
from unetrt.trainer.checkpoint import LAST, Checkpoint, load
from unetrt.trainer.dataset import Dataset, read_dataset, read_names
from unetrt.trainer.label_values import UNSTATED, LabelRule
from unetrt.trainer.pretrained import Pretrained, StartedFrom
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.validation import Scores

# Attributes of `DataSource` that are paths.
PATHS = ("data", "val", "listed")


@dataclass(frozen=True)
class DataSource:
    """Origin of training and validation images.

    Attributes
    ----------
    data
        Folder of training images.
    val
        Folder of validation images; None: a part of `data` is held back.
    fraction
        Share of the images that is held back, see `Dataset.split`; ignored if `listed` is set.
    listed
        Text file with the names of the images to hold back, one per line; None: they are drawn at random.
    classes
        Number of classes in the labels; None: labels are instances.
    ignore
        Label of unannotated pixels; None: 255 for class maps, no label for instances.
    reading
        How files are read.
    rule
        How values of labels become objects.
    """

    data: Path
    val: Path | None = None
    fraction: float | None = None
    listed: Path | None = None
    classes: int | None = None
    ignore: int | None = None
    reading: Reading = AS_STORED
    rule: LabelRule = UNSTATED

    def read(self, seed: int) -> tuple[Dataset, Dataset]:
        """Return training and validation images; the seed draws those held back.

        Raises
        ------
        DatasetError, FrameError, OptionError
            The images cannot be read, or do not fit together.
        """
        if self.val is not None and self.listed is not None:
            raise OptionError("give either a validation folder (--val) or a list of images (--val-list), not both")
        train = read_dataset(self.data, self.classes, self.ignore, self.reading, self.rule)
        if self.listed is not None:
            return train.split_by(read_names(self.listed))
        if self.val is None:
            return train.split(self.fraction, seed)
        validation = read_dataset(self.val, self.classes, self.ignore, self.reading, self.rule)
        if validation.channels != train.channels:
            raise DatasetError(
                f"{self.val} has {validation.channels} channels, {self.data} has {train.channels}: they must agree"
            )
        return train, validation

    def warnings(self) -> list[str]:
        """Return a sentence for each choice that is likely a mistake."""
        if self.val is not None and self.val.resolve() == self.data.resolve():
            return ["training and validation are the same images: the scores say nothing about unseen images"]
        return []

    def to_dict(self) -> dict[str, Any]:
        """Return the source as JSON, with absolute paths: a run resumes from any working folder."""
        paths = {name: getattr(self, name) for name in PATHS}
        return asdict(self) | {name: path and str(path.absolute()) for name, path in paths.items()}


@dataclass(frozen=True)
class TrainingBudget:
    """Length of a training: a number of minutes, the last validation excluded, or a number of steps."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise OptionError("give either minutes or steps")
        unit, length = ("steps", self.steps) if self.minutes is None else ("minutes", self.minutes)
        if not 0 < (length or 0) < inf:
            raise OptionError(f"invalid budget of {length} {unit}: use a finite number above 0")

    def spent(self, steps: int, seconds: float) -> float:
        """Return the share of the budget that is spent, from 0, above 1 where it is exceeded."""
        return steps / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1))


@dataclass(frozen=True)
class TrainingRun:
    """How a training is run, as opposed to what it learns.

    Attributes
    ----------
    folder
        Folder of best.safetensors, last.safetensors, history.csv, curves.png and validation.png.
    seed
        Seed of the initial weights and of the samples.
    tta
        Whether validation averages over the 8 symmetries of the square.
    compiled
        Whether to compile the network with torch.compile.
    started_from
        Origin of the initial weights; None: they are drawn.
    source
        Origin of the images, stored for resuming. None: to resume the run, the caller must pass the images again.
    """

    folder: Path
    seed: int = 0
    tta: bool = False
    compiled: bool = False
    started_from: StartedFrom | None = None
    source: DataSource | None = None


@dataclass(frozen=True)
class ResumeState:
    """The state of a training in its last checkpoint, as JSON beside the arrays.

    Attributes
    ----------
    scores
        (step, scores) of each validation.
    seconds
        Time spent, in seconds.
    validated_at
        Steps done and seconds spent at the last validation.
    budget
        Budget of the run.
    data
        Digests of training and validation images.
    run
        Attributes of `TrainingRun`: seed, tta, compiled, started_from.
    origin
        Result of `DataSource.to_dict`; empty if unknown.
    """

    scores: tuple[tuple[int, Scores], ...]
    seconds: float
    validated_at: tuple[int, float]
    budget: TrainingBudget
    data: tuple[str, str]
    run: dict[str, Any]
    origin: dict[str, Any]

    @classmethod
    def of(cls, last: Checkpoint, path: Path) -> "ResumeState":
        """Return the state stored in a last checkpoint read from `path`; raises ModelFileError if it holds none."""
        if not last.progress:
            raise ModelFileError(f"{path} holds no state to resume from: start a new training")
        return validated(dict(last.progress), cls, f"the progress in {path}", unknown=True)


def recipe_of(last: Checkpoint, path: Path) -> Recipe:
    """Return the recipe in a checkpoint read from `path`; raises ModelFileError where it is not valid."""
    return validated(last.training.get("recipe"), Recipe, f"the recipe in {path}")


@dataclass(frozen=True)
class TrainingJob:
    """Everything that determines a training.

    Attributes
    ----------
    source
        Origin of the images.
    recipe
        Network, loss and optimisation.
    run
        Folder and seed.
    budget
        Length of the training.
    start
        Trained network from which a new training starts; None: initial weights are drawn.
    last
        Checkpoint from which the training resumes; None for a new training.
    """

    source: DataSource
    recipe: Recipe
    run: TrainingRun
    budget: TrainingBudget
    start: Pretrained | None = None
    last: Checkpoint | None = field(default=None, repr=False)

    @classmethod
    def resumed(cls, folder: Path, budget: TrainingBudget | None, moved: Mapping[str, Path | None]) -> "TrainingJob":
        """Return the job that continues a run.

        Parameters
        ----------
        folder
            Folder of the run.
        budget
            New budget; None for the budget stored in the run.
        moved
            New paths, by their names in `DataSource`; None for the path stored in the run.

        Raises
        ------
        ModelFileError
            There is no last checkpoint, it is damaged, or it holds no state to resume from.
        """
        path = folder / LAST
        if not path.is_file():
            raise ModelFileError(f"{folder} holds no {LAST} to resume from: start a new training with -o {folder}")
        last = load(path)
        state = ResumeState.of(last, path)
        stored = {name: Path(value) for name in PATHS if isinstance(value := state.origin.get(name), str)}
        paths = stored | {name: given for name, given in moved.items() if given}
        if "data" not in paths:
            raise ModelFileError(
                f"{path} does not store the path of its images: add it, unetrt train DATA --resume {folder}"
            )
        source = validated(state.origin | paths, DataSource, f"the origin in {path}")
        run = validated(state.run | {"folder": folder, "source": source}, TrainingRun, f"the run in {path}")
        return cls(source, recipe_of(last, path), run, budget or state.budget, last=last)

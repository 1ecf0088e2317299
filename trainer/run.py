"""What a training is told and what it tells: where it writes, from which seed, and how each step went."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from unetrt.trainer.validation import Scores


@dataclass(frozen=True)
class Progress:
    """What a training reports after each step.

    Attributes
    ----------
    step
        Steps done.
    spent
        Share of the budget spent.
    loss, rate
        Of the step: weighted cross entropy and learning rate.
    scores
        Of the validation after this step, or None where there was none.
    """

    step: int
    spent: float
    loss: float
    rate: float
    scores: Scores | None


class Reporter(Protocol):
    """Is told of each step, in the leading process."""

    def __call__(self, progress: Progress, /) -> None:
        """Show or store it."""


@dataclass(frozen=True)
class Run:
    """How a training is run, as opposed to what it learns.

    Attributes
    ----------
    folder
        Where best.safetensors, last.safetensors, history.csv, curves.png and validation.png go.
    seed
        Of weights and samples.
    tta
        Whether validation averages over the 8 symmetries of the square.
    compiled
        Whether torch.compile translates the network.
    origin
        What the caller wants to find again in the last checkpoint, as JSON: where the data came from.
    """

    folder: Path
    seed: int = 0
    tta: bool = False
    compiled: bool = False
    origin: Mapping[str, Any] = field(default_factory=dict)

"""How long a training lasts, and how much of that goes into validation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf
from typing import Any

from unetrt.runtime.errors import OptionError

# The network is validated after each such share of the budget, but never more than this share of the time.
VALIDATE_EVERY, VALIDATE_AT_MOST = 0.1, 0.1


@dataclass(frozen=True)
class Budget:
    """How long to train: so many minutes, validations included but for the last, or so many steps.

    Exactly one of the two is given.
    """

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise OptionError("give either minutes or steps")
        if not 0 < (self.minutes or self.steps or 0) < inf:
            raise OptionError(f"a training of {self.minutes or self.steps or 0} {self._unit} is none: give more than 0")

    @property
    def _unit(self) -> str:
        return "steps" if self.minutes is None else "minutes"

    def spent(self, steps: int, seconds: float) -> float:
        """Return the share of the budget that is spent, 0 to 1 and above."""
        return steps / self.steps if self.steps is not None else seconds / (60 * (self.minutes or 1))

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON stores."""
        return {"minutes": self.minutes, "steps": self.steps}


class ValidationClock:
    """Says when to validate: after a share of the budget, at the end, and never too often for what it costs.

    Where the budget is in steps, its share alone decides, so that a run validates at the same steps each time.

    Parameters
    ----------
    budget
        Of the training.
    spent
        Share of it at the last validation.
    """

    def __init__(self, budget: Budget, spent: float = 0.0) -> None:
        self._by_steps = budget.steps is not None
        self.spent, self._ended, self._cost = spent, time.perf_counter(), 0.0

    def due(self, spent: float) -> bool:
        """Tell whether a validation is due when `spent` of the budget is spent."""
        if spent >= 1:
            return True
        rested = self._by_steps or time.perf_counter() - self._ended >= self._cost * (1 / VALIDATE_AT_MOST - 1)
        return rested and _parts(spent) > _parts(self.spent)

    @contextmanager
    def validating(self, spent: float) -> Iterator[None]:
        """Measure the validation that runs inside."""
        begin = time.perf_counter()
        yield
        self.spent, self._ended = spent, time.perf_counter()
        self._cost = self._ended - begin


def _parts(spent: float) -> int:
    """Return how many whole parts of the budget, one for each validation, are spent."""
    return int(spent / VALIDATE_EVERY + 1e-9)  # ten tenths are not quite one in floating point

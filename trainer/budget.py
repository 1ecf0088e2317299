"""How long a training lasts, and how much of that goes into validation."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

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


class ValidationClock:
    """Says when to validate: after a share of the budget, at the end, and never too often for what it costs."""

    def __init__(self) -> None:
        self._spent, self._ended, self._cost = 0.0, time.perf_counter(), 0.0

    def due(self, spent: float) -> bool:
        """Tell whether a validation is due when `spent` of the budget is spent."""
        if spent >= 1:
            return True
        rested = time.perf_counter() - self._ended >= self._cost * (1 / VALIDATE_AT_MOST - 1)
        return rested and spent - self._spent >= VALIDATE_EVERY

    @contextmanager
    def validating(self, spent: float) -> Iterator[None]:
        """Measure the validation that runs inside."""
        begin = time.perf_counter()
        yield
        self._spent, self._ended = spent, time.perf_counter()
        self._cost = self._ended - begin

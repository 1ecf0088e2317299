"""Calibrations: what a network's tiles take on this machine, kept for later plans."""

import json
from dataclasses import asdict, dataclass, fields
from math import isfinite
from statistics import median
from typing import Any

from unetrt.runtime.cost_model import CostModel
from unetrt.runtime.errors import ModelFileError, OptionError, UnetrtError
from unetrt.runtime.files.atomic import locked, whole_file
from unetrt.runtime.setting import Setting, folder

SCHEMA = 1
# Error of the worst prediction beyond which none is relied on, as a share of the measured time.
TOLERANCE = 0.15


@dataclass(frozen=True)
class Compared:
    """A tile that the model was not fitted to: what it takes, and what the model says.

    Attributes
    ----------
    tile
        Height and width, in pixels.
    measured, predicted
        Seconds.
    """

    tile: tuple[int, int]
    measured: float
    predicted: float

    def __post_init__(self) -> None:
        if not (isfinite(self.measured) and self.measured > 0 and isfinite(self.predicted)):
            raise OptionError(f"a tile that takes {self.measured} s, predicted {self.predicted} s, was not measured")

    @property
    def error(self) -> float:
        """How far the prediction is from the measured time, as a share of that; negative where it is too low."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class Calibration:
    """A cost model, where it holds, and how well.

    Attributes
    ----------
    setting
        Where it holds.
    model
        The seconds.
    compared
        Tiles that it was held against.
    largest
        Height and width of the largest tile that was measured.
    unsettled
        Tiles whose two fastest rounds did not agree: other programs ran meanwhile.
    measured_on
        The day, as ISO 8601 has it.
    """

    setting: Setting
    model: CostModel
    compared: tuple[Compared, ...]
    largest: tuple[int, int]
    unsettled: int
    measured_on: str

    def __post_init__(self) -> None:
        if not self.compared:
            raise OptionError("a model that was held against nothing is no calibration: measure other tiles too")

    def covers(self, tile: tuple[int, int]) -> bool:
        """Tell whether a (height, width) tile is within what was measured: else its seconds are extrapolated."""
        return self.setting.shape.macs(*tile) <= self.setting.shape.macs(*self.largest)

    @property
    def median(self) -> float:
        """The median error, without its sign."""
        return median(abs(one.error) for one in self.compared)

    @property
    def worst(self) -> float:
        """The largest error, without its sign."""
        return max(abs(one.error) for one in self.compared)

    @property
    def reliable(self) -> bool:
        """Whether every prediction came within `TOLERANCE`: else a plan by arithmetic is the safer one."""
        return self.worst <= TOLERANCE

    def save(self) -> None:
        """Keep it for later plans; raises OutputError where the user's cache cannot be written to."""
        path = self.setting.path
        with locked(path), whole_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def to_dict(self) -> dict[str, Any]:
        """Return all of it, errors included, as JSON has it."""
        compared = [{**asdict(one), "error": one.error} for one in self.compared]
        return {"schema": SCHEMA, **asdict(self), "compared": compared, **self._accuracy()}

    def _accuracy(self) -> dict[str, float | bool]:
        return {"median": self.median, "worst": self.worst, "reliable": self.reliable}

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Return what `to_dict` gave, from its JSON; raises ModelFileError for anything else."""
        try:
            stored = json.loads(text)
            if stored.pop("schema") != SCHEMA:
                raise ModelFileError("it is another version's")
            return cls(
                _typed(Setting, stored["setting"]),
                _typed(CostModel, stored["model"]),
                tuple(_compared(one) for one in stored["compared"]),
                _tile(stored["largest"]),
                int(stored["unsettled"]),
                str(stored["measured_on"]),
            )
        except UnetrtError as error:
            raise ModelFileError(str(error)) from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelFileError(f"it is not whole ({error!r:.80})") from error


def kept(setting: Setting) -> Calibration | None:
    """Return the calibration of a setting, None where there is none.

    Raises
    ------
    ModelFileError
        There is one, but it cannot be read.
    """
    try:
        found = Calibration.from_json(setting.path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ModelFileError(f"{setting.path} is no calibration ({why}): --measure writes it anew") from error
    return found if found.setting == setting else None


def any_kept() -> bool:
    """Tell whether there is any calibration."""
    return any(folder().glob("*.json"))


def _typed(kind: Any, stored: Any) -> Any:
    """Return a dataclass of texts and numbers whose JSON has the right types."""
    wanted: dict[str, Any] = {field.name: field.type for field in fields(kind)}
    if set(stored) != set(wanted):
        raise KeyError(*sorted(set(stored) ^ set(wanted)))
    for name, value in stored.items():
        if not isinstance(value, wanted[name]) or isinstance(value, bool):
            raise TypeError(f"{name} is {value!r:.40}")
    return kind(**stored)


def _compared(stored: Any) -> Compared:
    return Compared(_tile(stored["tile"]), float(stored["measured"]), float(stored["predicted"]))


def _tile(stored: Any) -> tuple[int, int]:
    height, width = stored
    return int(height), int(width)

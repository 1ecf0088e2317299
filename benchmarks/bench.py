"""The benchmark behind `unetrt bench`: all contenders checked, then timed in turn, round by round."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import NDArray

from unetrt.benchmarks.checks import Checked, Checks
from unetrt.benchmarks.contenders import CONTENDERS, REFERENCE, USUAL_TILE, Contender, Device
from unetrt.benchmarks.environment import environment
from unetrt.benchmarks.figure import Figure
from unetrt.benchmarks.fresh import fresh
from unetrt.benchmarks.job import Job
from unetrt.benchmarks.limits import BYTES, COPY, FLOPS, SIDES, Limits
from unetrt.benchmarks.networks import drawn_frame, write_model
from unetrt.benchmarks.result import LeftOut, Limit, Result
from unetrt.benchmarks.summary import Summary
from unetrt.benchmarks.worker import Round, Worker
from unetrt.export.exporter import planned_tile
from unetrt.export.options import Options
from unetrt.runtime.errors import InferenceError, OptionError
from unetrt.runtime.spec import Head, Precision
from unetrt.trainer.checkpoint import Checkpoint

Told = Callable[[str], None]


def _silent(_: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class Bench:
    """What is measured, and how.

    Attributes
    ----------
    checkpoint
        The network that all contenders run.
    size
        Height and width of the drawn frame, uint16, in pixels.
    rounds
        Fresh starts of each contender.
    device
        Where they compute.
    tile
        unetrt's tile; planned by default.
    only
        Names of contenders, besides the reference; all that can be timed by default.
    sides
        Of the matrices of the yardstick; those that the device likes best by default.
    contenders
        To choose from.
    """

    checkpoint: Checkpoint
    size: tuple[int, int]
    rounds: int
    device: Device = "cpu"
    tile: tuple[int, int] | None = None
    only: Sequence[str] = ()
    sides: tuple[int, ...] = ()
    contenders: Sequence[Contender] = CONTENDERS

    def __post_init__(self) -> None:
        known = [one.name for one in self.contenders]
        for name in self.only:
            if name not in known:
                raise OptionError(f"there is no contender {name!r}: the contenders are {', '.join(known)}")
        if self.rounds < 1:
            raise OptionError(f"{self.rounds} rounds measure nothing: use 1 or more")
        shape = self.checkpoint.shape
        if not shape.geometry.is_legal(USUAL_TILE):
            raise OptionError(
                f"the usual loop's tile of {USUAL_TILE} px is too small at depth {shape.depth}: up to 5 works"
            )
        for side in self.tile or ():
            shape.geometry.require(side)

    def wanted(self) -> list[Contender]:
        """Return the contenders that were asked for."""
        return [one for one in self.contenders if not self.only or one.name in (*self.only, REFERENCE)]

    def measure(self, told: Told = _silent) -> Result:
        """Check all contenders, and time them.

        Parameters
        ----------
        told
            Called before each step with what it is; there are `steps` of them.

        Raises
        ------
        ParityError
            The labels of the usual loop or of unetrt are another network's; nothing is timed then.
        InferenceError
            The usual loop failed.
        """
        about = environment(self.device)
        frame = drawn_frame(self.size, self.checkpoint.shape.channels)
        with TemporaryDirectory(prefix="unetrt-bench-") as scratch:
            job = Job(Path(scratch), self.device)
            told("exporting")
            self._write(job, frame)
            checks = Checks(job, self.checkpoint, frame)
            checked = [checks.of(one, told) for one in self.wanted()]
            passed = [one for one in checked if isinstance(one, Checked)]
            left_out = [one for one in checked if isinstance(one, LeftOut)]
            limits = Limits(self.device, self.sides or SIDES[self.device], _precisions(passed, self.device))
            rounds = [self._round(passed, left_out, job, limits, told) for _ in range(self.rounds)]
        return self._result(passed, left_out, rounds, about)

    def steps(self) -> int:
        """Return how often `measure` tells of a step, where no contender is left out."""
        return 1 + len(self.wanted()) + self.rounds * (1 + len(self.wanted()))

    def _write(self, job: Job, frame: NDArray[Any]) -> None:
        self.checkpoint.save(job.checkpoint)
        job.write_frame(frame)
        tile = self.tile or planned_tile(self.checkpoint, [self.size])
        head: Head = "labels" if self.device == "gpu" else "logits"
        here = [one for one in self.wanted() if self.device in one.devices]
        for precision in {one.precision_on(self.device) for one in here if one.planned}:
            write_model(self.checkpoint, Options(tile, precision, head), job.model(precision))

    def _round(self, passed: list[Checked], left_out: list[LeftOut], job: Job, limits: Limits, told: Told) -> "_Rounds":
        """Start every contender anew: how fast a process runs depends on where its memory happens to lie.

        Whoever fails moves from `passed` to `left_out`; the usual loop raises InferenceError.
        """
        told("timing: what the machine can do")
        measured, rates = {}, _apart(limits.rates)
        for one in list(passed):
            told(f"timing: {one.contender.title}")
            try:
                with Worker(one.contender, job) as worker:
                    measured[one.contender.name] = worker.round()
            except InferenceError as error:
                if one.contender.name == REFERENCE:
                    raise
                passed.remove(one)
                left_out.append(LeftOut(one.contender.name, one.contender.title, str(error)))
        return _Rounds(rates, measured)

    def _result(
        self, passed: list[Checked], left_out: list[LeftOut], rounds: "list[_Rounds]", about: dict[str, Any]
    ) -> Result:
        shape = self.checkpoint.shape
        units = {name: BYTES if name == COPY else FLOPS for name in rounds[0].rates}
        limits = {name: Figure.of([one.rates[name] for one in rounds]) for name in units}
        summary = Summary(self.device, about.get("gpu", "cpu"), [one.contenders[REFERENCE] for one in rounds], limits)
        return Result(
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            frame=self.size,
            network=asdict(shape),
            reference=REFERENCE,
            contenders=tuple(
                summary.measured(one, [each.contenders[one.contender.name] for each in rounds]) for one in passed
            ),
            left_out=tuple(left_out),
            limits=tuple(Limit(name, unit, limits[name]) for name, unit in units.items()),
            environment=about,
        )


@dataclass(frozen=True)
class _Rounds:
    """One round: the machine's rates, and what each contender's process measured."""

    rates: dict[str, float]
    contenders: dict[str, Round]


def _apart(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what a function returns in a process of its own; raises InferenceError where it fails."""
    try:
        return fresh(measure)
    except (RuntimeError, MemoryError) as error:  # torch's, and that of a process that died
        raise InferenceError(f"the machine's limits could not be measured: {error}") from error


def _precisions(passed: list[Checked], device: Device) -> tuple[Precision, ...]:
    return tuple(dict.fromkeys(one.contender.precision_on(device) for one in passed))

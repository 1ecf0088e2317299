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
from unetrt.benchmarks.journal import Journal, Patience
from unetrt.benchmarks.limits import BYTES, COPY, FLOPS, SIDES, Limits
from unetrt.benchmarks.networks import drawn_frame, write_model
from unetrt.benchmarks.result import KIND, REASON, SCHEMA, LeftOut, Limit, Result
from unetrt.benchmarks.summary import Summary
from unetrt.benchmarks.worker import Round, Worker
from unetrt.export.exporter import Options, planned_tile
from unetrt.runtime.errors import InferenceError, OptionError
from unetrt.runtime.model.spec import Head, Precision
from unetrt.trainer.checkpoint import Checkpoint

Told = Callable[[str], None]

# A round of a contender takes no further turn after this time, in seconds.
ENOUGH = 5.0

# In a journal: the machine's limits beside the contenders of a round; and why a contender was not timed.
LIMITS, TIME_IS_UP = "the machine's limits", "not measured: the time was up"


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
    enough
        Seconds of a round of each contender; `ENOUGH` by default.
    """

    checkpoint: Checkpoint
    size: tuple[int, int]
    rounds: int
    device: Device = "cpu"
    tile: tuple[int, int] | None = None
    only: Sequence[str] = ()
    sides: tuple[int, ...] = ()
    contenders: Sequence[Contender] = CONTENDERS
    enough: float = 0.0

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

    def measure(
        self, told: Told = _silent, path: Path | None = None, patience: Patience | None = None
    ) -> Result | None:
        """Check all contenders, and time them.

        Parameters
        ----------
        told
            Called before each step with what it is; there are at most `steps` of them.
        path
            Where what is known is stored after each step; None: nowhere.
        patience
            No step starts when it is over; what the file holds is not measured again, except what failed.

        Returns
        -------
        The figures of all rounds that are complete, or of what there is of the first; None where the time was up before
        the usual loop had been timed.

        Raises
        ------
        ParityError
            The labels of the usual loop or of unetrt are another network's; nothing is timed then.
        InferenceError
            The usual loop failed.
        OptionError
            What the file holds is of another run.
        """
        about = environment(self.device)
        journal = Journal(path, self._about(about), patience, lambda journal: self._document(journal, about))
        for name in [name for name, result in journal.results.items() if REASON in result]:
            del journal.results[name]  # what failed is tried again
        frame = drawn_frame(self.size, self.checkpoint.shape.channels)
        with TemporaryDirectory(prefix="unetrt-bench-") as scratch:
            job = Job(Path(scratch), self.device, self.enough or ENOUGH)
            told("exporting")
            self._write(job, frame)
            checks = Checks(job, self.checkpoint, frame)
            for one in self.wanted():
                journal.take(_check(one), lambda one=one: checks.of(one, told).to_dict())  # type: ignore[misc]
            passed = [one.contender for one in self._known(journal).passed]
            limits = Limits(self.device, self.sides or SIDES[self.device], _precisions(passed, self.device))
            for number in range(self.rounds):
                self._round(number, journal, job, limits, told)
        return self._result(journal, about)

    def steps(self) -> int:
        """Return how often `measure` tells of a step, where no contender is left out and no step is known."""
        return 1 + len(self.wanted()) + self.rounds * (1 + len(self.wanted()))

    def _about(self, about: dict[str, Any]) -> dict[str, Any]:
        """Return what results must be of so that they can be taken up; more rounds may be asked for."""
        return {
            "network": asdict(self.checkpoint.shape),
            "weights": self.checkpoint.weights_sha256(),
            "frame": self.size,
            "tile": self.tile,
            "device": about.get("gpu", self.device),
            "processor": about["processor"],
            "contenders": [one.name for one in self.wanted()],
            "versions": about["versions"],
        }

    def _write(self, job: Job, frame: NDArray[Any]) -> None:
        self.checkpoint.save(job.checkpoint)
        job.write_frame(frame)
        tile = self.tile or planned_tile(self.checkpoint, [self.size])
        head: Head = "labels" if self.device == "gpu" else "logits"
        here = [one for one in self.wanted() if self.device in one.devices]
        for precision in {one.precision_on(self.device) for one in here if one.planned}:
            write_model(self.checkpoint, Options(tile, precision, head), job.model(precision))

    def _round(self, number: int, journal: Journal, job: Job, limits: Limits, told: Told) -> None:
        """Start every contender anew: how fast a process runs depends on where its memory happens to lie.

        A contender that fails is left out from then on; the usual loop raises InferenceError.
        """

        def rates() -> dict[str, float]:
            told("timing: what the machine can do")
            return _apart(limits.rates)

        journal.take(_of_round(number, LIMITS), rates)
        for one in self._known(journal).passed:
            name = _of_round(number, one.contender.name)
            journal.take(name, lambda one=one: self._timed(one.contender, job, told))  # type: ignore[misc]

    def _timed(self, contender: Contender, job: Job, told: Told) -> dict[str, Any]:
        """Return what a contender's process measured, or why it failed."""
        told(f"timing: {contender.title}")
        try:
            with Worker(contender, job) as worker:
                return asdict(worker.round())
        except InferenceError as error:
            if contender.name == REFERENCE:
                raise
            return LeftOut(contender.name, contender.title, str(error)).to_dict()

    def _known(self, journal: Journal) -> "_Known":
        """Return what a journal holds: of its rounds, the results of all contenders that did not fail."""
        known, results = _Known([], [], []), journal.results
        for one in self.wanted():
            stored = [results.get(_check(one), {REASON: TIME_IS_UP})]
            stored += [results.get(_of_round(number, one.name), {}) for number in range(self.rounds)]
            if reasons := [each[REASON] for each in stored if REASON in each]:
                known.left_out.append(LeftOut(one.name, one.title, reasons[0]))
            else:
                known.passed.append(Checked.from_dict(one, stored[0]))
        for number in range(self.rounds):
            timed = {one.contender.name: results.get(_of_round(number, one.contender.name)) for one in known.passed}
            rounds = {name: Round(**measured) for name, measured in timed.items() if measured is not None}
            known.rounds.append(_Rounds(results.get(_of_round(number, LIMITS)), rounds))
        return known

    def _document(self, journal: Journal, about: dict[str, Any]) -> dict[str, Any]:
        """Return the result as far as it goes: a file that was never finished can be read all the same."""
        result = self._result(journal, about)
        return {"kind": KIND, "schema": SCHEMA} if result is None else result.to_dict()

    def _result(self, journal: Journal, about: dict[str, Any]) -> Result | None:
        known = self._known(journal).counted()
        if known is None:
            return None
        shape, rounds = self.checkpoint.shape, known.rounds
        units = {name: BYTES if name == COPY else FLOPS for name in rounds[0].limits or ()}
        limits = {name: Figure.of([one.limits[name] for one in rounds if one.limits]) for name in units}
        summary = Summary(self.device, about.get("gpu", "cpu"), [one.contenders[REFERENCE] for one in rounds], limits)
        return Result(
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            frame=self.size,
            network=asdict(shape),
            reference=REFERENCE,
            contenders=tuple(
                summary.measured(one, [each.contenders[one.contender.name] for each in rounds]) for one in known.passed
            ),
            left_out=tuple(known.left_out),
            limits=tuple(Limit(name, unit, limits[name]) for name, unit in units.items()),
            environment=about,
            missing=tuple(journal.missing),
        )


@dataclass(frozen=True)
class _Rounds:
    """One round: the machine's rates, if they were measured, and what each contender's process measured."""

    limits: dict[str, float] | None
    contenders: dict[str, Round]

    def is_complete(self, passed: Sequence[Checked]) -> bool:
        """Tell whether nothing of it is missing."""
        return self.limits is not None and all(one.contender.name in self.contenders for one in passed)


@dataclass(frozen=True)
class _Known:
    """What is known of a run so far."""

    passed: list[Checked]
    left_out: list[LeftOut]
    rounds: list[_Rounds]

    def counted(self) -> "_Known | None":
        """Return what figures are made of: the complete rounds, or what there is of the first; None without either."""
        if complete := [one for one in self.rounds if one.is_complete(self.passed)]:
            return _Known(self.passed, self.left_out, complete)
        first = self.rounds[0]
        if first.limits is None or REFERENCE not in first.contenders:
            return None
        timed = [one for one in self.passed if one.contender.name in first.contenders]
        missing = [one.contender for one in self.passed if one not in timed]
        left_out = [LeftOut(one.name, one.title, TIME_IS_UP) for one in missing]
        return _Known(timed, [*self.left_out, *left_out], [first])


def _check(contender: Contender) -> str:
    """Return what the check of a contender is called in a journal."""
    return f"check: {contender.name}"


def _of_round(number: int, name: str) -> str:
    """Return what a contender, or the machine's limits, is called in a journal, in the round of a number from 0."""
    return f"round {number + 1}: {name}"


def _apart(measure: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Return what a function returns in a process of its own; raises InferenceError where it fails."""
    try:
        return fresh(measure)
    except (RuntimeError, MemoryError) as error:  # torch's, and that of a process that died
        raise InferenceError(f"the machine's limits could not be measured: {error}") from error


def _precisions(passed: list[Contender], device: Device) -> tuple[Precision, ...]:
    return tuple(dict.fromkeys(one.precision_on(device) for one in passed))

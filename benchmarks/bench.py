"""The benchmark behind `unetrt bench`: all contenders are checked, then timed in turn, round by round.

1. The network and a drawn frame are written to a folder (`BenchJob`).
2. Each contender labels the frame in a fresh process. Labels that are not those of one FP32 pass over the whole frame
   leave it out; if they are the reference's or unetrt's, nothing is timed.
3. Each round measures the machine's peak rates, then starts every contender in a fresh process and times it.
4. The figures of all complete rounds make the `BenchResult`. A journal stores every step, so that a run can be resumed.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unetrt.benchmarks.contenders import (
    CONTENDERS,
    REFERENCE,
    USUAL_TILE,
    About,
    BenchJob,
    Contender,
    Device,
    Round,
    check,
    time_round,
)
from unetrt.benchmarks.decoding import drawn_classes
from unetrt.benchmarks.environment import environment
from unetrt.benchmarks.figures import Figure
from unetrt.benchmarks.journal import REASON, Journal, Patience
from unetrt.benchmarks.limits import BYTES, COPY, FLOPS, SIDES, Limits, product_of
from unetrt.benchmarks.networks import drawn_frame, write_model
from unetrt.benchmarks.processes import fresh
from unetrt.benchmarks.result import SEGMENT, BenchResult, LeftOut, Limit, Measured, now
from unetrt.export.exporter import Options, planned_tile
from unetrt.runtime.errors import InferenceError, OptionError, ParityError, UnetrtError
from unetrt.runtime.files.atomic import scratch_folder
from unetrt.runtime.model.spec import Head, Precision
from unetrt.runtime.records import validated
from unetrt.trainer.checkpoint import Checkpoint
from unetrt.trainer.validation import whole_frame_scores, wrong_pixels

Progress = Callable[[str], None]
T = TypeVar("T")

# Seconds after which a round of a contender takes no further turn.
ENOUGH = 5.0
# Name of the machine's peak rates among the steps of a round.
LIMITS = "the machine's limits"
TIME_IS_UP = "not measured: the time was up"
# Largest share of labels that may differ from those of one FP32 pass in less precision, ties left out. Another network
# differs in more, and in an untrained one rounding decides many pixels. In FP32 none may differ.
MOST_WRONG = 0.05


@dataclass(frozen=True)
class Checked:
    """The check of a contender: its description, and the share of pixels whose class is wrong."""

    about: About
    pixels_off: float


@dataclass(frozen=True)
class Bench:
    """What is measured, and how.

    Attributes
    ----------
    checkpoint
        The network that all contenders run.
    size
        Height and width of the drawn uint16 frame, in pixels.
    rounds
        Fresh starts of each contender.
    device
        Where they compute.
    tile
        unetrt's tile (H, W); planned by default.
    only
        Names of contenders to time besides the reference; all by default.
    sides
        Sides of the matrices whose product is the yardstick; by default those that suit the device.
    contenders
        The table to choose from.
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

    @property
    def chosen(self) -> list[Contender]:
        """The contenders to time, the reference among them."""
        return [one for one in self.contenders if not self.only or one.name in (*self.only, REFERENCE)]

    @property
    def steps(self) -> int:
        """Number of calls of `progress`, if no contender is left out and no step is stored."""
        return 1 + len(self.chosen) + self.rounds * (1 + len(self.chosen))

    def measure(
        self, progress: Progress = lambda _: None, path: Path | None = None, patience: Patience | None = None
    ) -> BenchResult | None:
        """Check all contenders, and time them.

        Parameters
        ----------
        progress
            Called before each step with a description of it.
        path
            File of the journal, which a later run can resume; None for none.
        patience
            Time limit, and whether to resume; stored failures are tried again.

        Returns
        -------
        The figures of all complete rounds, or of an incomplete first one; None where the time was up before the
        reference had been timed.

        Raises
        ------
        ParityError
            The labels of the reference or of unetrt are another network's; nothing is timed then.
        InferenceError
            The reference failed.
        OptionError
            The file to resume holds another run.
        """
        here = environment(self.device)
        journal = Journal(path, self._facts(here), patience, lambda journal: self._document(journal, here))
        journal.forget_failures()
        with scratch_folder() as scratch:
            job = BenchJob(scratch, self.device, self.enough or ENOUGH)
            progress("exporting")
            frame = self._write(job)
            checks = _Checks(job, self.checkpoint, frame)
            for one in self.chosen:
                journal.take(_check(one), partial(_stored, one, partial(self._check, checks, progress)))
            passed = [one for one in self.chosen if self._checked(journal, one)]
            limits = Limits(self.device, self.sides or SIDES[self.device], self._precisions(passed))
            steps: dict[str, Callable[[], Any]] = {LIMITS: partial(self._rates, limits, progress)}
            for one in passed:
                steps[one.name] = partial(_stored, one, partial(self._time, job, progress))
            journal.take_turns(self.rounds, steps)
        return self._result(journal, here)

    def _facts(self, here: dict[str, Any]) -> dict[str, Any]:
        """Return what must be equal for results to be resumed; the number of rounds may differ."""
        return {
            "network": asdict(self.checkpoint.shape),
            "weights": self.checkpoint.weights_sha256(),
            "frame": self.size,
            "tile": self.tile,
            "device": here.get("gpu", self.device),
            "processor": here["processor"],
            "contenders": [one.name for one in self.chosen],
            "versions": here["versions"],
        }

    def _write(self, job: BenchJob) -> NDArray[Any]:
        """Write the files that contenders load; return the frame, (H, W) or (C, H, W)."""
        self.checkpoint.save(job.checkpoint)
        frame = drawn_frame(self.size, self.checkpoint.shape.channels)
        job.write_frame(frame)
        job.write_classes(drawn_classes(self.size))
        tile = self.tile or planned_tile(self.checkpoint, [self.size])
        head: Head = "labels" if self.device == "gpu" else "logits"
        planned = [one for one in self.chosen if one.planned and self.device in one.devices]
        for precision in self._precisions(planned):
            write_model(self.checkpoint, Options(tile, precision, head), job.model(precision))
        return frame

    def _precisions(self, contenders: Sequence[Contender]) -> tuple[Precision, ...]:
        return tuple(dict.fromkeys(one.precision_on(self.device) for one in contenders))

    def _check(self, checks: "_Checks", progress: Progress, one: Contender) -> Checked:
        progress(f"checking: {one.title}")
        return checks.of(one)

    def _time(self, job: BenchJob, progress: Progress, one: Contender) -> Round:
        progress(f"timing: {one.title}")
        return _in_process(time_round, one, job)

    def _rates(self, limits: Limits, progress: Progress) -> dict[str, float]:
        progress("timing: what the machine can do")
        try:
            return fresh(limits.rates)
        except UnetrtError as error:
            raise InferenceError(f"the machine's limits could not be measured: {error}") from error

    def _checked(self, journal: Journal, one: Contender) -> Checked | None:
        """Return the stored check of a contender; None where it was not taken, or the contender is left out."""
        stored = journal.results.get(_check(one), {REASON: TIME_IS_UP})
        return None if REASON in stored else validated(stored, Checked, _check(one), OptionError)

    def _reason(self, journal: Journal, one: Contender) -> str | None:
        """Return why a contender is left out; None where it is not."""
        reason: str | None = journal.results.get(_check(one), {REASON: TIME_IS_UP}).get(REASON)
        return reason or journal.reason(one.name)

    def _document(self, journal: Journal, here: dict[str, Any]) -> dict[str, Any]:
        """Return the result so far: an unfinished file can be read as a result all the same."""
        result = self._result(journal, here)
        return {"kind": BenchResult.KIND, "schema": BenchResult.SCHEMA} if result is None else result.to_dict()

    def _result(self, journal: Journal, here: dict[str, Any]) -> BenchResult | None:
        reasons = {one.name: self._reason(journal, one) for one in self.chosen}
        passed = [one for one in self.chosen if reasons[one.name] is None]
        names = [LIMITS, *(one.name for one in passed)]
        rounds = [number for number in range(self.rounds) if all(journal.has(number, name) for name in names)]
        if not rounds:
            if not (journal.has(0, LIMITS) and journal.has(0, REFERENCE)):
                return None
            rounds = [0]
            reasons |= {one.name: TIME_IS_UP for one in passed if not journal.has(0, one.name)}
            passed = [one for one in passed if reasons[one.name] is None]
        rates = [validated(journal.round(number, LIMITS), dict[str, float], LIMITS, OptionError) for number in rounds]
        timed = {
            one.name: [validated(journal.round(number, one.name), Round, one.name, OptionError) for number in rounds]
            for one in passed
        }
        limits = {name: Figure.of(one[name] for one in rates) for name in rates[0]}
        reference = _seconds(timed[REFERENCE], SEGMENT)
        checks = {one.name: self._checked(journal, one) for one in passed}
        return BenchResult(
            when=now(),
            environment=here,
            frame=self.size,
            network=asdict(self.checkpoint.shape),
            reference=REFERENCE,
            contenders=tuple(
                self._measured(one, checked, timed[one.name], reference, limits, here.get("gpu", "cpu"))
                for one in passed
                if (checked := checks[one.name])
            ),
            left_out=tuple(LeftOut(one.name, one.title, why) for one in self.chosen if (why := reasons[one.name])),
            limits=tuple(Limit(name, BYTES if name == COPY else FLOPS, rate) for name, rate in limits.items()),
            missing=tuple(journal.missing),
        )

    def _measured(
        self,
        one: Contender,
        checked: Checked,
        rounds: Sequence[Round],
        reference: Figure,
        limits: dict[str, Figure],
        device: str,
    ) -> Measured:
        """Return all that is stored of a contender."""
        about, precision = checked.about, one.precision_on(self.device)
        seconds = {way: _seconds(rounds, way) for way in rounds[0].seconds}
        joules = [each.joules for each in rounds if each.joules is not None]
        return Measured(
            name=one.name,
            title=one.title,
            device=device,
            precision=precision,
            tile=about.tile,
            tiles=about.tiles,
            flops=about.flops,
            pixels_off=checked.pixels_off,
            checked=about.checked,
            seconds=seconds,
            speedup=reference / seconds[SEGMENT],
            latencies=tuple(seconds for each in rounds for seconds in each.seconds[SEGMENT]),
            phases={name: statistics.median(each.phases[name] for each in rounds) for name in rounds[0].phases},
            limit=product_of(precision),
            share=about.flops / seconds[SEGMENT] / limits[product_of(precision)],
            host_memory=max((each.host_memory for each in rounds if each.host_memory is not None), default=None),
            device_memory=max((each.device_memory for each in rounds if each.device_memory is not None), default=None),
            joules=Figure.of(joules) if joules else None,
            engine=about.engine,
        )


class _Checks:
    """Compares labels with those of one FP32 pass over the whole frame."""

    def __init__(self, job: BenchJob, checkpoint: Checkpoint, frame: NDArray[Any]) -> None:
        self._job, self._checkpoint, self._frame = job, checkpoint, frame

    @cached_property
    def _truth(self) -> NDArray[np.float32]:
        return whole_frame_scores(self._checkpoint, self._frame)

    def of(self, contender: Contender) -> Checked:
        """Check a contender.

        Raises
        ------
        ParityError
            Its labels are another network's.
        InferenceError
            It cannot be loaded, or failed.
        """
        if reason := contender.why_not(self._job.device):
            raise InferenceError(reason)
        about, labels = _in_process(check, contender, self._job)
        if about.right_within is not None:
            height, width = about.right_within
            wrong = wrong_pixels(labels[:height, :width], self._truth[:, :height, :width])
            if wrong > self._most(contender):
                raise ParityError(
                    f"{wrong:.2%} of the labels of {contender.title} are not those of one FP32 pass over the frame: "
                    "nothing is timed"
                )
        return Checked(about, wrong_pixels(labels, self._truth))

    def _most(self, contender: Contender) -> float:
        """Return the share of labels that may be wrong; on a GPU torch's FP32 is TF32 by default."""
        exact = self._job.device == "cpu" and contender.precision_on("cpu") == "fp32"
        return 0.0 if exact else MOST_WRONG


def _in_process(work: Callable[[Contender, BenchJob], T], contender: Contender, job: BenchJob) -> T:
    """Work on a contender in a fresh process; raises InferenceError, with its title, where it fails."""
    try:
        return fresh(work, contender, job)
    except UnetrtError as error:
        raise InferenceError(f"{contender.title}: {error}") from error


def _stored(contender: Contender, step: Callable[[Contender], Any]) -> dict[str, Any]:
    """Return a step's result as JSON, or why it failed; what makes the whole run worthless is raised."""
    try:
        return asdict(step(contender))
    except UnetrtError as error:
        if contender.name == REFERENCE or (contender.backend and isinstance(error, ParityError)):
            raise
        return {REASON: str(error)}


def _check(contender: Contender) -> str:
    """Return the name of a contender's check among the steps."""
    return f"check: {contender.name}"


def _seconds(rounds: Sequence[Round], way: str) -> Figure:
    """Return the figure of a section: the median of its runs in each round."""
    return Figure.of(statistics.median(each.seconds[way]) for each in rounds)

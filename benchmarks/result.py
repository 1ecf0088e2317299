"""Results of benchmarks as JSON: one envelope, two contents.

Every result says when and on which machine it was measured, and names its key figures; `StoredResult` writes and
reads it. `BenchResult` holds the contenders that `unetrt bench` compares; `CaseResult` holds a benchmark of this
repository (`unetrt.benchmarks.cases`) and what it measured in detail. Files are validated when they are read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Self

from unetrt.benchmarks.figures import Figure
from unetrt.runtime.errors import FrameError, OptionError, one_line
from unetrt.runtime.files.atomic import require_regular, whole_file
from unetrt.runtime.records import parse, to_json, validated

# Sections of a frame's way that are timed. All contenders have the first, and the second if they can decode; the others
# are unetrt's.
SEGMENT, OBJECTS, SESSION, PREDICT = "frame to labels", "frame to objects", "engine alone", "file to file"
WAYS = (SEGMENT, OBJECTS, SESSION, PREDICT)


@dataclass(frozen=True)
class Measure:
    """A named figure.

    Attributes
    ----------
    name
        The same in every run, so that runs can be compared.
    unit
        `s`, `MiB`, `Mpixel/s` (10^6 pixels), `tiles/s`, `GFLOP/s` or `x`, a ratio. Less is better for seconds and
        memory, more for all others.
    median
        Over all rounds.
    low, high
        Ends of the interval; None where there was one round.
    coverage
        Confidence of the interval, 0 to 1; None where `low` and `high` are the range and no interval is claimed.
    taken
        Number of rounds.
    goal
        Value to reach, in `unit`; None without a goal.
    rounds
        The value of each round, in order; empty in the history.
    """

    name: str
    unit: str
    median: float
    low: float | None
    high: float | None
    coverage: float | None
    taken: int
    goal: float | None = None
    rounds: tuple[float, ...] = ()

    @classmethod
    def of(cls, name: str, unit: str, figure: Figure, goal: float | None = None) -> Self:
        """Return a figure under a name."""
        return cls(name, unit, **asdict(figure), taken=len(figure.rounds), goal=goal)

    @property
    def less_is_better(self) -> bool:
        """Whether a lower value is the better one."""
        return self.unit in ("s", "MiB")

    @property
    def met(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.goal is None:
            return None
        return self.median <= self.goal if self.less_is_better else self.median >= self.goal


@dataclass(frozen=True)
class StoredResult:
    """What all results share.

    Attributes
    ----------
    when
        Time of measurement, ISO 8601, UTC.
    environment
        Processor, GPU, clocks, threads, versions.
    """

    KIND: ClassVar[str]
    SCHEMA: ClassVar[int]
    WRITTEN_BY: ClassVar[str]

    when: str
    environment: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {"kind": self.KIND, "schema": self.SCHEMA, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write the JSON file."""
        with whole_file(path) as temporary:
            temporary.write_text(to_json(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a JSON file; raises OptionError where it holds no result of this kind."""
        advice = f"give a file that {cls.WRITTEN_BY} wrote"
        try:
            stored = parse(require_regular(path).read_bytes(), str(path), OptionError)
            found = (stored.get("kind"), stored.get("schema"))
            if found == (cls.KIND, cls.SCHEMA):
                return validated(stored, cls, str(path), OptionError, unknown=True)
        except (FrameError, OSError) as error:
            raise OptionError(f"{path} cannot be read ({one_line(error)}): {advice}") from error
        except OptionError as error:
            raise OptionError(f"{error}: {advice}") from error
        raise OptionError(f"{path} holds schema {found[1]} of {found[0]}, not {cls.SCHEMA} of {cls.KIND}: {advice}")


@dataclass(frozen=True)
class CaseResult(StoredResult):
    """One run of a benchmark of this repository.

    Attributes
    ----------
    name
        Name of the benchmark.
    measures
        What it measures, in one sentence.
    figures
        The key figures.
    detail
        Everything else that was measured, as the benchmark arranges it.
    missing
        Steps that were not begun, as the time was up.
    """

    KIND, SCHEMA, WRITTEN_BY = "unetrt repository benchmark", 1, "`make bench`"

    name: str
    measures: str
    figures: tuple[Measure, ...]
    detail: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Measure:
        """Return a figure by its name; raises KeyError if it does not exist."""
        return {figure.name: figure for figure in self.figures}[name]


@dataclass(frozen=True)
class Measured:
    """A contender, and what was measured of it.

    Attributes
    ----------
    name, title
        Name on the command line, and the title in tables.
    device, precision
        `cpu` or the GPU's name; the data type of the arithmetic.
    tile, tiles, flops
        Its tile (H, W) in pixels, tiles per frame, and the floating-point operations of all of them, borders
        included, two for each multiply-accumulate.
    pixels_off
        Share of the pixels whose class differs from that of one FP32 pass over the whole frame, ties left out.
    checked
        What was checked before it was timed, in a few words.
    seconds
        Per frame, by section (`WAYS`); all have `SEGMENT`.
    speedup
        The reference's time over its own, from frame to labels, round by round.
    latencies
        Seconds of every single run from frame to labels, warm-ups left out.
    phases
        Median seconds of a frame's phases, by name, where the contender reports them; they may overlap.
    limit, share
        Name of the machine's limit that applies, and the share of it that is reached from frame to labels, 0 to 1.
    host_memory, device_memory
        Bytes: the process's peak; the growth of what all processes use on the GPU, from before it loaded to its end.
        None where unknown.
    joules
        Energy of the processor or GPU per frame; None where the driver does not report it.
    engine
        The inference engine, for unetrt.
    """

    name: str
    title: str
    device: str
    precision: str
    tile: tuple[int, int]
    tiles: int
    flops: int
    pixels_off: float
    checked: str
    seconds: Mapping[str, Figure]
    speedup: Figure
    latencies: tuple[float, ...]
    phases: Mapping[str, float]
    limit: str
    share: Figure | None
    host_memory: int | None = None
    device_memory: int | None = None
    joules: Figure | None = None
    engine: str = ""

    @property
    def segment(self) -> Figure:
        """Seconds from frame to labels."""
        return self.seconds[SEGMENT]

    @property
    def is_ours(self) -> bool:
        """Whether it is unetrt: no other contender is timed in other sections than from frame to labels or objects."""
        return not set(self.seconds) <= {SEGMENT, OBJECTS}


@dataclass(frozen=True)
class LeftOut:
    """A contender that was not timed, and why."""

    name: str
    title: str
    reason: str


@dataclass(frozen=True)
class Limit:
    """A peak rate of the machine, measured in the same rounds: `unit` is FLOP/s or B/s."""

    name: str
    unit: str
    rate: Figure


@dataclass(frozen=True)
class BenchResult(StoredResult):
    """One run of `unetrt bench`.

    Attributes
    ----------
    frame
        Height and width of the drawn uint16 frame, in pixels.
    network
        Depth, base, channels, classes.
    reference
        Name of the contender that speed-ups are relative to.
    contenders
        Those that were timed, in the order of the table.
    left_out
        The others.
    limits
        Peak rates of the machine.
    missing
        Steps that were not begun, as the time was up.
    """

    KIND, SCHEMA, WRITTEN_BY = "unetrt bench", 2, "`unetrt bench --json`"

    frame: tuple[int, int]
    network: Mapping[str, int]
    reference: str
    contenders: tuple[Measured, ...]
    left_out: tuple[LeftOut, ...]
    limits: tuple[Limit, ...]
    missing: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Measured:
        """Return a contender by its name; raises KeyError where it was not timed."""
        return {one.name: one for one in self.contenders}[name]

    @property
    def figures(self) -> tuple[Measure, ...]:
        """The key figures: seconds of each section, speed-up over the reference, share of the limit."""
        found = []
        for one in self.contenders:
            found += [Measure.of(f"{one.name}, {way}", "s", seconds) for way, seconds in one.seconds.items()]
            if one.name != self.reference:
                found.append(Measure.of(f"{one.name} against {self.reference}", "x", one.speedup))
            if one.share is not None:
                found.append(Measure.of(f"{one.name}, of {one.limit}", "x", one.share))
        return tuple(found)


def load(path: Path) -> BenchResult:
    """Read what `unetrt bench --json` wrote; raises OptionError where it is something else."""
    return BenchResult.load(path)


def now() -> str:
    """Return the present time, ISO 8601, UTC, in seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")

"""What `unetrt bench` stores: figures of all contenders, the limits beside them, and the machine. Schema 2."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from unetrt.benchmarks.figure import Figure
from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.atomic import whole_file

KIND, SCHEMA = "unetrt bench", 2
# Ways in which a contender is timed. All have the first; the others are unetrt's own.
SEGMENT, SESSION, PREDICT = "frame to labels", "engine alone", "file to file"
WAYS = (SEGMENT, SESSION, PREDICT)
# The key under which JSON says why a contender was not timed.
REASON = "reason"


@dataclass(frozen=True)
class Measured:
    """A contender, and what was measured of it.

    Attributes
    ----------
    name, title
        What the user writes, and what is shown.
    device, precision
        `cpu` or the GPU's name; what it computes in.
    tile, tiles, flops
        Its tile (H, W) in pixels, how many a frame takes, and the floating-point operations of all of them, borders
        included, two for each multiply-accumulate.
    pixels_off
        Share of the pixels whose class is not that of one FP32 pass over the whole frame, ties left out.
    checked
        What was checked before it was timed, in a few words.
    seconds
        Of a frame, by way (`WAYS`); all have `SEGMENT`.
    speedup
        How many times as fast as the reference it is, from frame to labels, round by round.
    latencies
        Seconds of every single run from frame to labels, warm-ups left out.
    phases
        Median seconds of a frame's phases, by name, those that the contender tells; they may overlap.
    limit, share
        Name of the limit that it is held against, and which share of it is reached from frame to labels, 0 to 1.
    host_memory, device_memory
        Bytes: the process's peak; what was taken on the GPU, by everyone, between before it loaded and its end. None
        where unknown.
    joules
        Energy of the processor or GPU for a frame; None where the driver does not tell.
    engine
        What computed, for unetrt.
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


@dataclass(frozen=True)
class LeftOut:
    """A contender that was not timed, and why."""

    name: str
    title: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """Return what JSON stores."""
        return asdict(self)


@dataclass(frozen=True)
class Limit:
    """What the machine can do at most, measured in the same rounds: `unit` is FLOP/s or B/s."""

    name: str
    unit: str
    rate: Figure


@dataclass(frozen=True)
class Result:
    """One run.

    Attributes
    ----------
    when
        ISO 8601, UTC.
    frame
        Height and width, in pixels; uint16, drawn.
    network
        Depth, base, channels, classes.
    reference
        Name of the contender that speed-ups are against.
    contenders
        Those that were timed, in the order of the table.
    left_out
        The others.
    limits
        What the machine can do.
    environment
        Processor, GPU, clocks, threads, versions.
    missing
        Steps that were not begun, as the time was up.
    """

    when: str
    frame: tuple[int, int]
    network: Mapping[str, int]
    reference: str
    contenders: tuple[Measured, ...]
    left_out: tuple[LeftOut, ...]
    limits: tuple[Limit, ...]
    environment: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Measured:
        """Return a contender by its name; raises KeyError where it was not timed."""
        return {one.name: one for one in self.contenders}[name]

    def to_dict(self) -> dict[str, Any]:
        """Return what JSON stores."""
        return {"kind": KIND, "schema": SCHEMA, **asdict(self)}

    def save(self, path: Path) -> None:
        """Write JSON."""
        with whole_file(path) as temporary:
            temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Self:
        """Return what `to_dict` gave; raises KeyError or TypeError where it did not."""
        return cls(
            when=told["when"],
            frame=tuple(told["frame"]),
            network=told["network"],
            reference=told["reference"],
            contenders=tuple(_measured(one) for one in told["contenders"]),
            left_out=tuple(LeftOut(**one) for one in told["left_out"]),
            limits=tuple(Limit(one["name"], one["unit"], _figure(one["rate"])) for one in told["limits"]),
            environment=told["environment"],
            missing=tuple(told.get("missing", ())),
        )


def load(path: Path) -> Result:
    """Read what `unetrt bench --json` wrote; raises OptionError where it is not that."""
    try:
        told = json.loads(path.read_text())
        if told["kind"] == KIND and told["schema"] == SCHEMA:
            return Result.from_dict(told)
        found = f"schema {told['schema']} of {told['kind']}"
    except OSError as error:
        raise OptionError(f"{path} cannot be read ({error.strerror}): give a file of `unetrt bench --json`") from error
    except (ValueError, KeyError, TypeError, AttributeError):
        found = "something else"
    raise OptionError(f"{path} holds {found}: give a file of `unetrt bench --json`, schema {SCHEMA}")


def _measured(told: Mapping[str, Any]) -> Measured:
    figures = {
        "seconds": {way: _figure(figure) for way, figure in told["seconds"].items()},
        "speedup": _figure(told["speedup"]),
        "share": told["share"] and _figure(told["share"]),
        "joules": told["joules"] and _figure(told["joules"]),
    }
    return Measured(**{**told, **figures, "tile": tuple(told["tile"]), "latencies": tuple(told["latencies"])})


def _figure(told: Mapping[str, Any]) -> Figure:
    return Figure(**{**told, "rounds": tuple(told["rounds"])})

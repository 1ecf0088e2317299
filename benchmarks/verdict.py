"""What a result says: who is fastest, by how much, and what speaks against believing it."""

from collections.abc import Iterator

from unetrt.benchmarks.figure import CONFIDENCE, Figure
from unetrt.benchmarks.result import SEGMENT, Limit, Measured, Result
from unetrt.benchmarks.wording import ROUNDS_NEEDED, count, interval_name, percent, pixels, time, times

# A machine whose limit ranges over more than this share of it, from round to round, does something else besides.
QUIET = 0.1


def is_ours(one: Measured) -> bool:
    """Return whether a contender is unetrt: no other is timed in another way than from frame to labels."""
    return set(one.seconds) != {SEGMENT}


def fastest(contenders: tuple[Measured, ...]) -> Measured:
    """Return the contender with the least median from frame to labels."""
    return min(contenders, key=lambda one: one.seconds[SEGMENT].median)


def leader(result: Result) -> Measured:
    """Return the fastest of unetrt's contenders; of all, where none is unetrt's."""
    return fastest(tuple(filter(is_ours, result.contenders)) or result.contenders)


def shortest(one: Measured) -> Figure | None:
    """Return seconds of a frame if its arithmetic ran at the limit, round by round; None where no limit is known."""
    if one.share is None or len(one.share.rounds) != len(one.seconds[SEGMENT].rounds):
        return None
    return Figure.of([a * b for a, b in zip(one.seconds[SEGMENT].rounds, one.share.rounds, strict=True)])


def reference_title(result: Result) -> str:
    """Return the title of what speed-ups are against; its name, where it was not timed itself."""
    return next((one.title for one in result.contenders if one.name == result.reference), result.reference)


def processor(result: Result) -> str:
    """Return the name of what the frames were segmented on."""
    devices = {one.device for one in result.contenders} - {"cpu"}
    return ", ".join(sorted(devices)) or str(result.environment.get("processor", "unknown processor"))


def case(result: Result) -> str:
    """Return the frame, the network and the processor."""
    height, width = result.frame
    network = ", ".join(f"{name} {value}" for name, value in result.network.items())
    return f"{height} x {width}, {network}, {processor(result)}"


def least_rounds(result: Result) -> int:
    """Return how many rounds every contender had."""
    return min(len(one.seconds[SEGMENT].rounds) for one in result.contenders)


def headline(result: Result) -> str:
    """Return in one sentence how much faster than the reference unetrt is."""
    best, against = leader(result), reference_title(result)
    if best.name == result.reference:
        return f"{against} is the fastest, and the reference"
    if best.speedup.low <= 1 <= best.speedup.high:
        return f"{best.title} cannot be told from {against}: {_times(best)} times as fast"
    return f"{best.title} is {_times(best)} times as fast as {against}"


def _times(one: Measured) -> str:
    if len(one.speedup.rounds) == 1:
        return times(one.speedup).partition(" ")[0]
    return times(one.speedup).replace("(", f"({interval_name([one.speedup])} ")


def doubts(result: Result) -> tuple[str, ...]:
    """Return what a reader must know before believing the headline, one sentence each."""
    return tuple(_doubts(result))


def _doubts(result: Result) -> Iterator[str]:
    best, first = leader(result), fastest(result.contenders)
    if first is not best:
        yield f"{first.title} is faster still: {time(first.seconds[SEGMENT].median)} a frame"
    if best.pixels_off:
        yield f"{best.title} gives {pixels(best.pixels_off)} of the pixels another class than FP32"
    least = min((one.seconds[SEGMENT] for one in result.contenders), key=lambda figure: figure.coverage)
    if least.coverage < CONFIDENCE:
        yield _too_few(least)
    yield from map(_wobble, filter(_wobbles, result.limits))
    for one in result.contenders:
        if one.share is not None and one.share.median > 1:
            yield f"{one.title} is above its limit ({percent(one.share.median)}): {one.limit} was measured too low"


def _too_few(figure: Figure) -> str:
    rounds = len(figure.rounds)
    if rounds == 1:
        return f"One round gives no interval: {ROUNDS_NEEDED} give one of 95 %"
    return (
        f"{count(rounds, 'round')} are few: their range holds the true median in {percent(figure.coverage)} of cases,"
        f" {ROUNDS_NEEDED} rounds hold it in 95 %"
    )


def _wobbles(limit: Limit) -> bool:
    return limit.rate.high - limit.rate.low > QUIET * limit.rate.median


def _wobble(limit: Limit) -> str:
    span = (limit.rate.high - limit.rate.low) / limit.rate.median
    return f"The machine was not quiet: {limit.name} varied by {percent(span)} between rounds"

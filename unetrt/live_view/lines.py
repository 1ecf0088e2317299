"""A live segmentation in plain words, for logs and for its end."""

from unetrt.live_view.figures import Figures
from unetrt.runtime.live.status import Percentiles


def accounting(figures: Figures) -> str:
    """Return what became of the frames: the parts add up to the whole."""
    status = figures.status
    parts = {"segmented": status.done, "dropped": status.dropped, "failed": status.failed, "pending": status.pending}
    said = [f"{number} {name}" for name, number in parts.items() if number or name == "segmented"]
    missed = f"; {counted(status.missed, 'more image')} of the camera missed" if status.missed else ""
    return f"{counted(status.submitted, 'frame')}: {', '.join(said)}{missed}"


def times(name: str, seconds: Percentiles) -> str:
    """Return percentiles of a time in milliseconds; empty before the first frame was segmented."""
    if seconds.p50 is None:
        return ""
    return (
        f"{name} p50 {milliseconds(seconds.p50)}, p95 {milliseconds(seconds.p95)}, p99 {milliseconds(seconds.p99)} ms"
    )


def milliseconds(seconds: float | None) -> str:
    """Return seconds as milliseconds, to three figures."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def counted(number: int, thing: str) -> str:
    """Return a number with what it counts: `1 frame`, `2 frames`."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def line(figures: Figures) -> str:
    """Return everything that matters now, on one line."""
    status = figures.status
    parts = [
        f"{figures.seconds:.0f} s",
        accounting(figures),
        f"{figures.camera:.1f} frames/s, {status.rate:.1f}/s segmented",
        times("latency", status.latency),
        found(figures),
        status.last_error and f"last error: {status.last_error}",
    ]
    return "; ".join(part for part in parts if part)


def found(figures: Figures) -> str:
    """Return what is in the last labels; empty before them."""
    if figures.history:
        return counted(figures.history[-1], "object")
    return "" if figures.covered is None else f"{figures.covered:.1%} not background"


def summary(figures: Figures, session: str) -> list[str]:
    """Return what there is to say when all is over: what became of the frames, how fast, and on what (`session`)."""
    status = figures.status
    speed = f"{status.done / figures.seconds:.1f} segmented a second" if status.done and figures.seconds else ""
    objects = counted(figures.objects, "object") if figures.history else ""
    rest = [part for part in (objects, speed, times("latency", status.latency), session) if part]
    return [accounting(figures), ", ".join(rest)]

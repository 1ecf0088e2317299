"""The views of a live segmentation: in place at a terminal, else plain lines."""

import io
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from unetrt.live_view.terminal import (
    Figures,
    Observer,
    PlainLines,
    TerminalView,
    accounting,
    drawing,
    line,
    sparkline,
    summary,
    view_for,
)
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.live.results import LiveStatus, Percentiles, State

STATUS = LiveStatus(
    State.SEGMENTING,
    submitted=70,
    done=30,
    dropped=36,
    failed=1,
    pending=3,
    missed=2,
    output_errors=0,
    last_error="FrameError: rows [3] are [red]odd[/red]",
    rate=3.25,
    queueing=Percentiles(0.0012, 0.012, 0.1234),
    compute=Percentiles(0.3, 0.4, 1.5),
    latency=Percentiles(0.301, 0.412, 1.624),
)
FIGURES = Figures(STATUS, 9.2, 10.04, "512 x 700 px, uint16", (0, 4, 8), 300, None)
EARLY = Figures(LiveStatus(State.WAITING, *[0] * 7, "", 0.0, *[Percentiles()] * 3), 0.0, 0.0, "", (), 0, None)
CLASSES = Figures(STATUS, 9.2, 10.04, "", (), 0, 0.125)


def drawn(figures: Figures, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO(), force_terminal=True)
    console.print(drawing(figures, "cells", "Ctrl-C", console))
    return console.export_text()


def test_every_figure_is_in_the_view():
    rows = [" ".join(row.split()) for row in drawn(FIGURES).splitlines()]
    assert [row for row in rows if row] == [
        "cells",
        "camera 10.0/s 70 came, 2 missed",
        "segmented 3.2/s 30 done, 3 pending",
        "lost 36 dropped, 1 failed",
        "frame 512 x 700 px, uint16",
        "p50 p95 p99 ms",
        "queueing 1.2 12 123",
        "compute 300 400 1500",
        "latency 301 412 1624",
        "found 8 objects ▁▄█",
        "state segmenting",
        "last error FrameError: rows [3] are [red]odd[/red]",
        "Ctrl-C",
    ]


def test_half_a_screen_is_wide_enough_for_all_counts():
    rows = [" ".join(row.split()) for row in drawn(FIGURES, 45).splitlines()]
    for counts in ("70 came, 2 missed", "30 done, 3 pending", "36 dropped, 1 failed"):
        assert [row for row in rows if row.endswith(counts)]


@pytest.mark.parametrize("width", [20, 40, 200])
@pytest.mark.parametrize("figures", [FIGURES, EARLY, CLASSES], ids=["full", "early", "classes"])
def test_the_view_has_as_many_rows_at_every_moment_and_width(figures, width):
    rows = drawn(figures, width).splitlines()
    assert len(rows) == len(drawn(FIGURES).splitlines())
    assert max(map(len, rows)) <= width


def test_a_history_is_drawn_from_nothing_to_its_highest():
    assert sparkline((0, 1, 2, 7)) == "▁▂▃█"
    assert sparkline((0, 0)) == "▁▁"
    assert sparkline(()) == ""


def test_lines_hold_everything_that_adds_up():
    assert accounting(FIGURES) == (
        "70 frames: 30 segmented, 36 dropped, 1 failed, 3 pending; 2 more images of the camera missed"
    )
    assert accounting(EARLY) == "0 frames: 0 segmented"
    assert line(FIGURES).startswith("9 s; 70 frames: 30 segmented")
    assert "latency p50 301, p95 412, p99 1624 ms; 8 objects; last error: FrameError" in line(FIGURES)
    assert "12.5% not background" in line(CLASSES)
    assert summary(FIGURES, "the CPU")[1] == (
        "300 objects, 3.3 segmented a second, latency p50 301, p95 412, p99 1624 ms, the CPU"
    )
    assert "objects, 0.01 segmented a second, " in summary(replace(FIGURES, seconds=3000.0), "the CPU")[1]
    assert summary(EARLY, "the CPU") == ["0 frames: 0 segmented", "the CPU"]


def test_plain_lines_come_now_and_then_without_control_characters():
    file = io.StringIO()
    for every, expected in ((1e6, 1), (0.0, 4)):
        file.seek(0), file.truncate()
        # As with colours forced upon a log.
        with view_for(Console(file=file, force_terminal=True), "cells", "Ctrl-C") as view:
            assert isinstance(view, PlainLines)
        file.seek(0), file.truncate()
        with PlainLines(Console(file=file), "cells", every) as view:
            for _ in range(3):
                view.show(FIGURES)
        assert len(file.getvalue().splitlines()) == expected
        assert file.getvalue().replace("\n", "").isprintable()


def test_the_view_in_place_leaves_nothing_behind():
    console = Console(file=io.StringIO(), force_terminal=True, width=90)
    with TerminalView(console, "cells", "Ctrl-C") as view:
        view.show(FIGURES)
        view.show(FIGURES)
        view.close()
    assert console.file.getvalue().count("30 done") >= 2
    assert console.file.getvalue().endswith("\x1b[2K")  # it ends with clearing a line


def test_an_observer_sees_what_a_live_segmenter_does(tiny_model):
    observer = Observer()
    assert observer.look(EARLY.status) == EARLY
    noise = np.random.default_rng(0).integers(0, 4000, (50, 60)).astype(np.uint16)
    with LiveSegmenter(tiny_model, policy="block", on_result=observer.result, kind="instances") as live:
        found = [live.submit(noise // part).result().objects for part in (1, 2, 3)]
        live.submit(np.full((9, 9), np.nan)).result()
    figures = observer.look(live.status())
    assert figures.history == tuple(found)
    assert figures.objects == sum(found)
    assert figures.frame == "50 x 60 px, uint16"
    assert figures.camera > 0
    assert "NaN" in str(observer.failure)


def test_an_observer_of_classes_sees_how_much_is_covered(tiny_model):
    observer = Observer()
    with LiveSegmenter(tiny_model, policy="block", on_result=observer.result, kind="classes") as live:
        labels = live.submit(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)).result().labels
    figures = observer.look(live.status())
    assert figures.covered == pytest.approx((labels > 0).mean())
    assert figures.history == ()

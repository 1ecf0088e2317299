from dataclasses import replace

import pytest
from rich.console import Console

from tests.benchmarks.invented_results import HOSTILE, ROUNDS, around, contender, limits, on_gpu, result
from unetrt.benchmarks.figures import decimals, digits, interval_name, memory, pixels, rate, time, unit_for
from unetrt.benchmarks.findings import doubts, headline, leader, shortest
from unetrt.benchmarks.result import Limit
from unetrt.benchmarks.terminal import bench_table


def shown(what, width=100):
    console = Console(width=width, color_system=None, force_terminal=True)
    with console.capture() as capture:
        console.print(bench_table(what))
    return capture.get()


def words(text):
    return " ".join(text.split())


def cells(text, title):
    """Return the figures of the row of a title that is not folded."""
    first = next(line for line in text.splitlines() if line.startswith(f" {title}  "))
    return [cell.strip() for cell in first.split("  ")[1:] if cell.strip()]


@pytest.mark.parametrize("what", [result(), result(rounds=3), result(rounds=1), on_gpu()])
def test_every_contender_has_its_row_within_100_columns(what):
    text = shown(what)
    assert max(map(len, text.splitlines())) <= 100
    for one in what.contenders:
        seconds = one.seconds["frame to labels"].median
        told = cells(text, one.title)
        assert told[0] == digits(seconds if seconds > 1 else 1000 * seconds)
        assert told[2] == digits(one.speedup.median)
        assert pixels(one.pixels_off) in told


@pytest.mark.parametrize("width", [100, 80, 60, 30])
def test_nothing_is_cut_however_narrow(width):
    what = result()
    wide, narrow = words(shown(what)), words(shown(what, width))
    assert "…" not in narrow
    for word in (word for one in what.contenders for word in one.title.split()):
        assert narrow.count(word) >= wide.count(word)
    for one in what.left_out:
        assert f"{one.title}: {one.reason}" in narrow
    figures = [word for word in wide.split() if any(map(str.isdigit, word)) and not word.startswith("!")]
    assert [word for word in figures if word.strip(",()") not in narrow] == []


def test_joules_and_device_memory_show_only_where_they_are_known():
    text = shown(on_gpu())
    assert "of the" in text
    assert [cells(text, one.title)[-2:] for one in on_gpu().contenders] == [["3.0 GiB", "15.0"], ["3.0 GiB", "1.30"]]
    assert "of the  " not in shown(result())


def test_markup_in_titles_is_text():
    assert "[red]what[/red]" in shown(result([contender("usual", "[red]what[/red]", 1.0)]))


def test_what_unetrt_adds_to_its_engine_is_told():
    assert "+2.0 %" in shown(result([contender("a", "unetrt", 1.0, ours=True, spread=0.0)]))


def test_the_interval_goes_under_its_true_name():
    for rounds, name in ((9, "95 % interval"), (6, "95 % interval"), (3, "75 % interval"), (1, "one round")):
        seconds = [one.seconds["frame to labels"] for one in result(rounds=rounds).contenders]
        assert interval_name(seconds) == name
        assert name.split(" interval")[0] in shown(result(rounds=rounds))
    assert "95 % interval" not in shown(result(rounds=3))


def test_the_headline_is_of_the_fastest_of_unetrts_own():
    assert leader(result()).name == "unetrt-openvino"
    assert headline(result()).startswith("unetrt with OpenVINO, bf16 is 5.")
    assert headline(result()).endswith(") times as fast as the usual loop, 572 / 388")
    assert "(" not in headline(result(rounds=1))


def test_a_speedup_that_may_be_none_is_not_told_as_one():
    tie = [contender("usual", "the usual loop", 6.0), contender("a", "unetrt", 5.99, ours=True)]
    assert headline(result(tie)).startswith("unetrt cannot be distinguished from the usual loop")
    assert headline(result(tie[:1])) == "the usual loop is the fastest, and the reference"


@pytest.mark.parametrize(
    ("what", "doubt"),
    [
        (result([contender("usual", "usual", 6.0), contender("a", "unetrt", 5.0, ours=True)]), None),
        (result(), "assigns 0.11 % of the pixels another class"),
        (result([contender("b", "by hand", 1.0), contender("a", "x", 5.0, ours=True)]), "by hand is faster still"),
        (result(rounds=1), "One round gives no interval: 6 give one of 95 %"),
        (result(rounds=3), "3 rounds are few: their range covers the true median in 75 % of cases"),
        (
            replace(result(), limits=(*limits(), Limit("memory", "B/s", around(1e9, 0.3, ROUNDS)))),
            "not quiet: memory varied by 60 %",
        ),
        (result([contender("a", "unetrt", 1.0)]), "unetrt is above its limit (240 %): matmul fp32 was measured"),
    ],
)  # fmt: skip
def test_what_speaks_against_a_result_is_told(what, doubt):
    if doubt is None:
        assert doubts(what) == ()
    else:
        assert any(doubt in told for told in doubts(what))
        assert words(" ".join(doubts(what))) in words(shown(what).replace("! ", ""))


def test_the_shortest_time_is_the_arithmetic_at_the_limit():
    one = contender("a", HOSTILE, 3.0)
    assert shortest(one).median == pytest.approx(one.flops / 1e11)
    assert shortest(replace(one, share=None)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (digits(0.0123456), "0.0123"), (digits(1.999), "2.00"), (digits(99.99), "100"), (digits(0.9998), "1.00"),
        (digits(1234.5), "1234"),
        (digits(0), "0"), (time(0.25), "250 ms"), (time(2e-5), "20.0 µs"), (pixels(0), "none"), (decimals(9.5), 2),
        (pixels(1e-7), "< 0.01 %"), (pixels(0.0512), "5.12 %"), (memory(None), ""), (memory(5 << 20), "5 MiB"),
        (memory(3 << 29), "1.5 GiB"), (rate(8.82e10, "FLOP/s"), "88.2 GFLOP/s"), (rate(5, "B/s"), "5.00 B/s"),
        (unit_for([0.2, 11.0]).name, "s"), (unit_for([0.05, 11.0]).name, "ms"), (unit_for([1e-9]).name, "µs"),
    ],
)  # fmt: skip
def test_figures_have_three_digits_and_their_unit(text, expected):
    assert text == expected

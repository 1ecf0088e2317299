import sys

import numpy as np
import pytest
from PIL import Image

from tests.benchmarks.invented_results import HOSTILE, contender, on_gpu, result
from unetrt.benchmarks.chart import DPI, WIDTH, draw, save_png
from unetrt.benchmarks.findings import case, doubts, headline
from unetrt.runtime.errors import OptionError


def texts(drawing):
    axes = drawing.axes[0]
    return [text.get_text().replace("\n", " ") for text in (*drawing.texts, *axes.texts, *axes.get_yticklabels())]


@pytest.mark.parametrize("what", [result(), result(rounds=1), on_gpu(), result([contender("usual", HOSTILE * 3, 2.0)])])
def test_the_file_is_a_picture_as_large_as_its_bars_take(what, tmp_path):
    save_png(what, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        drawn = draw(what).get_size_inches()
        assert image.size == (int(WIDTH * DPI), int(drawn[1] * DPI))


def test_more_contenders_make_it_higher(tmp_path):
    heights = [draw(result([contender("usual", "usual", 1.0)] * count)).get_size_inches()[1] for count in (1, 9)]
    assert heights[1] > heights[0] + 3


def test_everything_written_is_there_as_text():
    what = result([contender("usual", HOSTILE, 6.0), contender("a", "unetrt $x_1$", 1.0, ours=True)], rounds=3)
    told = texts(draw(what))
    for text in (headline(what), case(what), *doubts(what), HOSTILE, "unetrt $x_1$", "1.00 s", "6.00 s"):
        assert text in told


def test_bars_and_intervals_are_the_figures():
    axes = draw(result()).axes[0]
    seconds = [one.seconds["frame to labels"] for one in result().contenders]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([figure.median for figure in seconds])
    ends = [line.get_segments()[0][:, 0] for line in axes.collections if len(line.get_segments()[0]) == 2]
    for figure in seconds:
        assert any(np.allclose(end, (figure.low, figure.high)) for end in ends)


def test_all_of_it_is_within_the_picture():
    what = result([contender("usual", HOSTILE * 2, 6.0), *result().contenders[1:]], rounds=3)
    drawing = draw(what)
    renderer = drawing.canvas.get_renderer()
    drawing.draw(renderer)
    axes = drawing.axes[0]
    for text in (*drawing.texts, *axes.texts, *axes.get_yticklabels(), axes.xaxis.label):
        box = text.get_window_extent(renderer)
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= drawing.bbox.x1
        assert box.y1 <= drawing.bbox.y1


def test_without_matplotlib_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match="drawn with matplotlib, which cannot be imported"):
        save_png(result(), tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []

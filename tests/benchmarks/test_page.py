import json
import re
import shutil
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests import requirements
from tests.benchmarks.invented_results import HOSTILE, contender, on_gpu, result
from unetrt.benchmarks.markup import element, joined
from unetrt.benchmarks.page import html, save_html
from unetrt.benchmarks.page_plots import ticks
from unetrt.benchmarks.percentiles import percentiles
from unetrt.benchmarks.result import LeftOut, Result
from unetrt.benchmarks.verdict import case, doubts, headline
from unetrt.runtime.errors import OutputError

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
# `--ours` of page.css, light and dark.
OURS = {"light": (0, 114, 178), "dark": (79, 176, 232)}
RESULTS = {
    "cpu": result(),
    "gpu": on_gpu(),
    "few rounds": result(rounds=3),
    "one round": result(rounds=1),
    "alone": replace(result([contender("usual", "usual", 1.0)]), left_out=(), limits=(), environment={}),
    "no runs": result([replace(contender("usual", "usual", 1.0), latencies=(), share=None)]),
}


class Page(HTMLParser):
    """What a page holds: elements, their attributes, and text."""

    VOID = ("meta",)

    def __init__(self, page):
        super().__init__()
        self.page, self.elements, self.text, self.svg_titles, self.open = page, [], "", [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-2:] == ["svg", "title"]:
            self.svg_titles.append(data)
        elif "style" not in self.open:
            self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())

    def cells(self, heading):
        return re.findall(rf'data-heading="{heading}">([^<]*)<', self.page)


@pytest.fixture(params=RESULTS.values(), ids=RESULTS)
def what(request):
    return request.param


def test_the_page_holds_every_contender_and_every_reason(what):
    page = Page(html(what))
    assert headline(what) in page.words
    assert case(what) in page.words
    assert all(doubt in page.words for doubt in doubts(what))
    for one in what.contenders:
        assert page.text.count(one.title) >= 3
        assert one.checked in page.text
        assert all(name in page.text for name in one.phases)
    for one in what.left_out:
        assert one.title + one.reason in page.text
    assert all(one.name in page.text for one in what.limits)


def test_the_page_asks_nothing_of_any_network(what):
    page = html(what)
    asked = [
        value for tag, told in Page(page).elements for key, value in told.items() if key in ("src", "href", "data")
    ]
    assert [link.partition(",")[0] for link in asked] == ["data:application/json;base64"]
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img|<iframe|\bon\w+=", page)
    assert """content="default-src 'none'; style-src 'unsafe-inline'\"""" in page


def test_all_of_it_can_be_downloaded(what):
    link = next(told for tag, told in Page(html(what)).elements if tag == "a")
    assert link["download"].endswith(".json")
    assert Result.from_dict(json.loads(b64decode(link["href"].partition(",")[2]))) == what


def test_names_from_outside_stay_text():
    def page_of(title):
        one = replace(
            contender(title, title, 2.0, ours=True), checked=title, limit=title, phases={title: 1.0}, device=title
        )
        told = result([one, contender("usual", title, 3.0)])
        limits = tuple(replace(limit, name=title) for limit in told.limits)
        environment = {title: title, "processor": title}
        return html(
            replace(told, left_out=(LeftOut(title, title, title),), limits=limits, environment=environment, when=title)
        )

    hostile, tame = Page(page_of(HOSTILE)), Page(page_of("a tame name, longer than a short cell"))
    assert [tag for tag, _ in hostile.elements] == [tag for tag, _ in tame.elements]
    assert [sorted(told) for _, told in hostile.elements] == [sorted(told) for _, told in tame.elements]
    assert hostile.text.count(HOSTILE) == tame.text.count("a tame name, longer than a short cell")
    assert any(HOSTILE in told for told in hostile.svg_titles)


def test_plots_say_in_words_what_they_show():
    page = Page(html(result()))
    pictures = [told for tag, told in page.elements if tag == "svg" and "aria-hidden" not in told]
    assert [told["aria-label"] for told in pictures] == page.svg_titles
    assert all(told["role"] == "img" for told in pictures)
    best = next(told for told in page.svg_titles if "OpenVINO" in told)
    assert best.endswith("1.08 s a frame, 95 % interval 1.06 to 1.10 s; at the limit its arithmetic takes 923 ms")


def test_bars_are_as_long_as_their_figures():
    widths = re.findall(r'y="5" width="([\d.]+)%"', html(result()))
    medians = [one.seconds["frame to labels"].median for one in result().contenders]
    assert np.divide(list(map(float, widths)), medians) == pytest.approx(float(widths[0]) / medians[0], rel=1e-3)
    assert max(map(float, widths)) < 100


def test_every_run_is_a_dot():
    assert html(result()).count("<circle") == sum(len(one.latencies) for one in result().contenders)


@pytest.mark.parametrize(
    ("runs", "known"), [(1, (50,)), (19, (50,)), (20, (50, 95)), (99, (50, 95)), (100, (50, 95, 99))]
)
def test_percentiles_take_runs_enough(runs, known):
    seconds = tuple(np.linspace(1, 2, runs).tolist())
    told = percentiles(seconds)
    assert tuple(share for share, value in told.items() if value is not None) == known
    for share in known:
        assert told[share] == pytest.approx(np.percentile(seconds, share))
    page = Page(html(result([replace(contender("usual", "usual", 1.0), latencies=seconds)])))
    assert ("with fewer, they would only repeat the slowest run" in page.words) == (runs < 100)
    assert page.cells("runs") == [str(runs)]
    assert (page.cells("p95") == ["too few runs"]) == (runs < 20)


def test_memory_and_energy_show_where_they_are_known():
    gpu, cpu = Page(html(on_gpu())), Page(html(result()))
    assert gpu.cells("memory of the GPU") == ["3.00 GiB", "3.00 GiB"]
    assert gpu.cells("joules") == ["15.0", "1.30"]
    assert cpu.cells("joules") == cpu.cells("memory of the GPU") == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 11.7, [0, 5, 10]), (0.95, 1.05, [0.95, 0.975, 1, 1.025, 1.05])],
)
def test_ticks_are_round(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


def test_only_elements_made_here_are_taken_over():
    assert joined("<b>", element("i", "&", class_='"')) == '&lt;b&gt;<i class="&quot;">&amp;</i>'
    assert element("p", a_b="c", left=None) == '<p a-b="c"></p>'


def test_it_fits_paper(chromium, tmp_path):
    save_html(result(), tmp_path / "page.html")
    screen = {"width": 720, "height": 1000, "deviceScaleFactor": 1, "mobile": False}  # A4 less its margins, at 96 dpi
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    chromium.get((tmp_path / "page.html").as_uri())
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= 720
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(OutputError):
        save_html(result(), tmp_path / "a" / "page.html")


@pytest.fixture(scope="module")
def chromium():
    if not (CHROMIUM and DRIVER):
        pytest.skip(requirements.CHROMIUM)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.parametrize("scheme", OURS)
@pytest.mark.parametrize("width", [360, 800, 900, 1280])
def test_a_browser_shows_it_at_any_width_and_in_both_schemes(chromium, tmp_path, width, scheme):
    what = result([*result().contenders, contender("long", HOSTILE + "x" * 80, 2.0)])
    save_html(what, tmp_path / "page.html")
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    screen = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 500}
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
    chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    chromium.get((tmp_path / "page.html").as_uri())
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width
    assert chromium.get_log("browser") == []
    assert chromium.execute_script("return performance.getEntriesByType('resource').length") == 0
    shown = np.asarray(Image.open(BytesIO(b64decode(chromium.execute_cdp_cmd("Page.captureScreenshot", {})["data"]))))
    assert shown.shape[:2] == (1000, width)
    assert (shown[..., :3] == OURS[scheme]).all(-1).sum() > 200
    ground = shown[0, 0, :3].mean()
    assert ground > 240 if scheme == "light" else ground < 30

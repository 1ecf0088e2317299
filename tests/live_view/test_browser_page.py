"""The page in a real browser."""

import shutil
import signal
import subprocess
import sys
from base64 import b64decode
from contextlib import ExitStack
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests import requirements
from tests.live_view.live_scenes import eventually, open_live, squares
from unetrt.live_view.browser import BrowserView

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=requirements.CHROMIUM)

# The colour of compute in the latency plot, and of objects in theirs (page.css).
COMPUTE, OBJECTS = (45, 212, 191), (124, 183, 255)


@pytest.fixture(scope="module")
def chromium():
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium):
    """A browser without a page, and an empty log."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    return chromium


def text(page, name):
    return page.execute_script("return document.getElementById(arguments[0]).textContent", name)


def pixels(page, name):
    """The pixels of a canvas, (H, W, 3) uint8."""
    url = page.execute_script("return document.getElementById(arguments[0]).toDataURL()", name)
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))).convert("RGB"))


def has_colour(picture, colour):
    return bool((np.abs(picture.astype(int) - colour).max(axis=-1) < 12).any())


def choose(page, mode):
    page.execute_script("document.querySelector(`[data-mode=${arguments[0]}]`).click()", mode)
    return pixels(page, "picture").astype(int)


def test_the_page_shows_frames_labels_counts_and_plots(page):
    frame, objects = squares(96, 128)
    with open_live() as live, BrowserView(live) as view:
        page.get(view.url)
        assert eventually(lambda: text(page, "state-text") == "waiting")
        assert page.find_element("id", "empty").is_displayed()
        live.submit(frame, {"t": 0, "c": 2})
        assert eventually(lambda: text(page, "caption") == "frame 0  ·  t 0  c 2  ·  96 × 128 uint16")  # noqa: RUF001
        assert eventually(lambda: text(page, "done") == "1")
        assert not page.find_element("id", "empty").is_displayed()
        assert pixels(page, "picture").shape == (96, 128, 3)
        for _ in range(4):
            live.submit(frame)
        live.submit(np.zeros((3, 3), complex))
        assert eventually(lambda: (text(page, "done"), text(page, "failed")) == ("5", "1"))
        assert text(page, "submitted") == "6"
        assert text(page, "objects") == str(objects)
        assert "complex" in text(page, "error")
        assert text(page, "median").endswith(" ms")
        assert eventually(lambda: has_colour(pixels(page, "latency"), COMPUTE))
        assert has_colour(pixels(page, "counted"), OBJECTS)
        assert text(page, "banner") == ""
        assert page.get_log("browser") == []


def test_frame_and_labels_are_shown_alone_or_one_over_the_other(page):
    frame, _ = squares()
    frame[80:] = 0
    inside = np.zeros(frame.shape, bool)
    inside[11:17, 11:17] = True
    with open_live() as live, BrowserView(live) as view:
        live.submit(frame)
        page.get(view.url)
        assert eventually(lambda: text(page, "caption"))
        overlay, alone, labels = (choose(page, mode) for mode in ("overlay", "frame", "labels"))
        assert np.ptp(alone, axis=-1).max() <= 1
        assert alone[inside].min() > 200
        for coloured in (overlay, labels):
            assert np.ptp(coloured[frame > 0], axis=-1).min() > 20
            assert coloured[frame == 0].max() < 60  # JPEG artefacts of black beside white
        assert labels[frame == 0].max() == 0
        assert overlay[inside].mean() > labels[inside].mean()
        page.execute_script(
            "const f = document.getElementById('fill'); f.value = 0; f.dispatchEvent(new Event('input'))"
        )
        unfilled = choose(page, "overlay")
        assert np.abs(unfilled[inside] - alone[inside]).max() <= 1
        assert (unfilled[8, 8:20] == overlay[8, 8:20]).all()  # outlines stay
        assert page.get_log("browser") == []


def test_classes_are_shown_and_not_counted(page):
    frame, _ = squares()
    with open_live(kind="classes") as live, BrowserView(live) as view:
        live.submit(frame)
        page.get(view.url)
        assert eventually(lambda: text(page, "objects-note") == "classes are not counted")
        assert text(page, "objects") == "–"  # noqa: RUF001
        assert eventually(lambda: text(page, "caption"))
        assert (choose(page, "labels").any(axis=-1) == (frame > 0)).all()
        assert page.get_log("browser") == []


def test_frames_may_change_their_size_without_the_page_moving(page):
    layout = (
        "return [...document.querySelectorAll('.screen, .panel, .tiles > div')].map(element => "
        "Object.values(element.getBoundingClientRect().toJSON()))"
    )
    with open_live() as live, BrowserView(live) as view:
        page.get(view.url)
        assert eventually(lambda: text(page, "state-text") == "waiting")
        before = page.execute_script(layout)
        for size in [(96, 128), (200, 60), (1500, 64)]:
            live.submit(squares(*size)[0])
            step = 2 if max(size) > 1024 else 1
            wanted = (size[0] // step, size[1] // step, 3)
            assert eventually(lambda wanted=wanted: pixels(page, "picture").shape == wanted)
        assert "shown at 1 : 2" in text(page, "caption")
        assert page.execute_script(layout) == before


def test_what_others_wrote_is_shown_as_text(page):
    evil = "<img src=x onerror=document.title='broken'><script>document.title='broken'</script>"
    with open_live(on_result=lambda result: 1 / 0 if result.number else None) as live, BrowserView(live) as view:
        live.submit(squares()[0], evil)
        page.get(view.url)
        assert eventually(lambda: "<img src=x" in text(page, "caption"))
        live.submit(squares()[0])
        assert eventually(lambda: "ZeroDivisionError" in text(page, "error"))
        assert page.title == "unetrt live"
        assert page.execute_script("return document.querySelectorAll('p img, span img').length") == 0


def test_the_page_says_that_the_run_has_ended_and_shows_the_next(page):
    with ExitStack() as first:
        live = first.enter_context(open_live())
        view = first.enter_context(BrowserView(live))
        live.submit(squares()[0])
        page.get(view.url)
        assert eventually(lambda: text(page, "done") == "1")
        live.close()
        assert eventually(lambda: text(page, "banner") == "The run has ended. This is its last frame.")
        assert eventually(lambda: text(page, "state-text") == "closed")
    assert eventually(lambda: text(page, "banner") == "The run has ended. Waiting for the next one …")
    assert text(page, "state-text") == "ended"
    with open_live() as live, BrowserView(live, port=urlsplit(view.url).port):
        for _ in range(3):
            live.submit(squares(64, 64)[0])
        assert eventually(lambda: text(page, "done") == "3")
        assert eventually(lambda: text(page, "caption").startswith("frame 2"))
        assert text(page, "banner") == ""


PROGRAM = """
from tests.live_view.live_scenes import open_live, squares
from unetrt.live_view.browser import BrowserView
with open_live() as live, BrowserView(live) as view:
    live.submit(squares()[0])
    print(view.url, flush=True)
    input()
"""


def test_the_page_says_that_the_connection_is_lost_and_finds_it_again(page):
    lost = "Connection lost. Trying again …"
    with ExitStack() as until_the_end:
        program = until_the_end.enter_context(
            subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        until_the_end.callback(program.kill)
        url = program.stdout.readline().strip()
        page.get(url)
        assert eventually(lambda: text(page, "done") == "1")
        program.send_signal(signal.SIGSTOP)
        assert eventually(lambda: text(page, "banner") == lost)
        assert text(page, "state-text") == "no connection"
        program.send_signal(signal.SIGCONT)
        assert eventually(lambda: text(page, "banner") == "")
        assert text(page, "state-text") == "waiting"
    assert eventually(lambda: text(page, "banner") == lost)
    with open_live() as live, BrowserView(live, port=urlsplit(url).port):
        live.submit(squares()[0])
        assert eventually(lambda: (text(page, "done"), text(page, "banner")) == ("1", ""))

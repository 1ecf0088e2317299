"""The page in a real browser."""

import shutil
import signal
import subprocess
import sys
import time
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
from unetrt.runtime import LiveResult, Outcome
from unetrt.runtime.live.results import ResultStream, StreamKey

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
    """A browser without a page, with a dark desktop and an empty log."""
    chromium.get("about:blank")
    chromium.get_log("browser")
    desktop(chromium, "dark", 1200, 900)
    return chromium


def desktop(page, theme, width, height):
    """Set the colour scheme, and the size of the window."""
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


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


def test_the_page_says_that_the_run_has_ended_and_that_the_next_is_elsewhere(page):
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
    moved = "This run has ended. The next one has printed another address."
    with open_live() as live, BrowserView(live, port=urlsplit(view.url).port):
        assert eventually(lambda: text(page, "banner") == moved)
        assert text(page, "state-text") == "ended"


def test_without_tokens_the_page_shows_the_next_run(page):
    with open_live() as live, BrowserView(live, token=False) as view:
        page.get(view.url)
        assert eventually(lambda: text(page, "state-text") == "waiting")
    assert eventually(lambda: text(page, "banner") == "The run has ended. Waiting for the next one …")
    with open_live() as live, BrowserView(live, port=urlsplit(view.url).port, token=False):
        for _ in range(3):
            live.submit(squares(64, 64)[0])
        assert eventually(lambda: text(page, "done") == "3")
        assert eventually(lambda: text(page, "caption").startswith("frame 2"))
        assert text(page, "banner") == ""


PROGRAM = """
from tests.live_view.live_scenes import open_live, squares
from unetrt.live_view.browser import BrowserView
with open_live() as live, BrowserView(live, token=False) as view:
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
    with open_live() as live, BrowserView(live, port=urlsplit(url).port, token=False):
        live.submit(squares()[0])
        assert eventually(lambda: (text(page, "done"), text(page, "banner")) == ("1", ""))


def value_of(page, name):
    return page.execute_script("return document.getElementById(arguments[0]).value", name)


def enter(page, name, value, event="input"):
    page.execute_script(
        "const field = document.getElementById(arguments[0]); field.value = arguments[1];"
        "field.dispatchEvent(new Event(arguments[2], {bubbles: true}))",
        name,
        value,
        event,
    )


def ramp():
    """A frame of grey values 1000 to 1255 from left to right, without an object."""
    return np.tile(np.arange(1000, 1256, dtype=np.uint16), (64, 1))


def grey(page):
    return pixels(page, "picture").astype(int)[32, :, 0]


def test_contrast_limits_and_gamma_apply_to_the_shown_frame(page):
    with open_live() as live, BrowserView(live) as view:
        live.submit(ramp())
        page.get(view.url)
        assert eventually(lambda: text(page, "caption"))
        choose(page, "frame")
        assert int(value_of(page, "low-value")) in range(1001, 1005)
        assert int(value_of(page, "high-value")) in range(1253, 1256)
        enter(page, "low-value", 1100, "change")
        enter(page, "high-value", 1200, "change")
        assert not page.find_element("id", "auto").is_selected()
        place = np.arange(1000, 1256)
        expected = 255 * np.clip((place - 1100) / 100, 0, 1)
        assert eventually(lambda: np.abs(grey(page) - expected).max() < 12)
        enter(page, "gamma", -1)
        assert text(page, "gamma-value") == "0.50"
        assert eventually(lambda: np.abs(grey(page) - 255 * (expected / 255) ** 0.5).max() < 24)
        live.submit(ramp() + np.uint16(50))  # the limits stay
        shifted = 255 * np.clip((place - 1050) / 100, 0, 1) ** 0.5
        assert eventually(lambda: np.abs(grey(page) - shifted).max() < 24)
        assert value_of(page, "low-value") == "1100"
        enter(page, "gamma", 0)
        page.find_element("id", "auto").click()
        assert eventually(lambda: abs(grey(page)[128] - 127) < 10)
        assert int(value_of(page, "low-value")) in range(1050, 1055)
        assert page.get_log("browser") == []


def test_a_limit_beyond_the_other_moves_it(page):
    with open_live() as live, BrowserView(live) as view:
        live.submit(ramp())
        page.get(view.url)
        assert eventually(lambda: text(page, "caption"))
        choose(page, "frame")
        enter(page, "low-value", 5000, "change")
        assert (value_of(page, "low-value"), value_of(page, "high-value")) == ("5000", "5001")
        assert eventually(lambda: grey(page).max() < 5)
        enter(page, "high", 0)
        assert int(value_of(page, "low-value")) == int(value_of(page, "high-value")) - 1
        enter(page, "low-value", "", "change")
        assert value_of(page, "low-value")
        assert page.get_log("browser") == []


def place(page):
    """The picture's left and top edge and its width, in CSS pixels of the view."""
    return page.execute_script(
        "const [a, b] = ['picture', 'screen'].map(name => document.getElementById(name).getBoundingClientRect());"
        "return [a.left - b.left, a.top - b.top, a.width]"
    )


def test_the_picture_is_zoomed_and_panned_with_mouse_and_keys(page):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    with open_live() as live, BrowserView(live) as view:
        live.submit(squares()[0])
        page.get(view.url)
        assert eventually(lambda: text(page, "caption"))
        whole = place(page)
        body, screen = page.find_element("tag name", "body"), page.find_element("id", "screen")
        body.send_keys("+")
        assert place(page)[2] == pytest.approx(whole[2] * 1.25, rel=0.01)
        body.send_keys("-")
        assert place(page) == pytest.approx(whole, abs=1)
        body.send_keys("-")
        assert place(page) == pytest.approx(whole, abs=1)  # never smaller than the view
        ActionChains(page).scroll_from_origin(ScrollOrigin.from_element(screen), 0, -600).perform()
        assert eventually(lambda: place(page)[2] > whole[2] * 2)
        left, top, _ = place(page)
        ActionChains(page).click_and_hold(screen).move_by_offset(40, 25).release().perform()
        assert place(page)[:2] == pytest.approx([left + 40, top + 25], abs=2)
        screen.send_keys(Keys.ARROW_RIGHT)
        assert place(page)[0] == pytest.approx(left + 40 - 60, abs=2)
        ActionChains(page).double_click(screen).perform()
        assert place(page) == pytest.approx(whole, abs=1)
        page.find_element("id", "zoom-in").click()
        assert place(page)[2] > whole[2]
        body.send_keys("0")
        assert place(page) == pytest.approx(whole, abs=1)
        body.send_keys("2")
        assert page.find_element("css selector", "[data-mode=frame]").get_attribute("aria-pressed") == "true"
        body.send_keys("a")
        assert not page.find_element("id", "auto").is_selected()
        assert page.get_log("browser") == []


def bar(page):
    """Length in µm and in CSS pixels of the scale bar."""
    number, unit = text(page, "scale").split()
    micrometres = float(number) * {"nm": 1e-3, "µm": 1, "mm": 1e3}[unit]
    return micrometres, page.execute_script("return document.querySelector('#scale i').getBoundingClientRect().width")


@pytest.mark.parametrize(("size", "step"), [((96, 128), 1), ((1500, 64), 2)])
def test_the_scale_bar_is_as_long_as_it_says(page, size, step):
    with open_live() as live, BrowserView(live) as view:
        live.submit(squares(*size)[0], meta={"pixel_size_um": 0.325})
        page.get(view.url)
        assert eventually(lambda: page.find_element("id", "scale").is_displayed())
        screen = page.find_element("id", "screen").rect
        pixel = min((screen["width"] - 2) / (size[1] / step), (screen["height"] - 2) / (size[0] / step)) / step
        micrometres, wide = bar(page)
        assert wide == pytest.approx(micrometres / 0.325 * pixel, rel=0.01)
        for _ in range(4):
            page.find_element("id", "zoom-in").click()
        zoomed, wide = bar(page)
        assert wide == pytest.approx(zoomed / 0.325 * pixel * 1.25**4, rel=0.01)
        assert zoomed < micrometres
        assert wide < screen["width"] / 4
        live.submit(squares(*size)[0])
        assert eventually(lambda: not page.find_element("id", "scale").is_displayed())  # not known
        assert page.get_log("browser") == []


def test_the_age_of_the_frame_counts_on_when_frames_stop(page):
    with open_live() as live, BrowserView(live) as view:
        live.submit(squares()[0])
        live.flush(10)
        time.sleep(2)
        page.get(view.url)
        age = page.find_element("id", "age")
        assert eventually(lambda: float(age.text.split()[0]) >= 2 if age.text else False)
        assert "stale" not in age.get_attribute("class")
        assert eventually(lambda: "stale" in age.get_attribute("class"))
        assert float(age.text.split()[0]) >= 5
        live.submit(squares()[0])
        assert eventually(lambda: float(age.text.split()[0]) < 3)
        live.close()
        before = float(age.text.split()[0])
        assert eventually(lambda: float(age.text.split()[0]) > before + 0.5)


class FakeLive:
    """Stands for a live segmenter whose results the test makes."""

    def __init__(self, live):
        self.segmenter, self.status = live.segmenter, live.status
        self._stream = ResultStream(4)

    def results(self, capacity):
        return self._stream

    def offer(self, result):
        self._stream.offer(result)


def test_names_of_an_acquisition_are_shown_whole_and_as_text(page):
    evil = "<img src=x onerror=document.title=1>"
    frame, objects = squares()
    meta = {"mda_event": {"pos_name": "Pos\u202e\n0"}}
    labels, stream = frame.astype(np.int32), StreamKey("Cam<b>1", evil)
    with open_live() as live, BrowserView(fake := FakeLive(live)) as view:
        desktop(page, "dark", 420, 900)
        page.get(view.url)
        fake.offer(LiveResult(Outcome.DONE, 3, {"t": 1}, meta, None, frame, labels, objects, stream=stream))
        assert eventually(lambda: text(page, "caption").startswith("frame 3"))
        for part in (r"position Pos\u202e\n0", f"channel {evil}", "camera Cam<b>1"):
            assert part in text(page, "caption")
        assert page.execute_script("return document.querySelectorAll('#caption *').length") == 0
        caption = "const c = document.getElementById('caption');"
        assert page.execute_script(
            caption + "return c.scrollWidth <= c.clientWidth && c.scrollHeight <= c.clientHeight"
        )
        assert page.title == "unetrt live"


CONTRAST = """
const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
const light = (rgb) => {
  const [r, g, b] = rgb.map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
function ground(element) {
  for (let at = element; at; at = at.parentElement) {
    const [r, g, b, a = 1] = parts(getComputedStyle(at).backgroundColor);
    if (a > 0.9) return [r, g, b];
    if (a > 0) return [r, g, b].map((v) => v * a + 255 * (1 - a)); // the worst: over white pixels
  }
}
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  if (!own && element.type !== 'number' || !element.checkVisibility()) continue;
  const [one, other] = [parts(getComputedStyle(element).color).slice(0, 3), ground(element)].map(light);
  const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  found.push([ratio, element.id || element.className || element.textContent]);
}
return found;
"""


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_text_is_legible_in_both_themes(page, theme):
    with open_live() as live, BrowserView(live) as view:
        desktop(page, theme, 1200, 900)
        page.get(view.url)
        assert eventually(lambda: text(page, "state-text") == "waiting")
        found = page.execute_script(CONTRAST)
        live.submit(squares()[0], meta={"pixel_size_um": 1.0})
        live.submit(np.zeros((3, 3), complex))
        assert eventually(lambda: text(page, "failed") == "1" and text(page, "caption"))
        page.execute_script("document.getElementById('age').classList.add('stale')")
        found += page.execute_script(CONTRAST)
        live.close()
        assert eventually(lambda: text(page, "banner"))
        found += page.execute_script(CONTRAST)
    assert eventually(lambda: "Waiting" in text(page, "banner"))
    page.execute_script("document.body.dataset.link = 'lost'")
    found += page.execute_script(CONTRAST)
    assert len(found) > 100
    assert [each for each in found if each[0] < 4.5] == []


def test_a_change_of_the_theme_redraws_the_plots(page):
    with open_live() as live, BrowserView(live) as view:
        page.get(view.url)
        for _ in range(3):
            live.submit(squares()[0])
        assert eventually(lambda: has_colour(pixels(page, "latency"), COMPUTE))
        live.close()
        assert eventually(lambda: text(page, "state-text") == "closed")
        desktop(page, "light", 1200, 900)
        assert eventually(lambda: has_colour(pixels(page, "latency"), (12, 143, 127)))
        assert not has_colour(pixels(page, "latency"), COMPUTE)


@pytest.mark.parametrize("width", [320, 420, 900, 1400])
@pytest.mark.parametrize("size", [(96, 128), (512, 512), (60, 200)])
def test_the_page_fits_any_width(page, width, size):
    with open_live() as live, BrowserView(live) as view:
        desktop(page, "light", width, 900)
        live.submit(squares(*size)[0], {"t": 1234, "p": 5, "c": 1}, {"mda_event": {"pos_name": "well A01 site 3"}})
        page.get(view.url)
        assert eventually(lambda: text(page, "caption"))
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        outside = page.execute_script(
            "return [...document.querySelectorAll('main *')].filter(each => each.checkVisibility()"
            " && !each.closest('#screen') && each.getBoundingClientRect().right > innerWidth + 0.5)"
            ".map(each => each.outerHTML.slice(0, 90))"
        )
        assert outside == []
        if width <= 900:
            screen = page.find_element("id", "screen").rect
            high = min(screen["width"] * size[0] / size[1], 0.85 * 900)  # a tall picture fits the window
            assert screen["height"] == pytest.approx(high, rel=0.03)


def test_every_control_has_a_name_and_a_place_in_the_order_of_keys(page):
    with open_live() as live, BrowserView(live) as view:
        page.get(view.url)
        assert eventually(lambda: text(page, "state-text") == "waiting")
        names = page.execute_script(
            "return [...document.querySelectorAll('button, input, canvas, #screen')].map(each => ["
            "each.id || each.textContent, each.getAttribute('aria-label') || each.labels?.[0]?.textContent.trim()"
            " || each.textContent.trim(), each.tabIndex])"
        )
        assert [name for name, label, _ in names if not label] == []
        assert {name for name, _, place in names if place < 0} == {"picture", "latency", "counted"}

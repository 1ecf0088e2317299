import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.live_view.live_scenes import asked, events, eventually, news_of, squares
from tests.live_view.test_browser_pictures import decoded
from unetrt.live_view import browser
from unetrt.live_view.browser import BrowserView


def test_events_say_what_the_status_says(live, view):
    frame, objects = squares()
    for number in range(5):
        live.submit(frame, {"t": number})
    live.submit(np.zeros((4, 4), complex))
    live.flush(10)
    with asked(view, "/events") as response:
        assert response.headers["Content-Type"].startswith("text/event-stream")
        hello, about = next(events(response))
    assert hello == "hello"
    assert about["model"] == live.segmenter.session.name
    assert len(about["colours"]) == 32
    news = news_of(view, 6)
    expected = asdict(live.status())
    told = news["status"]
    for field in ("submitted", "done", "dropped", "failed", "pending", "missed", "last_error", "latency", "compute"):
        assert told[field] == expected[field]
    assert told["submitted"] == told["done"] + told["dropped"] + told["failed"] + told["pending"] == 6
    assert "complex" in told["last_error"]
    assert news["newest"] == 4
    assert [point[3] for point in news["points"]] == [objects] * 5 + [None]
    assert [point[4] for point in news["points"]] == [False] * 5 + [True]
    times = [point[0] for point in news["points"]]
    assert times == sorted(times)
    assert times[-1] <= news["now"]


def test_events_bring_each_point_once(live, view):
    frame, _ = squares()
    points = []
    with asked(view, "/events") as response:
        told = events(response)
        assert next(told)[0] == "hello"
        for _ in range(3):
            live.submit(frame)
            points += next(told)[1]["points"]
        live.flush(10)
        while len(points) < 3:
            points += next(told)[1]["points"]
        points += next(told)[1]["points"]
    assert len(points) == 3


def test_a_picture_is_the_newest_frame(live, view):
    frame, _ = squares()
    for number in range(4):
        live.submit(frame, {"t": number})
    with asked(view, "/picture?after=2") as response:
        head, grey, codes = decoded(response.read())
    assert (head["number"], head["index"], head["shape"], head["dtype"]) == (3, "t 3", [96, 128], "uint16")
    assert grey.shape == codes.shape == (96, 128)
    np.testing.assert_array_equal(codes > 0, frame > 0)


def test_a_picture_is_waited_for_until_there_is_a_newer_one(live, view, monkeypatch):
    live.submit(squares()[0])
    live.flush(10)
    monkeypatch.setattr(browser, "PATIENCE", 0.2)
    with asked(view, "/picture?after=0") as response:
        assert response.status == 204
    monkeypatch.setattr(browser, "PATIENCE", 10)
    threading.Timer(0.2, live.submit, [squares()[0]]).start()
    with asked(view, "/picture?after=0") as response:
        assert decoded(response.read())[0]["number"] == 1


def test_pictures_are_made_while_somebody_looks_and_ten_a_second_at_most(live, view, monkeypatch):
    made, encode = [], browser.encoded

    def counted(result, display):
        made.append(time.perf_counter())
        return encode(result, display)

    monkeypatch.setattr(browser, "encoded", counted)
    for _ in range(30):
        live.submit(squares()[0])
    live.flush(10)
    assert made == []
    stop = threading.Event()
    feeding = threading.Thread(target=lambda: [live.submit(squares()[0]) for _ in iter(lambda: stop.wait(0.01), True)])
    feeding.start()
    after, until = -1, time.perf_counter() + 1
    while time.perf_counter() < until:
        with asked(view, f"/picture?after={after}") as response:
            number = decoded(response.read())[0]["number"]
        assert number > after
        after = number
    stop.set()
    feeding.join()
    assert 3 <= len(made) <= 11
    assert min(np.diff(made)) >= browser.PICTURES


def test_browsers_share_a_picture(live, view, monkeypatch):
    live.submit(squares()[0])
    live.flush(10)
    made, encode = [], browser.encoded
    monkeypatch.setattr(
        browser, "encoded", lambda result, display: made.append(result.number) or encode(result, display)
    )
    for _ in range(3):
        with asked(view, "/picture") as response:
            assert decoded(response.read())[0]["number"] == 0
    assert made == [0]


def test_a_frame_that_cannot_be_shown_is_an_error_message(live, view, monkeypatch):
    def failing(result, display):
        raise MemoryError("no room for <b>it</b>")

    monkeypatch.setattr(browser, "encoded", failing)
    live.submit(squares()[0])
    with asked(view, "/picture") as response:
        assert response.status == 500
        assert response.headers["Content-Type"].startswith("text/plain")
        assert response.read() == b"this frame cannot be shown: MemoryError: no room for <b>it</b>"


def test_the_feed_keeps_one_frame_and_a_bounded_history(live, monkeypatch):
    monkeypatch.setattr("unetrt.live_view.browser.HISTORY", 5)
    kept = []
    with BrowserView(live) as view:
        for _ in range(12):
            frame, _ = squares()
            kept.append(weakref.ref(frame))
            live.submit(frame, copy=False)
        del frame
        assert eventually(lambda: (news := news_of(view, 1))["newest"] == 11 and len(news["points"]) == 5)
        assert eventually(lambda: [each() is not None for each in kept] == [False] * 11 + [True])
    assert eventually(lambda: kept[-1]() is None)


@pytest.mark.parametrize("host", ["attacker.example", "attacker.example:80", "127.0.0.1.attacker.example", ""])
@pytest.mark.parametrize("path", ["/", "/events", "/picture"])
def test_other_names_of_this_address_are_refused(view, host, path):
    with asked(view, path, Host=host) as response:
        assert (response.status, response.read()) == (404, b"")


def test_localhost_is_a_name_of_this_address(view):
    with asked(view, "/", Host=f"localhost:{urlsplit(view.url).port}") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/", 405),
        ("PUT", "/picture", 405),
        ("GET", "/../pyproject.toml", 404),
        ("GET", "/nothing", 404),
        ("GET", "/picture?after=x", 400),
        ("GET", "/picture?after=inf", 400),
        ("GET", "/picture?low=nan", 400),
        ("GET", "/picture?gamma=1e999", 400),
        ("GET", f"/picture?after={'9' * 41}", 400),
        ("GET", "/picture?" + "&".join(["low=1"] * 9), 400),
    ],
)
def test_nothing_else_is_served(view, method, path, status):
    with asked(view, path, method) as response:
        assert response.status == status


def test_the_page_loads_nothing_from_elsewhere(view):
    for name, kind in {"": "text/html", **browser.FILES}.items():
        with asked(view, f"/{name}") as response:
            assert response.headers["Content-Type"].startswith(kind)
            assert "default-src 'self'" in response.headers["Content-Security-Policy"]
            assert "Access-Control-Allow-Origin" not in response.headers
            content = response.read().decode().replace("http://www.w3.org/2000/svg", "")
        assert "//cdn" not in content
        assert "http" not in content.replace("http-equiv", "")
        assert "innerHTML" not in content


def test_every_file_of_the_page_is_served():
    folder = Path(browser.__file__).parent
    assert {each.name for each in folder.iterdir() if each.suffix in {".html", ".css", ".js", ".svg"}} == {
        *browser.FILES
    }


def test_a_picture_says_how_old_its_frame_is_when_it_is_sent(live, view):
    live.submit(squares()[0])
    live.flush(10)
    ages = []
    for _ in range(2):
        time.sleep(0.5)
        with asked(view, "/picture") as response:  # the same picture
            ages.append(float(response.headers["Frame-Age"]))
    assert ages[0] >= 0.5
    assert ages[1] >= ages[0] + 0.5


def test_browsers_with_other_limits_get_other_pictures(live, view):
    frame = np.tile(np.arange(128, dtype=np.uint16), (96, 1))
    live.submit(frame)
    live.flush(10)
    for query, limits in [("low=10&high=20", [10, 20]), ("low=30&high=40", [30, 40]), ("low=10&high=20", [10, 20])]:
        with asked(view, f"/picture?after=-1&{query}") as response:
            head, grey, _ = decoded(response.read())
        assert head["limits"] == limits
        assert grey[40, limits[0] - 5] < 30
        assert grey[40, limits[1] + 8] > 220

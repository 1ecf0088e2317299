"""A live segmenter without an engine, and HTTP requests to a browser view."""

import json
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from urllib.parse import urlsplit

import numpy as np

from tests.conftest import small_spec
from unetrt.runtime import LiveSegmenter, Segmenter
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.sessions.cpu import CropSession

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))


def squares(height=96, width=128):
    """A frame of bright squares, each an object; and their number."""
    frame = np.zeros((height, width), np.uint16)
    for top in range(8, height - 16, 24):
        for left in range(8, width - 16, 24):
            frame[top : top + 12, left : left + 12] = 1
    return frame, len(range(8, height - 16, 24)) * len(range(8, width - 16, 24))


@contextmanager
def open_live(kind="instances", **options):
    """A live segmenter whose labels are where the frame is 1."""
    spec = small_spec(normalisation=AS_IT_IS, head="labels")
    with (
        CropSession(spec) as session,
        Segmenter(session) as segmenter,
        LiveSegmenter(segmenter, policy="block", kind=kind, **options) as live,
    ):
        yield live


@contextmanager
def asked(view, path, method="GET", **headers):
    """The response to a request for a path below the page's."""
    url = urlsplit(view.url)
    connection = HTTPConnection(url.netloc, timeout=10)
    try:
        connection.request(method, url.path + path.removeprefix("/"), headers=headers)
        with connection.getresponse() as response:
            yield response
    finally:
        connection.close()


def events(response):
    """The server-sent events of a response, as (name, data)."""
    name = ""
    for line in response:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)


def news_of(view, results):
    """The first status after that many results, with all their points, the oldest first."""
    points = []
    with asked(view, "/events") as response:
        for name, data in events(response):
            points += data["points"] if name == "status" else []
            if len(points) >= results:
                return {**data, "points": points}
    raise AssertionError(f"the events ended after {len(points)} points")


def eventually(what, seconds=15):
    """Wait until a condition is true, and return its last value."""
    until = time.monotonic() + seconds
    while not (answer := what()) and time.monotonic() < until:
        time.sleep(0.05)
    return answer


def view_threads():
    """The names of running threads of views."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unetrt-view")]

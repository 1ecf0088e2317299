"""`BrowserView`: a page for this user on this machine that shows a live segmenter, and never slows it.

Three threads: the `Feed` follows results and keeps the newest one and recent timings; a `PageServer` answers requests
on its event loop, from the `App`; one more thread encodes pictures, so that the loop never waits for one. The page gets
status and timings as server-sent events, and requests the newest picture when it is visible. Only a loopback address is
served, read only, and the address contains a secret token.

    with LiveSegmenter("model.onnx") as live, BrowserView(live) as view:
        view.show()
"""

import asyncio
import json
import math
import os
import re
import secrets
import socket
import threading
import weakref
import webbrowser
from collections import deque
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

from unetrt.live_view.pictures import Display, colours, encoded
from unetrt.runtime import LiveResult, LiveSegmenter, Outcome
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import BackendUnavailableError, OptionError, one_line, shown

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from unetrt.live_view.page_server import PageServer

# Loopback address: other machines cannot reach it.
HOST = "127.0.0.1"
# Host names accepted in requests, against DNS rebinding; any port, for tunnels.
HOSTS = re.compile(r"(127\.0\.0\.1|localhost)(:\d{1,5})?", re.IGNORECASE)
# Length of the token, in bytes: 192 bits.
TOKEN_BYTES = 24
# Seconds between two events, between two pictures, and between two checks for either.
EVENTS, PICTURES, TICK = 0.25, 0.1, 0.025
# Seconds after which a request for a picture is answered with 204, no content.
PATIENCE = 5.0
# Maximum number of parameters in a request, and of characters in one.
PARAMETERS, CHARACTERS = 8, 40
# Capacity of the result stream; the feed takes microseconds for each result.
CAPACITY = 4
# Number of results whose timings are kept: a minute at 50 frames a second.
HISTORY = 3000
# Files of the page -> content type.
FILES = {
    "page.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "contrast.js": "text/javascript; charset=utf-8",
    "picture.js": "text/javascript; charset=utf-8",
    "plot.js": "text/javascript; charset=utf-8",
    "zoom.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# The page loads only its own files, and no other page may frame or read it, or learn its address.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class BrowserView(Closable):
    """A page that shows frames, labels, plots and counts of a live segmenter; served while this object is open.

    Pictures are encoded only while a page is visible, at most 10 a second and 1024 x 1024 pixels; a slow browser gets
    fewer. Only programs on this machine that know the address can reach the page, and it is read only. Connections,
    requests and buffers are limited (`page_server`). When the live segmenter closes, the page says so.

    Parameters
    ----------
    live
        The live segmenter; not closed by this object.
    port
        TCP port, 0 to 65535; 0 for any free port.
    token
        Whether the address contains a random token, new for each view, without which every request is answered with
        404. False: any user of this machine can see the page.

    Attributes
    ----------
    url
        Address of the page, such as ``http://127.0.0.1:8000/kP0-...Jw/``. Anyone who knows it can see the page.

    Raises
    ------
    OptionError
        The port is in use, not permitted, or out of range; `token` is not True or False.
    BackendUnavailableError
        starlette or uvicorn is not installed.
    """

    def __init__(self, live: LiveSegmenter, *, port: int = 0, token: bool = True) -> None:
        if not hasattr(live, "results"):
            raise OptionError(f"live must be a LiveSegmenter (got {shown(live)})")
        for package in ("starlette", "uvicorn"):
            if find_spec(package) is None:
                raise BackendUnavailableError(f"the browser view needs {package}: pip install 'unetrt[view]'")
        from unetrt.live_view.page_server import PageServer

        if not isinstance(token, bool):  # None or "" would be a page without a secret
            raise OptionError(f"invalid token={shown(token)}: use True for a new random one, or False for none")
        root = f"/{secrets.token_urlsafe(TOKEN_BYTES)}/" if token else "/"
        listening = _listen(port)
        self.url = f"http://{HOST}:{listening.getsockname()[1]}{root}"
        with ExitStack() as opened:
            opened.enter_context(listening)
            feed, encoder = Feed(live), ThreadPoolExecutor(1, "unetrt-view-pictures")
            opened.callback(feed.close)
            server = PageServer(listening, App(feed, encoder, root).answer)
            opened.pop_all()
        self._folder = ExitStack()
        # The threads do not refer to this object, so that it is closed when it is collected.
        self._finalizer = weakref.finalize(self, _end, feed, server, encoder, self._folder)

    def show(self) -> bool:
        """Open the page in the default browser; return False if no graphical browser exists. Never raises or waits."""
        try:
            browser = webbrowser.get()
            # A text browser takes over the terminal and blocks until the user quits it.
            return type(browser) is not webbrowser.GenericBrowser and browser.open(self._link())
        except (webbrowser.Error, OSError):
            return False

    def close(self) -> None:
        """Notify the pages and stop the server and its threads, within a second; idempotent."""
        self._finalizer()

    def _link(self) -> str:
        """Return the address of a file that leads to the page, in a folder that only this user can enter.

        Every user can see the arguments of a browser's process, so that they must not contain the token.
        """
        folder = self._folder.enter_context(TemporaryDirectory(prefix="unetrt-view-", ignore_cleanup_errors=True))
        link = Path(folder, "unetrt.html")
        link.write_text(f'<!doctype html><meta http-equiv="refresh" content="0; url={self.url}">', "utf-8")
        return link.as_uri()


def require_port(port: int) -> None:
    """Raise OptionError if a page cannot be served at a port: it is in use, not permitted, or out of range."""
    _listen(port).close()


@dataclass(frozen=True)
class Point:
    """A result in the plots; all times in seconds, `time` since the view was opened."""

    time: float
    queueing: float
    compute: float
    objects: int | None
    failed: bool


class Newest(NamedTuple):
    """A `done` result, and when its frame was submitted, in seconds of `perf_counter`."""

    result: LiveResult
    submitted: float


class Feed:
    """Follows a live segmenter on its own thread and keeps the newest result and recent timings.

    Attributes
    ----------
    live
        The live segmenter.
    newest
        The newest `done` result; None before the first.
    closing
        Set when the view closes; requests in progress then end.
    """

    def __init__(self, live: LiveSegmenter) -> None:
        self.live, self.closing = live, threading.Event()
        self.newest: Newest | None = None
        self._stream = live.results(CAPACITY)
        self._lock, self._begin = threading.Lock(), perf_counter()
        self._points: deque[Point] = deque(maxlen=HISTORY)
        self._seen = 0
        self._thread = threading.Thread(target=self._follow, name="unetrt-view-results", daemon=True)
        self._thread.start()

    @property
    def newest_number(self) -> int:
        """Submission index of the newest `done` frame; -1 before the first."""
        newest = self.newest
        return -1 if newest is None else newest.result.number

    def news(self, cursor: int) -> tuple[int, dict[str, Any]]:
        """Return what happened since an earlier call.

        Parameters
        ----------
        cursor
            The first value returned by that call; 0 for the whole history.

        Returns
        -------
        The next cursor; and `status`, the `LiveStatus` as a dict; `now`, seconds since the view was opened; `points`,
        the fields of each `Point` as a list, oldest first; `newest`, see `newest_number`.
        """
        with self._lock:
            seen, count = self._seen, min(self._seen - cursor, len(self._points))
            points = list(islice(reversed(self._points), count))[::-1]
        return seen, {
            "status": asdict(self.live.status()),
            "now": perf_counter() - self._begin,
            "points": [[*vars(point).values()] for point in points],
            "newest": self.newest_number,
        }

    def close(self) -> None:
        """Stop the thread; idempotent."""
        self.closing.set()
        self._stream.close()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.newest = None

    def _follow(self) -> None:
        for result in self._stream:
            self._add(result)
            del result  # do not keep the frame alive while waiting for the next

    def _add(self, result: LiveResult) -> None:
        failed = result.outcome is not Outcome.DONE
        now = perf_counter()
        point = Point(now - self._begin, result.queueing, result.compute, result.objects, failed)
        with self._lock:
            self._points.append(point)
            self._seen += 1
        if not failed:
            self.newest = Newest(result, now - result.latency)


@dataclass(frozen=True)
class EncodedPicture:
    """An encoded picture of a frame.

    Attributes
    ----------
    number
        Submission index of the frame; -1 for no picture.
    display
        How its grey values are shown.
    submitted, encoded
        When the frame was submitted, and when it was encoded, in seconds of `perf_counter`.
    body
        See `encoded`.
    """

    number: int = -1
    display: Display | None = None
    submitted: float = 0.0
    encoded: float = -math.inf
    body: bytes = b""


class App:
    """The answers of the page; its methods run on the server's event loop.

    Parameters
    ----------
    feed
        Source of results and status.
    encoder
        One thread, on which pictures are encoded.
    root
        Path of the page, which begins and ends with `/`; it contains the token.
    """

    def __init__(self, feed: Feed, encoder: ThreadPoolExecutor, root: str) -> None:
        self._feed, self._encoder, self._root = feed, encoder, root.encode()
        self._encoding, self._last = False, EncodedPicture()
        self._hello = {"model": feed.live.segmenter.session.name, "colours": colours()}
        folder = Path(__file__).parent
        self._files = {name: (folder / name).read_bytes() for name in FILES}

    async def answer(self, request: "Request") -> "Response":
        """Answer a request; without the token, or to another host name, it is 404 for every method and path."""
        from starlette.responses import Response, StreamingResponse

        path, host = request.scope["raw_path"], request.headers.get("host", "")
        # The time that the comparison takes does not depend on the place of the first difference.
        is_allowed = secrets.compare_digest(path[: len(self._root)], self._root) and HOSTS.fullmatch(host)
        name = path[len(self._root) :].decode("ascii") or "page.html"
        if not is_allowed or name not in {*FILES, "events", "picture"}:
            return Response(status_code=404, headers=HEADERS)
        if request.method != "GET":
            return Response(status_code=405, headers={**HEADERS, "Allow": "GET"})
        if name == "events":
            return StreamingResponse(self._events(), headers=HEADERS, media_type="text/event-stream")
        if name in FILES:
            return Response(self._files[name], headers=HEADERS, media_type=FILES[name])
        try:
            after, display = _wanted(request.scope["query_string"].decode("ascii"))
        except ValueError as error:
            return _text(400, str(error))
        return await self._newest(after, display, request)

    async def _events(self) -> AsyncIterator[bytes]:
        """Yield the event `hello`, then `status` events until the view closes, then `end`."""
        yield _event("hello", self._hello)
        cursor = 0
        while not self._feed.closing.is_set():
            cursor, news = self._feed.news(cursor)
            yield _event("status", news)
            await self._pause(EVENTS)
        yield _event("end", self._feed.news(cursor)[1])

    async def _newest(self, after: int, display: Display, request: "Request") -> "Response":
        """Answer with the newest picture once its number exceeds `after`; with 204 after `PATIENCE` seconds."""
        from starlette.responses import Response

        until = monotonic() + PATIENCE
        while monotonic() < until and not (self._feed.closing.is_set() or await request.is_disconnected()):
            last = self._last
            is_newest = last.number == self._feed.newest_number
            if last.number > after and last.display == display and (is_newest or not self._is_due()):
                # The age of the frame, not of the picture: a page that shows it later adds its own time.
                age = {"Frame-Age": f"{perf_counter() - last.submitted:.3f}"}
                return Response(last.body, headers={**HEADERS, **age}, media_type="application/octet-stream")
            if self._feed.newest_number > after and self._is_due():
                try:
                    await self._encode(display)
                except Exception as error:  # noqa: BLE001 - any error of a frame is shown on the page
                    return _text(500, f"this frame cannot be shown: {one_line(error, kind=True)}")
            else:
                await asyncio.sleep(TICK)
        return Response(status_code=204, headers=HEADERS)

    def _is_due(self) -> bool:
        """Return whether another picture may be encoded: the last one is old enough."""
        return not self._encoding and perf_counter() > self._last.encoded + PICTURES

    async def _encode(self, display: Display) -> None:
        """Encode the newest result, for all waiting requests that show it like this."""
        if (newest := self._feed.newest) is None:
            return
        self._encoding = True
        try:
            body = await asyncio.get_running_loop().run_in_executor(self._encoder, encoded, newest.result, display)
            self._last = EncodedPicture(newest.result.number, display, newest.submitted, perf_counter(), body)
        except BaseException:
            self._last = EncodedPicture(encoded=perf_counter())
            raise
        finally:
            self._encoding = False

    async def _pause(self, seconds: float) -> None:
        until = monotonic() + seconds
        while monotonic() < until and not self._feed.closing.is_set():
            await asyncio.sleep(TICK)


def _wanted(query: str) -> tuple[int, Display]:
    """Return the frame after which a picture is wanted, and how it is shown; raises ValueError."""
    try:
        given = dict(parse_qsl(query, max_num_fields=PARAMETERS))
    except ValueError:
        raise ValueError(f"more than {PARAMETERS} parameters") from None
    after, low, high, gamma = (_number(given, name) for name in ("after", "low", "high", "gamma"))
    return int(-1 if after is None else after), Display.clamped(low, high, 1.0 if gamma is None else gamma)


def _number(given: Mapping[str, str], name: str) -> float | None:
    """Return a parameter; None if it is not given."""
    if name not in given:
        return None
    text = given[name]
    try:
        number = float(text) if len(text) <= CHARACTERS and text.isascii() else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name} is not a number")
    return number


def _text(status: int, text: str) -> "Response":
    from starlette.responses import PlainTextResponse

    return PlainTextResponse(text.encode("utf-8", "replace"), status, HEADERS)


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n".encode()


def _listen(port: int) -> socket.socket:
    """Return a listening socket; opened before the server, so that a port in use raises here."""
    if not isinstance(port, int):
        raise OptionError(f"invalid port {shown(port)}: use a whole number, or 0 for any free port")
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows the option would share a port that is in use
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen()
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "not from 0 to 65535"
        raise OptionError(f"port {port} of {HOST}: {reason.lower()}; use another one, or 0 for any free one") from error
    return listening


def _end(feed: Feed, server: "PageServer", encoder: ThreadPoolExecutor, folder: ExitStack) -> None:
    feed.close()
    server.close()
    encoder.shutdown()
    folder.close()

"""The browser view: a page on this machine that follows a live segmenter, and never slows it.

What the page is told: the newest result, and the times of those before it.

What the server answers: the page, events about the run, and the newest picture to those who ask for it.
"""

import asyncio
import json
import os
import socket
import threading
import weakref
import webbrowser
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any

from unetrt.live_view.pictures import colours, encoded
from unetrt.runtime import LiveResult, LiveSegmenter, Outcome
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import BackendUnavailableError, OptionError
from unetrt.runtime.live.status import one_line

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from uvicorn import Server


# Results that wait for this thread, which does next to nothing with each.
CAPACITY = 4
# Results whose times are kept: a minute of a camera with 50 frames a second.
HISTORY = 3000


@dataclass(frozen=True)
class Point:
    """One result in the plots: times in seconds, `time` since the view was opened."""

    time: float
    queueing: float
    compute: float
    objects: int | None
    failed: bool


class Feed:
    """Follows a live segmenter in a thread of its own and keeps what a page may ask for.

    Attributes
    ----------
    live
        What is followed.
    newest
        The newest result that is done; None before the first.
    closing
        Set once the view closes: whoever serves a page ends.
    """

    def __init__(self, live: LiveSegmenter) -> None:
        self.live, self.closing = live, threading.Event()
        self.newest: LiveResult | None = None
        self._stream = live.results(CAPACITY)
        self._lock, self._begin = threading.Lock(), perf_counter()
        self._points: deque[Point] = deque(maxlen=HISTORY)
        self._seen = 0
        self._thread = threading.Thread(target=self._follow, name="unetrt-view-results", daemon=True)
        self._thread.start()

    @property
    def newest_number(self) -> int:
        """The number of the newest frame that is done; -1 before the first."""
        newest = self.newest
        return -1 if newest is None else newest.number

    def news(self, cursor: int) -> tuple[int, dict[str, Any]]:
        """Return what happened since an earlier call, and what to give to the next.

        Parameters
        ----------
        cursor
            What the call before returned; 0 for all that is kept.

        Returns
        -------
        The next cursor; and `status`, the `LiveStatus` as a dict; `now`, seconds since the view was opened; `points`,
        lists as in `Point`, the oldest first; `newest`, the number of the newest frame that is done, or -1.
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
        """End the thread; idempotent."""
        self.closing.set()
        self._stream.close()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self.newest = None

    def _follow(self) -> None:
        for result in self._stream:
            self._take(result)
            del result  # a frame is not kept while the next is waited for

    def _take(self, result: LiveResult) -> None:
        failed = result.outcome is not Outcome.DONE
        now = perf_counter() - self._begin
        point = Point(now, result.queueing, result.compute, result.objects, failed)
        with self._lock:
            self._points.append(point)
            self._seen += 1
        if not failed:
            self.newest = result


# Seconds from one event to the next, from one picture to the next, and between two looks for either.
EVENTS, PICTURES, TICK = 0.25, 0.1, 0.025
# Seconds after which a request for a picture is answered that there is none.
PATIENCE = 5.0
# Of the number of a picture.
DIGITS = 18
# Files of the page, and their types.
FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "picture.js": "text/javascript",
    "plot.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# Under another name this address may be a page of somebody else (DNS rebinding).
HOSTS = ["127.0.0.1", "localhost"]
# The page loads nothing from elsewhere, and no other page may show or read it.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class App:
    """Answers requests, on the server's event loop.

    Parameters
    ----------
    feed
        What there is to tell.
    encoder
        A thread for pictures, so that the loop never waits for one.
    """

    def __init__(self, feed: Feed, encoder: ThreadPoolExecutor) -> None:
        self._feed, self._encoder = feed, encoder
        self._encoding = False
        self._picture, self._number, self._made = b"", -1, -PICTURES  # the last, its frame, and when (`monotonic`)
        self._hello = {"model": feed.live.segmenter.session.name, "colours": colours()}

    def starlette(self) -> "Starlette":
        """Return the application; GET alone, and only under the names of this machine's loopback address."""
        from starlette.applications import Starlette
        from starlette.middleware import Middleware
        from starlette.middleware.trustedhost import TrustedHostMiddleware
        from starlette.routing import Route

        routes = [Route("/", _file("page.html")), *(Route(f"/{name}", _file(name)) for name in FILES)]
        routes += [Route("/events", self._events), Route("/picture", self._newest)]
        trusted = Middleware(TrustedHostMiddleware, allowed_hosts=HOSTS, www_redirect=False)
        return Starlette(routes=routes, middleware=[trusted])

    async def _events(self, request: "Request") -> "Response":  # noqa: ARG002
        from starlette.responses import StreamingResponse

        return StreamingResponse(self._told(), media_type="text/event-stream", headers=HEADERS)

    async def _told(self) -> AsyncIterator[str]:
        """Yield who is there, then the state of things until the view closes, then that it does."""
        yield _event("hello", self._hello)
        cursor = 0
        while not self._feed.closing.is_set():
            cursor, news = self._feed.news(cursor)
            yield _event("status", news)
            await self._pause(EVENTS)
        yield _event("end", self._feed.news(cursor)[1])

    async def _newest(self, request: "Request") -> "Response":
        """Answer with the newest picture as soon as it is newer than `after`; 204 where none comes for a while."""
        from starlette.responses import PlainTextResponse, Response

        after = request.query_params.get("after", "-1")
        if not after.removeprefix("-").isdecimal() or len(after) > DIGITS:
            return PlainTextResponse("after is not a number", 400, headers=HEADERS)
        until = monotonic() + PATIENCE
        while monotonic() < until and not self._feed.closing.is_set():
            if self._number > int(after) and (self._number == self._feed.newest_number or not self._due()):
                return Response(self._picture, media_type="application/octet-stream", headers=HEADERS)
            if self._feed.newest_number > int(after) and self._due():
                try:
                    await self._encode()
                except Exception as error:  # noqa: BLE001 - whatever a frame is, the page says what is wrong with it
                    return PlainTextResponse(f"this frame cannot be shown: {one_line(error)}", 500, headers=HEADERS)
            else:
                await asyncio.sleep(TICK)
        return Response(status_code=204, headers=HEADERS)

    def _due(self) -> bool:
        """Tell whether the last picture is old enough for another."""
        return not self._encoding and monotonic() > self._made + PICTURES

    async def _encode(self) -> None:
        """Make a picture of the newest result, for all browsers that wait."""
        if (result := self._feed.newest) is None:
            return
        self._encoding = True
        try:
            self._picture = await asyncio.get_running_loop().run_in_executor(self._encoder, encoded, result)
            self._number = result.number
        finally:
            self._encoding, self._made = False, monotonic()

    async def _pause(self, seconds: float) -> None:
        until = monotonic() + seconds
        while monotonic() < until and not self._feed.closing.is_set():
            await asyncio.sleep(TICK)


def _file(name: str) -> Callable[["Request"], Awaitable["Response"]]:
    from starlette.responses import Response

    content = Path(__file__).with_name(name).read_bytes()

    async def answer(request: "Request") -> "Response":  # noqa: ARG001
        return Response(content, media_type=FILES[name], headers=HEADERS)

    return answer


def _event(name: str, data: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(data, allow_nan=False)}\n\n"


# Other machines cannot reach this address.
HOST = "127.0.0.1"
# Connections that may wait to be accepted.
BACKLOG = 64
# Seconds that a browser which reads nothing may keep `close` waiting, and between two looks whether it was called.
GRACE, TICK = 0.5, 0.05


class BrowserView(Closable):
    """A page that shows a live segmenter at work: pictures, plots, counts; served while this object is open.

    It follows results in a thread of its own and keeps the newest alone. Pictures are made only while a page is looked
    at, 10 a second and 1024 x 1024 pixels at most; a browser that is slower gets fewer of them. Only programs on this
    machine can reach the page, and it changes nothing.

    ::

        with LiveSegmenter("model.onnx") as live, BrowserView(live) as view:
            view.show()

    Parameters
    ----------
    live
        What is shown; kept open neither by this object nor closed with it. When it closes, the page says so.
    port
        Where the page is served; 0 takes any free port.

    Attributes
    ----------
    url
        The page's address, such as ``http://127.0.0.1:8000/``.

    Raises
    ------
    OptionError
        The port is taken, not allowed, or none.
    BackendUnavailableError
        A package that serves the page is not installed.
    """

    def __init__(self, live: LiveSegmenter, *, port: int = 0) -> None:
        _require_packages()
        listening = _listen(port)
        self.url = f"http://{HOST}:{listening.getsockname()[1]}/"
        with ExitStack() as opened:
            opened.enter_context(listening)
            feed, encoder = Feed(live), ThreadPoolExecutor(1, "unetrt-view-pictures")
            opened.callback(feed.close)
            serving = _serve(_server(feed, encoder), listening, feed.closing)
            opened.pop_all()
        thread = threading.Thread(target=asyncio.run, args=(serving,), name="unetrt-view-server", daemon=True)
        thread.start()
        # The threads do not know this object: it can be forgotten, and is then closed.
        self._finalizer = weakref.finalize(self, _end, feed, thread, encoder)

    def show(self) -> bool:
        """Open the page in the user's browser, and return whether there is one; never raises, returns at once."""
        try:
            browser = webbrowser.get()
            # Browsers in a terminal take the terminal, and wait until the user is done.
            return type(browser) is not webbrowser.GenericBrowser and browser.open(self.url)
        except (webbrowser.Error, OSError):
            return False

    def close(self) -> None:
        """Tell the pages, end the server and its threads; a second at most; idempotent."""
        self._finalizer()


def require_port(port: int) -> None:
    """Raise OptionError where a page could not be served at a port now: it is taken, not allowed, or none."""
    _listen(port).close()


def _require_packages() -> None:
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise BackendUnavailableError(f"the browser view needs {package}: pip install 'unetrt[view]'")


def _listen(port: int) -> socket.socket:
    """Return a socket that listens on the port, so that a port which cannot be had is known at once."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # elsewhere it would share a port that is taken
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((HOST, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        reason = getattr(error, "strerror", None) or "not from 0 to 65535"
        raise OptionError(f"port {port} of {HOST}: {reason.lower()}; use another one, or 0 for any free one") from error
    return listening


def _server(feed: Feed, encoder: ThreadPoolExecutor) -> "Server":
    from uvicorn import Config, Server

    # Its logging is left to the program around it; one choice of parts, whatever else is installed.
    return Server(
        Config(
            App(feed, encoder).starlette(),
            log_config=None,
            access_log=False,
            lifespan="off",
            loop="asyncio",
            http="h11",
            ws="none",
            server_header=False,
        )
    )


async def _serve(server: "Server", listening: socket.socket, closing: threading.Event) -> None:
    with listening:
        ending = asyncio.create_task(_end_connections(server, closing))
        await server.serve([listening])
        ending.cancel()


async def _end_connections(server: "Server", closing: threading.Event) -> None:
    """Let the server end once the view closes, and cut off who has not read the last of it after a while."""
    # uvicorn 0.30 leaves everything open where it is to end while it starts.
    while not (closing.is_set() and server.started):
        await asyncio.sleep(TICK)
    server.should_exit = True
    await asyncio.sleep(GRACE)
    for connection in list(server.server_state.connections):
        connection.transport.abort()


def _end(feed: Feed, thread: threading.Thread, encoder: ThreadPoolExecutor) -> None:
    feed.close()
    if thread is not threading.current_thread():
        thread.join()
    encoder.shutdown()

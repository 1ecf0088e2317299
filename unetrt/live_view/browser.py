"""`BrowserView`: a page on this machine that shows a live segmenter, and never slows it.

Three threads: the `Feed` follows results and keeps the newest one and recent timings; the server (uvicorn with a
Starlette application, `App`) answers requests on its event loop; one more thread encodes pictures, so that the loop
never waits for one. The page gets status and timings as server-sent events, and requests the newest picture when it is
visible. Only loopback addresses are served, read only.

    with LiveSegmenter("model.onnx") as live, BrowserView(live) as view:
        view.show()
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
from unetrt.runtime.errors import BackendUnavailableError, OptionError, one_line, shown

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from uvicorn import Server

# Loopback address: other machines cannot reach it.
HOST = "127.0.0.1"
# Host names accepted in requests, against DNS rebinding.
HOSTS = [HOST, "localhost"]
# Length of the queue of connections.
BACKLOG = 64
# Seconds that `close` waits for browsers to read the last event.
GRACE = 0.5
# Seconds between two events, between two pictures, and between two checks for either.
EVENTS, PICTURES, TICK = 0.25, 0.1, 0.025
# Seconds after which a request for a picture is answered with 204, no content.
PATIENCE = 5.0
# Maximum number of digits in a request's frame number.
DIGITS = 18
# Capacity of the result stream; the feed takes microseconds for each result.
CAPACITY = 4
# Number of results whose timings are kept: a minute at 50 frames a second.
HISTORY = 3000
# Files of the page -> content type.
FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "picture.js": "text/javascript",
    "plot.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
# The page loads only its own files, and no other page may frame or read it.
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class BrowserView(Closable):
    """A page that shows frames, labels, plots and counts of a live segmenter; served while this object is open.

    Pictures are encoded only while a page is visible, at most 10 a second and 1024 x 1024 pixels; a slow browser gets
    fewer. Only programs on this machine can reach the page, and it is read only. When the live segmenter closes, the
    page says so.

    Parameters
    ----------
    live
        The live segmenter; not closed by this object.
    port
        TCP port, 0 to 65535; 0 for any free port.

    Attributes
    ----------
    url
        Address of the page, such as ``http://127.0.0.1:8000/``.

    Raises
    ------
    OptionError
        The port is in use, not permitted, or out of range.
    BackendUnavailableError
        starlette or uvicorn is not installed.
    """

    def __init__(self, live: LiveSegmenter, *, port: int = 0) -> None:
        if not hasattr(live, "results"):
            raise OptionError(f"live must be a LiveSegmenter (got {shown(live)})")
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
        # The threads do not refer to this object, so that it is closed when it is collected.
        self._finalizer = weakref.finalize(self, _end, feed, thread, encoder)

    def show(self) -> bool:
        """Open the page in the default browser; return False if no graphical browser exists. Never raises or waits."""
        try:
            browser = webbrowser.get()
            # A text browser takes over the terminal and blocks until the user quits it.
            return type(browser) is not webbrowser.GenericBrowser and browser.open(self.url)
        except (webbrowser.Error, OSError):
            return False

    def close(self) -> None:
        """Notify the pages and stop the server and its threads, within a second; idempotent."""
        self._finalizer()


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
        self.newest: LiveResult | None = None
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
        return -1 if newest is None else newest.number

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
        now = perf_counter() - self._begin
        point = Point(now, result.queueing, result.compute, result.objects, failed)
        with self._lock:
            self._points.append(point)
            self._seen += 1
        if not failed:
            self.newest = result


class App:
    """The web application; its methods run on the server's event loop.

    Parameters
    ----------
    feed
        Source of results and status.
    encoder
        One thread, on which pictures are encoded.
    """

    def __init__(self, feed: Feed, encoder: ThreadPoolExecutor) -> None:
        self._feed, self._encoder = feed, encoder
        self._encoding = False
        # The last picture, the number of its frame, and when it was encoded (`monotonic`).
        self._picture, self._number, self._encoded_at = b"", -1, -PICTURES
        self._hello = {"model": feed.live.segmenter.session.name, "colours": colours()}

    def starlette(self) -> "Starlette":
        """Return the application: GET requests only, and only to the host names of the loopback address."""
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

        return StreamingResponse(self._stream(), media_type="text/event-stream", headers=HEADERS)

    async def _stream(self) -> AsyncIterator[str]:
        """Yield the event `hello`, then `status` events until the view closes, then `end`."""
        yield _event("hello", self._hello)
        cursor = 0
        while not self._feed.closing.is_set():
            cursor, news = self._feed.news(cursor)
            yield _event("status", news)
            await self._pause(EVENTS)
        yield _event("end", self._feed.news(cursor)[1])

    async def _newest(self, request: "Request") -> "Response":
        """Answer with the newest picture once its number exceeds `after`; with 204 after `PATIENCE` seconds."""
        from starlette.responses import PlainTextResponse, Response

        after = request.query_params.get("after", "-1")
        if not after.removeprefix("-").isdecimal() or len(after) > DIGITS:
            return PlainTextResponse("after is not a number", 400, headers=HEADERS)
        until = monotonic() + PATIENCE
        while monotonic() < until and not self._feed.closing.is_set():
            if self._number > int(after) and (self._number == self._feed.newest_number or not self._is_due()):
                return Response(self._picture, media_type="application/octet-stream", headers=HEADERS)
            if self._feed.newest_number > int(after) and self._is_due():
                try:
                    await self._encode()
                except Exception as error:  # noqa: BLE001 - any error of a frame is shown on the page
                    return PlainTextResponse(
                        f"this frame cannot be shown: {one_line(error, kind=True)}", 500, headers=HEADERS
                    )
            else:
                await asyncio.sleep(TICK)
        return Response(status_code=204, headers=HEADERS)

    def _is_due(self) -> bool:
        """Return whether another picture may be encoded: the last one is old enough."""
        return not self._encoding and monotonic() > self._encoded_at + PICTURES

    async def _encode(self) -> None:
        """Encode the newest result, for all waiting requests."""
        if (result := self._feed.newest) is None:
            return
        self._encoding = True
        try:
            self._picture = await asyncio.get_running_loop().run_in_executor(self._encoder, encoded, result)
            self._number = result.number
        finally:
            self._encoding, self._encoded_at = False, monotonic()

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


def _require_packages() -> None:
    for package in ("starlette", "uvicorn"):
        if find_spec(package) is None:
            raise BackendUnavailableError(f"the browser view needs {package}: pip install 'unetrt[view]'")


def _listen(port: int) -> socket.socket:
    """Return a listening socket; opened before the server, so that a port in use raises here."""
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows the option would share a port that is in use
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

    # Logging is left to the host program; fixed components, regardless of which others are installed.
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
        ending = asyncio.create_task(_stop_when_closing(server, closing))
        await server.serve([listening])
        ending.cancel()


async def _stop_when_closing(server: "Server", closing: threading.Event) -> None:
    """Stop the server once the view closes, and abort connections that have not finished after `GRACE` seconds."""
    # A server that is stopped while it starts leaves its sockets open (uvicorn 0.30).
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

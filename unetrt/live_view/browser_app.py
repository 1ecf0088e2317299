"""What the server answers: the page, events about the run, and the newest picture to those who ask for it."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from unetrt.live_view.browser_feed import Feed
from unetrt.live_view.browser_pictures import colours, encoded
from unetrt.runtime.live.status import one_line

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

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

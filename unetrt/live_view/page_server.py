"""`PageServer`: uvicorn on a loopback address, with a limit on everything that a client can use up.

The host program acquires images: whatever clients do, its file descriptors, memory and log stay its own. uvicorn limits
neither clients that send no request nor clients that do not read; `LimitedConnection` does, where asyncio calls it:

- at most `CONNECTIONS` are open. When one more comes, the connection that has waited longest for its request is closed,
  and if there is none, the new one; clients that never send a request cannot keep others out;
- a request is complete within `REQUEST_TIME` seconds and has at most `REQUEST_BYTES` bytes; what follows is not kept;
- a connection carries one request, so that nothing is left over when it is answered;
- no more of an answer is made while a part of it waits for the client, and a client that reads nothing for `STALL`
  seconds is disconnected.

    server = PageServer(listening, answer)
    server.close()
"""

import asyncio
import logging
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, cast

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn import Config, Server
from uvicorn.protocols.http.h11_impl import H11Protocol

from unetrt.runtime.closing import Closable

# Debug level only: the server writes nothing to the log of a host program that does not ask for it.
log = logging.getLogger("unetrt.live_view")

# Maximum number of open connections.
CONNECTIONS = 32
# Maximum number of connections accepted in one turn of the loop.
ACCEPTED = 8
# Length of the system's queue of connections; those in it use no descriptor of this process.
BACKLOG = 128
# Seconds in which a request must be complete.
REQUEST_TIME = 5.0
# Maximum length of a request's line and headers, in bytes. Browsers send the cookies of all ports.
REQUEST_BYTES = 16 * 1024
# Seconds without progress after which a client that does not read is disconnected.
STALL = 10.0
# Seconds that `close` waits for clients to read the rest of their answers.
GRACE = 0.5
THREAD = "unetrt-view-server"


class PageServer(Closable):
    """Answers requests on its own thread and event loop until it is closed.

    Parameters
    ----------
    listening
        A listening socket; closed by this object.
    answer
        Called for each request, on the event loop. An exception becomes status 500, without content.

    Raises
    ------
    OSError
        The system has no resources for an event loop.
    """

    def __init__(self, listening: socket.socket, answer: Callable[[Request], Awaitable[Response]]) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            try:
                response = await answer(Request(scope, receive))
            except Exception:
                log.debug("a request for the page failed", exc_info=True)
                response = Response(status_code=500)
            await response(scope, receive, send)

        self._listening = listening
        # By default the loop writes to the host program's log, in Python's development mode about slow callbacks too.
        self._runner = asyncio.Runner(debug=False, loop_factory=asyncio.SelectorEventLoop)
        self._runner.get_loop().set_exception_handler(_debug)
        self._server = _Server(
            Config(
                app,
                http=LimitedConnection,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                headers=[("Connection", "close")],
                backlog=ACCEPTED,
                timeout_graceful_shutdown=GRACE,  # type: ignore[arg-type] # seconds for `asyncio.wait_for`
                h11_max_incomplete_event_size=REQUEST_BYTES,
            )
        )
        self._thread = threading.Thread(target=self._run, name=THREAD, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, wait up to `GRACE` seconds for answers in progress, and disconnect the rest; idempotent."""
        self._server.should_exit = True
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        with self._listening, self._runner:
            self._runner.run(self._serve())

    async def _serve(self) -> None:
        await self._server.serve([self._listening])
        for connection in [*self._server.server_state.connections]:
            connection.transport.abort()
        await asyncio.sleep(0)  # the loop closes their sockets


class _Server(Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(BACKLOG)  # uvicorn's `backlog` is also the number that is accepted at once


class LimitedConnection(H11Protocol):
    """A connection of uvicorn, with the limits of this module."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Limit the number of connections, and the time of the request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # `pause_writing` as soon as something waits for the client
        self._begin = self.loop.time()
        self._timer = self.loop.call_later(REQUEST_TIME, self._drop)
        if len(self.connections) > CONNECTIONS:
            connections = cast("set[LimitedConnection]", self.connections)
            min((each for each in connections if each.cycle is None), key=lambda each: each._begin)._drop()

    def data_received(self, data: bytes) -> None:
        """Take in a request in parts that its limit holds for, and nothing after it."""
        for begin in range(0, len(data), REQUEST_BYTES):
            if self.cycle is not None or self.transport.is_closing():  # the request is complete, or refused
                break
            super().data_received(data[begin : begin + REQUEST_BYTES])
            if self.cycle is not None:
                self._timer.cancel()

    def pause_writing(self) -> None:
        """Limit the time in which the client reads nothing."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """End that time: the client has read all."""
        super().resume_writing()
        self._timer.cancel()

    def connection_lost(self, exc: Exception | None) -> None:
        """End all limits."""
        super().connection_lost(exc)
        self._timer.cancel()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Close the connection: what is no request gets no content."""
        self.transport.close()

    def _watch(self, before: int | None = None) -> None:
        """Disconnect the client if it has read nothing since as many bytes waited for it."""
        waiting = self.transport.get_write_buffer_size()
        if waiting == before:
            self._drop()
        else:
            self._timer = self.loop.call_later(STALL, self._watch, waiting)

    def _drop(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


def _is_of_the_host(record: logging.LogRecord) -> bool:
    return record.threadName != THREAD


def _debug(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001
    log.debug("event loop of the page: %s", context.get("message"), exc_info=context.get("exception"))


# A host program may have a uvicorn of its own, whose lines are not touched.
for _name in ("uvicorn.access", "uvicorn.asgi", "uvicorn.error"):
    logging.getLogger(_name).addFilter(_is_of_the_host)

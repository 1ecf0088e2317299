"""`PageServer`: HTTP requests on a loopback address, with a limit on everything that a client can use up.

The host program acquires images: whatever clients do, its file descriptors, memory and log stay its own. h11 parses
and frames the messages; this module sets the limits around it, on an event loop with its own thread:

- at most `CONNECTIONS` are open. When one more comes, the connection that has waited longest for its request is closed,
  and if there is none, the new one; clients that never send a request cannot keep others out;
- a request is complete within `REQUEST_TIME` seconds and has at most `REQUEST_BYTES` bytes;
- a connection carries one request, so that nothing is left over when it is answered;
- an answer is sent in parts, each when the one before fits into the buffer; a client that reads nothing for `STALL`
  seconds is disconnected.

    server = PageServer(listening, answer)
    server.close()
"""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import h11

from unetrt.runtime.closing import Closable

# Debug level only: the server writes nothing to the log of a host program that does not ask for it.
log = logging.getLogger("unetrt.live_view")

# Maximum number of open connections.
CONNECTIONS = 32
# Number of connections accepted in one turn of the loop: they may be open beyond `CONNECTIONS` for a moment.
ACCEPTED = 16
# Length of the system's queue of connections; those in it use no descriptor of this process.
BACKLOG = 128
# Seconds in which a request must be complete.
REQUEST_TIME = 5.0
# Maximum length of a request's line and headers, in bytes. Browsers send the cookies of all ports.
REQUEST_BYTES = 16 * 1024
# Seconds without progress after which a client that does not read is disconnected.
STALL = 10.0
# Bytes of an answer that wait in this process for the client to read.
WRITE_BYTES = 64 * 1024
# Seconds that `close` waits for clients to read the rest of their answers.
GRACE = 0.5
# Seconds and bytes in which a client has to close its side after the answer; closing first could cut the answer off.
LINGER, LINGER_BYTES = 1.0, 64 * 1024


@dataclass(frozen=True)
class Request:
    """A complete request; all of it comes from the client.

    Attributes
    ----------
    method, target, host
        Method, path with query, and the header `Host`, empty if there is none.
    is_gone
        Returns whether the client has left; an answer that waits for something can then end.
    """

    method: str
    target: bytes
    host: str
    is_gone: Callable[[], bool]


@dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes
    ----------
    status
        HTTP status.
    kind
        Content type; empty for no content.
    body
        The content: all of it, or its parts as they come.
    headers
        Further headers.
    """

    status: int = 200
    kind: str = ""
    body: bytes | AsyncGenerator[bytes, None] = b""
    headers: Mapping[str, str] = field(default_factory=dict)


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

    def __init__(self, listening: socket.socket, answer: Callable[[Request], Awaitable[Answer]]) -> None:
        self._answer, self._listening = answer, listening
        self._loop = asyncio.new_event_loop()
        # By default the loop writes to the host program's log, in Python's development mode about slow callbacks too.
        self._loop.set_exception_handler(_debug)
        self._loop.set_debug(False)
        self._closing = asyncio.Event()
        # Open connections, and those of them that wait for a request or for their end, the oldest first.
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._idle: dict[asyncio.StreamWriter, None] = {}
        self._thread = threading.Thread(target=self._run, name="unetrt-view-server", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening, wait up to `GRACE` seconds for answers in progress, and disconnect the rest; idempotent."""
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._closing.set)
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(
            self._connected, sock=self._listening, backlog=ACCEPTED, limit=REQUEST_BYTES
        )
        self._listening.listen(BACKLOG)  # asyncio has one number for both
        await self._closing.wait()
        server.close()
        if self._open:
            await asyncio.wait(self._open, timeout=GRACE)
        for task, writer in list(self._open.items()):
            writer.transport.abort()
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)
        await asyncio.sleep(0)  # aborted transports close their sockets in the next turn

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Start a conversation, and disconnect one client if there are too many."""
        if len(self._open) >= CONNECTIONS:
            oldest = next(iter(self._idle), writer)
            oldest.transport.abort()
            self._idle.pop(oldest, None)
            if oldest is writer:
                return
        writer.transport.set_write_buffer_limits(high=WRITE_BYTES)
        self._idle[writer] = None
        task = self._loop.create_task(self._converse(reader, writer))
        self._open[task] = writer
        task.add_done_callback(self._open.pop)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Read a request, answer it, and close the connection."""
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        try:
            answer = await self._answered(http, reader, writer)
            await _send(http, writer, answer)
            await _sent(writer)
            self._idle[writer] = None
            await _linger(reader, writer)
        except (TimeoutError, OSError):
            log.debug("a client of the page went away, or was too slow")
        except Exception:
            log.debug("a client of the page was disconnected", exc_info=True)
        finally:
            self._idle.pop(writer, None)
            writer.transport.abort()

    async def _answered(
        self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Answer:
        try:
            async with asyncio.timeout(REQUEST_TIME):
                request = await _request(http, reader, writer)
        except h11.RemoteProtocolError as error:
            return Answer(error.error_status_hint)
        self._idle.pop(writer, None)
        try:
            return await self._answer(request)
        except Exception:
            log.debug("a request for the page failed", exc_info=True)
            return Answer(500)


async def _request(http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    """Return the request; its content, which nothing here needs, is not read."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(REQUEST_BYTES))  # the end of the stream is b""
    if not isinstance(event, h11.Request):
        raise ConnectionResetError("closed without a request")
    host = next((value for name, value in event.headers if name == b"host"), b"")

    def is_gone() -> bool:
        return writer.is_closing() or reader.at_eof()

    return Request(event.method.decode("ascii"), event.target, host.decode("latin-1"), is_gone)


async def _send(http: h11.Connection, writer: asyncio.StreamWriter, answer: Answer) -> None:
    """Send an answer as fast as the client reads it, and at least one part in `STALL` seconds."""
    headers = {**answer.headers, "Connection": "close"}
    if answer.kind:
        headers["Content-Type"] = answer.kind
    if isinstance(answer.body, bytes) and answer.status != HTTPStatus.NO_CONTENT:
        headers["Content-Length"] = str(len(answer.body))
    reason = HTTPStatus(answer.status).phrase
    await _write(http, writer, h11.Response(status_code=answer.status, headers=[*headers.items()], reason=reason))
    if isinstance(answer.body, bytes):
        for begin in range(0, len(answer.body), WRITE_BYTES):
            await _write(http, writer, h11.Data(data=answer.body[begin : begin + WRITE_BYTES]))
    else:
        async with aclosing(answer.body) as parts:
            async for part in parts:
                await _write(http, writer, h11.Data(data=part))
    await _write(http, writer, h11.EndOfMessage())


async def _write(http: h11.Connection, writer: asyncio.StreamWriter, event: h11.Event) -> None:
    if data := http.send(event):
        writer.write(data)
        async with asyncio.timeout(STALL):
            await writer.drain()


async def _sent(writer: asyncio.StreamWriter) -> None:
    """Wait until the system has taken the whole answer."""
    writer.transport.set_write_buffer_limits(high=0)
    async with asyncio.timeout(STALL):
        await writer.drain()


async def _linger(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """End the answer, and discard what the client still sends until it closes its side."""
    writer.write_eof()
    left = LINGER_BYTES
    async with asyncio.timeout(LINGER):
        while left > 0 and (data := await reader.read(REQUEST_BYTES)):
            left -= len(data)


def _debug(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:  # noqa: ARG001
    log.debug("event loop of the page: %s", context.get("message"), exc_info=context.get("exception"))

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
# Length of the system's queue of connections; those in it use no descriptor of this process.
BACKLOG = 128
# Maximum number of connections accepted in one turn of the loop.
ACCEPTED = 8
# Seconds until the next connection is accepted when the process is out of descriptors.
PAUSE = 1.0
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
class PageRequest:
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

    def __init__(self, listening: socket.socket, answer: Callable[[PageRequest], Awaitable[Answer]]) -> None:
        self._answer, self._listening = answer, listening
        self._loop = asyncio.SelectorEventLoop()  # on Windows too: `add_reader`
        # By default the loop writes to the host program's log, in Python's development mode about slow callbacks too.
        self._loop.set_exception_handler(_debug)
        self._loop.set_debug(False)
        self._closing = asyncio.Event()
        # Conversations, and those of them that wait for a request or for the client's end, the oldest first.
        self._open: dict[asyncio.Task[Any], socket.socket] = {}
        self._idle: dict[asyncio.Task[Any], None] = {}
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
        with self._listening:
            self._listening.setblocking(False)
            self._listening.listen(BACKLOG)
            self._listen()
            await self._closing.wait()
            self._loop.remove_reader(self._listening)
        for task in self._idle:  # without a request, or with their answer
            task.cancel()
        if self._open:
            await asyncio.wait(self._open, timeout=GRACE)
        for task in self._open:
            task.cancel()
        if self._open:
            await asyncio.wait(self._open)

    def _listen(self) -> None:
        if not self._closing.is_set():
            self._loop.add_reader(self._listening, self._accept)

    def _accept(self) -> None:
        """Accept the connections that wait."""
        try:
            for _ in range(ACCEPTED):
                self._start(self._listening.accept()[0])
        except (BlockingIOError, InterruptedError, ConnectionError):
            return
        except OSError:
            log.debug("no connection can be accepted", exc_info=True)
            self._loop.remove_reader(self._listening)
            self._loop.call_later(PAUSE, self._listen)

    def _start(self, client: socket.socket) -> None:
        """Start a conversation, and end another if there are too many."""
        if len(self._open) >= CONNECTIONS:
            oldest = next(iter(self._idle), None)
            if oldest is None:
                client.close()
                return
            del self._idle[oldest]
            oldest.cancel()
        task = self._loop.create_task(self._converse(client))
        self._open[task] = client
        self._idle[task] = None
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task).close()  # a task that is cancelled before it starts has not
        self._idle.pop(task, None)

    async def _converse(self, client: socket.socket) -> None:
        """Read a request, answer it, and close the connection."""
        try:
            reader, writer = await asyncio.open_connection(sock=client, limit=REQUEST_BYTES)
        except OSError:
            return
        writer.transport.set_write_buffer_limits(high=WRITE_BYTES)
        try:
            await self._exchange(reader, writer)
        except (TimeoutError, OSError):
            log.debug("a client of the page went away, or was too slow")
        except Exception:
            log.debug("a client of the page was disconnected", exc_info=True)
        finally:
            writer.transport.abort()
            with suppress(Exception):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_BYTES)
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(REQUEST_TIME):
                request = await _request(http, reader, writer)
            del self._idle[task]
            answer = await self._answered(request)
        except h11.RemoteProtocolError as error:
            answer = Answer(error.error_status_hint)
        await _send(http, writer, answer)
        self._idle[task] = None
        await _linger(reader, writer)

    async def _answered(self, request: PageRequest) -> Answer:
        try:
            return await self._answer(request)
        except Exception:
            log.debug("a request for the page failed", exc_info=True)
            return Answer(500)


async def _request(http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> PageRequest:
    """Return the request; its content, which nothing here needs, is not read."""
    while (event := http.next_event()) is h11.NEED_DATA:
        http.receive_data(await reader.read(REQUEST_BYTES))  # the end of the stream is b""
    if not isinstance(event, h11.Request):
        raise ConnectionResetError("closed without a request")
    host = next((value for name, value in event.headers if name == b"host"), b"")

    def is_gone() -> bool:
        return writer.is_closing() or reader.at_eof()

    return PageRequest(event.method.decode("ascii"), event.target, host.decode("latin-1"), is_gone)


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
    writer.transport.set_write_buffer_limits(high=0)  # wait until the system has taken the whole answer
    await _write(http, writer, h11.EndOfMessage())


async def _write(http: h11.Connection, writer: asyncio.StreamWriter, event: h11.Event) -> None:
    writer.write(http.send(event) or b"")
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

"""The browser view: a page on this machine that follows a live segmenter, and never slows it."""

import asyncio
import os
import socket
import threading
import weakref
import webbrowser
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING

from unetrt.live_view.browser_feed import Feed
from unetrt.runtime import LiveSegmenter
from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import BackendUnavailableError, OptionError

if TYPE_CHECKING:
    from uvicorn import Server

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

    from unetrt.live_view.browser_app import App

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

import gc
import os
import re
import socket
import stat
import subprocess
import sys
import time
import webbrowser
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest

from tests.live_view.live_scenes import asked, events, news_of, open_live, squares, view_threads
from unetrt.live_view import browser, page_server
from unetrt.live_view.browser import BrowserView
from unetrt.runtime.errors import BackendUnavailableError, OptionError


def test_pages_get_events_for_the_end_of_the_run_and_of_the_view():
    with open_live() as live, BrowserView(live) as view, asked(view, "/events") as response:
        live.close()
        told = events(response)
        assert next(name for name, data in told if name == "status" and data["status"]["state"] == "closed")
        view.close()
        assert [name for name, _ in told][-1] == "end"


def test_only_this_machine_reaches_the_page(view):
    port = urlsplit(view.url).port
    assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/[\w-]{{32}}/", view.url)
    others = {each[4][0] for each in socket.getaddrinfo(socket.gethostname(), port, socket.AF_INET)} - {"127.0.0.1"}
    for address in {*others, "127.0.0.2"}:
        with pytest.raises(OSError, match=r".*"):
            socket.create_connection((address, port), timeout=1).close()


def test_a_port_in_use_is_an_error_of_one_line(live):
    with BrowserView(live) as first:
        port = urlsplit(first.url).port
        with pytest.raises(
            OptionError, match=f"port {port} of 127.0.0.1: address already in use; use another one, or 0"
        ):
            BrowserView(live, port=port)
        with pytest.raises(OptionError, match="port 70000 of 127.0.0.1: not from 0 to 65535; use another one"):
            BrowserView(live, port=70000)
    with BrowserView(live, port=port) as again:  # at once, though connections to it may still be fading
        assert urlsplit(again.url).port == port
    assert view_threads() == []


@pytest.mark.parametrize("token", ["secret", "", None, 0])
def test_a_token_that_is_no_choice_is_refused(live, token):
    with pytest.raises(OptionError, match=f"^invalid token={token!r}: use True for a new random one, or False"):
        BrowserView(live, token=token)
    assert view_threads() == []


@pytest.mark.parametrize("port", ["8000", 1.5, None])
def test_a_port_that_is_no_number_is_refused(live, port):
    with pytest.raises(OptionError, match=f"^invalid port {port!r}: use a whole number, or 0"):
        BrowserView(live, port=port)
    assert view_threads() == []


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_package_that_is_missing_is_named(live, monkeypatch, package):
    monkeypatch.setattr(browser, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(BackendUnavailableError, match=rf"needs {package}: pip install 'unetrt\[view\]'"):
        BrowserView(live)


def test_it_closes_at_once_though_browsers_are_connected(live):
    view = BrowserView(live)
    live.submit(squares()[0])
    live.flush(10)
    url = urlsplit(view.url)
    connections = [HTTPConnection(url.netloc, timeout=10) for _ in range(4)]
    for connection, path in zip(connections, ["events", "events", "picture?after=0", "page.js"], strict=True):
        connection.request("GET", url.path + path)  # the responses are not read
    time.sleep(0.3)
    begin = time.perf_counter()
    view.close()
    assert time.perf_counter() - begin < 3  # a browser would stay for minutes
    assert view_threads() == []
    view.close()
    for connection in connections:
        connection.close()


def test_a_browser_that_reads_nothing_holds_up_neither_run_nor_end(live, monkeypatch):
    monkeypatch.setattr(live.segmenter.session, "name", "more than fits between two programs" * 10**6)
    with BrowserView(live) as view, socket.create_connection(("127.0.0.1", urlsplit(view.url).port)) as stalled:
        stalled.sendall(f"GET {urlsplit(view.url).path}events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        time.sleep(0.5)
        live.submit(squares()[0])
        assert news_of(view, 1)["newest"] == 0
        begin = time.perf_counter()
        view.close()
        assert page_server.GRACE < time.perf_counter() - begin < 3
    assert view_threads() == []


def test_a_view_that_is_forgotten_closes(live):
    view = BrowserView(live)
    url = urlsplit(view.url)
    del view
    gc.collect()
    assert view_threads() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((url.hostname, url.port), timeout=1)


def test_a_program_that_forgets_to_close_ends(tmp_path):
    program = (
        "from tests.live_view.live_scenes import open_live, squares\n"
        "from unetrt.live_view.browser import BrowserView\n"
        "opened = open_live()\nlive = opened.__enter__()\nview = BrowserView(live)\n"
        "live.submit(squares()[0]).result(10)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=True, text=True)
    assert done.stderr == ""


def test_show_opens_the_page_where_there_is_a_browser(view, monkeypatch):
    shown = []

    class Browser(webbrowser.BaseBrowser):
        def open(self, url, new=0, autoraise=True):
            shown.append(url)
            return True

    monkeypatch.setattr(webbrowser, "get", Browser)
    assert view.show()
    link = Path(url2pathname(urlsplit(shown[0]).path))
    assert f"url={view.url}" in link.read_text()
    # Every user can see a browser's arguments.
    assert urlsplit(view.url).path.strip("/") not in shown[0]
    if os.name == "posix":
        assert stat.S_IMODE(link.parent.stat().st_mode) == 0o700
    view.close()
    assert not link.parent.exists()


def test_show_raises_nothing_where_there_is_no_browser(view, monkeypatch):
    def none():
        raise webbrowser.Error("could not locate runnable browser")

    monkeypatch.setattr(webbrowser, "get", none)
    assert not view.show()
    in_terminal = webbrowser.GenericBrowser([sys.executable, "-c", "input()"])
    monkeypatch.setattr(webbrowser, "get", lambda: in_terminal)
    assert not view.show()

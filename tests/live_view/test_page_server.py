"""What clients can do to the server of the page, and to the program that runs it: real sockets."""

import asyncio
import gc
import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from starlette.responses import Response, StreamingResponse

from tests.live_view.live_scenes import asked, eventually, news_of, squares
from unetrt.live_view import page_server
from unetrt.live_view.browser import BrowserView
from unetrt.live_view.page_server import PageServer

GET = "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connected(view, sent=b""):
    url = urlsplit(view.url)
    client = socket.create_connection((url.hostname, url.port), timeout=20)
    client.sendall(sent)
    return client


def received(client):
    """All that a client receives until the server ends the connection."""
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def answered(view, sent):
    with connected(view, sent) as client:
        return received(client)


@contextmanager
def serving(answer):
    listening = socket.create_server(("127.0.0.1", 0))
    address = listening.getsockname()
    server = PageServer(listening, answer)
    try:
        yield address
    finally:
        server.close()


ROUTES = [
    "",
    "page.html",
    "page.css",
    "page.js",
    "icon.svg",
    "events",
    "picture",
    "picture?after=x",
    "nothing",
    "../..",
]


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD", "OPTIONS", "BREW"])
def test_without_the_token_every_request_gets_one_answer(live, view, method):
    live.submit(squares()[0])
    live.flush(10)
    token = urlsplit(view.url).path.strip("/")
    wrong = [
        "",
        token[:-1] + "/",
        token + "x/",
        ("y" if token[0] == "x" else "x") + token[1:] + "/",
        token.swapcase() + "/",
        token,
        "?token=" + token,
    ]
    wrong += ["//" + token + "/", "%2F" + token + "/"]
    answers = {
        answered(view, f"{method} /{root}{route} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        for root in wrong
        for route in ROUTES
    }
    assert len(answers) == 1
    head, _, content = answers.pop().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 404 ")
    assert content == b""
    assert token.encode() not in head


def test_each_view_has_another_token(live):
    with BrowserView(live) as one, BrowserView(live) as other:
        paths = {urlsplit(each.url).path for each in (one, other)}
        assert len(paths) == 2
        with asked(other, "/") as response:
            assert response.status == 200
        status = answered(other, GET.format(path=urlsplit(one.url).path).encode())
        assert status.startswith(b"HTTP/1.1 404 ")


def test_a_view_can_do_without_a_token(live):
    with BrowserView(live, token=False) as view:
        assert urlsplit(view.url).path == "/"
        for path in ("/", "/page.js", "/picture?after=x"):
            with asked(view, path) as response:
                assert response.status in (200, 400)
        with asked(view, "/", Host="attacker.example") as response:
            assert (response.status, response.read()) == (404, b"")


def test_no_answer_tells_other_pages_the_address(live, view):
    live.submit(squares()[0])
    for path in ("/", "/page.css", "/page.js", "/events", "/picture", "/nothing", "/picture?after=x"):
        with asked(view, path) as response:
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Cross-Origin-Opener-Policy"] == "same-origin"
            assert "Location" not in response.headers


FLOOD = """
import os, resource, select, sys
from tests.live_view.live_scenes import open_live, squares
from unetrt.live_view.browser import BrowserView
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
with open_live() as live, BrowserView(live) as view:
    print(view.url, flush=True)
    most = 0
    while not select.select([sys.stdin], [], [], 0.002)[0]:
        most = max(most, len(os.listdir("/proc/self/fd")))
        assert live.submit(squares()[0], {"t": 1}).result(30).error is None
        open(os.devnull).close()
    status = live.status()
    print(most, status.submitted, status.done, status.output_errors, flush=True)
"""


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts file descriptors in /proc")
def test_half_open_connections_cost_the_host_no_frame_and_no_descriptor(tmp_path):
    """900 clients that never finish their request; the page answers meanwhile and afterwards."""
    import resource

    process = subprocess.Popen(
        [sys.executable, "-c", FLOOD],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with ExitStack() as clients:
        clients.callback(process.kill)
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the clients' own ends
        url = urlsplit(process.stdout.readline().strip())
        page = GET.format(path=url.path).encode()
        for number in range(900):
            client = clients.enter_context(socket.create_connection((url.hostname, url.port), timeout=20))
            if number % 3:
                client.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        for _ in range(5):
            with socket.create_connection((url.hostname, url.port), timeout=20) as client:
                client.sendall(page)
                assert received(client).startswith(b"HTTP/1.1 200 ")
        out, err = process.communicate("\n", timeout=60)
    assert err == ""
    most, submitted, done, errors = map(int, out.split())
    assert most < 120
    assert submitted == done > 0
    assert errors == 0


def test_a_request_that_is_not_finished_ends_after_a_time(view, monkeypatch):
    monkeypatch.setattr(page_server, "REQUEST_TIME", 0.3)
    with connected(view) as silent, connected(view, b"GET / HTTP/1.1\r\n") as half, connected(view) as dripping:
        stop = threading.Event()

        def drip():
            while not stop.wait(0.05):
                try:
                    dripping.send(b"G")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        for client in (silent, half, dripping):
            assert received(client) == b""
        stop.set()
        thread.join()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"x" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"x" * 200_000 + b" HTTP/1.1\r\n",
        b"x" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 40_000,
    ],
    ids=["header", "line", "no line", "many headers"],
)
def test_a_request_that_is_too_long_is_refused(view, sent):
    with connected(view) as client:
        with suppress(ConnectionError):  # the server has closed its side
            client.sendall(sent)
        answer = received(client)
    assert answer == b"" or re.match(rb"HTTP/1.1 4(31|00) ", answer)
    with asked(view, "/") as response:
        assert response.status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /\xff\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ],
)
def test_what_is_no_request_gets_no_content(view, sent):
    with connected(view, sent) as client:
        client.shutdown(socket.SHUT_WR)
        head, _, content = received(client).partition(b"\r\n\r\n")
    assert head == b"" or re.match(rb"HTTP/1.1 (4\d\d|501|505) ", head)
    assert content == b""


def test_a_connection_carries_one_request(view):
    path = urlsplit(view.url).path
    sent = GET.format(path=path + "icon.svg") + GET.format(path=path + "page.css")
    answer = answered(view, sent.encode() * 50)
    assert answer.count(b"HTTP/1.1 200 ") == 1
    assert b"connection: close" in answer.lower()
    assert b"<svg" in answer


def test_content_that_is_sent_is_not_kept(view):
    path = urlsplit(view.url).path
    head = f"POST {path}picture HTTP/1.1\r\nHost: localhost\r\nContent-Length: {1 << 40}\r\n\r\n".encode()
    with connected(view, head) as client:
        sent = 0
        try:
            while sent < 1 << 25:
                sent += client.send(b"x" * (1 << 16))
        except ConnectionError:
            pass
        assert sent < 1 << 25
    waiting = f"GET {path}picture HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    with connected(view, waiting) as client:  # no frame yet
        content = b"x" * (1 << 24)
        tracemalloc.start()
        client.sendall(content)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert most < 1 << 22
    with asked(view, "/picture", "PUT") as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET")


def test_a_client_that_reads_nothing_costs_little_memory_and_is_disconnected(monkeypatch):
    monkeypatch.setattr(page_server, "STALL", 0.5)
    made = []

    async def endless():
        while True:
            made.append(1)
            yield b"x" * 10_000
            await asyncio.sleep(0)

    async def answer(request):
        return StreamingResponse(endless())

    with serving(answer) as address, socket.create_connection(address, timeout=20) as client:
        client.sendall(GET.format(path="/").encode())
        assert eventually(lambda: made)
        time.sleep(0.3)
        before = len(made)
        time.sleep(0.1)
        assert len(made) == before
        time.sleep(1)
        with pytest.raises(ConnectionError):
            while client.recv(1 << 16):
                pass
            raise ConnectionResetError  # an end in place of a reset


def test_a_slow_reader_gets_the_whole_answer(monkeypatch):
    monkeypatch.setattr(page_server, "STALL", 0.5)
    content = os.urandom(1_000_000)

    async def answer(request):
        return Response(content)

    with serving(answer) as address, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(address)
        client.sendall(GET.format(path="/").encode())
        parts = []
        while part := client.recv(1 << 16):
            parts.append(part)
            time.sleep(0.005)
        assert b"".join(parts).partition(b"\r\n\r\n")[2] == content


def test_more_clients_than_places_are_disconnected_at_once(monkeypatch):
    monkeypatch.setattr(page_server, "CONNECTIONS", 4)
    entered = []

    async def answer(request):
        entered.append(request)
        while not await request.is_disconnected():
            await asyncio.sleep(0.01)
        return Response(status_code=204)

    with serving(answer) as address, ExitStack() as clients:
        for number in range(4):
            client = clients.enter_context(socket.create_connection(address, timeout=20))
            client.sendall(GET.format(path="/").encode())
            assert eventually(lambda number=number: len(entered) == number + 1)
        with socket.create_connection(address, timeout=20) as fifth:
            assert received(fifth) == b""
        client.close()

        def has_a_place():
            with socket.create_connection(address, timeout=20) as sixth:
                sixth.sendall(GET.format(path="/").encode())
                return eventually(lambda: len(entered) == 5, 0.5)

        assert eventually(has_a_place)  # of a client that left


def test_clients_that_wait_for_pictures_do_not_slow_the_run(live, view):
    path = urlsplit(view.url).path
    stop = threading.Event()

    def poll():
        while not stop.is_set():
            answered(view, GET.format(path=f"{path}picture?low={threading.get_ident() % 7}").encode())

    threads = [threading.Thread(target=poll) for _ in range(12)]
    for thread in threads:
        thread.start()
    for _ in range(200):
        live.submit(squares()[0])
    assert live.flush(30)
    status = live.status()
    assert (status.done, status.failed, status.dropped) == (200, 0, 0)
    assert news_of(view, 1)["status"]["done"] == 200
    stop.set()
    for thread in threads:
        thread.join()


NOISE = """
import logging, socket, sys, warnings
from pathlib import Path
from urllib.parse import urlsplit
from tests.live_view.live_scenes import asked, open_live, squares
from unetrt.live_view import browser, page_server
from unetrt.live_view.browser import BrowserView
loggers = set(logging.root.manager.loggerDict)
page_server.REQUEST_TIME = 0.2
def failing(result, display):
    raise MemoryError
with open_live() as live, BrowserView(live) as view:
    url = urlsplit(view.url)
    live.submit(squares()[0])
    def send(*parts, reset=False):
        with socket.create_connection((url.hostname, url.port), timeout=20) as client:
            for part in parts:
                client.sendall(part)
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\\1\\0\\0\\0\\0\\0\\0\\0")
                return
            try:
                while client.recv(99999):
                    pass
            except ConnectionResetError:
                pass
    send(b"no request at all\\r\\n\\r\\n")
    send(b"\\x16\\x03\\x01")
    send(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: upgrade\\r\\nUpgrade: websocket\\r\\n\\r\\n")
    send(b"x" * 100000, reset=True)
    for path in ("events", "picture", "page.js"):
        request = f"GET {url.path}{path} HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n".encode()
        send(request, reset=True)
    browser.encoded = failing
    with asked(view, "/picture?low=3") as response:
        assert response.status == 500
assert set(logging.root.manager.loggerDict) <= loggers
assert not logging.root.handlers
"""


@pytest.mark.parametrize("how", [[], ["-X", "dev"]])
def test_the_host_program_writes_no_line_of_the_server(how):
    done = subprocess.run(
        [sys.executable, *how, "-c", NOISE], capture_output=True, timeout=120, text=True, check=True
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


def test_lines_of_a_server_of_the_host_program_are_written(view, caplog):
    logging.getLogger("uvicorn.error").warning("a line of the host program")
    answered(view, b"no request at all\r\n\r\n")
    assert caplog.messages == ["a line of the host program"]
    assert logging.getLogger("uvicorn.access").propagate


def test_an_answer_that_fails_is_500_without_content(caplog):
    async def answer(request):
        raise RuntimeError("the secret is 42")

    with serving(answer) as address, socket.create_connection(address, timeout=20) as client:
        client.sendall(GET.format(path="/").encode())
        head, _, content = received(client).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert content == b""
    assert caplog.records == []


def test_connections_that_come_while_it_closes_are_closed():
    """Sockets that are not closed are warnings, which are errors."""

    async def answer(request):
        return Response(status_code=204)

    for number in range(12):
        stop = threading.Event()
        with serving(answer) as address:

            def connect(address=address, stop=stop):
                while not stop.is_set():
                    with suppress(OSError), socket.create_connection(address, timeout=0.2) as client:
                        client.send(b"GET / HTTP/1.1\r\n")

            threads = [threading.Thread(target=connect) for _ in range(3)]
            for thread in threads:
                thread.start()
            time.sleep(0.004 * number)
        stop.set()
        for thread in threads:
            thread.join()
    gc.collect()

"""Signals end the program in one line or in silence, at every moment of its life."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

from unetrt.cli import main, stoppable_main
from unetrt.cli._shutdown import StopSignal, shutdown_request, stop_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
# Exit codes of a process that a signal ended, either by its handler or by the system.
ENDED = {number: {-number, 128 + number} for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}


@pytest.fixture(autouse=True)
def _hangups_end_a_process():
    """As in a terminal: under nohup, hangups are ignored, by processes that start here too."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


# Runs the program and sends it a signal when it begins to import a module, or as its interpreter shuts down.
PROGRAM = """
import atexit, os, runpy, sys
number, moment = int(sys.argv[1]), sys.argv[2]
sys.argv[:] = ["unetrt", *sys.argv[3:]]
send = lambda: os.kill(os.getpid(), number)

class Moment:
    def find_spec(name, path=None, target=None):
        if name == moment:
            send()

sys.meta_path.insert(0, Moment)
if moment == "exit":
    atexit.register(send)
runpy.run_module("unetrt", run_name="__main__", alter_sys=True)
"""


def sent(number, moment, *arguments, **options):
    """Run the program with a signal at a moment; return its exit code, negative for a signal, and standard error."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number)), moment, *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False, timeout=120, **options,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        *((signal.SIGINT, moment) for moment in ("unetrt.cli", "click", "dataclasses", "numpy", "exit")),
        *((number, moment) for number in (signal.SIGTERM, signal.SIGHUP) for moment in ("click", "numpy")),
    ],
)
def test_a_signal_during_imports_and_at_the_exit_gives_no_traceback(tiny_model, tmp_path, number, moment):
    command = ["--help"] if moment == "exit" else ["predict", tiny_model, tmp_path, "-o", tmp_path / "out"]
    status, said = sent(number, moment, *command)
    assert status in ENDED[number], said
    assert said.strip() in {"", "stopped by the user", f"stopped by {number.name}"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", ENDED, ids=lambda number: number.name)
def test_an_ignored_signal_stays_ignored(number):
    """As `nohup` ignores SIGHUP, and a shell SIGINT for what a script starts in the background."""
    status, said = sent(number, "unetrt.cli.models", "models", preexec_fn=lambda: signal.signal(number, signal.SIG_IGN))
    assert (status, said) == (0, "")


@pytest.mark.parametrize("number", ENDED, ids=lambda number: number.name)
def test_a_command_is_told_once_and_its_temporary_files_are_removed(tmp_path, monkeypatch, capsys, number):
    from unetrt.runtime.files.atomic import whole_file

    def write(*_, **__):
        with whole_file(tmp_path / "new" / "a.txt") as temporary:
            temporary.touch()
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    monkeypatch.setattr("unetrt.cli.cli.main", write)
    with stop_signals():
        assert main(["models"]) == 128 + number
    assert capsys.readouterr().err == f"stopped by {'the user' if number == signal.SIGINT else number.name}\n"
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(number) is before


def test_an_error_that_a_signal_became_is_the_signal(monkeypatch, capsys):
    def fail(*_, **__):
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("as pydantic does")

    monkeypatch.setattr("unetrt.cli.cli.main", fail)
    assert stoppable_main() == 143
    assert capsys.readouterr().err == "stopped by SIGTERM\n"


@pytest.mark.parametrize(
    "number", [signal.SIGINT, *(pytest.param(each, marks=pytest.mark.slow) for each in (signal.SIGTERM, signal.SIGHUP))]
)
def test_a_signal_whose_exception_python_drops_is_repeated(number):
    class Destroyed:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(1)  # interrupted

    before, hook = signal.getsignal(number), sys.unraisablehook
    with pytest.raises(StopSignal, match=number.name), stop_signals():
        one = Destroyed()
        del one
        for _ in range(100):
            time.sleep(0.1)  # what the repeated signal does not interrupt
        pytest.fail("the signal was lost")
    assert (signal.getsignal(number), sys.unraisablehook) == (before, hook)


@pytest.mark.parametrize("number", ENDED, ids=lambda number: number.name)
def test_a_request_to_shut_down_is_noted_once_however_often_one_event_sends_it(number):
    """A terminal that closes and its shell both send SIGHUP; `timeout` sends SIGTERM to a process and to its group."""
    before = signal.getsignal(number)
    with stop_signals() as raised, shutdown_request() as request:
        assert not request.made
        for _ in range(3):
            os.kill(os.getpid(), number)
        assert (request.made, request.number, raised) == (True, number, [])
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", ENDED, ids=lambda number: number.name)
def test_a_second_signal_insists_later_unless_it_is_a_hangup(number, monkeypatch):
    monkeypatch.setattr("unetrt.cli._shutdown.AGAIN", -1.0)
    with stop_signals() as raised:
        with contextlib.suppress(StopSignal), shutdown_request() as request:
            for _ in range(2):
                os.kill(os.getpid(), number)
        assert request.number == number
        assert len(raised) == (number != signal.SIGHUP)


def test_a_command_that_cleans_up_is_not_cut_short_by_the_same_event(tmp_path):
    cleaned = False
    with pytest.raises(StopSignal, match="SIGHUP"), stop_signals():
        try:
            os.kill(os.getpid(), signal.SIGHUP)
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            cleaned = True
    assert cleaned

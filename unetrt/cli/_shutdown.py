"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM and SIGHUP, where they are not ignored (`nohup`).

During a command the first one raises `StopSignal`, so that temporary files are removed, and the second ends the process
at once. A long command replaces that by a graceful shutdown, in which the first signal only sets a flag.

One event can send a signal twice: a terminal that closes sends SIGHUP, and so does its shell; `timeout` and launchers
pass SIGINT and SIGTERM on to a process that has them from its group. A second signal therefore counts after `AGAIN`
seconds only, and a second SIGHUP never: no user is left at the terminal.

>>> with shutdown_request() as request:
...     while not request.made:
...         work()
"""

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from unetrt._exit_codes import STOPPED_BY

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
HANGUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none


# Seconds within which a second signal of a kind is taken for the first.
AGAIN = 0.5
# Seconds after which a signal is repeated whose exception was dropped: later than the destructor that dropped it.
REPEATED_AFTER = 0.05


class StopSignal(KeyboardInterrupt):
    """A signal asks the process to end.

    Attributes
    ----------
    number
        Number of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def status(self) -> int:
        """Exit code of a command that it ends."""
        return STOPPED_BY + self.number


@contextmanager
def _handled(handle: Callable[[int, Callable[[], None]], None]) -> Iterator[None]:
    """Call a function at the first signal of each kind; a second one has its previous effect, but for SIGHUP.

    The function gets the number of the signal, and a function that has the previous effect. Python delivers signals to
    the main thread; in others nothing changes. Signals that are ignored remain so.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    if threading.current_thread() is not threading.main_thread():
        before = {}
    arrived: dict[int, float] = {}

    def receive(number: int, frame: FrameType | None) -> None:
        if number not in arrived:
            arrived[number] = time.monotonic()
            handle(number, lambda: _deliver(number, frame, before[number]))
        elif number != HANGUP and time.monotonic() - arrived[number] > AGAIN:
            _deliver(number, frame, before[number])

    try:
        for number in before:
            signal.signal(number, receive)
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not signal.SIG_IGN:  # see `ignore_hangups`
                signal.signal(number, handler)


def ignore_hangups() -> None:
    """Ignore SIGHUP until the process ends: threads may still finish files when the command has ended."""
    if HANGUP is not None:
        signal.signal(HANGUP, signal.SIG_IGN)


def _deliver(number: int, frame: FrameType | None, handler: Any) -> None:
    """Let a signal have the effect of a handler."""
    if callable(handler):
        handler(number, frame)
        return
    signal.signal(number, handler)
    signal.raise_signal(number)


@contextmanager
def stop_signals() -> Iterator[list[StopSignal]]:
    """Let the first signal of each kind raise StopSignal inside; a second one of a kind has its previous effect.

    Yields the list of those that were raised: pydantic, for one, replaces them by errors of its own.

    Python drops an exception that a destructor or the callback of a weak reference raises; torch's exporter has many.
    The signal is then repeated.
    """
    unraisable = sys.unraisablehook

    raised: list[StopSignal] = []

    def stop(number: int, _previous: object = None) -> None:
        raised.append(StopSignal(number))
        raise raised[-1]

    def repeat(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, StopSignal):
            unraisable(dropped)
            return
        number = dropped.exc_value.number
        signal.signal(number, lambda number, _: stop(number))
        again = threading.Timer(REPEATED_AFTER, _thread.interrupt_main, [number])
        again.daemon = True
        again.start()

    sys.unraisablehook = repeat
    try:
        with _handled(stop):
            yield raised
    finally:
        sys.unraisablehook = unraisable


class ShutdownRequest:
    """Whether a signal has asked the process to stop.

    Attributes
    ----------
    number
        Number of the signal that has arrived; None for none.
    immediate
        Whether a signal also has its previous effect, such as StopSignal.
    """

    def __init__(self, immediate: bool) -> None:
        self.number: int | None = None
        self.immediate = immediate

    @property
    def made(self) -> bool:
        """Whether a signal has arrived."""
        return self.number is not None

    def defer(self) -> None:
        """Let signals only set the flag from now on; raises StopSignal if one has arrived and had no effect."""
        self.immediate = False
        if self.number is not None:
            raise StopSignal(self.number)


@contextmanager
def shutdown_request(*, immediate: bool = False) -> Iterator[ShutdownRequest]:
    """Let signals set a flag inside; a second signal of a kind has its previous effect.

    Parameters
    ----------
    immediate
        Whether the first signal has its previous effect too, until `ShutdownRequest.defer`. Python swallows a
        KeyboardInterrupt in some places, such as destructors and the import of some packages; the flag remains set.
    """
    request = ShutdownRequest(immediate)

    def note(number: int, previous: Callable[[], None]) -> None:
        request.number = number
        if request.immediate:
            previous()

    with _handled(note):
        yield request

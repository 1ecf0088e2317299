"""Signals that end a command: SIGINT (Ctrl-C), SIGTERM and SIGHUP, where they are not ignored (`nohup`).

During a command the first one raises `StopSignal`, so that temporary files are removed, and the second ends the process
at once. A long command replaces that by a graceful shutdown, in which the first signal only sets a flag:

>>> with shutdown_request() as request:
...     while not request.made:
...         work()
"""

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from unetrt._exit_codes import STOPPED_BY

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


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
def _handled(handle: Callable[[int], None]) -> Iterator[None]:
    """Call a function at the first signal of each kind, before which the previous handler is restored.

    Python delivers signals to the main thread; in others nothing changes. Signals that are ignored remain so.
    """
    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
    if threading.current_thread() is not threading.main_thread():
        before = {}

    def once(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, before[number])
        handle(number)

    try:
        for number in before:
            signal.signal(number, once)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def stop_signals() -> Iterator[list[StopSignal]]:
    """Let the first signal of each kind raise StopSignal inside; a second one of a kind has its previous effect.

    Yields the list of those that were raised: pydantic, for one, replaces them by errors of its own.

    Python drops an exception that a destructor or the callback of a weak reference raises; torch's exporter has many.
    The signal is then repeated.
    """
    unraisable = sys.unraisablehook

    raised: list[StopSignal] = []

    def stop(number: int) -> None:
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

    def note(number: int) -> None:
        request.number = number
        if request.immediate:
            signal.raise_signal(number)

    with _handled(note):
        yield request

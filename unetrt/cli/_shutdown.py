"""Graceful shutdown: the first SIGINT (Ctrl-C) or SIGTERM only sets a flag, which a long command polls.

>>> with shutdown_request() as request:
...     while not request.made:
...         work()
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ShutdownRequest:
    """Whether a signal has asked the process to stop.

    Attributes
    ----------
    made
        Whether a signal has arrived.
    immediate
        Whether a signal also has its previous effect, such as KeyboardInterrupt.
    """

    def __init__(self, immediate: bool) -> None:
        self.made, self.immediate = False, immediate

    def defer(self) -> None:
        """Let signals only set the flag from now on; raises KeyboardInterrupt if one has arrived and had no effect."""
        self.immediate = False
        if self.made:
            raise KeyboardInterrupt


@contextmanager
def shutdown_request(*, immediate: bool = False) -> Iterator[ShutdownRequest]:
    """Replace the handlers of SIGINT and SIGTERM inside; a second signal of a kind has its previous effect.

    Only in the main thread, to which Python delivers signals.

    Parameters
    ----------
    immediate
        Whether the first signal has its previous effect too, until `ShutdownRequest.defer`. Python swallows a
        KeyboardInterrupt in some places, such as destructors and the import of some packages; the flag remains set.
    """
    request = ShutdownRequest(immediate)
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def handle(number: int, _frame: FrameType | None) -> None:
        request.made = True
        signal.signal(number, before[signal.Signals(number)])
        if request.immediate:
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Graceful shutdown: the first SIGINT or SIGTERM sets a flag, so that the current step can finish and be saved.

A second signal of the same kind has its usual effect, so that a step that hangs can be interrupted.

    with stop_request() as request:
        while not request:
            step()
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Flag set by a signal; true once it is set.

    Attributes
    ----------
    asked
        Whether a signal was received.
    at_once
        Whether the first signal also has its previous effect.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.asked, self.at_once = False, at_once

    def wait_from_now(self) -> None:
        """Only set the flag from now on; raises KeyboardInterrupt if a signal was received before, and got lost."""
        self.at_once = False
        if self.asked:
            raise KeyboardInterrupt

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stop_request(*, at_once: bool = False) -> Iterator[StopRequest]:
    """Set a flag at the first SIGINT or SIGTERM; a second signal of the same kind has its previous effect.

    Use it on the main thread, where Python runs signal handlers.

    Parameters
    ----------
    at_once
        Whether the first signal also has its previous effect, until `StopRequest.wait_from_now`. Python discards a
        KeyboardInterrupt raised in a destructor or in the import of some packages; the flag remains set.
    """
    request = StopRequest(at_once)
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def ask(number: int, _frame: FrameType | None) -> None:
        request.asked = True
        signal.signal(number, before[signal.Signals(number)])
        if request.at_once:
            signal.raise_signal(number)

    for number in SIGNALS:
        signal.signal(number, ask)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

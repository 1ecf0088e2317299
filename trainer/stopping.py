"""Ctrl-C and a cluster's SIGTERM as a wish: the step in hand is finished and saved first."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Whether somebody asked to stop.

    Attributes
    ----------
    asked
        Whether they did.
    at_once
        Whether a signal does what it always does too.
    """

    def __init__(self, at_once: bool = False) -> None:
        self.asked, self.at_once = False, at_once

    def wait_from_now(self) -> None:
        """Let signals be wishes from now on; raises KeyboardInterrupt where one came, and got lost, before."""
        self.at_once = False
        if self.asked:
            raise KeyboardInterrupt

    def __bool__(self) -> bool:
        return self.asked


@contextmanager
def stop_request(*, at_once: bool = False) -> Iterator[StopRequest]:
    """Turn the first SIGINT or SIGTERM into a wish; a second one of the kind does what it always does.

    For the main thread only: Python delivers signals there.

    Parameters
    ----------
    at_once
        Whether the first does what it always does as well, until `StopRequest.wait_from_now`. Python forgets an
        interrupt in places, such as a destructor or the import of some packages; the wish remains.
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

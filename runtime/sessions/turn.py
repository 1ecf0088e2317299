"""Turns of lanes that share memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from unetrt.runtime.cuda.resources import Event, Stream
from unetrt.runtime.errors import CudaError


class Turn:
    """Lets lanes that share an engine's scratch memory compute one after another, each in its own stream."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last: Event | None = None

    @contextmanager
    def taken(self, stream: Stream, computed: Event) -> Iterator[None]:
        """Let what the stream is given inside wait for the turn before; it ends with the record of `computed`."""
        with self._lock:
            if self._last is not None:
                stream.wait_for(self._last)
            try:
                yield
            except BaseException:
                with suppress(CudaError):  # nobody else will wait for what was given so far
                    stream.synchronize()
                raise
            self._last = computed

    def forget(self, computed: Event) -> None:
        """Let go of an event that has come to pass and is about to be freed."""
        with self._lock:
            if self._last is computed:
                self._last = None

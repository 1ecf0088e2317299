"""An engine's pass as a CUDA graph: launched at once instead of kernel by kernel."""

import logging

from unetrt.runtime.cuda.resources import Graph
from unetrt.runtime.errors import InferenceError
from unetrt.runtime.sessions.cuda_lane import EnginePass, Place

log = logging.getLogger("unetrt")


class CapturedPass:
    """A pass that is captured when it is given to its stream for the second time, as the first may allocate and load.

    An engine that cannot be captured goes on as it is, and the log says so.

    Parameters
    ----------
    inner
        The engine's pass.
    place
        Where it works: a graph keeps the addresses.
    """

    def __init__(self, inner: EnginePass, place: Place) -> None:
        self._inner, self._stream = inner, place.stream
        self._graph: Graph | None = None
        self._may_capture = self._stream.device.driver.captures
        self._ran = False

    def enqueue(self) -> None:
        """Launch the graph, or what is not one yet."""
        if self._graph is None and self._ran and self._may_capture:
            self._capture()
        if self._graph is not None:
            self._graph.launch(self._stream)
            return
        self._inner.enqueue()
        self._ran = True

    def close(self) -> None:
        """Free the graph, then the pass."""
        if self._graph is not None:
            self._graph.close()
        self._inner.close()

    def _capture(self) -> None:
        try:
            self._graph = Graph.of(self._stream, self._inner.enqueue)
        except InferenceError as error:
            self._may_capture = False
            log.info("no CUDA graph: %s", str(error))  # a record of the error itself would hold the lane

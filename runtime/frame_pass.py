"""A frame on its way through a network: where its tiles come from, and where they go."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from unetrt.runtime.plan import Tile
from unetrt.runtime.sessions.protocol import Lane, Step
from unetrt.runtime.timings import Timings


class Source(Protocol):
    """Where a frame's tiles are cut from."""

    def cut(self, tile: Tile, lane: Lane, slot: int) -> Step | None:
        """Fill a slot of a lane's input, or return what does so on the device. Runs before the launch."""


class Sink(Protocol):
    """Where a frame's results go."""

    def place(self, tile: Tile, lane: Lane, slot: int) -> Step | None:
        """Return what takes a slot of a lane's output to its place on the device; None where `stitch` does it."""

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Take a slot of a lane's output to its place on the host, if it goes there, once the pass has ended."""


@dataclass
class FramePass:
    """A pass of a frame through the network, tile by tile.

    Attributes
    ----------
    source, sink
        Where tiles come from, and where they go.
    left
        Number of tiles that are not in their place yet.
    finish
        Called once none is left.
    timings
        Where the frame's phases are added up.
    """

    source: Source
    sink: Sink
    left: int
    finish: Callable[[], None]
    timings: Timings = field(default_factory=Timings)

    def stitch(self, tile: Tile, lane: Lane, slot: int) -> None:
        """Take a tile to its place, and finish with the last one."""
        self.sink.stitch(tile, lane, slot)
        self.left -= 1
        if not self.left:
            self.finish()

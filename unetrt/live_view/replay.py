"""Image files in the place of a camera."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from threading import Event
from time import perf_counter
from typing import Any

from numpy.typing import NDArray

from unetrt.runtime.errors import FrameError
from unetrt.runtime.live.live_segmenter import LiveSegmenter
from unetrt.runtime.prediction import read_frames

# The key in a frame's metadata under which its `FileFrame` lies.
FILE = "file"


@dataclass(frozen=True)
class FileFrame:
    """Which frame of which file one is: number `frame`, from 0, of the `frames` in `path`."""

    path: Path
    frame: int
    frames: int


class Replay:
    """Frames of files, one after the other, at a camera's pace; frames of a stack one by one.

    Parameters
    ----------
    paths
        Image files, in the order in which they are shown.
    fps
        Frames a second; 0: each as soon as there is room for it.
    loop
        Whether to begin anew after the last.
    most
        How many frames there are to be; None: all.

    Attributes
    ----------
    name
        What a person calls it.
    unread
        Why files were left out, for each once.
    """

    def __init__(self, paths: Sequence[Path], fps: float, *, loop: bool = False, most: int | None = None) -> None:
        self.unread: dict[Path, FrameError] = {}
        self.name = f"{len(paths)} files" if len(paths) > 1 else paths[0].name
        self._paths, self._period = paths, 1 / fps if fps else 0.0
        self._loop, self._most = loop, most

    def feed(self, live: LiveSegmenter, stop: Event) -> None:
        """Submit all frames, until there are no more or `stop` is set.

        A frame whose file was not read in time comes late, and those after it at their pace from then on.
        """
        due = perf_counter()
        for number, (place, frame) in enumerate(self._frames(live.segmenter.spec.channels)):
            if stop.wait(max(0.0, due - perf_counter())):
                return
            live.submit(frame, {"t": number}, {FILE: place}, copy=False)
            if number + 1 == self._most:
                return
            due = max(due + self._period, perf_counter())

    def _frames(self, channels: int) -> Iterator[tuple[FileFrame, NDArray[Any]]]:
        for _ in count():
            for path in self._paths:
                yield from self._frames_of(path, channels)
            if not self._loop or len(self.unread) == len(self._paths):
                return

    def _frames_of(self, path: Path, channels: int) -> Iterator[tuple[FileFrame, NDArray[Any]]]:
        try:
            frames = read_frames(path, channels)
        except FrameError as error:
            self.unread[path] = error
            return
        frame_axes = 2 if channels == 1 else 3
        stack = frames if frames.ndim > frame_axes else frames[None]
        for number, frame in enumerate(stack):
            yield FileFrame(path, number, len(stack)), frame

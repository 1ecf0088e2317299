"""How far a build is, and how to end it early."""

import threading
from collections.abc import Callable
from typing import Any, NamedTuple


class Phase(NamedTuple):
    """One step of one of a build's phases, which may lie within another.

    Attributes
    ----------
    name, parent
        What TensorRT calls the phase and the one around it; no parent: empty.
    done, steps
        Steps that are done, and all of them; equal when the phase ends.
    """

    name: str
    parent: str
    done: int
    steps: int


Report = Callable[[Phase], None]


class Progress:
    """What a build in flight and who waits for it share; safe to use from any thread.

    Parameters
    ----------
    report
        Called at each step, on a thread of TensorRT's; what it raises cancels the build and comes out of it.
    """

    def __init__(self, report: Report | None = None) -> None:
        self._report = report or (lambda _phase: None)
        self._cancelled = threading.Event()
        self._parents: dict[str, tuple[str, int]] = {}
        self.error: BaseException | None = None

    def cancel(self) -> None:
        """Ask the build to end at its next step."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether the build was asked to end."""
        return self._cancelled.is_set()

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """Note that a phase has begun."""
        self._parents[name] = parent or "", steps
        self._say(name, 0)

    def step(self, name: str, step: int) -> bool:
        """Note that a step, counted from 0, is done; return whether to go on."""
        self._say(name, step + 1)
        return not self.cancelled

    def finish(self, name: str) -> None:
        """Note that a phase has ended, all its steps done or not."""
        self._say(name, self._parents[name][1])

    def _say(self, name: str, done: int) -> None:
        parent, steps = self._parents[name]
        try:
            self._report(Phase(name, parent, min(done, steps), steps))
        except BaseException as error:  # noqa: BLE001 - it cannot pass through TensorRT, and is raised after it
            self.error = error
            self.cancel()


def monitor_of(trt: Any, progress: Progress) -> Any:
    """Return a TensorRT IProgressMonitor that reports to `progress`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()

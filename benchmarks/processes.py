"""Measuring within processes: fresh ones for independent rounds, runs in turn, one core, memory and energy.

The speed of a process depends on where its memory happens to lie. Each round therefore runs in a new process (`fresh`),
and what is compared runs in turn within it (`in_turn`). Nothing here imports torch, so that it does not count towards
the memory of contenders that do without.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from math import inf
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from unetrt.runtime.errors import InferenceError, UnetrtError, one_line
from unetrt.runtime.machine import handle_of

# Uncounted and counted runs of a round; the median of the counted ones is the round's value.
WARM_UP, COUNTED = 1, 3
# Seconds in which a process must end after its answer.
GRACE = 20.0
# Characters of an error message that are kept; a compiler writes pages.
QUOTED = 300
# The Linux kernel's power capping framework: energy counters in microjoules, one a processor.
POWERCAP = Path("/sys/class/powercap")

T = TypeVar("T")


def fresh(work: Callable[..., T], *given: Any) -> T:
    """Return the result of a module's function, called in a new process.

    The process is spawned, not forked: a fork would inherit this one's threads and memory. It ends with this one, even
    if this one is killed, and ignores Ctrl-C, which ends this one.

    Raises
    ------
    UnetrtError
        The function raised it.
    InferenceError
        The function raised another error, or its process died.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, given), daemon=True)
    with _without_interrupts():
        process.start()
    theirs.close()
    try:
        failed, answer = ours.recv()
    except EOFError:
        process.join()
        raise InferenceError(f"its process died (exit status {process.exitcode}); is there enough memory?") from None
    except KeyboardInterrupt:
        process.kill()
        raise
    finally:
        ours.close()
        # One that ends regularly ends its own children, such as those of torch's compiler; a killed one does not.
        process.join(GRACE)
        if process.is_alive():
            process.terminate()
            process.join()
    if failed:
        raise answer
    return answer  # type: ignore[no-any-return]


def _answer(connection: Connection, work: Callable[..., Any], given: tuple[Any, ...]) -> None:
    """Send the result or the error of a function; runs in the new process."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = (False, work(*given))
    except UnetrtError as error:
        answer = (True, error)
    except Exception as error:  # noqa: BLE001 - any error: the caller raises it
        answer = (True, InferenceError(summary(error)))
    with suppress(BrokenPipeError):
        connection.send(answer)


def _end_with_parent() -> None:
    """End this process when the one that spawned it has ended, if need be in the middle of its work."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Block SIGINT inside; it arrives afterwards. Processes that start inside never get it, their imports included."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def summary(error: Exception) -> str:
    """Return an error's type and message in one line of at most `QUOTED` characters."""
    return one_line(error, QUOTED, kind=True)


def in_turn(
    runs: Mapping[str, Callable[[], object]],
    counted: int = COUNTED,
    enough: float = inf,
    clock: Callable[[], float] = time.perf_counter,
    watch: Callable[[str], AbstractContextManager[None]] = lambda _: nullcontext(),
) -> dict[str, list[float]]:
    """Time all runs in turn, after `WARM_UP` uncounted turns.

    Parameters
    ----------
    runs
        By name.
    counted
        Counted turns, at most.
    enough
        Seconds of counted turns after which no further one begins; there is one at least.
    clock
        In seconds.
    watch
        Surrounds each counted run, outside its time; called with its name.

    Returns
    -------
    The seconds of each counted run, by name.
    """
    for _ in range(WARM_UP):
        for run in runs.values():
            run()
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begun = clock()
    for turn in range(counted):
        if turn and clock() - begun >= enough:
            break
        for name, run in runs.items():
            with watch(name):
                begin = clock()
                run()
                seconds[name].append(clock() - begin)
    return seconds


@contextmanager
def one_core() -> Iterator[None]:
    """Keep this thread on one core, the last that it may use, where the system allows that."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def peak_memory() -> int | None:
    """Return the peak of this process's resident memory in bytes; None where the system does not report it."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            # Not getrusage: its peak survives exec, so that a child begins with its parent's.
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "darwin":
        usage: Any = import_module("resource")
        return int(usage.getrusage(usage.RUSAGE_SELF).ru_maxrss)
    if find_spec("psutil"):
        peak: int | None = getattr(import_module("psutil").Process().memory_info(), "peak_wset", None)
        return peak
    return None


def device_memory() -> int | None:
    """Return the bytes that all processes use on the first GPU; None where its driver does not report them."""
    used: int | None = _of_gpu(lambda nvml, gpu: int(nvml.nvmlDeviceGetMemoryInfo(gpu).used))
    return used


def joules(gpu: bool) -> float | None:
    """Return the energy counter of the processors, or of the first GPU; None if no counter is readable."""
    if gpu:
        total: float | None = _of_gpu(lambda nvml, device: nvml.nvmlDeviceGetTotalEnergyConsumption(device) / 1e3)
        return total
    with suppress(OSError, ValueError):
        counters = [int((zone / "energy_uj").read_text()) for zone in _packages()]
        return sum(counters) / 1e6 if counters else None
    return None


def joules_between(before: float | None, after: float | None) -> float | None:
    """Return the joules between two readings; None where one is missing, or the counter wrapped around."""
    if before is None or after is None:
        return None
    return after - before if after >= before else None


def _packages() -> list[Path]:
    """Return the processors' zones, without their subzones; a laptop lists its processor under a second name too."""
    return [zone for zone in sorted(POWERCAP.glob("intel-rapl:*")) if zone.name.count(":") == 1 and _is_package(zone)]


def _is_package(zone: Path) -> bool:
    with suppress(OSError):
        return (zone / "name").read_text().startswith("package")
    return False


def _of_gpu(ask: Callable[[Any, Any], Any]) -> Any:
    """Return what NVIDIA's management library reports of the first GPU in CUDA's order, or None."""
    if not find_spec("pynvml"):
        return None
    nvml: Any = import_module("pynvml")
    with suppress(nvml.NVMLError):
        return ask(nvml, _first_gpu())
    return None


@cache
def _first_gpu() -> Any:
    """Open the management library, until the process ends, and return its handle of that GPU."""
    nvml: Any = import_module("pynvml")
    nvml.nvmlInit()
    return handle_of(nvml, 0)

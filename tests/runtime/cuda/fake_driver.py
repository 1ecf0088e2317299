"""A fake of `Driver`: memory is the host's, streams run late and in a random order, and every call is recorded.

Work of a stream runs only when somebody waits for it, or by chance at other calls: premature reads of a copy, memory
that is used twice at once and missing waits all show. Errors of use are collected in `violations`.
"""

import ctypes
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.runtime.cuda.fake_gpu.host_kernels import host_kernels
from unetrt.runtime.cuda.driver import Rows
from unetrt.runtime.errors import CudaError, OutOfMemoryError
from unetrt.runtime.sessions.cuda import RESERVE

POISON = 0xEE
# The stream of another library: the legacy default stream.
OTHERS = 1


class AskedForError(CudaError):
    """The error that the test asked for."""


@dataclass
class Mark:
    """One record of an event."""

    done: bool = False
    time: float = 0.0


@dataclass
class Work:
    """Something a stream has to do, once `ready`."""

    name: str
    run: Callable[[], None]
    ready: Callable[[], bool] = lambda: True


@dataclass
class Call:
    """A call that was made, or work that was done, and on which stream."""

    name: str
    stream: int = 0
    arguments: tuple = field(default=())


class FakeDriver:
    """One device. `fail_at` is the number of the call that fails, counted by `count`; `chance` that work runs early."""

    implementation = "fake"
    captures = True

    def __init__(self, seed=0, total=2**30, index=0, chance=0.3, captures=True):
        self.index, self.name, self.captures = index, "Fake GPU", captures
        self.calls: list[Call] = []
        self.done: list[Call] = []
        self.violations: list[str] = []
        self.count, self.fail_at, self.failed, self.error = 0, None, None, AskedForError
        self.total, self.taken = total + RESERVE, 0
        self.opened, self.released = 1, 0
        self.live: dict[int, str] = {}
        self._memory: dict[int, object] = {}
        self._graves: dict[int, object] = {}
        self._streams: dict[int, deque[Work]] = {OTHERS: deque()}
        self._capturing: dict[int, list[Work]] = {}
        self._graphs: dict[int, list[Work]] = {}
        self.ahead = 0.0  # seconds by which its clock is ahead of the host's: what fake engines claim to have taken
        self._marks: dict[int, Mark | None] = {}
        self._contexts = threading.local()
        self._lock = threading.RLock()
        self._numbers = iter(range(OTHERS + 1, 10**9))
        self._random, self._chance = random.Random(seed), chance
        self._functions: list[str] = []

    # Context

    def push(self):
        if self.released == self.opened:
            self.violations.append("push after release")
        self._stack().append(self)

    def pop(self):
        self._stack().pop()

    def release(self):
        self.released += 1
        if self.live and self.released == self.opened:
            self.violations.append(f"released with {sorted(self.live.values())}")

    def _stack(self):
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        return self._contexts.stack

    # Memory

    def memory(self):
        self._note("memory")
        return self.total - self.taken, self.total

    def allocate(self, size):
        self._note("allocate", 0, size)
        if self.taken + size > self.total:
            raise OutOfMemoryError("allocate failed: out of memory")
        self.taken += size
        return self._new_memory("buffer", size)

    def free(self, address):
        self.taken -= self._size(address)
        self._free("free", address)

    def allocate_pinned(self, size):
        self._note("allocate_pinned", 0, size)
        return self._new_memory("pinned", size)

    def free_pinned(self, address):
        self._free("free_pinned", address)

    def copy_in(self, device, host, size, stream):
        self._note("copy_in", stream, device, host, size)
        before = ctypes.string_at(host, size)

        def run():
            if ctypes.string_at(host, size) != before:
                self.violations.append("host memory was written before its copy was made")
            self._use(host, device)
            ctypes.memmove(device, before, size)

        self._give(stream, Work("copy_in", run))

    def copy_out(self, host, device, size, stream):
        self._note("copy_out", stream, host, device, size)
        if stream not in self._capturing:
            ctypes.memset(host, POISON, size)

        def run():
            self._use(host, device)
            ctypes.memmove(host, device, size)

        self._give(stream, Work("copy_out", run))

    def copy_rows(self, target: Rows, source: Rows, width, height, stream):
        self._note("copy_rows", stream, target, source, width, height)

        def run():
            for row in range(height):
                ctypes.memmove(target.address + row * target.pitch, source.address + row * source.pitch, width)

        self._give(stream, Work("copy_rows", run))

    def fill(self, address, byte, size, stream):
        self._note("fill", stream, address, byte, size)
        self._give(stream, Work("fill", lambda: ctypes.memset(address, byte, size)))

    # Streams and events

    def create_stream(self):
        self._note("create_stream")
        number = self._new("stream")
        self._streams[number] = deque()
        return number

    def destroy_stream(self, stream):
        self._note("destroy_stream", stream)
        if self._streams.pop(stream):
            self.violations.append("a stream was freed before its work was done")
        self._gone(stream)

    def synchronize_stream(self, stream):
        self._note("synchronize_stream", stream)
        self._run_until(lambda: not self._streams[stream])

    def create_event(self):
        self._note("create_event")
        number = self._new("event")
        self._marks[number] = None
        return number

    def destroy_event(self, event):
        self._note("destroy_event", 0, event)
        del self._marks[event]
        self._gone(event)

    def record(self, event, stream):
        self._note("record", stream, event)
        mark = self._marks[event] = Mark()

        def run():
            mark.done, mark.time = True, time.perf_counter() + self.ahead

        self._give(stream, Work("record", run))

    def wait_for(self, stream, event):
        self._note("wait_for", stream, event)
        mark = self._marks[event]
        if mark is not None:
            self._give(stream, Work("wait_for", lambda: None, lambda: mark.done))

    def synchronize_event(self, event):
        self._note("synchronize_event", 0, event)
        mark = self._marks[event]
        self._run_until(lambda: mark is None or mark.done)

    def elapsed(self, begin, end):
        self._note("elapsed", 0, begin, end)
        marks = self._marks[begin], self._marks[end]
        if not all(mark and mark.done for mark in marks):
            raise CudaError("elapsed failed: an event has not completed")
        return marks[1].time - marks[0].time

    # Graphs

    def begin_capture(self, stream):
        self._note("begin_capture", stream)
        self._capturing[stream] = []

    def end_capture(self, stream):
        captured = self._capturing.pop(stream, None)
        self._note("end_capture", stream)
        if captured is None:
            raise CudaError("end_capture failed: the stream is not captured")
        number = self._new("graph")
        self._graphs[number] = captured
        return number

    def launch_graph(self, graph, stream):
        self._note("launch_graph", stream, graph)
        for work in self._graphs[graph]:
            self._give(stream, work)

    def destroy_graph(self, graph):
        self._note("destroy_graph", 0, graph)
        del self._graphs[graph]
        self._gone(graph)

    # Kernels

    def load_module(self, ptx):
        self._note("load_module")
        return self._new("module")

    def unload_module(self, module):
        self._note("unload_module", 0, module)
        self._gone(module)

    def function(self, module, name):
        self._note("function", 0, module, name)
        self._functions.append(name)
        return len(self._functions) - 1

    def launch(self, function, grid, block, argument, stream):
        self._note("launch", stream, function, grid, block)
        name = self._functions[function]
        self._give(stream, Work(name, lambda: host_kernels().run(name, grid, block, argument)))

    # What a fake engine needs

    def compute(self, stream, run):
        """Give work to a stream as an engine does."""
        self._note("compute", stream)
        self._give(stream, Work("compute", run))

    def array(self, address, shape, dtype):
        """Return memory as an array."""
        count = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_uint8 * count).from_address(address), dtype).reshape(shape)

    def require_current(self, what):
        """Note a violation where this device is not the calling thread's."""
        if not self._stack():
            self.violations.append(f"{what} without a current context")

    def is_capturing(self, stream):
        return stream in self._capturing

    def forget_work(self):
        """Do nothing of what streams were given, as a device that is lost."""
        for queue in self._streams.values():
            queue.clear()

    # Inside

    def _note(self, name, stream=0, *arguments):
        """Record a call, fail if it is the chosen one, and execute some pending work."""
        with self._lock:
            self.calls.append(Call(name, stream, arguments))
            self.require_current(name)
            number, self.count = self.count, self.count + 1
            if number == self.fail_at:
                self.failed = name
                if name.startswith("synchronize"):  # whatever went wrong, nothing runs any more
                    self._run_until(lambda: not any(self._streams.values()))
                raise self.error(f"{name} failed: as the test asked")
            while self._random.random() < self._chance:
                if not self._step():
                    break

    def _give(self, stream, work):
        with self._lock:
            if stream in self._capturing:
                self._capturing[stream].append(work)
            else:
                self._streams[stream].append(work)

    def _step(self):
        """Do one piece of work of a random stream; return whether there was any."""
        able = [number for number, queue in self._streams.items() if queue and queue[0].ready()]
        if not able:
            return False
        stream = self._random.choice(able)
        work = self._streams[stream].popleft()
        self.done.append(Call(work.name, stream))
        work.run()
        return True

    def _run_until(self, reached):
        with self._lock:
            while not reached():
                if not self._step():
                    raise AssertionError("deadlock: what is waited for never comes to pass")

    def _new(self, kind):
        with self._lock:
            number = next(self._numbers)
            self.live[number] = kind
            return number

    def _new_memory(self, kind, size):
        memory = (ctypes.c_uint8 * size)()
        address = ctypes.addressof(memory)
        ctypes.memset(address, POISON, size)
        self._memory[address], self.live[address] = memory, kind
        return address

    def _use(self, *addresses):
        if not self._graves.keys().isdisjoint(addresses):
            self.violations.append("memory was used after it was freed")

    def _size(self, address):
        return ctypes.sizeof(self._memory[address])

    def _free(self, name, address):
        self._note(name, 0, address)
        self._graves[address] = self._memory.pop(address)  # kept, so that a later use is detected instead of crashing
        self._gone(address)

    def _gone(self, handle):
        with self._lock:
            del self.live[handle]

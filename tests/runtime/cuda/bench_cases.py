"""Cases of the CUDA contract that need its context, a stream and memory."""

import ctypes
import os
import struct
import threading
import time

from tests.runtime.cuda.workbench import IS_FAKE, PIXELS, in_another_thread, raised
from unetrt.runtime.cuda.arrays import LEGACY_STREAM
from unetrt.runtime.cuda.driver import Rows
from unetrt.runtime.errors import CudaError, OutOfMemoryError

PTX = b".version 7.0\n.visible .entry scale(.param .align 8 .b8 argument[24]) { ret; }"
ROOM_FOR_A_LAUNCH = 64
GPU_TICK = 1e-3  # what each operation takes on the fake GPU's clock, in seconds


def there_and_back(driver, bench):
    driver.copy_in(bench.buffer, bench.host, 128, bench.stream)
    driver.copy_out(bench.result, bench.buffer, 128, bench.stream)
    assert bench.read() == bytes(128) or not IS_FAKE, "nothing is done before something waits"
    driver.synchronize_stream(bench.stream)
    assert bench.read() == PIXELS


def filled(driver, bench):
    driver.fill(bench.buffer, 200, 128, bench.stream)
    driver.fill(bench.buffer + 100, 7, 20, bench.stream)
    driver.copy_out(bench.result, bench.buffer, 128, bench.stream)
    driver.synchronize_stream(bench.stream)
    assert bench.read() == bytes([200]) * 100 + bytes([7]) * 20 + bytes([200]) * 8


def rows(driver, bench):
    driver.copy_in(bench.buffer, bench.host, 128, bench.stream)
    driver.fill(bench.second, 255, 128, bench.stream)
    driver.copy_rows(Rows(bench.second + 2, 10), Rows(bench.buffer + 2 * 16 + 4, 16), 5, 3, bench.stream)
    driver.copy_out(bench.result, bench.second, 128, bench.stream)
    driver.synchronize_stream(bench.stream)
    expected = bytearray([255]) * 128
    for row in range(3):
        begin = (2 + row) * 16 + 4
        expected[2 + row * 10 : 7 + row * 10] = PIXELS[begin : begin + 5]
    assert bench.read() == expected


def order_across_streams(driver, bench):
    driver.fill(bench.buffer, 1, 128, bench.other)
    driver.copy_in(bench.buffer, bench.host, 128, bench.stream)
    driver.record(bench.events[0], bench.stream)
    driver.wait_for(bench.other, bench.events[0])
    driver.copy_out(bench.result, bench.buffer, 128, bench.other)
    driver.synchronize_stream(bench.other)
    assert bench.read() == PIXELS


def events(driver, bench):
    begin, end = bench.events
    driver.record(begin, bench.stream)
    driver.copy_in(bench.buffer, bench.host, 128, bench.stream)
    driver.copy_out(bench.result, bench.buffer, 128, bench.stream)
    driver.record(end, bench.stream)
    driver.fill(bench.buffer, 1, 128, bench.stream)
    driver.copy_out(bench.result, bench.buffer, 128, bench.stream)
    driver.synchronize_event(end)
    assert bench.read() == PIXELS, "what comes after the event is not waited for"
    assert abs(driver.elapsed(begin, end) - 2 * GPU_TICK) < 1e-6
    driver.synchronize_stream(bench.stream)
    assert bench.read() == bytes([1]) * 128


def the_stream_of_another_library(driver, bench):
    event, _ = bench.events
    driver.record(event, LEGACY_STREAM)
    driver.wait_for(bench.stream, event)
    driver.copy_in(bench.buffer, bench.host, 128, bench.stream)
    driver.copy_out(bench.result, bench.buffer, 128, bench.stream)
    driver.synchronize_stream(bench.stream)
    assert bench.read() == PIXELS


def graph(driver, bench):
    driver.begin_capture(bench.stream)
    driver.copy_in(bench.buffer, bench.host, 128, bench.stream)
    driver.copy_out(bench.result, bench.buffer, 128, bench.stream)
    driver.free(in_another_thread(driver, lambda: driver.allocate(1)))
    captured = driver.end_capture(bench.stream)
    driver.synchronize_stream(bench.stream)
    assert bench.read() == bytes(128), "what is captured is not done"
    for value in (3, 9):
        ctypes.memset(bench.host, value, 128)
        driver.launch_graph(captured, bench.stream)
        driver.synchronize_stream(bench.stream)
        assert bench.read() == bytes([value]) * 128
    driver.destroy_graph(captured)


def a_graph_that_cannot_be_made(driver, bench):
    driver.begin_capture(bench.stream)
    driver.fill(bench.buffer, 1, 128, bench.stream)
    said = raised(CudaError, driver.end_capture, bench.stream)
    assert said.startswith("cuGraphInstantiate failed: CUDA_ERROR_INVALID_VALUE"), said
    there_and_back(driver, bench)


def no_graphs(driver, bench):
    assert "use cuda-python" in raised(CudaError, driver.begin_capture, bench.stream)
    assert "use cuda-python" in raised(CudaError, driver.end_capture, bench.stream)
    assert "use cuda-python" in raised(CudaError, driver.launch_graph, 1, bench.stream)
    assert "use cuda-python" in raised(CudaError, driver.destroy_graph, 1)


def kernels(driver, bench):
    module = driver.load_module(PTX)
    kernel = driver.function(module, "scale")
    argument = struct.pack("<QdQ", bench.buffer, 1.5, 2**40)
    driver.launch(kernel, (7, 6, 5), (32, 4, 2), argument, bench.stream)
    del argument
    driver.copy_out(bench.result, bench.buffer, ROOM_FOR_A_LAUNCH, bench.stream)
    driver.synchronize_stream(bench.stream)
    assert struct.unpack("<6IQdQ", bench.read()[:48]) == (7, 6, 5, 32, 4, 2, bench.buffer, 1.5, 2**40)
    assert "cuModuleGetFunction failed" in raised(CudaError, driver.function, module, "shrink")
    driver.unload_module(module)
    assert "cuModuleLoadData" in raised(CudaError, driver.load_module, b"no PTX")


# What asks for a call of the driver, by the call's name.
STEPS = {
    "cuMemGetInfo": lambda driver, bench: driver.memory(),
    "cuMemAlloc": lambda driver, bench: driver.allocate(1),
    "cuMemHostAlloc": lambda driver, bench: driver.allocate_pinned(1),
    "cuMemcpyHtoDAsync": lambda driver, bench: driver.copy_in(bench.buffer, bench.host, 1, bench.stream),
    "cuMemcpyDtoHAsync": lambda driver, bench: driver.copy_out(bench.result, bench.buffer, 1, bench.stream),
    "cuMemcpy2DAsync": lambda driver, bench: driver.copy_rows(
        Rows(bench.buffer, 1), Rows(bench.second, 1), 1, 1, bench.stream
    ),
    "cuMemsetD8Async": lambda driver, bench: driver.fill(bench.buffer, 1, 1, bench.stream),
    "cuStreamCreate": lambda driver, bench: driver.create_stream(),
    "cuStreamSynchronize": lambda driver, bench: driver.synchronize_stream(bench.stream),
    "cuEventCreate": lambda driver, bench: driver.create_event(),
    "cuEventRecord": lambda driver, bench: driver.record(bench.events[0], bench.stream),
    "cuStreamWaitEvent": lambda driver, bench: driver.wait_for(bench.stream, bench.events[0]),
    "cuEventSynchronize": lambda driver, bench: driver.synchronize_event(bench.events[0]),
    "cuEventElapsedTime": lambda driver, bench: driver.elapsed(*bench.events),
}


def failures_are_named(driver, bench):
    for name, step in STEPS.items():
        for code, kind, text in ((2, OutOfMemoryError, "out of memory"), (400, CudaError, "invalid resource handle")):
            os.environ["FAKE_CUDA_FAIL"] = f"{name}:1:{code}"
            said = raised(kind, step, driver, bench)
            assert said.startswith(f"{name} failed: "), said
            assert text in said, said
    del os.environ["FAKE_CUDA_FAIL"]


def out_of_memory(driver, bench):
    free, total = driver.memory()
    assert (free, total) == ((256 << 20) - 256, 256 << 20)
    said = raised(OutOfMemoryError, driver.allocate, 257 << 20)
    assert said.startswith("cuMemAlloc failed: "), said
    assert "out of memory" in said
    assert driver.memory() == (free, total)


def without_a_context(driver, bench):
    driver.pop()
    said = raised(CudaError, driver.fill, bench.buffer, 1, 128, bench.stream)
    assert said.startswith("cuMemsetD8Async failed: "), said
    assert "invalid device context" in said
    driver.push()


def another_thread(driver, bench):
    assert "invalid device context" in in_another_thread(driver, lambda: raised(CudaError, driver.memory), push=False)
    in_another_thread(driver, lambda: there_and_back(driver, bench))


def waiting_lets_others_run(driver, bench):
    driver.record(bench.events[0], bench.stream)
    for wait, what in ((driver.synchronize_event, bench.events[0]), (driver.synchronize_stream, bench.stream)):
        begun = time.perf_counter()
        with Ticking() as ticking:
            wait(what)
        assert time.perf_counter() - begun > 0.25
        assert ticking.count > 5, f"another thread ran {ticking.count} times"
    with Ticking() as ticking:
        ctypes.PyDLL("libcuda.so.1").cuStreamSynchronize(None)  # which keeps Python's lock
    assert ticking.count <= 5, "the count would not tell"


class Ticking:
    """A thread that counts how often it gets to run while something else goes on."""

    def __enter__(self):
        self.count, self.stop = 0, threading.Event()
        self.thread = threading.Thread(target=self.tick)
        self.thread.start()
        return self

    def tick(self):
        while not self.stop.wait(0.005):
            self.count += 1

    def __exit__(self, *error):
        self.stop.set()
        self.thread.join()


BENCH_CASES = (
    there_and_back,
    filled,
    rows,
    order_across_streams,
    the_stream_of_another_library,
    events,
    kernels,
    failures_are_named,
    out_of_memory,
    without_a_context,
    another_thread,
    waiting_lets_others_run,
    graph,
    a_graph_that_cannot_be_made,
    no_graphs,
)

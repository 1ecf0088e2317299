"""What cases of the CUDA contract work with."""

import ctypes
import os
import threading

# Which device cases run on: the second of the fake libcuda, or a real one that the variable names.
VARIABLE = "UNETRT_TEST_DEVICE"
DEVICE, IS_FAKE = int(os.environ.get(VARIABLE, "1")), VARIABLE not in os.environ

# Each pixel is its own coordinate, in 8 rows of 16 bytes.
PIXELS = bytes(range(128))


class Workbench:
    """A stream with pinned memory and a buffer of 128 bytes, all freed at the end."""

    def __init__(self, driver):
        self.driver = driver
        self.stream, self.other = driver.create_stream(), driver.create_stream()
        self.host, self.result = driver.allocate_pinned(128), driver.allocate_pinned(128)
        self.buffer, self.second = driver.allocate(128), driver.allocate(128)
        self.events = [driver.create_event() for _ in range(2)]
        ctypes.memmove(self.host, PIXELS, 128)
        ctypes.memset(self.result, 0, 128)

    def read(self):
        return ctypes.string_at(self.result, 128)

    def close(self):
        for event in self.events:
            self.driver.destroy_event(event)
        for address in (self.buffer, self.second):
            self.driver.free(address)
        for address in (self.host, self.result):
            self.driver.free_pinned(address)
        for stream in (self.stream, self.other):
            self.driver.destroy_stream(stream)


def raised(kind, step, *arguments):
    try:
        step(*arguments)
    except kind as error:
        return str(error)
    raise AssertionError(f"{step} raised nothing")


def in_another_thread(driver, step, push=True):
    results = []

    def work():
        if push:
            driver.push()
        results.append(step())
        if push:
            driver.pop()

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    (result,) = results
    return result

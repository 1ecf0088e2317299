"""Cases of `Driver` that need a process each: contexts, process exit, choice of the binding."""

import atexit
import ctypes
import os
import sys
import threading

from tests.runtime.cuda.bench_cases import there_and_back
from tests.runtime.cuda.workbench import DEVICE, Workbench, raised
from unetrt.runtime.cuda.driver import DeviceProperties, loaded_binding, open_driver, why_not
from unetrt.runtime.errors import CudaError, OutOfMemoryError


def device():
    driver = open_driver(1, os.environ)
    assert (driver.index, driver.name) == (1, "Fake GPU B")
    name, version = driver.implementation.split()
    assert name == os.environ["UNETRT_CUDA"]
    assert int(version.split(".")[0]) >= 12
    assert driver.captures == (name == "cuda-python")
    driver.release()


class Host:
    """A host program with its own context, which calls the driver library directly."""

    def __init__(self):
        libcuda = ctypes.CDLL("libcuda.so.1")
        libcuda.cuInit(0)
        context = ctypes.c_void_p()
        assert libcuda.cuCtxCreate_v2(ctypes.byref(context), 0, 0) == 0
        self.context = context.value

    def is_current(self):
        return self.current() == self.context

    @staticmethod
    def current():
        context = ctypes.c_void_p()
        assert ctypes.CDLL("libcuda.so.1").cuCtxGetCurrent(ctypes.byref(context)) == 0
        return context.value


def host_program():
    host = Host()
    driver = open_driver(DEVICE, os.environ)
    assert host.is_current()
    driver.push()
    assert not host.is_current()
    bench = Workbench(driver)
    there_and_back(driver, bench)
    bench.close()
    driver.pop()
    assert host.is_current()
    driver.release()
    assert host.is_current()


def host_program_with_pycuda():
    from pycuda import driver as pycuda

    pycuda.init()
    host = pycuda.Device(0).make_context()
    current = Host.current()
    driver = open_driver(DEVICE, os.environ)
    driver.push()
    assert Host.current() != current
    driver.pop()
    driver.release()
    assert Host.current() == current
    host.pop()
    assert Host.current() is None


def a_release_that_fails():
    driver = open_driver(0, os.environ)
    name = "cuDevicePrimaryCtxRelease" if driver.captures else "cuCtxPushCurrent"
    os.environ["FAKE_CUDA_FAIL"] = f"{name}:1:201"
    said = raised(CudaError, driver.release)
    del os.environ["FAKE_CUDA_FAIL"]
    assert said.startswith(f"{name} failed: "), said


def a_context_that_cannot_be_had():
    os.environ["FAKE_CUDA_FAIL"] = "cuDevicePrimaryCtxRetain:1:2"
    raised(OutOfMemoryError, open_driver, 0, os.environ)


def two_drivers_of_one_device():
    first, second = open_driver(0, os.environ), open_driver(0, os.environ)
    first.push()
    first.pop()
    first.release()
    second.push()
    bench = Workbench(second)
    there_and_back(second, bench)
    bench.close()
    second.pop()
    second.release()


def released_by_another_thread():
    driver = open_driver(0, os.environ)
    worker = threading.Thread(target=driver.release)
    worker.start()
    worker.join()


def released_at_exit():
    driver = open_driver(0, os.environ)
    driver.push()
    stream = driver.create_stream()
    driver.pop()

    def close():
        driver.push()
        driver.destroy_stream(stream)
        driver.pop()
        driver.release()

    atexit.register(close)


def chosen_without_the_variable():
    name = os.environ.pop("UNETRT_CUDA")
    sys.modules["pycuda" if name == "cuda-python" else "cuda"] = None
    driver = open_driver(0, os.environ)
    assert driver.implementation.startswith(name)
    driver.release()


def only_probed():
    assert why_not() is None
    implementation = loaded_binding()
    assert implementation.devices() == (
        DeviceProperties("Fake GPU A", "8.6", "0000:01:00.0"),
        DeviceProperties("Fake GPU B", "12.0", "0000:02:00.0"),
    )
    assert implementation.cuda_version() == "13.0"


def leaking():
    driver = open_driver(0, os.environ)
    driver.push()
    driver.allocate(1)
    driver.create_event()
    driver.pop()


PROCESS_CASES = (
    device,
    a_context_that_cannot_be_had,
    host_program,
    host_program_with_pycuda,
    two_drivers_of_one_device,
    a_release_that_fails,
    released_by_another_thread,
    released_at_exit,
    chosen_without_the_variable,
    only_probed,
    leaking,
)

"""Runs one case against the real Python packages, on the fake libcuda that the loader finds first.

    python -m tests.runtime.cuda.driver_cases CASE

Each runs in a separate process: the stub library records what is not freed when it ends.
"""

import os
import sys

from tests.runtime.cuda.bench_cases import BENCH_CASES
from tests.runtime.cuda.lane_cases import LANE_CASES
from tests.runtime.cuda.process_cases import PROCESS_CASES
from tests.runtime.cuda.workbench import DEVICE, Workbench
from unetrt.runtime.cuda.driver import open_driver

# PyCUDA links to all of the driver; the library has only what is called.
sys.setdlopenflags(os.RTLD_LAZY)


def on_a_workbench(case):
    def run():
        driver = open_driver(DEVICE, os.environ)
        driver.push()
        bench = Workbench(driver)
        case(driver, bench)
        bench.close()
        driver.pop()
        driver.release()

    return run


CASES = {case.__name__: on_a_workbench(case) for case in BENCH_CASES}
CASES |= {case.__name__: case for case in (*PROCESS_CASES, *LANE_CASES)}

if __name__ == "__main__":
    CASES[sys.argv[1]]()

"""What single tests need beside the packages that `make test` installs, and the command that brings each.

A test that lacks one is skipped for the reason that stands here; `lines_about_skips` lists the reasons at the end of a
run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from _pytest.reports import BaseReport, CollectReport

# Debian's packages are named there, for `.ci/run` too; `$(cat ...)` works in the clone's root.
_DEBIAN = "apt-get install --no-install-recommends $(cat .ci/debian-packages)"

C_COMPILER = "needs Linux and a C compiler: apt-get install gcc"
CHROMIUM = f"needs Chromium and its driver: {_DEBIAN}"
CPP_COMPILER = "needs a C++ compiler: apt-get install g++"
CUDA_PYTHON = "needs cuda-python (Linux on x86-64): pip install 'cuda-bindings>=12'"
CUDA_TOOLKIT = "needs nvcc and ptxas of the CUDA toolkit: https://developer.nvidia.com/cuda-downloads"
GIT = "needs git: apt-get install git"
MAKE = "needs make: apt-get install make"
MICRO_MANAGER = "needs Micro-Manager's demo devices (Linux on x86-64): pip install -e '.[acquire]' mm-test-adapters"
MONAI = "needs MONAI: pip install -e '.[bench]'"
NAPARI = "needs napari: pip install -e '.[napari]' 'napari[pyqt6]'"
NVTX = "needs nvtx: pip install 'nvtx>=0.2.10'"
PYCUDA = "needs PyCUDA: pip install pycuda, which compiles it with g++, Python's headers and CUDA's toolkit"
RTX = "needs TensorRT for RTX (Linux on x86-64): pip install tensorrt-rtx-cu13"
X_SERVER = f"needs an X server and the libraries that Qt draws with: {_DEBIAN}"
ZARR = "needs zarr: pip install -e '.[zarr]'"


def lines_about_skips(reports: Iterable[BaseReport]) -> Iterator[str]:
    """Yield how many tests were skipped for each reason, most first.

    Parameters
    ----------
    reports
        pytest's reports of what was skipped: tests, and files skipped as a whole, whose tests nobody has counted.
    """
    skipped = Counter(
        (str(report.longrepr[2]).removeprefix("Skipped: "), isinstance(report, CollectReport))
        for report in reports
        if isinstance(report.longrepr, tuple)
    )
    for (reason, whole_file), count in skipped.most_common():
        what = f"{'file' if whole_file else 'test'}{'s' if count > 1 else ''}:"
        yield f"{count:4d} {what:6} {reason}"

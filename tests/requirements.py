"""Requirements of some tests beyond what `make test` installs, each with the command that installs it.

A test without its requirement is skipped with one of these reasons; `lines_about_skips` lists them at the end of a run.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from _pytest.reports import BaseReport, CollectReport

# .ci/debian-packages lists the packages, also for `.ci/run`; `$(cat ...)` works in the root of a clone.
_DEBIAN = "apt-get install --no-install-recommends $(cat .ci/debian-packages)"

C_COMPILER = "needs Linux and a C compiler: apt-get install gcc"
CHROMIUM = f"needs Chromium and its driver: {_DEBIAN}"
CODECS = "needs imagecodecs: pip install -e '.[codecs]'"
CPP_COMPILER = "needs a C++ compiler: apt-get install g++"
CUDA_PYTHON = "needs cuda-python (Linux on x86-64): pip install 'cuda-bindings>=12'"
CUDA_TOOLKIT = "needs nvcc and ptxas of the CUDA toolkit: https://developer.nvidia.com/cuda-downloads"
DASK = "needs dask: pip install -e '.[distributed]'"
FORMATS = "needs pylibCZIrw, nd2 and liffile: pip install -e '.[formats]'"
GIT = "needs git: apt-get install git"
HDF5 = "needs h5py: pip install h5py"
MAKE = "needs make: apt-get install make"
MICRO_MANAGER = "needs Micro-Manager's demo devices (Linux on x86-64): pip install -e '.[acquire]' mm-test-adapters"
MONAI = "needs MONAI: pip install -e '.[bench]'"
NAPARI = "needs napari: pip install -e '.[napari]' 'napari[pyqt6]'"
NGFF_ZARR = "needs ngff-zarr, which validates OME-Zarr: pip install ngff-zarr"
NVTX = "needs nvtx: pip install 'nvtx>=0.2.10'"
OME_ZARR_WRITER = "needs yaozarrs, which writes OME-Zarr: pip install -e '.[acquire]'"
PYCUDA = "needs PyCUDA: pip install pycuda, which compiles it with g++, Python's headers and CUDA's toolkit"
RTX = "needs TensorRT for RTX (Linux on x86-64): pip install tensorrt-rtx-cu13"
X_SERVER = f"needs an X server and the libraries that Qt draws with: {_DEBIAN}"
ZARR = "needs zarr: pip install -e '.[zarr]'"


def lines_about_skips(reports: Iterable[BaseReport]) -> Iterator[str]:
    """Yield a line for each reason with the number of skipped tests, the most frequent first.

    Parameters
    ----------
    reports
        pytest's reports of skipped tests, and of files skipped at import, whose tests are not counted.
    """
    skipped = Counter(
        (str(report.longrepr[2]).removeprefix("Skipped: "), isinstance(report, CollectReport))
        for report in reports
        if isinstance(report.longrepr, tuple)
    )
    for (reason, whole_file), count in skipped.most_common():
        what = f"{'file' if whole_file else 'test'}{'s' if count > 1 else ''}:"
        yield f"{count:4d} {what:6} {reason}"

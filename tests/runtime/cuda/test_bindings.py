import sys
from importlib.util import find_spec

import pytest

from tests import requirements
from tests.runtime.cuda.conftest import python
from unetrt.runtime.cuda import driver
from unetrt.runtime.cuda.driver import NAMES, open_driver, why_not
from unetrt.runtime.errors import BackendUnavailableError, OptionError

NO_CUDA_PYTHON = "cuda-python is not installed: pip install 'unetrt[rtx]'"
NO_PYCUDA = "pycuda is not installed: pip install 'unetrt[tensorrt]'"
NEITHER = f"{NO_CUDA_PYTHON}; {NO_PYCUDA}"
ASK = "from unetrt.runtime.cuda.driver import why_not; print(why_not())"
OPEN = """
import os
from unetrt.runtime.cuda.driver import open_driver
from unetrt.runtime.errors import OptionError
try:
    open_driver({index}, os.environ)
except OptionError as error:
    print(error)
"""


def said_by(code, libcuda, **variables):
    done = python("-c", code, libcuda=libcuda, **variables)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def nothing_installed(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("cuda.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cuda", None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    monkeypatch.setattr(driver, "_missing_library", lambda: None)


def test_cuda_python_is_tried_first():
    assert NAMES == ("cuda-python", "pycuda")


@pytest.mark.parametrize(
    ("environ", "reason"),
    [({}, NEITHER), ({"UNETRT_CUDA": ""}, NEITHER), ({"UNETRT_CUDA": "pycuda"}, NO_PYCUDA)],
)
def test_without_packages_each_says_what_to_install(nothing_installed, environ, reason):
    with pytest.raises(BackendUnavailableError) as raised:
        open_driver(0, environ)
    assert str(raised.value) == why_not(environ) == reason


def test_the_variable_must_name_one():
    environ = {"UNETRT_CUDA": "cupy"}
    with pytest.raises(
        OptionError, match=r"^UNETRT_CUDA is 'cupy', which is not a CUDA binding: use cuda-python or py"
    ):
        open_driver(0, environ)
    assert "use cuda-python or pycuda" in why_not(environ)


needs_cuda_python = pytest.mark.skipif(find_spec("cuda") is None, reason=requirements.CUDA_PYTHON)


@needs_cuda_python
def test_without_a_driver_it_says_so(broken_libcuda):
    said = said_by(ASK, broken_libcuda)
    assert said.startswith("no NVIDIA driver is installed (")
    assert "libcuda.so.1" in said


@needs_cuda_python
def test_without_a_device_it_says_so(fake_libcuda):
    said = said_by(ASK, fake_libcuda, UNETRT_CUDA="cuda-python", FAKE_CUDA_DEVICES="0")
    assert said == (
        "cuda-python finds no GPU that it can use: "
        "cuInit failed: CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)"
    )


@needs_cuda_python
def test_a_driver_without_memory_is_an_answer_too(fake_libcuda):
    said = said_by(ASK, fake_libcuda, UNETRT_CUDA="cuda-python", FAKE_CUDA_FAIL="cuInit:1:2")
    assert said.startswith("cuda-python finds no GPU that it can use: cuInit failed: CUDA_ERROR_OUT_OF_MEMORY")


def test_a_package_that_does_not_load_says_why(fake_libcuda, tmp_path):
    package = tmp_path / "pycuda"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "driver.py").write_text("raise ImportError('undefined symbol: cuLaunch')\n")
    said = said_by(ASK, fake_libcuda, UNETRT_CUDA="pycuda", PYTHONPATH=str(tmp_path))
    assert said == (
        "pycuda does not load (undefined symbol: cuLaunch): pip install --force-reinstall 'unetrt[tensorrt]'"
    )


@needs_cuda_python
@pytest.mark.parametrize(
    ("index", "devices", "known"),
    [(2, 2, "there are 2: 0 (Fake GPU A), 1 (Fake GPU B)"), (-1, 1, "there is 1: 0 (Fake GPU A)")],
)
def test_a_device_that_is_not_there_names_those_that_are(fake_libcuda, index, devices, known):
    said = said_by(OPEN.format(index=index), fake_libcuda, UNETRT_CUDA="cuda-python", FAKE_CUDA_DEVICES=str(devices))
    assert said == f"there is no CUDA device {index}; {known}"


def test_importing_the_table_imports_no_package(fake_libcuda):
    said = said_by(
        "import sys, unetrt.runtime.cuda.driver\nprint({'cuda.bindings.driver', 'pycuda', 'numpy'} & set(sys.modules))",
        fake_libcuda,
    )
    assert said == "set()"

"""Loads CUDA and cuDNN for ONNX Runtime from NVIDIA's wheels, and names the libraries that are missing.

ONNX Runtime's CUDA provider refers to these libraries by name alone, and NVIDIA's wheels install them where no loader
looks. A library that is already loaded satisfies such a reference, so each is loaded here first, by its absolute path::

    site-packages/nvidia/cu13/lib/libcublas.so.13         CUDA 13, one folder for all of CUDA
    site-packages/nvidia/cublas/lib/libcublas.so.12       CUDA 12, a folder for each component
    site-packages/nvidia/cudnn/lib/libcudnn.so.9          cuDNN
    site-packages/nvidia/cu13/bin/x86_64/cublas64_13.dll  the same on Windows; bin/ with CUDA 12

There may be several such `nvidia` folders, and both CUDA majors in one of them. Libraries that the process has already
loaded, such as torch's, are used: two copies of a library would not share their state. Libraries that no wheel has are
looked up by the system's loader. References by name do not need the symbols to be global (RTLD_GLOBAL).
"""

import ctypes
import logging
import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

log = logging.getLogger("unetrt")

WINDOWS = sys.platform == "win32"


@dataclass(frozen=True)
class Library:
    """One library of CUDA, or cuDNN.

    Attributes
    ----------
    stem
        Its name without prefix, version and suffix.
    folder
        The folder of its wheel below `nvidia`, where that is not CUDA's common folder.
    package
        The wheel for CUDA 13; for CUDA 12 its name ends in `-cu12`.
    versions
        CUDA's major version -> the library's version, which is part of its file name.
    required
        Whether every model needs it. Others are needed by some builds of ONNX Runtime, or some operators.
    """

    stem: str
    folder: str
    package: str
    versions: dict[int, str]
    required: bool = True

    def file(self, major: int, windows: bool = WINDOWS) -> str:
        """Return its file name for CUDA `major`."""
        version = self.versions[major]
        if not windows:
            return f"lib{self.stem}.so.{version}"
        # NVRTC's name also has the minor version, which stays 0, and another digit.
        return f"{self.stem}64_{version}0_0.dll" if self.stem == "nvrtc" else f"{self.stem}64_{version}.dll"

    def requirement(self, major: int) -> str:
        """Return pip's requirement for CUDA `major`."""
        package = self.package if major == 13 else f"{self.package.removesuffix('-cu13')}-cu{major}"
        return f"'{package}=={self.versions[major]}.*'"


_OWN = {12: "12", 13: "13"}
# In the order of their references to each other.
CUDA = (
    Library("cudart", "cuda_runtime", "nvidia-cuda-runtime", _OWN),
    Library("cublasLt", "cublas", "nvidia-cublas", _OWN),
    Library("cublas", "cublas", "nvidia-cublas", _OWN),
    Library("nvrtc", "cuda_nvrtc", "nvidia-cuda-nvrtc", _OWN, required=False),
    Library("curand", "curand", "nvidia-curand", {12: "10", 13: "10"}),
    Library("cufft", "cufft", "nvidia-cufft", {12: "11", 13: "12"}, required=False),
)
CUDNN = Library("cudnn", "cudnn", "nvidia-cudnn-cu13", {12: "9", 13: "9"})
# Libraries that cuDNN opens by name for convolutions, from its folder (listing of nvidia-cudnn-cu13 9.28).
SUBLIBRARIES = ("graph", "ops", "cnn", "heuristic", "engines_precompiled", "engines_runtime_compiled")


def load_libraries() -> str | None:
    """Load what ONNX Runtime's CUDA provider needs; return None, or one sentence that names what is missing.

    Call it before the provider is loaded for the first time; idempotent.
    """
    import onnxruntime

    major = _major(getattr(onnxruntime, "cuda_version", ""))
    reason = None if major is None else Loader(major, locations(major)).load()
    _preload(onnxruntime, known=major is not None)
    return reason


def cudnn_version() -> str:
    """Return the version of the cuDNN that the process has loaded, such as `92801`; empty without one."""
    with suppress(OSError, AttributeError, KeyError):
        name = CUDNN.file(13)  # the same for each CUDA
        if _is_loaded(name):
            return str(ctypes.CDLL(name).cudnnGetVersion())
    return ""


class Loader:
    """Loads the libraries of one CUDA major.

    Parameters
    ----------
    major
        CUDA's major version.
    places
        Folders named `nvidia`, in the order of search.
    """

    def __init__(self, major: int, places: Sequence[Path]) -> None:
        self._major, self._places = major, places
        self._damaged: dict[str, str] = {}

    def load(self) -> str | None:
        """Load all that can be found; return None, or one sentence that names what is missing and required."""
        missing = [one for one in CUDA if not self._load(one)]
        absent = [one.file(self._major) for one in missing if one.required]
        packages = [one.requirement(self._major) for one in missing if one.required]
        for one in missing:
            log.debug("CUDA library %s is not found", one.file(self._major))
        if unfit := self._cudnn():
            absent += unfit
            packages.append(CUDNN.requirement(self._major))
        if not absent:
            return None
        named = ", ".join(f"{name} ({self._damaged[name]})" if name in self._damaged else name for name in absent)
        force = "--force-reinstall " if self._damaged.keys() & set(absent) else ""
        return (
            f"ONNX Runtime's CUDA provider needs libraries that do not load: {named}; "
            f"pip install {force}{' '.join(dict.fromkeys(packages))}"
        )

    def _cudnn(self) -> list[str]:
        """Load cuDNN; return the names of its files that are missing."""
        name = CUDNN.file(self._major)
        if WINDOWS and not _is_loaded(name):  # Windows does not search the folder of the library that refers to parts
            for path in self._files(CUDNN)[:1]:
                for part in SUBLIBRARIES:
                    self._open(path.parent / _part(part))
        if not self._load(CUDNN):
            return [name]
        folder = _folder_of(name)
        return [] if folder is None else [_part(part) for part in SUBLIBRARIES if not (folder / _part(part)).exists()]

    def _load(self, library: Library) -> bool:
        name = library.file(self._major)
        return _is_loaded(name) or any(map(self._open, self._files(library))) or self._open(name)

    def _files(self, library: Library) -> list[Path]:
        return candidates(library, self._major, self._places)

    def _open(self, library: Path | str) -> bool:
        try:
            ctypes.CDLL(str(library))
        except OSError as error:
            if isinstance(library, Path) and library.exists():
                reason = str(error).removeprefix(f"{library}: ")
                self._damaged[library.name] = f"{library} does not load: {reason}"
            return False
        return True


def candidates(library: Library, major: int, places: Iterable[Path], windows: bool = WINDOWS) -> list[Path]:
    """Return the files of a library, in the order to try them."""
    name, common = library.file(major, windows), f"cu{major}"
    folders = [common, library.folder] if library is not CUDNN else [library.folder]
    below = ("bin/x86_64", "bin") if windows else ("lib",)
    paths = [place / folder / part / name for place in places for folder in folders for part in below]
    return [path for path in paths if path.is_file()]


def locations(major: int) -> list[Path]:
    """Return the folders named `nvidia` on Python's path, those with a cuDNN for this CUDA first.

    `nvidia` is a namespace package, of which `find_spec` knows all portions. But older wheels contain an
    `nvidia/__init__.py`, which hides later portions, so all of `sys.path` is searched. cuDNN's file has the same name
    for each CUDA: folders with a cuDNN for another CUDA come last.
    """
    given: list[str] = []
    with suppress(ImportError, ValueError):
        spec = find_spec("nvidia")
        given += (spec.submodule_search_locations or ()) if spec else ()
    given += [os.path.join(entry, "nvidia") for entry in sys.path if entry]  # noqa: PTH118 - entries may be no paths
    found = [path for path in dict.fromkeys(Path(entry).absolute() for entry in given) if path.is_dir()]
    return sorted(found, key=lambda place: _rank(place, major))


def _rank(place: Path, major: int) -> int:
    """Return 0 for a folder with cuDNN for this CUDA, 1 where that is unknown, 2 with cuDNN for another CUDA."""
    installed = {path.name.partition("-")[0] for path in place.parent.glob("nvidia_cudnn_cu*-*.dist-info")}
    if f"nvidia_cudnn_cu{major}" in installed:
        return 0
    return 2 if installed else 1


def _major(version: str) -> int | None:
    """Return the major of a CUDA version such as `13.0`; None for one that this module does not know."""
    major = version.partition(".")[0]
    return int(major) if major.isdigit() and int(major) in _OWN else None


def _part(name: str) -> str:
    return f"cudnn_{name}64_9.dll" if WINDOWS else f"libcudnn_{name}.so.9"


def _is_loaded(name: str) -> bool:
    """Return whether the process has loaded a library of that name, from any folder."""
    if WINDOWS:
        return bool(_windows_kernel().GetModuleHandleW(name))
    try:
        ctypes.CDLL(name, mode=os.RTLD_NOLOAD)
    except OSError:
        return False
    return True


def _windows_kernel() -> Any:
    kernel = ctypes.windll.kernel32  # type: ignore[attr-defined, unused-ignore]
    kernel.GetModuleHandleW.restype = ctypes.c_void_p
    kernel.GetModuleFileNameW.argtypes = (ctypes.c_void_p, ctypes.c_wchar_p, ctypes.c_uint)
    return kernel


def _folder_of(name: str) -> Path | None:
    """Return the folder from which a library was loaded; None if unknown."""
    if WINDOWS:
        kernel, path = _windows_kernel(), ctypes.create_unicode_buffer(32768)
        length = kernel.GetModuleFileNameW(kernel.GetModuleHandleW(name), path, len(path))
        return Path(path.value).parent if length else None
    with suppress(OSError):
        for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
            path_of = line.split(maxsplit=5)[5:]
            if path_of and Path(path_of[0]).name.startswith(name):  # behind a link the name goes on: libcudnn.so.9.28.1
                return Path(path_of[0]).parent
    return None


def _preload(onnxruntime: Any, known: bool) -> None:
    """Let ONNX Runtime load its other libraries, or all of them where this module does not know its CUDA."""
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        printed = StringIO()
        with redirect_stdout(printed):  # it prints what it does not find
            onnxruntime.preload_dlls(cuda=not known, cudnn=not known)
        if printed.getvalue():
            log.debug("ONNX Runtime: %s", printed.getvalue().strip())


def why_not_loaded(library: str) -> str | None:
    """Return the loader's error for a provider's library that ONNX Runtime could not load; None if it loads.

    ONNX Runtime only logs this error. Call it after ONNX Runtime's attempt: the library needs its host when it loads.

    Parameters
    ----------
    library
        Name of the library without prefix and suffix, such as `onnxruntime_providers_cuda`.
    """
    import onnxruntime

    name = f"{library}.dll" if WINDOWS else f"lib{library}.so"
    try:
        ctypes.CDLL(str(Path(onnxruntime.__file__).parent / "capi" / name))
    except OSError as error:
        return str(error)
    return None

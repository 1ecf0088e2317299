"""CUDA's libraries for ONNX Runtime: small shared objects in folders as NVIDIA's wheels have, in a process each."""

import ctypes.util
import os
import shutil
import subprocess
import sys

import pytest

from unetrt.runtime.sessions import onnxruntime_libraries as libraries
from unetrt.runtime.sessions.onnxruntime_libraries import CUDA, CUDNN, SUBLIBRARIES, candidates, locations

pytestmark = pytest.mark.skipif(sys.platform != "linux" or shutil.which("gcc") is None, reason="needs gcc on Linux")

PROVIDER = "libonnxruntime_providers_cuda.so"
# What a library refers to, as `readelf -d` lists it for onnxruntime-gpu 1.31.1 and CUDA 13.
NEEDS = {
    "libcublas.so.13": ["libcublasLt.so.13"],
    PROVIDER: ["libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudart.so.13"],
}
REQUIRED = ["libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10"]
PARTS = [f"libcudnn_{part}.so.9" for part in SUBLIBRARIES]
CUDNN_FILES = ["libcudnn.so.9", *PARTS]

# Loads what is needed, then the provider, then cuDNN by its name, as the provider does; says which files that took.
# What this Python has of NVIDIA's own is not looked at.
CHILD = """
import ctypes, os, sys
for path in sys.argv[3:]:
    ctypes.CDLL(path)
import onnxruntime
onnxruntime.cuda_version = sys.argv[2]
from unetrt.runtime.sessions.onnxruntime_libraries import load_libraries
given = os.environ["PYTHONPATH"].split(os.pathsep)
sys.path[:] = [entry for entry in sys.path if entry in given or not os.path.isdir(os.path.join(entry, "nvidia"))]
print(load_libraries())
try:
    ctypes.CDLL(sys.argv[1]), ctypes.CDLL("libcudnn.so.9")
except OSError as error:
    print(error)
for path in sorted({line.split()[-1] for line in open("/proc/self/maps") if ".so" in line}):
    print(path)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Compiles a shared object of a name once."""
    folder, source = tmp_path_factory.mktemp("compiled"), tmp_path_factory.mktemp("source") / "empty.c"
    source.write_text("")

    def of(name):
        path = folder / name
        if not path.exists():
            needed = [f"-l:{of(one).name}" for one in NEEDS.get(name, ())]
            how = ["gcc", "-shared", "-o", path, source, f"-Wl,-soname,{name}", "-Wl,--no-as-needed", f"-L{folder}"]
            subprocess.run([*how, *needed], check=True)
        return path

    return of


@pytest.fixture
def install(compiled):
    """Puts libraries into a folder."""

    def put(folder, names):
        folder.mkdir(parents=True, exist_ok=True)
        for name in names:
            shutil.copy(compiled(name), folder / name)
        return folder

    return put


def load(compiled, *path, version="13.0", loaded=(), **variables):
    """What a new process says that finds packages in `path`: the reason, and the files that it has loaded."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path))} | variables
    command = [sys.executable, "-c", CHILD, compiled(PROVIDER), version, *loaded]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    reason, *files = done.stdout.splitlines()
    return reason, files


def test_wheels_in_two_places_are_found(compiled, install, tmp_path):
    """As with `pip install --target`, and torch's libraries elsewhere."""
    toolkit = install(tmp_path / "target/nvidia/cu13/lib", REQUIRED)
    cudnn = install(tmp_path / "site/nvidia/cudnn/lib", CUDNN_FILES)
    reason, files = load(compiled, tmp_path / "target", tmp_path / "site")
    assert reason == "None"
    expected = [*(toolkit / name for name in REQUIRED), cudnn / "libcudnn.so.9", compiled(PROVIDER)]
    assert {str(path) for path in expected} <= set(files)


@pytest.mark.skipif(ctypes.util.find_library("cublasLt") is not None, reason="CUDA is installed for all programs")
def test_without_them_the_provider_does_not_load(compiled, tmp_path):
    wheels = {
        "libcudart.so.13": "'nvidia-cuda-runtime==13.*'",
        "libcublasLt.so.13": "'nvidia-cublas==13.*'",
        "libcublas.so.13": "'nvidia-cublas==13.*'",
        "libcurand.so.10": "'nvidia-curand==10.*'",
        "libcudnn.so.9": "'nvidia-cudnn-cu13==9.*'",
    }
    missing = [name for name in wheels if not the_system_has(name)]
    reason, files = load(compiled, tmp_path)
    assert reason == (
        f"ONNX Runtime's CUDA provider needs libraries that do not load: {', '.join(missing)}; "
        f"pip install {' '.join(dict.fromkeys(wheels[name] for name in missing))}"
    )
    assert f"{missing[0]}: cannot open shared object file" in files[0]


def the_system_has(name):
    program = "import ctypes, sys; ctypes.CDLL(sys.argv[1])"
    return subprocess.run([sys.executable, "-c", program, name], capture_output=True, check=False).returncode == 0


def test_an_older_wheel_that_makes_nvidia_a_package_hides_nothing(compiled, install, tmp_path):
    install(tmp_path / "old/nvidia/cublas/lib", ["libcublas.so.12"])
    (tmp_path / "old/nvidia/__init__.py").write_text("")
    install(tmp_path / "new/nvidia/cu13/lib", REQUIRED)
    install(tmp_path / "new/nvidia/cudnn/lib", CUDNN_FILES)
    assert load(compiled, tmp_path / "old", tmp_path / "new")[0] == "None"


@pytest.mark.parametrize(("major", "curand"), [(12, "curand"), (13, "cu13")])
def test_of_two_cudas_beside_each_other_each_takes_its_own(compiled, install, tmp_path, monkeypatch, major, curand):
    """cuRAND and cuDNN are called the same for both."""
    for one, other in ((12, "curand"), (13, "cu13")):
        place = tmp_path / str(one)
        install(tmp_path / "12" / "nvidia" / other / "lib", ["libcurand.so.10"])
        install(place / "nvidia/cudnn/lib", CUDNN_FILES)
        (place / f"nvidia_cudnn_cu{one}-9.1.0.dist-info").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "12"), str(tmp_path / "13"), *sys.path])
    places = locations(major)
    (library,) = (one for one in CUDA if one.stem == "curand")
    assert candidates(library, major, places)[0].parts[-3] == curand
    assert candidates(CUDNN, major, places)[0].parts[-5] == str(major)
    if major == 13:
        install(tmp_path / "12/nvidia/cu13/lib", REQUIRED)
        reason, files = load(compiled, tmp_path / "12", tmp_path / "13")
        assert reason == "None"
        assert str(tmp_path / "13/nvidia/cudnn/lib/libcudnn.so.9") in files
        assert str(tmp_path / "12/nvidia/curand/lib/libcurand.so.10") not in files


@pytest.mark.parametrize("missing", PARTS)
def test_a_part_of_cudnn_that_is_missing_is_named(compiled, install, tmp_path, missing):
    """cuDNN itself would say so at the first convolution."""
    install(tmp_path / "nvidia/cu13/lib", REQUIRED)
    (install(tmp_path / "nvidia/cudnn/lib", CUDNN_FILES) / missing).unlink()
    reason, _ = load(compiled, tmp_path)
    assert reason.endswith(f"that do not load: {missing}; pip install 'nvidia-cudnn-cu13==9.*'")


def test_a_damaged_library_is_named_with_what_is_wrong(compiled, install, tmp_path):
    install(tmp_path / "nvidia/cudnn/lib", CUDNN_FILES)
    damaged = install(tmp_path / "nvidia/cu13/lib", REQUIRED) / "libcurand.so.10"
    damaged.write_bytes(damaged.read_bytes()[:10])
    reason, _ = load(compiled, tmp_path)
    assert f"do not load: libcurand.so.10 ({damaged} does not load: file too short)" in reason
    assert reason.endswith("; pip install --force-reinstall 'nvidia-curand==10.*'")
    whole = install(tmp_path / "other/nvidia/cu13/lib", ["libcurand.so.10"]) / "libcurand.so.10"
    reason, files = load(compiled, tmp_path, tmp_path / "other")
    assert reason == "None"
    assert str(whole) in files


def test_what_the_systems_loader_finds_will_do(compiled, install, tmp_path):
    """As Debian's packages have it: the names are links."""
    folder = install(tmp_path / "lib", [*REQUIRED, *CUDNN_FILES])
    for name in CUDNN_FILES:
        (folder / name).rename(folder / f"{name}.28.1")
        (folder / name).symlink_to(f"{name}.28.1")
    assert load(compiled, LD_LIBRARY_PATH=str(folder))[0] == "None"
    (folder / PARTS[0]).unlink()
    assert f"do not load: {PARTS[0]};" in load(compiled, LD_LIBRARY_PATH=str(folder))[0]


def test_what_the_process_has_is_not_loaded_twice(compiled, install, tmp_path):
    torchs = install(tmp_path / "torch", [*REQUIRED, *CUDNN_FILES])
    install(tmp_path / "site/nvidia/cu13/lib", REQUIRED)
    install(tmp_path / "site/nvidia/cudnn/lib", CUDNN_FILES)
    loaded = [torchs / name for name in (*REQUIRED, "libcudnn.so.9")]
    reason, files = load(compiled, tmp_path / "site", loaded=loaded)
    assert reason == "None"
    assert set(map(str, loaded)) <= set(files)
    assert not [path for path in files if path.startswith(str(tmp_path / "site"))]


def test_a_cuda_that_is_not_known_is_left_to_onnxruntime(compiled, tmp_path):
    assert load(compiled, tmp_path, version="")[0] == "None"
    assert load(compiled, tmp_path, version="odd")[0] == "None"


@pytest.mark.parametrize(
    ("library", "major", "path"),
    [
        ("cudart", 12, "cuda_runtime/bin/cudart64_12.dll"),
        ("cublasLt", 13, "cu13/bin/x86_64/cublasLt64_13.dll"),
        ("curand", 13, "cu13/bin/x86_64/curand64_10.dll"),
        ("cufft", 12, "cufft/bin/cufft64_11.dll"),
        ("nvrtc", 12, "cuda_nvrtc/bin/nvrtc64_120_0.dll"),
        ("cudnn", 13, "cudnn/bin/cudnn64_9.dll"),
    ],
)
def test_names_and_folders_of_windows(tmp_path, library, major, path):
    """Those that onnxruntime's own preload_dlls lists."""
    (tmp_path / path).parent.mkdir(parents=True)
    (tmp_path / path).touch()
    (one,) = (one for one in (*CUDA, CUDNN) if one.stem == library)
    assert candidates(one, major, [tmp_path], windows=True) == [tmp_path / path]
    assert libraries.candidates(one, major, [tmp_path], windows=False) == []

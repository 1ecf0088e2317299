"""kernels.cu, the PTX that the package carries, and the structs that both sides share."""

import ctypes
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import requirements
from tests.runtime.cuda.fake_gpu.host_kernels import SHIM, SOURCES, compiler, host_kernels
from unetrt.runtime.segment import kernels
from unetrt.runtime.segment.kernels import BLOCK, NAMES, ptx

SOURCE = SOURCES / "kernels.cu"
# Turing to Blackwell: the oldest that TensorRT 10 runs on, and the newest.
ARCHITECTURES = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_120")
STRUCTS = ("Plane", "Cut", "Histogram", "StitchLabels", "NotFinite")


def cuda_tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
    if found is None:
        pytest.skip(requirements.CUDA_TOOLKIT)
    return found


def entries(text: str) -> set[str]:
    return set(re.findall(r"\.entry (\w+)\(", text))


def test_the_ptx_was_made_from_this_source():
    digest = hashlib.sha256(SOURCE.read_text(encoding="utf-8").encode()).hexdigest()
    assert f"SHA-256 {digest}" in ptx().decode().splitlines()[0], "kernels.cu has changed: run `make kernels`"


def test_the_ptx_is_for_old_drivers_and_gpus_and_holds_the_kernels():
    text = ptx().decode()
    assert ".version 8.0\n" in text
    assert ".target sm_75\n" in text
    assert entries(text) == set(NAMES)


def test_the_ptx_rounds_each_step():
    text = ptx().decode()
    assert not re.search(r"\bfma\.|\.ftz\b|\bmad\.rn", text)
    assert re.search(r"\bsub\.rn\.f32", text)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_ptx_is_accepted_for(architecture, tmp_path):
    stored = tmp_path / "kernels.ptx"
    stored.write_bytes(ptx())
    tool = cuda_tool("ptxas")
    subprocess.run([tool, f"-arch={architecture}", stored, "-o", tmp_path / "kernels.cubin"], check=True)


def test_todays_compiler_takes_the_source(tmp_path):
    out = tmp_path / "kernels.ptx"
    command = [cuda_tool("nvcc"), "-ptx", "-arch=compute_75", "-Werror=all-warnings", SOURCE, "-o", out]
    subprocess.run(command, check=True)
    assert entries(out.read_text()) == set(NAMES)


def layout(struct: type[ctypes.Structure]) -> list[str]:
    name = struct.__name__
    fields = [f"offsetof({name}, {field}) == {getattr(struct, field).offset}" for field, _ in struct._fields_]
    sizes = [f"sizeof({name}::{field}) == {getattr(struct, field).size}" for field, _ in struct._fields_]
    return [f"sizeof({name}) == {ctypes.sizeof(struct)}", *fields, *sizes]


def claims() -> list[str]:
    structs = [getattr(kernels, name) for name in STRUCTS]
    codes = [f"{dtype.name.upper()} == {code}" for dtype, code in kernels.CODES.items() if dtype.kind != "b"]
    return [claim for struct in structs for claim in layout(struct)] + codes


def compiles(folder: Path, claim: list[str]) -> bool:
    program = folder / "layout.cpp"
    lines = [f'#include "{SHIM}"', *(f"static_assert({claim});" for claim in claim)]
    program.write_text("\n".join(lines))
    command = [compiler(), "-std=c++17", "-fsyntax-only", f'-DKERNELS="{SOURCE}"', program]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_the_structs_lie_in_memory_as_in_c(tmp_path):
    assert compiles(tmp_path, claims())
    assert not compiles(tmp_path, [*claims(), "sizeof(Cut) == 1"])


def test_every_struct_of_the_source_is_mirrored():
    assert set(re.findall(r"^struct (\w+)", SOURCE.read_text(), re.MULTILINE)) == set(STRUCTS)


def test_an_argument_of_another_size_is_refused():
    with pytest.raises(ValueError, match="cut takes"):
        host_kernels().run("cut", (1, 1, 1), BLOCK, b"")

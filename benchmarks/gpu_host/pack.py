#!/usr/bin/env python3
"""Pack the check's packages for a GPU's host without a network, in parts that are each small enough for one transfer.

    python3 benchmarks/gpu_host/pack.py [--rtx] [--capability 90]       in the root of a clone, with a network

Parts are written to .gpu/, for Python 3.12 on x86-64 Linux:

part-01   go.sh, unpack.py, wheels of unetrt and of packages that a host may lack, half of ONNX Runtime's wheel
part-02   the other half
part-03   and further, with --rtx: TensorRT for RTX, its library compressed

ONNX Runtime's wheel is cut down to the machine code of one compute capability: 108 instead of 244 MiB. The other
architectures' code is overwritten in place with zeros, so that no offset changes, and zeros compress to nothing.
Step `ort-load` checks whether the driver accepts such a library, which is not known yet. If not, transfer the whole
wheel. The hashes in the wheel's RECORD no longer match, which pip does not check when it installs.
"""

import argparse
import mmap
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

HERE, ROOT = Path(__file__).resolve().parent, Path(".gpu")
MIB = 2**20
# Bytes of a part, so that it fits one transfer of 64 MiB beside the clone.
MOST = 57 * MIB
ORT, RTX_VERSION = "onnxruntime-gpu==1.31.1", "1.7.1.116"
RTX_LIBRARY = "libtensorrt_rtx.so.1"
# Module -> package, for modules that a host may lack.
OPTIONAL = {
    "edt": "edt",
    "filelock": "filelock",
    "msgspec": "msgspec",
    "onnx_ir": "onnx-ir",
    "onnxscript": "onnxscript",
    "platformdirs": "platformdirs",
    "pynvml": "nvidia-ml-py",
    "safetensors": "safetensors",
}
PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_24", "manylinux_2_17", "manylinux2014")
# Left out of ONNX Runtime's wheel: other providers, tools and texts.
LEFT_OUT = re.compile(
    r"onnxruntime/(transformers|quantization|tools|datasets)/|libonnxruntime_providers_tensorrt\.so|ThirdPartyNotices"
)
PROVIDER = "libonnxruntime_providers_cuda.so"
# NVIDIA's fat binaries (fatbinary.h of the CUDA toolkit): the container's magic number, and the kind of machine code.
FATBIN, SASS = 0xBA55ED50, 2


class FatbinEntry(NamedTuple):
    """Code in a fat binary: its kind, compute capability (90 for 9.0), and where its bytes lie in the section."""

    kind: int
    capability: int
    begin: int
    size: int


def section(file: bytes | mmap.mmap, name: str) -> tuple[int, int]:
    """Return offset and size of a section of a 64-bit ELF file; raises ValueError if it does not exist (elf(5))."""
    (table,) = struct.unpack_from("<Q", file, 0x28)
    size, count, names = struct.unpack_from("<HHH", file, 0x3A)

    def header(number: int) -> tuple[int, ...]:
        return struct.unpack_from("<IIQQQQ", file, table + number * size)

    texts = header(names)[4]
    for number in range(count):
        title, _, _, _, offset, length = header(number)
        begin = texts + title
        if file[begin : begin + len(name) + 1] == name.encode() + b"\0":
            return offset, length
    raise ValueError(f"there is no section {name}")


def fat_binaries(data: bytearray) -> Iterator[list[FatbinEntry]]:
    """Yield the entries of each fat binary in a section."""
    at = 0
    while at + 16 <= len(data):
        magic, _, header, length = struct.unpack_from("<IHHQ", data, at)
        if magic != FATBIN:
            at += 8
            continue
        entry, end, entries = at + header, at + header + length, []
        while entry < end:
            kind, _, head, size = struct.unpack_from("<HHIQ", data, entry)
            (capability,) = struct.unpack_from("<I", data, entry + 28)
            entries.append(FatbinEntry(kind, capability, entry + head, size))
            entry += head + size
        yield entries
        at = (end + 7) // 8 * 8


def cut_down(library: Path, capability: int) -> tuple[int, int]:
    """Overwrite the code of other capabilities with zeros, and return how many bytes were kept and overwritten.

    A fat binary without machine code for the capability is left as it is.
    """
    kept = zeroed = 0
    with library.open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            begin, size = section(whole, ".nv_fatbin")
            data = bytearray(whole[begin : begin + size])
        for entries in fat_binaries(data):
            wanted = [one for one in entries if one.kind == SASS and one.capability == capability]
            for one in entries if wanted else ():
                if one in wanted:
                    kept += one.size
                else:
                    data[one.begin : one.begin + one.size] = bytes(one.size)
                    zeroed += one.size
        file.seek(begin)
        file.write(data)
    if not kept:
        raise SystemExit(f"{library.name} has no machine code for compute capability {capability}: give another")
    return kept, zeroed


def slim(wheel: Path, folder: Path, capability: int) -> Path:
    """Write ONNX Runtime's wheel with the code of one capability to a folder, and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / wheel.name
    with tempfile.TemporaryDirectory() as scratch, zipfile.ZipFile(wheel) as old:
        unfinished = Path(scratch) / wheel.name
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as new:
            for info in old.infolist():
                if LEFT_OUT.search(info.filename):
                    continue
                if info.filename.endswith(PROVIDER):
                    library = Path(old.extract(info, scratch))
                    kept, zeroed = cut_down(library, capability)
                    print(f"{PROVIDER}: {kept / MIB:.0f} MiB of code kept, {zeroed / MIB:.0f} MiB overwritten")
                    new.write(library, info.filename)
                elif info.filename.endswith("RECORD"):
                    lines = [line for line in old.read(info).decode().splitlines() if not LEFT_OUT.search(line)]
                    new.writestr(info.filename, "\n".join(lines) + "\n")
                else:
                    new.writestr(info, old.read(info))
        shutil.move(unfinished, target)
    return target


def divide(file: Path, into: list[Path], first: int) -> None:
    """Put a file into parts in pieces NAME.1, NAME.2 ..., `first` bytes into the first part.

    Their number and the whole file's SHA-256 go with the first piece, as NAME.pieces.
    """
    content = file.read_bytes()
    rest = -(-(len(content) - first) // max(1, len(into) - 1))
    begins = [0, *(first + number * rest for number in range(len(into) - 1)), len(content)]
    (into[0] / f"{file.name}.pieces").write_text(f"{len(into)} {sha256(content).hexdigest()}")
    for number, part in enumerate(into):
        (part / f"{file.name}.{number + 1}").write_bytes(content[begins[number] : begins[number + 1]])


def pip(*words: str) -> None:
    """Run pip."""
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *words], check=True)


def download(name: str, folder: Path) -> Path:
    """Return a package's wheel for the host, downloaded to a folder that holds no other."""
    for old in folder.glob("*.whl"):
        old.unlink()
    for_host = ["--no-deps", "--only-binary=:all:", "--python-version", "3.12", "--implementation", "cp"]
    for platform in PLATFORMS:
        for_host += ["--platform", f"{platform}_x86_64"]
    pip("download", *for_host, "-d", str(folder), name)
    (wheel,) = folder.glob("*.whl")
    return wheel


def parts(count: int) -> list[Path]:
    """Return `count` new, empty parts."""
    for old in ROOT.glob("part-*"):
        shutil.rmtree(old)
    made = [ROOT / f"part-{number + 1:02}" for number in range(count)]
    for part in made:
        part.mkdir(parents=True)
    return made


def size_of(part: Path) -> int:
    """Return the bytes of a part."""
    return sum(file.stat().st_size for file in part.rglob("*") if file.is_file())


def pack_rtx(three: Path, four: Path, cache: Path) -> None:
    """Fill two parts with TensorRT for RTX."""
    libs = download(f"tensorrt-rtx-cu13-libs=={RTX_VERSION}", cache / "rtx-libs")
    unzipped, packed = cache / "rtx", cache / f"{RTX_LIBRARY}.zst"
    with zipfile.ZipFile(libs) as file:
        file.extractall(unzipped)
    library = unzipped / "tensorrt_rtx_libs" / RTX_LIBRARY
    if not packed.exists():  # minutes, and about 50 MiB
        zstd = shutil.which("zstd") or sys.exit("zstd is not installed: apt-get install zstd")
        subprocess.run([zstd, "-q", "-19", "--long=28", "-f", str(library), "-o", str(packed)], check=True)
    for name in ("zstandard", f"tensorrt-rtx-cu13-bindings=={RTX_VERSION}"):
        shutil.copy(download(name, cache / name.split("=")[0]), three)
    pip("wheel", "--no-deps", "-w", str(three), f"tensorrt-rtx-cu13=={RTX_VERSION}")
    for path in library.parent.iterdir():
        if path.is_file() and path.name != RTX_LIBRARY:
            (three / "tensorrt_rtx_libs").mkdir(exist_ok=True)
            shutil.copy(path, three / "tensorrt_rtx_libs")
    divide(packed, [three, four], min(packed.stat().st_size, MOST - size_of(three) - MIB))


def main() -> None:
    """Pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtx", action="store_true", help="TensorRT for RTX too; needs zstd")
    parser.add_argument("--capability", type=int, default=90, help="90 for compute capability 9.0")
    given = parser.parse_args()
    if not Path("pyproject.toml").exists():
        raise SystemExit("run this in the root of a clone of unetrt")
    cache = ROOT / "cache"
    ort = slim(download(ORT, cache / "onnxruntime"), cache / f"slim-{given.capability}", given.capability)
    made = parts(4 if given.rtx else 2)
    for name in ("go.sh", "unpack.py"):
        shutil.copy(HERE / name, made[0])
    for module, package in OPTIONAL.items():
        (made[0] / "optional" / module).mkdir(parents=True)
        shutil.copy(download(package, cache / package), made[0] / "optional" / module)
    shutil.rmtree("build", ignore_errors=True)  # setuptools would pack modules that are gone
    pip("wheel", "--no-deps", "-w", str(made[0]), ".")
    divide(ort, made[:2], (ort.stat().st_size - size_of(made[0])) // 2)
    if given.rtx:
        pack_rtx(*made[2:], cache)
    for part in made:
        print(f"{part}: {size_of(part) / MIB:.1f} MiB")
        if size_of(part) > MOST:
            raise SystemExit(f"{part} has more than {MOST / MIB:.0f} MiB: it does not fit one transfer")


if __name__ == "__main__":
    main()

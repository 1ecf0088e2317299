#!/usr/bin/env python3
"""On the GPU's host: collect the transferred parts, and install the complete packages.

    python3 .gpu/part-01/unpack.py        prints the installed packages; run it again after each part

Needs only Python and pip. Wheels are installed in $SITE (/tmp/site); files in pieces are joined in $STORE (/tmp/gpu).
Wheels below optional/ are installed only where the host lacks the module.
"""

import filecmp
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path

SITE, STORE = Path(os.environ.get("SITE", "/tmp/site")), Path(os.environ.get("STORE", "/tmp/gpu"))  # noqa: S108
PARTS = Path(os.environ.get("PARTS", ".gpu"))
RTX = "libtensorrt_rtx.so.1"


def collect() -> None:
    """Copy the parts to the store, and replace files that changed: parts may arrive one by one."""
    for part in sorted(PARTS.glob("part-*")):
        for file in part.rglob("*"):
            target = STORE / file.relative_to(part)
            if file.is_file() and not (target.exists() and filecmp.cmp(file, target, shallow=False)):
                target.parent.mkdir(parents=True, exist_ok=True)
                unfinished = target.with_name(f"{target.name}.unfinished")
                shutil.copy(file, unfinished)
                unfinished.replace(target)


def install(name: str, wheels: list[Path]) -> None:
    """Install wheels, once for each content, without an index and without dependencies."""
    done, digest = STORE / "installed" / name, sha256()
    for wheel in sorted(wheels):
        digest.update(wheel.read_bytes())
    if not wheels or (done.exists() and done.read_text() == digest.hexdigest()):
        return
    words = ["--no-index", "--no-deps", "--no-compile", "--no-cache-dir", "--upgrade", "--target", str(SITE)]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *words, *map(str, wheels)], check=True)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.write_text(digest.hexdigest())


def missing() -> list[Path]:
    """Return the optional wheels, each in a folder named after its module, that the host lacks."""
    wheels = STORE.glob("optional/*/*.whl")
    return [wheel for wheel in wheels if find_spec(wheel.parent.name) is None or (SITE / wheel.parent.name).exists()]


def joined(name: str) -> Path | None:
    """Join the pieces NAME.1, NAME.2 ... of a file, and return it; None where some are missing.

    NAME.pieces has their number and the whole file's SHA-256.
    """
    count, digest = (STORE / f"{name}.pieces").read_text().split()
    pieces = [STORE / f"{name}.{number + 1}" for number in range(int(count))]
    if missing := [piece.name for piece in pieces if not piece.exists()]:
        print(f"still to be carried: {', '.join(missing)}")
        return None
    content = b"".join(piece.read_bytes() for piece in pieces)
    if sha256(content).hexdigest() != digest:
        raise SystemExit(f"{name} is damaged: carry its parts again")
    whole = STORE / name
    whole.write_bytes(content)
    return whole


def unpack_rtx(packed: Path) -> None:
    """Install TensorRT for RTX, whose library is compressed with zstd."""
    install("rtx", [*STORE.glob("zstandard-*.whl"), *STORE.glob("tensorrt_rtx_cu13*.whl")])
    sys.path.insert(0, str(SITE))
    import zstandard

    libraries = SITE / "tensorrt_rtx_libs"
    libraries.mkdir(exist_ok=True)
    for file in STORE.glob("tensorrt_rtx_libs/*"):
        shutil.copy(file, libraries)
    with packed.open("rb") as source, (libraries / RTX).open("wb") as target:
        zstandard.ZstdDecompressor(max_window_size=2**28).copy_stream(source, target)


def main() -> None:
    """Install the complete packages."""
    if not list(PARTS.glob("part-*")):
        raise SystemExit(f"there are no parts in {PARTS.absolute()}: carry .gpu/part-01, which `make gpu-pack` makes")
    STORE.mkdir(parents=True, exist_ok=True)
    collect()
    install("base", list(STORE.glob("unetrt-*.whl")))
    for wheel in missing():
        try:
            install(wheel.parent.name, [wheel])
        except subprocess.CalledProcessError:  # steps that need it will report it
            print(f"not installed: {wheel.name}, on Python {sys.version_info.major}.{sys.version_info.minor}")
    for pieces in STORE.glob("*.whl.pieces"):
        if wheel := joined(pieces.name.removesuffix(".pieces")):
            install(wheel.name.split("-")[0], [wheel])
    if (STORE / f"{RTX}.zst.pieces").exists() and (packed := joined(f"{RTX}.zst")):
        unpack_rtx(packed)
    installed = sorted(path.name for path in STORE.glob("installed/*"))
    print(f"installed: {', '.join(installed) or 'nothing yet'}")


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError, ImportError, subprocess.CalledProcessError) as error:
        here = f"{sys.version_info.major}.{sys.version_info.minor}"
        sys.exit(f"not installed: {error}; carry the parts again (they are for Python 3.12, this is {here})")

"""Build the wheel and its software bill of materials (SBOM): `make wheel`.

The SBOM is CycloneDX 1.6 in JSON. It names what `pip install unetrt` installs beside unetrt, at the versions of this
build, and the files of the wheel that are not Python source: the bundled model and the compiled kernels, with their
SHA-256. It lies in the wheel, where PEP 770 tells installers to keep it (`unetrt-*.dist-info/sboms/`), and beside it.

    python docs/wheel.py dist
"""

import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

ROOT = Path(__file__).parent.parent
# Files of the wheel that no reader can review as source.
COMPILED = ("unetrt/models/*.onnx", "unetrt/runtime/segment/*.ptx")


def main(out: Path) -> None:
    """Write the wheel and its SBOM into a folder; wheels that lie there are kept."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        _python("-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, str(ROOT))
        (wheel,) = work.glob("*.whl")
        sbom = out / f"{wheel.stem}.cdx.json"
        out.mkdir(parents=True, exist_ok=True)
        sbom.write_text(described(wheel, work / "installed"), encoding="utf-8", newline="\n")
        embed(sbom, wheel, out, work / "unpacked")
    print(f"{out / wheel.name}\n{sbom}")  # noqa: T201


def described(wheel: Path, installed: Path) -> str:
    """Return the SBOM of a wheel, after installing it into a new environment in the folder `installed`."""
    _python("-m", "venv", "--without-pip", str(installed))
    _python("-m", "pip", "--python", str(installed), "install", "-q", str(wheel))
    options = ("--pyproject", str(ROOT / "pyproject.toml"), "--mc-type", "library", "--output-reproducible")
    bom = Bom.from_json(json.loads(_python("-m", "cyclonedx_py", "environment", str(installed), *options, "-o", "-")))
    root = bom.metadata.component
    name, version = wheel.stem.split("-")[:2]
    root.version, root.purl = version, PackageURL("pypi", name=name, version=version)
    (packages,) = installed.glob("[Ll]ib/**/site-packages")
    for pattern in COMPILED:
        root.components.update(_file(path, packages) for path in packages.glob(pattern))
    return JsonV1Dot6(bom).output_as_string(indent=2) + "\n"


def embed(sbom: Path, wheel: Path, out: Path, work: Path) -> None:
    """Write the wheel with the SBOM in it into the folder `out`; `work` is a folder for its files."""
    _python("-m", "wheel", "unpack", "--dest", str(work), str(wheel))
    (unpacked,) = work.iterdir()
    (info,) = unpacked.glob("*.dist-info")
    (info / "sboms").mkdir()
    (info / "sboms" / sbom.name).write_bytes(sbom.read_bytes())
    _python("-m", "wheel", "pack", "--dest-dir", str(out), str(unpacked))


def _file(path: Path, packages: Path) -> Component:
    digest = HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(path.read_bytes()).hexdigest())
    name = path.relative_to(packages).as_posix()
    return Component(name=name, bom_ref=name, type=ComponentType.FILE, hashes=[digest])


def _python(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.PIPE, text=True).stdout


if __name__ == "__main__":
    main(Path(sys.argv[1]))

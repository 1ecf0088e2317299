"""The wheel carries a bill of materials that lists what it installs and what in it is not Python source."""

import hashlib
import json
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that docs/wheel.py built from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder / "source")], check=True)
    script = folder / "source" / "docs" / "wheel.py"
    subprocess.run([sys.executable, str(script), str(folder / "dist")], check=True, timeout=300)
    (path,) = (folder / "dist").glob("*.whl")
    return path


def test_the_wheel_lists_its_dependencies(wheel: Path) -> None:
    # Its import takes seconds, and every process of a run of any test imports this file.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if ".dist-info/sboms/" in name)
        text = archive.read(name).decode()
    assert text == wheel.with_suffix(".cdx.json").read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    needed = [Requirement(line) for line in requires("unetrt") or []]
    listed = {canonicalize_name(component["name"]) for component in json.loads(text)["components"]}
    assert {canonicalize_name(line.name) for line in needed if "extra" not in str(line.marker)} <= listed
    assert not listed & {"pip", "torch", "unetrt"}


def test_what_is_not_source_is_hashed(wheel: Path) -> None:
    root = json.loads(wheel.with_suffix(".cdx.json").read_text(encoding="utf-8"))["metadata"]["component"]
    assert root["purl"].startswith("pkg:pypi/unetrt@")
    listed = {part["name"]: part["hashes"][0]["content"] for part in root["components"]}
    with zipfile.ZipFile(wheel) as archive:
        compiled = [name for name in archive.namelist() if name.endswith((".onnx", ".ptx"))]
        assert listed == {name: hashlib.sha256(archive.read(name)).hexdigest() for name in compiled}

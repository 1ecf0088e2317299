"""Only the plugin imports Qt and napari, and the example for Qt."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
QT = {"napari", "qtpy", "npe2", "magicgui", "superqt", "PyQt5", "PyQt6", "PySide2", "PySide6"}


def imported(module: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(module.read_text(encoding="utf-8"))))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}


def test_nothing_else_imports_qt_or_napari():
    packages = ("unetrt", "runtime", "trainer", "export", "benchmarks", "examples")
    modules = [module for package in packages for module in (ROOT / package).rglob("*.py")]
    users = {module for module in modules if imported(module) & QT}
    assert users
    assert {module.parent for module in users - {ROOT / "examples" / "with_qt.py"}} == {ROOT / "unetrt" / "napari"}


def test_what_is_not_qt_imports_without_it():
    block = f"import sys; sys.modules.update(dict.fromkeys({sorted(QT)!r}))\n"
    code = "import unetrt.napari, unetrt.napari.segmentation"
    subprocess.run([sys.executable, "-c", block + code], check=True, timeout=60)

"""The packages depend on each other as docs/architecture.md draws them, and a call runs through few files."""

import ast
import re
import runpy
import shutil
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest

DOCS = Path(__file__).parents[1] / "docs"
architecture = SimpleNamespace(**runpy.run_path(str(DOCS / "architecture.py"), run_name="architecture"))
MODULES = architecture.product()
IMPORTS = architecture.imports(MODULES)
PICTURE = (DOCS / "architecture.md").read_text().split(architecture.MARKS[0])[1].split(architecture.MARKS[1])[0]

# Package -> the other packages that it may import.
MAY_IMPORT = {
    "unetrt.runtime": [],
    "unetrt.trainer": ["unetrt.runtime"],
    "unetrt.export": ["unetrt.runtime", "unetrt.trainer"],
    "unetrt.benchmarks": ["unetrt.runtime", "unetrt.trainer", "unetrt.export"],
    "unetrt.live_view": ["unetrt.runtime"],
    "unetrt.napari": ["unetrt.runtime"],
}
# Modules of the front end that any package may import.
SHARED = {"unetrt._version", "unetrt._exit_codes"}


def is_in(module: str, package: str) -> bool:
    return f"{module}.".startswith(f"{package}.")


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_packages_import_in_one_direction(package):
    allowed = [package, *MAY_IMPORT[package]]
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if is_in(module, package)
        for name in IMPORTS[module] - SHARED
        if not any(is_in(name, one) for one in allowed)
    ]
    assert wrong == [], f"{package} may import {', '.join(MAY_IMPORT[package]) or 'no other package'}"


def test_only_bench_imports_benchmarks():
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        if not is_in(module, "unetrt.benchmarks") and not re.fullmatch(r"unetrt\.cli\._?bench(_\w+)?", module)
        for name in IMPORTS[module]
        if is_in(name, "unetrt.benchmarks")
    ]
    assert wrong == [], "only `unetrt bench` may import benchmarks"


def test_live_imports_no_trainer():
    reached = architecture.reachable(IMPORTS, "unetrt.cli.live")
    assert [name for name in reached if is_in(name, "unetrt.trainer")] == [], "`unetrt live` must run without torch"
    assert any(is_in(name, "unetrt.runtime.live") for name in reached)


def test_no_modules_import_each_other():
    assert architecture.cycles(IMPORTS) == []


def test_no_packages_import_each_other():
    arrows = architecture.boxes(IMPORTS)
    wrong = [
        f"{module} imports {name}"
        for ring in architecture.cycles(arrows)
        for module in MODULES
        for name in IMPORTS[module]
        if {architecture.box_of(module), architecture.box_of(name)} <= set(ring)
        and architecture.box_of(module) != architecture.box_of(name)
    ]
    assert wrong == [], "packages that import each other cannot be read one after the other"


def test_private_modules_stay_in_their_package():
    graph = architecture.imports(MODULES, types=True)
    wrong = [
        f"{module} imports {name}"
        for module in MODULES
        for name in graph[module]
        for parent, _, last in [name.rpartition(".")]
        if last.startswith("_") and not is_in(module, parent)
    ]
    assert wrong == [], "modules that begin with _ are imported by their own package only"


def test_a_class_name_means_one_class():
    places = defaultdict(list)
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(module)
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_the_page_draws_the_imports_as_they_are():
    assert PICTURE.startswith(architecture.drawing(MODULES)), "run: python docs/architecture.py"


def test_the_page_lists_files_that_exist():
    files = {str(path.relative_to(DOCS.parent)).removeprefix("runtime/") for path in MODULES.values()}
    assert set(re.findall(r"[\w/]+\.py", PICTURE)) - files == set(), "run: python docs/architecture.py"
    for flow, goal in architecture.GOALS.items():
        assert re.search(rf"{architecture.TITLES[flow]}\b", PICTURE)
        assert f"goal {goal}" in PICTURE


@pytest.fixture(scope="module")
def flow_files(tiny_model, tiny_run, drawn_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("flows")
    shutil.copy(tiny_model, folder / "model.onnx")
    shutil.copy(tiny_run / "best.safetensors", folder)
    shutil.copy(drawn_folder / "images" / "2.tif", folder / "frame.tif")
    return folder


@pytest.mark.parametrize("flow", architecture.FLOWS)
def test_a_flow_runs_through_few_files(flow, flow_files):
    files = architecture.traced(flow, flow_files)
    goal = architecture.GOALS[flow]
    assert len(files) <= goal, f"{len(files)} files, at most {goal}: {', '.join(files)}"


SOURCES = {
    "unetrt": "",
    "unetrt.first": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import unetrt.typed\n",
    "unetrt.second": "def late():\n    from unetrt import first\n",
    "unetrt.third": "import unetrt.second\nfrom unetrt.first import name\n",
    "unetrt.typed": "from unetrt.third import name\n",
}


@pytest.fixture
def sources(tmp_path):
    for name, text in SOURCES.items():
        (tmp_path / name).write_text(text)
    return {name: tmp_path / name for name in SOURCES}


def test_imports_are_found_inside_functions_and_of_packages(sources):
    graph = architecture.imports(sources)
    assert graph["unetrt.first"] == set()
    assert graph["unetrt.second"] == {"unetrt.first"}
    assert graph["unetrt.third"] == {"unetrt.first", "unetrt.second"}
    assert architecture.cycles(graph) == []
    assert architecture.reachable(graph, "unetrt.typed") == set(SOURCES) - {"unetrt"}
    assert architecture.reduced(graph)["unetrt.third"] == {"unetrt.second"}


def test_imports_for_type_checkers_are_found_on_request(sources):
    graph = architecture.imports(sources, types=True)
    assert graph["unetrt.first"] == {"unetrt.typed"}
    assert architecture.cycles(graph) == [["unetrt.first", "unetrt.second", "unetrt.third", "unetrt.typed"]]

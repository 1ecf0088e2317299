"""Make the picture in docs/architecture.md: the packages, the arrows of their imports, and the files of four flows.

    python docs/architecture.py                 trains a tiny network and traces the flows: about a minute
    python docs/architecture.py FLOW FOLDER     prints the files of one flow; FOLDER is one that `prepare` filled

Arrows are read from the source text. Flows are traced: one call in a process of its own, under `sys.settrace` and
`threading.settrace`, which note each file of the product whose functions run. Class bodies do not count, nor does
what runs while a module is imported.
"""

import ast
import json
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import CO_OPTIMIZED
from itertools import zip_longest
from pathlib import Path
from queue import Queue
from tempfile import TemporaryDirectory
from time import sleep
from types import FrameType

ROOT = Path(__file__).parents[1]
PAGE = Path(__file__).with_suffix(".md")
MARKS = ("<!-- picture -->\n```text\n", "```\n<!-- end of picture -->\n")
Graph = dict[str, set[str]]

# Flow -> the most files whose code may run in it.
GOALS = {"predict": 39, "export": 30, "live": 19, "lane": 12}
TITLES = {"predict": "unetrt predict", "export": "unetrt export", "live": "a live frame", "lane": "CUDA lane"}
NOUNS = ("Geometry", "TilePlan", "Session", "Lane", "Segmenter", "LiveSegmenter")


# ---- Imports, from the source text


def product(root: Path = ROOT) -> dict[str, Path]:
    """Return the source files of the product's modules, by dotted name, as pyproject.toml installs them."""
    setup = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    modules = {}
    for package in setup["packages"]:
        base = max((name for name in setup["package-dir"] if f"{package}.".startswith(f"{name}.")), key=len)
        folder = root / setup["package-dir"][base] / package[len(base) + 1 :].replace(".", "/")
        for path in sorted(folder.glob("*.py")):
            modules[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return modules


def imports(modules: Mapping[str, Path], *, types: bool = False) -> Graph:
    """Return which of the other modules each module imports, inside functions too.

    Parameters
    ----------
    modules
        Source file by dotted name.
    types
        Whether to include what only type checkers import (`if TYPE_CHECKING:`).
    """
    graph = {}
    for module, path in modules.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[module] = set(_imported(tree, modules, types)) - {module}
    return graph


def _imported(tree: ast.AST, modules: Mapping[str, Path], types: bool) -> Iterator[str]:
    for node in _nodes(tree, types):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield from (one for one in (name if name in modules else node.module,) if one in modules)


def _nodes(tree: ast.AST, types: bool) -> Iterator[ast.AST]:
    """Iterate over a syntax tree, without the blocks for type checkers unless `types`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not types:
            continue
        yield node
        yield from _nodes(node, types)


# ---- The packages and their arrows


def box_of(module: str) -> str:
    """Return the box of the picture that a module belongs to: its package, where runtime's packages are boxes each."""
    parts = module.split(".")[1:]
    return "/".join(parts[: 2 if parts[:1] == ["runtime"] else 1])


def boxes(graph: Graph) -> Graph:
    """Return the arrows between boxes.

    The modules that only give public names (`unetrt`, `unetrt.__main__`, `unetrt.runtime`) are in no box. Neither is
    the `ground`: single modules that import nothing of the product but each other, which every package may import.
    """
    ground = ground_of(graph)
    kept = [module for module in graph if module not in {"unetrt", "unetrt.__main__", "unetrt.runtime"} | ground]
    arrows: Graph = {box_of(module): set() for module in kept}
    for module in kept:
        arrows[box_of(module)] |= {box_of(name) for name in graph[module] if name in kept} - {box_of(module)}
    return arrows


def ground_of(graph: Graph) -> set[str]:
    """Return the single modules, those that are a box of their own, that import only each other."""
    packages = {name.rpartition(".")[0] for name in graph}
    single = {name for name in graph if name not in packages and name == f"unetrt.{box_of(name).replace('/', '.')}"}
    ground: set[str] = set()
    while more := {name for name in single - ground if graph[name] <= ground}:
        ground |= more
    return ground


def cycles(graph: Graph) -> list[list[str]]:
    """Return the strongly connected components of more than one node, each sorted (Tarjan's algorithm)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in sorted(graph[node]):
            if other not in index:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], index[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return found


def reachable(graph: Graph, start: str) -> set[str]:
    """Return all nodes that arrows lead to from `start`, itself included."""
    seen = {start}
    waiting = [start]
    while waiting:
        new = graph[waiting.pop()] - seen
        seen |= new
        waiting += new
    return seen


def reduced(graph: Graph) -> Graph:
    """Return an acyclic graph without the arrows that follow from others (transitive reduction)."""
    return {
        node: {one for one in targets if not any(one in reachable(graph, other) for other in targets - {one})}
        for node, targets in graph.items()
    }


def ordered(graph: Graph) -> list[str]:
    """Return the nodes of an acyclic graph so that all arrows point down, the parts of a package side by side."""
    order: list[str] = []
    waiting = set(graph)
    while waiting:
        free = waiting.difference(*(graph[node] for node in waiting))
        group = order[-1].rpartition("/")[0] if order else ""
        order.append(min(free, key=lambda node: (node.rpartition("/")[0] != group, "/" in node, node)))
        waiting.remove(order[-1])
    return order


def merged(graph: Graph) -> Graph:
    """Return a graph in which nodes that lead to each other are one node, named after all of them."""
    name_of = {node: node for node in graph}
    for component in cycles(graph):
        name = " + ".join([component[0], *(node.rpartition("/")[2] for node in component[1:])])
        name_of |= dict.fromkeys(component, name)
    whole: Graph = {name: set() for name in name_of.values()}
    for node, targets in graph.items():
        whole[name_of[node]] |= {name_of[one] for one in targets} - {name_of[node]}
    return whole


def homes(modules: Mapping[str, Path]) -> dict[str, str]:
    """Return the box in which each of the five nouns (`Geometry` with `TilePlan`) is defined."""
    found = {}
    for module, path in modules.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name in NOUNS:
                found[node.name] = box_of(module)
    return found


def drawing(modules: Mapping[str, Path]) -> str:
    """Return the packages as text: an arrow leaves a package at the corner above, and arrives at those below."""
    graph = imports(modules)
    arrows = reduced(merged(boxes(graph)))
    order, nouns = ordered(arrows), homes(modules)
    rows = {box: number for number, box in enumerate(order)}
    tracks = [(rows[box], sorted(rows[other] for other in arrows[box])) for box in order if arrows[box]]
    width = max(map(len, order)) + 2
    lines = []
    for row, box in enumerate(order):
        names = {box, *box.split(" + "), *(f"runtime/{name}" for name in box.split(" + "))}
        held = ", ".join(noun for noun in NOUNS if nouns.get(noun) in names)
        lines.append(f"{box} {_tracks(row, tracks, width - len(box) - 1)}  {held}".rstrip())
    ground = ", ".join(sorted(name.removeprefix("unetrt.").replace(".", "/") for name in ground_of(graph)))
    return "\n".join([*lines, "", f"imported from anywhere: {ground}"]) + "\n"


def _tracks(row: int, tracks: Sequence[tuple[int, list[int]]], lead: int) -> str:
    """Return a row's part of the tracks: `╮` begins one, `┤` and `╯` arrive, `│` passes."""
    signs = []
    for begin, ends in tracks:
        passing = "│" if begin < row < ends[-1] else " "
        signs.append("╮" if row == begin else "╯" if row == ends[-1] else "┤" if row in ends else passing)
    last = max((number for number, sign in enumerate(signs) if sign in "╮╯┤"), default=-1)
    line = "".join(("─" if number <= last else " ") + ("─" if number < last and sign == " " else sign)
                   for number, sign in enumerate(signs))  # fmt: skip
    arrives = any(sign in "╯┤" for sign in signs)
    return ("◂" if arrives else "─" if last >= 0 else " ") + ("─" if last >= 0 else " ") * (lead - 1) + line


# ---- The files of a flow, traced


class Trace:
    """Records the files of the product whose functions run, in the order of their first call.

    Parameters
    ----------
    modules
        Source file by dotted name.

    Attributes
    ----------
    files
        What ran while `recording`, relative to the repository.
    """

    def __init__(self, modules: Mapping[str, Path]) -> None:
        self.files: dict[str, None] = {}
        self.recording = False
        self._names = {str(path): str(path.relative_to(ROOT)) for path in modules.values()}
        self._imports = threading.local()  # depth of modules and class bodies that run in this thread

    def __call__(self, frame: FrameType, _event: str, _arg: object) -> "Callable[..., object] | None":
        """Note a call; the trace function of `sys.settrace`. Only modules and class bodies are followed to their end.

        torch makes millions of calls in an export: `sys.setprofile` would report each return too, and calls of C.
        """
        code = frame.f_code
        if not code.co_flags & CO_OPTIMIZED:  # a module or a class body
            self._imports.depth = self._depth + 1
            frame.f_trace_lines = False
            return self._body
        if self.recording and code.co_filename in self._names and not self._depth:
            self.files.setdefault(self._names[code.co_filename])
        return None

    @property
    def _depth(self) -> int:
        return getattr(self._imports, "depth", 0)

    def _body(self, _frame: FrameType, event: str, _arg: object) -> Callable[..., object]:
        """Note the end of a module or a class body; its trace function."""
        if event == "return":
            self._imports.depth = self._depth - 1
        return self._body

    def of(self, flow: Callable[["Trace", Path], None], folder: Path) -> list[str]:
        """Run a flow and return its files; the flow starts and stops the recording."""
        threading.settrace(self)
        sys.settrace(self)
        try:
            flow(self, folder)
        finally:
            sys.settrace(None)
            threading.settrace(None)
        return list(self.files)


def predict(trace: Trace, folder: Path) -> None:
    """`unetrt predict model.onnx frame.tif`, from the command line to the files written."""
    _command(trace, "predict", folder / "model.onnx", folder / "frame.tif", "-o", folder / "labels")


def export(trace: Trace, folder: Path) -> None:
    """`unetrt export best.safetensors`, parity gate included."""
    _command(trace, "export", folder / "best.safetensors", "-o", folder / "exported.onnx")


def live(trace: Trace, folder: Path) -> None:
    """One frame through an open `LiveSegmenter`: from `submit` to its result, on both threads."""
    import tifffile

    from unetrt import LiveSegmenter

    results: Queue[object] = Queue()
    frame = tifffile.imread(folder / "frame.tif")
    with LiveSegmenter(folder / "model.onnx", on_result=results.put) as segmenter:
        trace.recording = True
        segmenter.submit(frame)
        results.get(timeout=60)
        while not segmenter.status().done:  # counted after the result was delivered
            sleep(0.001)
        trace.recording = False


def lane(trace: Trace, folder: Path) -> None:
    """One tile through a lane of TensorRT's session, opened for it, on the fakes of CUDA and TensorRT in tests/."""
    sys.path.insert(0, str(ROOT))
    from pytest import MonkeyPatch  # noqa: PT013 - not a test

    from tests.runtime.test_tensorrt_session import Bench
    from unetrt.runtime.sessions import open_session

    shutil.copy(folder / "model.onnx", folder / "of_engine.onnx")
    bench = Bench(MonkeyPatch(), folder)
    bench.install()
    engine = bench.engine(folder / "of_engine.onnx")
    trace.recording = True
    with open_session(engine, backend="tensorrt") as session:
        (one,) = session.lanes(1)
        one.launch()
        one.wait()
        one.close()
    trace.recording = False


FLOWS = {"predict": predict, "export": export, "live": live, "lane": lane}


def _command(trace: Trace, *arguments: object) -> None:
    from unetrt.cli import main

    trace.recording = True
    status = main([str(argument) for argument in arguments])
    trace.recording = False
    if status:
        raise SystemExit(status)


def traced(flow: str, folder: Path) -> list[str]:
    """Return the files of a flow, traced in a process of its own."""
    command = [sys.executable, __file__, flow, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{flow}: {done.stderr}")
    files: list[str] = json.loads(done.stdout.splitlines()[-1])
    return files


def prepare(folder: Path) -> None:
    """Put model.onnx, best.safetensors and frame.tif into a folder: a network of a few steps on drawn cells."""
    import tifffile

    from unetrt.__main__ import main
    from unetrt.runtime.files.outputs.label_tiff import write_labels
    from unetrt.trainer.drawn_cells import draw

    for name in ("images", "labels"):
        (folder / "data" / name).mkdir(parents=True)
    for seed in range(2):
        drawing = draw((96, 96), seed=seed)
        tifffile.imwrite(folder / "data" / "images" / f"{seed}.tif", drawing.frame, photometric="minisblack")
        write_labels(folder / "data" / "labels" / f"{seed}.tif", drawing.labels)
    tifffile.imwrite(folder / "frame.tif", draw((200, 240), seed=2).frame, photometric="minisblack")
    small = ["--depth", "2", "--base", "4", "--tile", "92", "--steps", "2"]
    if status := main(["train", str(folder / "data"), "-o", str(folder / "run"), *small]):
        raise SystemExit(status)
    for name in ("model.onnx", "best.safetensors"):
        shutil.copy(folder / "run" / name, folder / name)


def columns(flows: Mapping[str, Sequence[str]]) -> str:
    """Return the files of all flows side by side, in the order of their first call."""
    heads = {name: [TITLES[name], f"{len(files)} files, goal {GOALS[name]}", ""] for name, files in flows.items()}
    sides = [[*heads[name], *(file.removeprefix("runtime/") for file in files)] for name, files in flows.items()]
    widths = [max(map(len, side)) + 2 for side in sides]
    lines = (
        "".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in zip_longest(*sides, fillvalue="")
    )
    return "\n".join(line.rstrip() for line in lines) + "\n"


# ---- The page


def page(text: str, picture: str) -> str:
    """Return the page with another picture."""
    before, rest = text.split(MARKS[0])
    return before + MARKS[0] + picture + MARKS[1] + rest.split(MARKS[1])[1]


def main(arguments: Sequence[str]) -> None:
    """Trace one flow and print its files as JSON, or make the picture anew."""
    if arguments:
        flow, folder = arguments
        sys.stdout.write(json.dumps(Trace(product()).of(FLOWS[flow], Path(folder))) + "\n")
        return
    with TemporaryDirectory() as folder:
        prepare(Path(folder))
        flows = {name: traced(name, Path(folder)) for name in FLOWS}
    picture = drawing(product()) + "\n" + columns(flows)
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), picture), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])

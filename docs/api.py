"""Write the API reference, made from the docstrings by pdoc, as HTML: `make docs`, or `python docs/api.py FOLDER`.

It has the names that `unetrt`, `unetrt.runtime` and `unetrt.runtime.acquisition` list in `__all__`, and the modules of
`unetrt.trainer` and `unetrt.export`. Modules and names that begin with `_` are left out. Nothing is downloaded.
"""

import pkgutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from pdoc import doc, render

from unetrt import __version__

# Modules with an `__all__`, or whose names are all public.
PUBLIC = (
    "unetrt",
    "unetrt.runtime",
    "unetrt.runtime.acquisition",
    "unetrt.runtime.errors",
    "unetrt.runtime.files.images",
)
# Packages of which every module is documented.
PACKAGES = ("unetrt.trainer", "unetrt.export")


def documented() -> Iterator[str]:
    """Yield the names of the modules to document."""
    yield from PUBLIC
    for package in PACKAGES:
        yield package
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if not any(part.startswith("_") for part in module.name.split(".")):
                yield module.name


def loaded(name: str) -> ModuleType:
    """Import a module, and the public names that it imports on first use."""
    module = import_module(name)
    for public in getattr(module, "__all__", ()):
        setattr(module, public, getattr(module, public))
    return module


def write(folder: Path) -> None:
    """Write a page for each module, an index and a search index."""
    render.configure(docformat="numpy", show_source=False, footer_text=f"unetrt {__version__}")
    modules = {name: doc.Module(loaded(name)) for name in documented()}
    for name, module in modules.items():
        path = folder / f"{name.replace('.', '/')}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render.html_module(module, modules), encoding="utf-8")
    # Not `html_index`: it leads to the page of `unetrt`, which lists no other modules.
    index = render.env.get_template("index.html.jinja2").render(all_modules=modules, root_module_name=None)
    (folder / "index.html").write_text(index, encoding="utf-8")
    (folder / "search.js").write_text(render.search_index(modules), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))

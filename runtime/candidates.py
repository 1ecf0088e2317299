"""Optional implementations: the first usable entry of an ordered table, or the reasons against all entries.

Inference engines, TensorRT flavours and CUDA bindings are tables of candidates. The order of a table is the order of
automatic choice. A probe returns None where a candidate is usable, else one sentence that says why not and what helps.

>>> first_usable(["cupy", "numpy"], {"cupy": "CuPy is not installed: pip install cupy"}.get)
'numpy'
"""

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

from unetrt.runtime.errors import BackendUnavailableError, one_line

Candidate = TypeVar("Candidate")


def first_usable(
    candidates: Iterable[Candidate], probe: Callable[[Candidate], str | None], problem: str = ""
) -> Candidate:
    """Return the first candidate for which the probe returns None; later ones are not probed.

    Parameters
    ----------
    candidates
        In the order of preference.
    probe
        Returns None or the reason against a candidate; an exception ends the search.
    problem
        What the error message begins with, before the reasons.

    Raises
    ------
    BackendUnavailableError
        No candidate is usable; the message lists the reasons.
    """
    reasons = [problem] if problem else []
    for candidate in candidates:
        reason = probe(candidate)
        if reason is None:
            return candidate
        reasons.append(reason)
    raise BackendUnavailableError("; ".join(reasons))


def why_not_importable(
    module: str, title: str, extra: str, package: str = "", load: Callable[[str], object] = import_module
) -> str | None:
    """Return None where a module can be imported, else one sentence with pip's command.

    Parameters
    ----------
    module, title
        The module, and what the sentence calls it.
    extra
        The extra of unetrt that installs it.
    package
        The package that repairs it; by default the extra.
    load
        Imports the module.
    """
    requirement = f"'unetrt[{extra}]'"
    if not is_installed(module):
        return f"{title} is not installed: pip install {requirement}"
    try:
        load(module)
    except (ImportError, OSError) as error:
        reason = one_line(error, first=True)
        return f"{title} does not load ({reason}): pip install --force-reinstall {package or requirement}"
    return None


def is_installed(module: str) -> bool:
    """Return whether a module is installed, without importing it; its parent packages are imported."""
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a parent package is missing
        return False

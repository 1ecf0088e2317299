"""Optional implementations: the first usable entry of an ordered table, or the reasons against all entries.

Inference engines, TensorRT flavours and CUDA bindings are tables of candidates. The order of a table is the order of
automatic choice. A probe returns None where a candidate is usable, else one sentence that says why not and what helps.

>>> first_usable(["cupy", "numpy"], {"cupy": "CuPy is not installed: pip install cupy"}.get)
'numpy'
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from unetrt.runtime.errors import BackendUnavailableError

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

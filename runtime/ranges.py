"""Named ranges for NVIDIA's profilers (NVTX), where the package `nvtx` is installed; else nothing."""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from importlib.util import find_spec
from typing import Any

DOMAIN = "unetrt"


def named_range(name: str) -> AbstractContextManager[Any]:
    """Return a context that shows up as `name`, in the domain `unetrt`, on the calling thread's line of a profile."""
    nvtx = _nvtx()
    return nullcontext() if nvtx is None else nvtx.annotate(name, domain=DOMAIN)


@cache
def _nvtx() -> Any:
    if find_spec("nvtx") is None:
        return None
    import nvtx

    return nvtx

"""What torch raises, as errors of unetrt; running out of memory is recognised as itself."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from unetrt.runtime.errors import InferenceError, OutOfMemoryError

# The CPU allocator raises a plain RuntimeError (c10/core/impl/alloc_cpu.cpp); CUDA's has a class of its own.
CPU_OUT_OF_MEMORY = "DefaultCPUAllocator: can't allocate memory"


@contextmanager
def translated(what: str, advice: str) -> Iterator[None]:
    """Raise OutOfMemoryError, with `advice`, or InferenceError for what torch raises inside; `what` was being done."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise OutOfMemoryError(f"{what}: out of memory; {advice}") from error
    except RuntimeError as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        if CPU_OUT_OF_MEMORY in str(error):
            raise OutOfMemoryError(f"{what}: out of memory; {advice}") from error
        raise InferenceError(f"{what}: torch failed: {first}") from error

"""Text of errors, and failed allocations as engines report them."""

import pytest

from unetrt.runtime.errors import OutOfMemoryError, is_out_of_memory, one_line


@pytest.mark.parametrize(
    "message",
    [
        "CUDA failure 2: out of memory ; GPU=0 ; hostname=here",
        "bfc_arena.cc:376 void* BFCArena::AllocateRawInternal(size_t) Failed to allocate memory for requested buffer",
        "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
        "std::bad_alloc",
        "bad allocation",
        "could not create a primitive: out_of_memory",
        "Requested amount of GPU memory (8589934592 bytes) could not be allocated",
        "Error Code 2: OutOfMemory (Requested size was 8589934592 bytes.)",
        "/lib/libtorch_cpu.so: failed to map segment from shared object",
        "[Errno 12] Cannot allocate memory",
        "can't start new thread",
        "Resource temporarily unavailable",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
    ],
)
def test_failed_allocations_are_recognised(message):
    assert is_out_of_memory(message)
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("message", ["", "no kernel", "illegal memory access", "CUDA failure 700: memory", "cannot"])
def test_other_errors_are_not_taken_for_failed_allocations(message):
    assert not is_out_of_memory(RuntimeError(message))


def test_a_full_pipe_is_not_taken_for_a_failed_allocation():
    assert not is_out_of_memory(BlockingIOError(11, "Resource temporarily unavailable"))


def test_an_exception_for_memory_needs_no_message():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(OutOfMemoryError("the lanes do not fit"))


class UnprintableError(ValueError):
    def __str__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize(
    ("error", "options", "expected"),
    [
        (ValueError(" two\n\n  lines "), {}, "two lines"),
        ("two\nlines", {}, "two lines"),
        (ValueError("\n two \nlines"), {"first": True}, "two"),
        (ValueError("two\nlines"), {"kind": True}, "ValueError: two lines"),
        (ValueError(), {}, "ValueError"),
        (ValueError(), {"kind": True}, "ValueError"),
        ("", {}, ""),
        (UnprintableError(), {}, "UnprintableError"),
        (ValueError("a" * 99), {"limit": 10}, "aaaaaaa..."),
        (ValueError("a" * 10), {"limit": 10}, "a" * 10),
    ],
)
def test_an_error_is_one_line(error, options, expected):
    assert one_line(error, **options) == expected

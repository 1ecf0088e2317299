"""Text of errors, and failed allocations as engines report them."""

import pytest

from unetrt.runtime.errors import (
    LONGEST,
    ModelFileError,
    OutOfMemoryError,
    OutputError,
    UnetrtError,
    few,
    is_out_of_memory,
    one_line,
    printable,
)


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
        ("\x1b]0;title\x07\x1b[2J", {}, r"\x1b]0;title\x07\x1b[2J"),
    ],
)
def test_an_error_is_one_line(error, options, expected):
    assert one_line(error, **options) == expected


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain ü Ж 細胞 µm", None),
        ("no-break\xa0space, narrow\u202fspace, ideographic\u3000space", None),
        ("\x1b[2J\x07\x00\x7f\x9b", r"\x1b[2J\x07\x00\x7f\x9b"),
        ("two\nlines\r\ttab\u2028", r"two\nlines\r\ttab\u2028"),
        ("right\u202eto left", r"right\u202eto left"),
        ("not UTF-8: \udcff", r"not UTF-8: \udcff"),
    ],
)
def test_printable_text_has_no_control_characters(text, shown):
    assert printable(text) == (text if shown is None else shown)
    assert printable(printable(text)) == printable(text)


def test_line_breaks_are_kept_on_request():
    assert printable("a\nb\x1b", keep="\n") == "a\nb\\x1b"


@pytest.mark.parametrize(("limit", "shown"), [(10, "abcdefghij"), (9, "abcd...ij"), (3, "...")])
def test_the_middle_of_a_long_text_is_left_out(limit, shown):
    assert printable("abcdefghij", limit) == shown


@pytest.mark.parametrize("kind", [UnetrtError, ModelFileError, OutputError, OutOfMemoryError])
def test_the_message_of_an_error_is_bounded_and_printable(kind):
    error = kind("spec \x1b[2J" + 100_000 * "a" + ": use another")
    assert len(str(error)) <= LONGEST + 10
    assert str(error).startswith(r"spec \x1b[2Jaaa")
    assert str(error).endswith("aaa: use another")
    assert len(str(kind(100_000 * "\x00"))) <= 4 * LONGEST
    assert str(kind("a\n\n  b  c\n")) == "a b  c"
    assert str(kind()) == ""


def test_long_lists_are_shortened():
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(["a", "b", "c", "d"]) == "a, b, c and 1 more"
    assert few(["a", "b"], number=9, most=2) == "a, b and 7 more"

import pytest
from google.protobuf.internal import decoder, encoder
from hypothesis import given
from hypothesis import strategies as st
from onnx import StringStringEntryProto

from unetrt.runtime.model.onnx_file import (
    DELIMITED,
    VARINT,
    Message,
    WireError,
    field_of,
    number_field,
    replace,
    signed,
    varint,
)

UINT64 = st.integers(0, 2**64 - 1)


@given(UINT64)
def test_numbers_are_written_as_protobuf_writes_them(value):
    content = number_field(7, value)
    assert varint(value) == encoder._VarintBytes(value)
    (field,) = Message.of(content).fields()
    assert (field.number, field.kind, field.value) == (7, VARINT, value)
    assert signed(value) == decoder._DecodeSignedVarint(varint(value), 0)[0]


@given(st.text(), st.text())
def test_fields_are_written_as_protobuf_writes_them(key, value):
    content = field_of(1, key.encode()) + field_of(2, value.encode())
    assert StringStringEntryProto.FromString(content) == StringStringEntryProto(key=key, value=value)
    message = Message.of(content)
    assert [(part.number, part.kind, message.read(part).decode()) for part in message.fields()] == [
        (1, DELIMITED, key),
        (2, DELIMITED, value),
    ]


@given(st.lists(st.tuples(st.integers(1, 40), st.binary(max_size=300)), min_size=1), st.data())
def test_only_the_replaced_field_changes(contents, data):
    encoded = [field_of(number, content) for number, content in contents]
    message = b"".join(encoded)
    fields = list(Message.of(message).fields())
    chosen = data.draw(st.sets(st.integers(0, len(fields) - 1)))
    expected = [b"new" if number in chosen else part for number, part in enumerate(encoded)]
    assert replace(message, {fields[number]: b"new" for number in chosen}) == b"".join(expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x0a", "ends within a number"),
        (b"\x0a\x05abc", "2 bytes are missing"),
        (b"\x09abc", "5 bytes are missing"),
        (b"\x0d\0\0\0\0\x02\x00", "byte 5 starts no field"),
        (b"\x0b\x0c", "byte 0 starts no field"),
        (b"\x08" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        (b"\x08" + b"\x80" * 10, "more than 64 bits"),
        (b"\x88\x80\x80\x80\x80\x01\x00", "byte 0 starts no field"),
        (b"\x0a" + b"\xff" * 9 + b"\x01", "bytes are missing"),
    ],
)
def test_what_is_no_message(content, message):
    with pytest.raises(WireError, match=message):
        list(Message.of(content).fields())


def test_a_number_does_not_run_over_the_end_of_its_message():
    """Nor may a field: what follows belongs to somebody else."""
    outer = field_of(1, b"\x08\x80") + b"\x01"
    message = Message.of(outer)
    with pytest.raises(WireError, match="1 bytes are missing"):
        list(message.inside(next(message.fields())).fields())


def test_a_flood_of_fields_is_refused(monkeypatch):
    monkeypatch.setattr("unetrt.runtime.model.onnx_file.MAX_FIELDS", 100)
    assert len(list(Message.of(b"\x08\x00" * 100).fields())) == 100
    with pytest.raises(WireError, match="more than 100 fields"):
        list(Message.of(b"\x08\x00" * 101).fields())

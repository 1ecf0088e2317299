"""Ways to damage a file, each from a seed."""

import random

from unetrt.runtime.model.onnx_file import DELIMITED, Message, WireError, field_of, number_field, parts, replace

# As long as the location "in/w.bin", so that it can be overwritten in place: out of the folder, or no path at all.
ESCAPES = (b"../w.bin", b"ln/w.bin", b"/w/w.bin", b"C:/w.bin", b"in\\w.bin", b"in/w.bi\0", b"*/w/w*in", b"in/../.w")


def lengths(data):
    """Where the lengths of messages in a whole ONNX file end."""
    return [
        part.content - 1
        for _, message in parts(Message.of(data))
        for part in message.fields()
        if part.kind == DELIMITED and part.size
    ]


def flip_bit(rng, data):
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def set_byte(rng, data):
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))


def truncate(rng, data):
    del data[rng.randrange(len(data)) :]


def insert(rng, data):
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randint(1, 9))


def delete(rng, data):
    at = rng.randrange(len(data))
    del data[at : at + rng.randint(1, 9)]


def repeat(rng, data):
    at = rng.randrange(len(data))
    data[at:at] = data[at : at + rng.randint(1, 64)]


def swap(rng, data):
    size = rng.randint(1, 32)
    one, other = sorted(rng.randrange(max(len(data) - size, 1)) for _ in range(2))
    data[one : one + size], data[other : other + size] = data[other : other + size], data[one : one + size]


def change_length(rng, data):
    """Make a length of an unharmed file a little or very wrong."""
    at = rng.choice(lengths(bytes(data)))
    new = (max(data[at] - 1, 0), (data[at] + 1) & 0x7F, 0, 0x7F, b"\xff\xff\xff\xff\x0f", b"\xff" * 9 + b"\x01")
    chosen = rng.choice(new)
    data[at : at + 1] = chosen if isinstance(chosen, bytes) else bytes([chosen])


def escape(rng, data):
    """Lead a location elsewhere; a file without one gets it somewhere."""
    at = data.find(b"in/w.bin")
    at = at if at >= 0 else rng.randrange(len(data) + 1)
    data[at : at + 8] = rng.choice(ESCAPES)


def change_digit(rng, data):
    """Change a digit: of an offset, a length, a number in the spec."""
    places = [place for place, byte in enumerate(data) if chr(byte).isdigit()]
    new = (
        b"9",
        b"-",
        b"0",
        b".",
        b"e",
        b"true",
        b"null",
        b"NaN",
        b"9" * 30,
        b"9" * 5000,
        b"1e99",
        b'"',
        b"[]",
        b"[" * 5000,
    )
    if places:
        at = rng.choice(places)
        data[at : at + 1] = rng.choice(new)


ANYWHERE = (flip_bit, set_byte, insert, delete, repeat, swap)
MUTATIONS = (*ANYWHERE, truncate, change_length, escape, change_digit)
# A varint's edges: none, one, the types and sizes around those there are, the largest of 32 and 64 bits.
NUMBERS = (
    0,
    1,
    2,
    3,
    5,
    7,
    8,
    9,
    16,
    127,
    1 << 20,
    (1 << 31) - 1,
    1 << 31,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)


def change_field(rng, data):
    """Change, drop or double one field at any depth, with all lengths right: what a careful attacker would write."""
    data[:] = _changed(rng, bytes(data))


def _changed(rng, content):
    fields = _fields(content)
    if not fields:
        leaf = bytearray(content or b"0")
        rng.choice((*ANYWHERE, escape, change_digit))(rng, leaf)
        return bytes(leaf)
    part = rng.choice(fields)
    whole = content[part.begin : part.end]
    if rng.random() < 0.15:
        return replace(content, {part: rng.choice((b"", whole + whole))})
    if part.kind == DELIMITED:
        return replace(content, {part: field_of(part.number, _changed(rng, content[part.content : part.end]))})
    return replace(content, {part: number_field(part.number, rng.choice(NUMBERS))})


def _fields(content):
    """The fields of a message, none for what is text or numbers."""
    try:
        return [] if content[:1] in (b"{", b"") else list(Message.of(content).fields())
    except WireError:
        return []


def mutant(data, seed):
    """Return `data` with one to three damages: by even seeds to its fields, by odd ones each kind of bytes in turn."""
    rng, changed = random.Random(seed), bytearray(data)
    if seed % 2 == 0:
        for _ in range(rng.choice((1, 1, 2, 3))):
            change_field(rng, changed)
        return bytes(changed)
    MUTATIONS[seed // 2 % len(MUTATIONS)](rng, changed)
    for damage in rng.sample(ANYWHERE, rng.choice((0, 0, 1, 2))):
        damage(rng, changed or bytearray(b"0"))
    return bytes(changed)

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from unetrt.runtime.errors import EngineError, ModelFileError
from unetrt.runtime.records import from_json, to_json, validated


@dataclass(frozen=True)
class Tile:
    size: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]]
    border: Literal["reflect", "symmetric"] = "reflect"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.size[0] > 100:
            raise ValueError("the tile is too tall: use 100 or less")


def test_a_record_is_read_as_it_was_written():
    tile = Tile((3, 4), "symmetric", 0.25)
    assert from_json(to_json(tile), Tile, "tile.json") == tile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tile.json is not a JSON object: expecting value"),
        ("[]", "expected `object`, got `array`"),
        ("[" * 100_000, "tile.json is not a JSON object"),
        (b"\xff{}", "tile.json is not a JSON object"),
        ('{"size": [1, NaN]}', r"size\[1\]: expected `int`, got `float`"),
        ("{}", "missing required field `size`"),
        ('{"size": [1]}', "size: expected `array` of length 2"),
        ('{"size": [1, true]}', r"size\[1\]: expected `int`, got `bool`"),
        ('{"size": [0, 1]}', r"size\[0\]: expected `int` >= 1"),
        ('{"size": [1, 1], "border": "none"}', "border: invalid enum value 'none', use reflect, symmetric"),
        ('{"size": [1, 1], "colour": 3}', "unknown key 'colour'"),
        ('{"size": [101, 1]}', "the tile is too tall: use 100 or less"),
        ('{"size": [1, 1], "seconds": ' + "9" * 400 + "}", "out of range"),
    ],
)
def test_a_wrong_record_is_refused_with_its_place(text, message):
    with pytest.raises(ModelFileError, match=message):
        from_json(text, Tile, "tile.json")


def test_the_error_is_the_one_asked_for_and_unknown_keys_can_be_ignored():
    with pytest.raises(EngineError):
        from_json("{}", Tile, "x", EngineError)
    assert validated({"size": [1, 2], "later": 1}, Tile, "x", unknown=True) == Tile((1, 2))


def test_nan_becomes_null():
    assert to_json({"a": math.nan}) == '{\n  "a": null\n}'

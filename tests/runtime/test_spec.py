import json
from dataclasses import replace

import pytest

from tests.conftest import small_spec
from unetrt.runtime.errors import ModelFileError, TileError
from unetrt.runtime.normalisation import Normalisation
from unetrt.runtime.spec import HEADS, INPUT_TYPES, ModelSpec

SPEC = small_spec(
    classes=("background", "cell", "debris"),
    normalisation=Normalisation("fixed", offset=(1.0,), scale=(2.0,)),
    network={"depth": 2, "base": 4},
    training={"steps": 7},
)


def test_json_and_back():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC


@pytest.mark.parametrize(
    ("head", "shape", "dtype"),
    [("logits", (2, 3), "float32"), ("probabilities", (2, 3), "float32"), ("labels", (2,), "uint8")],
)
def test_arrays_follow_from_the_spec(head, shape, dtype):
    spec = replace(SPEC, head=head, batch=2)
    assert spec.new_input().shape == (2, 1, *spec.tile)
    output = spec.new_output()
    assert (output.shape, output.dtype) == ((*shape, *spec.core), dtype)
    assert set(HEADS) == {"logits", "probabilities", "labels"}


@pytest.mark.parametrize("dtype", INPUT_TYPES)
def test_the_input_has_the_dtype_of_the_spec(dtype):
    spec = replace(SPEC, input_dtype=dtype)
    assert spec.new_input().dtype == dtype
    assert spec.takes_raw == (dtype != "float32")


def _changed(**changes):
    return json.dumps({**json.loads(SPEC.to_json()), **changes})


def _without(name):
    return json.dumps({key: value for key, value in json.loads(SPEC.to_json()).items() if key != name})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not readable"),
        ("[]", "not readable"),
        ("{}", "not readable"),
        (_changed(schema=99), "schema 99, written by another version; this version reads 1"),
        (_without("tile"), "not whole.*tile"),
        (_without("halo"), "not whole.*halo"),
        (_changed(colour=1), "not whole.*colour"),
        (_changed(head="mask"), "head 'mask' is unknown here: logits, probabilities, labels"),
        (_changed(tile=[60, 61]), "tile 61 is not legal"),
        (_changed(batch=0), "make no model"),
        (_changed(normalisation={"mode": "magic"}), "normalisation 'magic' is unknown"),
        (_changed(halo="20"), "not whole"),
        (_changed(input_dtype="int16"), "input dtype 'int16' is unknown here: float32, uint8, uint16"),
        (
            _changed(input_dtype="uint16", normalisation={"mode": "zscore"}),
            "sees one tile.*zscore is measured",
        ),
    ],
)
def test_what_is_no_spec(text, message):
    with pytest.raises(ModelFileError, match=message):
        ModelSpec.from_json(text)


def test_an_illegal_tile_is_refused_at_once():
    with pytest.raises(TileError):
        small_spec(tile=(60, 62))

import json
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import small_spec
from unetrt.runtime.errors import ModelFileError, TileError
from unetrt.runtime.model.spec import HEADS, INPUT_TYPES, ModelSpec
from unetrt.runtime.pixels.normalisation import Normalisation

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
        (_changed(classes=["background", " "]), "class name ' ' is none"),
        (_changed(normalisation={"mode": "magic"}), "normalisation 'magic' is unknown"),
        (_changed(halo="20"), "halo is '20': it must be a whole number"),
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


def _normalised(**changes):
    return _changed(normalisation={"mode": "fixed", "offset": [1.0], "scale": [2.0], **changes})


# As they stand in the file, so that what Python's own JSON writer would not write is there too.
@pytest.mark.parametrize(
    "value", ["true", "null", '"1"', "1.5", "1e99", "NaN", "-1", "[1]", "{}", "9" * 40, "9" * 5000]
)
@pytest.mark.parametrize("name", ["halo", "grid", "channels", "batch", "separation_border"])
def test_what_is_no_count(name, value):
    text = json.dumps({**json.loads(SPEC.to_json()), name: "HERE"}).replace('"HERE"', value)
    with pytest.raises(ModelFileError, match=f"{name} is .*it must be a whole number|not readable") as caught:
        ModelSpec.from_json(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_changed(tile="60"), "tile is '60': it must be height and width"),
        (_changed(tile=[60]), "tile is"),
        (_changed(tile=[60, 64, 68]), "tile is"),
        (_changed(tile=[60, True]), "tile is"),
        (_changed(tile=[60, 64.0]), "tile is"),
        (_changed(tile=[[60], [64]]), "tile is"),
        (_changed(grid=0), "grid is 0: it must be a whole number from 1"),
        (_changed(classes="ab"), "classes is 'ab': it must be a list of names"),
        (_changed(classes=[1, 2, 3]), "classes is"),
        (_changed(classes=["a", None, "c"]), "classes is"),
        (_changed(classes=["a", "two\nlines", "c"]), "classes is"),
        (_changed(classes=["a", "\ud800", "c"]), "classes is"),
        (_changed(head=["logits"]), "head is"),
        (_changed(precision=None), "precision is None: it must be text"),
        (_changed(written_by={}), "written_by is {}"),
        (_changed(training=[1]), "training is"),
        (_changed(network=[1]), "network is"),
        (_changed(network={"depth": 2}), "network is"),
        (_changed(network={"depth": 2, "base": "4"}), "network is"),
        (_changed(network={"depth": 10**6, "base": 4}), "network is"),
        (_changed(normalisation=None), "normalisation is None"),
        (_changed(normalisation={}), "not whole.*mode"),
        (_normalised(mode=1), "normalisation's mode is 1: it must be text"),
        (_normalised(offset="1"), "normalisation's offset is '1': it must be a list of finite numbers"),
        (_normalised(offset=[float("nan")]), "normalisation's offset is"),
        (_normalised(scale=[1e39]), "normalisation's scale is"),
        (_normalised(scale=[10**400]), "normalisation's scale is"),
        (_normalised(scale=[True]), "normalisation's scale is"),
        (_normalised(offset=[1, 2], scale=[1, 2]), r"\[2, 2\] constants: offset and scale are 1 each"),
        (_changed(normalisation={"mode": "percentile", "low": "1"}), "normalisation's low is '1'"),
        (_changed(schema=True), "schema True"),
        (_changed(schema=[1]), "schema"),
        (_changed(batch=2**20, tile=[1020, 1020]), "values: 2147483647 at most"),
        ('{"schema": 1, "tile": ' + "[" * 100_000, "not readable"),
        ("[" * 100_000, "not readable"),
        ('{"schema": 1, "training": ' + '{"a":' * 300 + "1" + "}" * 301, "not whole"),
    ],
)
def test_json_of_wrong_types(text, message):
    with pytest.raises(ModelFileError, match=message) as caught:
        ModelSpec.from_json(text)
    assert "\n" not in str(caught.value)


def test_an_illegal_tile_is_refused_at_once():
    with pytest.raises(TileError):
        small_spec(tile=(60, 62))


@pytest.mark.parametrize(
    ("head", "shape", "dtype"), [("logits", (3, 2, 4, 20), "float32"), ("labels", (3, 4, 20), "uint8")]
)
def test_a_spec_promises_the_tensors_of_its_graph(head, shape, dtype):
    spec = ModelSpec((188, 204), 92, 16, batch=3, head=head)
    given, answer = spec.tensors()
    assert given == ("frame", (3, 1, 188, 204), np.float32)
    assert answer == ("scores", shape, np.dtype(dtype))
    assert spec.new_output().nbytes == answer.nbytes


def test_a_spec_plans_its_tiles():
    spec = ModelSpec((220, 220), 92, 16, border="symmetric")
    plan = spec.plan((100, 70))
    assert (plan.frame, plan.tile, plan.border) == ((100, 70), (220, 220), "symmetric")

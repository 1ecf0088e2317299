import json
import math
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import small_spec
from unetrt.runtime.errors import ModelFileError, TileError
from unetrt.runtime.model.spec import CORE_CLASSES, HEADS, INPUT_TYPES, Decoding, ModelSpec, Verification
from unetrt.runtime.pixels.normalisation import Normalisation

SPEC = small_spec(
    classes=("background", "cell", "debris"),
    normalisation=Normalisation("fixed", offset=(1.0,), scale=(2.0,)),
    network={"depth": 2, "base": 4},
    training={"steps": 7},
)


def test_json_and_back():
    assert ModelSpec.from_json(SPEC.to_json()) == SPEC


VERIFIED = replace(
    SPEC, verification=Verification("the network", {"iou": 0.1 + 0.2}, {"iou": 0.1}, 2, 400, "ab" * 32, "2026-03-31")
)


def test_a_verification_is_stored():
    assert ModelSpec.from_json(VERIFIED.to_json()) == VERIFIED


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"date": "\x1b[31m"}, r"invalid text '\\x1b\[31m': use printable characters on one line"),
        ({"measured": {"\n": 1.0}}, "invalid text"),
        ({"measured": {"iou": "1"}}, "measured.*: expected `float`, got `str`"),
        ({"frames": -1}, "verification.frames: expected `int` >= 0"),
    ],
)
def test_what_is_no_verification(changes, message):
    stored = json.loads(VERIFIED.to_json())
    stored["verification"] |= changes
    with pytest.raises(ModelFileError, match=message):
        ModelSpec.from_json(json.dumps(stored))


def test_a_file_of_schema_2_has_no_verification():
    stored = {**json.loads(SPEC.to_json()), "schema": 2}
    del stored["verification"]
    assert ModelSpec.from_json(json.dumps(stored)) == SPEC


def test_a_file_of_schema_1_decodes_as_it_did():
    stored = {**json.loads(SPEC.to_json()), "schema": 1, "separation_border": 3}
    del stored["decoding"]
    assert ModelSpec.from_json(json.dumps(stored)) == replace(SPEC, decoding=Decoding("components", 3))
    del stored["separation_border"]
    assert ModelSpec.from_json(json.dumps(stored)) == SPEC


def test_cores_need_three_classes():
    cores = replace(SPEC, classes=CORE_CLASSES, decoding=Decoding("cores", 9, 1, 8))
    assert ModelSpec.from_json(cores.to_json()) == cores
    with pytest.raises(ModelFileError, match=r"cores needs the 3 classes background, rim, core \(got 2\)"):
        replace(cores, classes=("background", "cell"))


def test_a_file_may_hold_the_nan_of_an_earlier_summary():
    spec = ModelSpec.from_json(replace(SPEC, training={"loss": math.nan}).to_json())
    assert math.isnan(spec.training["loss"])


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
        ("", "the model's spec is not a JSON object: expecting value"),
        ("[]", "not a JSON object: expected `object`, got `array`"),
        ("{}", "missing schema; export the model again"),
        (_changed(schema=99), "schema 99, written by another version; this version reads 1"),
        (_without("tile"), "missing required field `tile`"),
        (_without("halo"), "missing required field `halo`"),
        (_without("classes"), "missing classes; export the model again"),
        (_without("normalisation"), "missing normalisation"),
        (_changed(colour=1), "unknown key 'colour'"),
        (_changed(head="mask"), "head: invalid enum value 'mask', use logits, probabilities, labels"),
        (_changed(tile=[60, 61]), "tile 61 is not legal"),
        (_changed(batch=0), r"the model's spec is invalid: batch must be at least 1 \(got 0\)"),
        (_changed(channels=0), r"channels must be at least 1 \(got 0\)"),
        (_changed(classes=["background"]), r"classes must be 2 to 256, background first \(got 1\)"),
        (_changed(classes=["background", " "]), "invalid class name ' '"),
        (
            _changed(normalisation={"mode": "magic"}),
            "normalisation.mode: invalid enum value 'magic', use fixed, percentile, zscore, running",
        ),
        (_changed(halo="20"), "halo: expected `int`, got `str`"),
        (_changed(input_dtype="int16"), "input_dtype: invalid enum value 'int16', use float32, uint8, uint16"),
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
@pytest.mark.parametrize("name", ["halo", "grid", "channels", "batch"])
def test_what_is_no_count(name, value):
    text = json.dumps({**json.loads(SPEC.to_json()), name: "HERE"}).replace('"HERE"', value)
    with pytest.raises(ModelFileError, match=f"spec is invalid: {name}: expected `int`|not a JSON object") as caught:
        ModelSpec.from_json(text)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (_changed(tile="60"), "tile: expected `array`, got `str`"),
        (_changed(tile=[60]), "tile: expected `array` of length 2"),
        (_changed(tile=[60, 64, 68]), "tile: expected `array` of length 2"),
        (_changed(tile=[60, True]), r"tile\[1\]: expected `int`, got `bool`"),
        (_changed(tile=[60, 64.0]), r"tile\[1\]: expected `int`, got `float`"),
        (_changed(tile=[[60], [64]]), r"tile\[0\]: expected `int`"),
        (_changed(decoding={"method": "watershed"}), "decoding.method: invalid enum value .*, use components, cores"),
        (_changed(decoding={"method": "cores", "reach": -1}), "decoding.reach: expected `int` >= 0"),
        (_changed(decoding={"method": "cores", "reach": 99999}), "decoding.reach: expected `int` <= 1024"),
        (_changed(decoding={"method": "components", "smallest": 2}), "decoding: bridge and smallest are for"),
        (_changed(decoding=3), "decoding: expected `object`, got `int`"),
        (_changed(grid=0), "grid: expected `int` >= 1"),
        (_changed(classes="ab"), "classes: expected `array`, got `str`"),
        (_changed(classes=[1, 2, 3]), r"classes\[\d\]: expected `str`"),
        (_changed(classes=["a", None, "c"]), r"classes\[\d\]: expected `str`"),
        (_changed(classes=["a", "two\nlines", "c"]), "invalid class name"),
        (_changed(classes=["a", "\ud800", "c"]), "invalid class name"),
        (_changed(head="\ud800"), "surrogates not allowed"),
        (_changed(head=["logits"]), "head: expected `str`"),
        (_changed(precision=None), "precision: expected `str`, got `null`"),
        (_changed(written_by={}), "written_by: expected `str`"),
        (_changed(written_by="two\nlines"), "invalid text"),
        (_changed(weights_sha256="\x1b[2J"), "invalid text"),
        (_changed(training=[1]), "training: expected `object`"),
        (_changed(network=[1]), "network: expected `object`"),
        (_changed(network={"depth": 2}), "network must be empty, or depth from 1 to 16 and base"),
        (_changed(network={"depth": 2, "base": "4"}), r"network\[...\]: expected `int`"),
        (_changed(network={"depth": 10**6, "base": 4}), "network must be empty, or depth from 1 to 16"),
        (_changed(normalisation=None), "normalisation: expected `object`, got `null`"),
        (_changed(normalisation={}), "missing mode; export the model again"),
        (_normalised(mode=1), "normalisation.mode: expected `str`"),
        (_normalised(offset="1"), "normalisation.offset: expected `array`, got `str`"),
        (_normalised(offset=[float("nan")]), r"normalisation.offset\[0\]: expected `float`"),
        (_normalised(scale=[1e39]), r"normalisation.scale\[0\]: expected `float` <="),
        (_normalised(scale=[10**400]), r"normalisation.scale\[0\]: number out of range"),
        (_normalised(scale=[True]), r"normalisation.scale\[0\]: expected `float`, got `bool`"),
        (_normalised(offset=[1, 2], scale=[1, 2]), r"normalisation needs one offset per channel: 1 \(got 2\)"),
        (_changed(normalisation={"mode": "percentile", "low": "1"}), "normalisation.low: expected `float`"),
        (_changed(schema=True), "schema True"),
        (_changed(schema=[1]), "schema"),
        (_changed(batch=2**20, tile=[1020, 1020]), "values: 2147483647 at most"),
        ('{"schema": 1, "tile": ' + "[" * 100_000, "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ('{"schema": 1, "training": ' + '{"a":' * 300 + "1" + "}" * 301, "missing classes"),
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

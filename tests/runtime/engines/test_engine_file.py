import json
import random
from pathlib import Path

import pytest

from tests.runtime.engines.machines import FACTS, SPEC
from unetrt.runtime.engines.engine_file import read_sidecar, sidecar_path, write_engine
from unetrt.runtime.errors import EngineError, OutputError

PLAN = b"what TensorRT wrote"


@pytest.fixture
def engine(tmp_path):
    path = tmp_path / "model.engine"
    write_engine(path, PLAN, FACTS, SPEC, Path("model.onnx"))
    return path


def test_the_plan_is_untouched_and_all_else_stands_beside_it(engine):
    assert engine.read_bytes() == PLAN
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]
    sidecar = read_sidecar(engine)
    assert (sidecar.facts, sidecar.spec, sidecar.source) == (FACTS, SPEC, "model.onnx")
    assert sidecar.size == len(PLAN)


def test_a_damaged_engine_is_noticed(engine):
    engine.write_bytes(PLAN[:-1])
    with pytest.raises(EngineError, match="is damaged, or not the engine that model.engine.json describes"):
        read_sidecar(engine)


def test_a_flipped_bit_of_an_engine_or_its_sidecar_is_refused_or_harmless(engine):
    expected, rng = read_sidecar(engine), random.Random(0)
    for path, flips in ((engine, 8 * len(PLAN)), (sidecar_path(engine), 400)):
        content, refused = path.read_bytes(), 0
        for number in range(flips):
            bit = number if path == engine else rng.randrange(8 * len(content))
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            error = refusal(engine)
            refused += error is not None
            assert "\n" not in error if error else read_sidecar(engine) == expected, bit
        assert refused == flips if path == engine else refused > 0.8 * flips
        path.write_bytes(content)


def refusal(engine):
    try:
        read_sidecar(engine)
    except EngineError as error:
        return str(error)
    return None


def test_a_sidecar_of_an_earlier_version_states_no_digest(engine):
    expected = read_sidecar(engine)
    sidecar_path(engine).write_text(_changed(engine, ["unetrt_sha256"], None))
    assert read_sidecar(engine) == expected


def test_a_missing_half(engine):
    sidecar_path(engine).unlink()
    with pytest.raises(
        EngineError,
        match="needs its sidecar model.engine.json beside it, which .*`unetrt build",
    ):
        read_sidecar(engine)
    engine.unlink()
    with pytest.raises(EngineError, match="does not exist: `unetrt build"):
        read_sidecar(engine)


def _changed(engine, path, value):
    stored = json.loads(sidecar_path(engine).read_text())
    *folders, name = path
    part = stored
    for folder in folders:
        part = part[folder]
    if value is None:
        del part[name]
    else:
        part[name] = value
    return json.dumps(stored)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["schema"], 2, "it does not have schema 1, which this version reads"),
        (["facts"], None, "it is invalid: object missing required field `facts`"),
        (["facts", "tile"], [1, 2, 3], "tile: expected `array` of length 2"),
        (["facts", "options", "capabilities"], 5, "options.capabilities: expected `array`, got `int`"),
        (["facts", "colour"], "blue", "colour"),
        (["facts", "model"], 5, "its facts is invalid: model: expected `str`, got `int`"),
        (["facts", "flavour"], "foo", "TensorRT flavour 'foo' is unknown: use one of"),
        (["facts", "machine", "driver"], 5, "machine.driver: expected `str`, got `int`"),
        (["facts", "options", "tf32"], 1, "options.tf32: expected `bool`, got `int`"),
        (["facts", "options", "capabilities"], "8.6", "options.capabilities: expected `array`, got `str`"),
        (["spec", "tile"], [60, 61], "tile 61 is not legal"),
        (["size"], "5", "size: expected `int`, got `str`"),
        (["sha256"], None, "sha256"),
        (["spec", "halo"], 24, "it is damaged: its contents do not have the SHA-256 that it states"),
    ],
)
def test_a_sidecar_that_is_none(engine, path, value, message):
    sidecar_path(engine).write_text(_changed(engine, path, value))
    with pytest.raises(EngineError, match=f"model.engine.json: .*{message}.*unetrt build"):
        read_sidecar(engine)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, '{"schema": 1}', "null"])
def test_a_sidecar_that_is_no_json_of_ours(engine, text):
    sidecar_path(engine).write_text(text)
    with pytest.raises(EngineError, match="model.engine.json: it (is|does) .*; `unetrt build"):
        read_sidecar(engine)


def test_where_the_engine_cannot_be_replaced_the_old_one_stays_whole(engine, monkeypatch):
    """As on Windows, while a program has it open."""
    replace = Path.replace

    def refuse(self, target):
        if Path(target) == engine:
            raise PermissionError(13, "it is open")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="it is open"):
        write_engine(engine, b"another", FACTS, SPEC, Path("other.onnx"))
    assert read_sidecar(engine).source == "model.onnx"
    assert sorted(path.name for path in engine.parent.iterdir()) == ["model.engine", "model.engine.json"]

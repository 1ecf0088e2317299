import json
import os
import random
from dataclasses import replace
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


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["spec", "halo"], 4),
        (["spec", "normalisation", "scale"], [2.0]),
        (["spec", "classes"], ["background", "nothing"]),
        (["facts", "version"], "11.4.0.107"),
        (["source"], "another.onnx"),
        (["unetrt_sha256"], "0" * 64),
        (["unetrt_sha256"], 5),
    ],
)
def test_a_sidecar_that_was_changed_is_refused(engine, path, value):
    sidecar_path(engine).write_text(_changed(engine, path, value))
    with pytest.raises(EngineError, match="model.engine.json: it is damaged: .* SHA-256 that it states; `unetrt build"):
        read_sidecar(engine)


def test_the_order_of_fields_and_a_missing_digest_do_not_matter(engine):
    """As after a formatter, and in a sidecar of an earlier version."""
    stored = json.loads(sidecar_path(engine).read_text())
    sidecar_path(engine).write_text(json.dumps(stored, sort_keys=True))
    assert read_sidecar(engine).spec == SPEC
    sidecar_path(engine).write_text(_changed(engine, ["unetrt_sha256"], None))
    assert read_sidecar(engine).spec == SPEC


def test_a_number_that_json_does_not_have_is_stored(engine):
    write_engine(engine, PLAN, FACTS, replace(SPEC, training={"loss": float("nan"), "steps": 10**18}), Path("m.onnx"))
    assert read_sidecar(engine).spec.training == {"loss": None, "steps": 10**18}


def of_a_gigabyte(path):
    path.touch()
    os.truncate(path, 10**9)


ODD = [
    (os.mkfifo, "it is not a regular file"),
    (os.mkdir, "it is not a regular file"),
    (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
    (of_a_gigabyte, "it has 1000000000 bytes, and at most 67108864 are read"),
    (lambda path: path.write_bytes(b"\xff"), "it is not UTF-8"),
    (lambda path: path.write_text('{"size": 1' + 5000 * "0" + "}"), "it is not a JSON object"),
    (lambda path: path.write_text('{"spec": ' + 900 * "[" + 900 * "]" + "}"), "it does not have schema 1"),
]


@pytest.mark.skipif(os.name != "posix", reason="pipes and links")
@pytest.mark.parametrize(("made", "message"), ODD)
def test_a_sidecar_that_is_no_file_of_text_is_refused_at_once(engine, made, message):
    sidecar_path(engine).unlink()
    made(sidecar_path(engine))
    with pytest.raises(EngineError, match=f"model.engine.json: {message}.*; `unetrt build"):
        read_sidecar(engine)


@pytest.mark.skipif(os.name != "posix", reason="holes in files")
def test_an_engine_of_another_size_is_not_read(engine):
    os.truncate(engine, 10**12)
    with pytest.raises(EngineError, match="is damaged"):
        read_sidecar(engine)


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_a_link_to_an_engine_is_followed_but_not_in_a_cache(engine, tmp_path):
    (link := tmp_path / "link.engine").symlink_to(engine)
    sidecar_path(link).symlink_to(sidecar_path(engine))
    assert read_sidecar(link).facts == FACTS
    with pytest.raises(EngineError, match="link.engine.json: it is a link"):
        read_sidecar(link, cached=True)
    sidecar_path(link).unlink()
    sidecar_path(link).write_text(sidecar_path(engine).read_text())
    with pytest.raises(EngineError, match="link.engine cannot be read: it is a link"):
        read_sidecar(link, cached=True)


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

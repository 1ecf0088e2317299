"""Text from files and options on the terminal: no control sequences, of limited length, in any encoding."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tifffile
from rich.console import Console

from tests.runtime.engines.machines import FACTS
from unetrt.__main__ import main
from unetrt.cli import predict
from unetrt.export.onnx_model import describe
from unetrt.live_view.terminal import Observer, PlainLines, drawing
from unetrt.runtime.engines.cache import EngineCache
from unetrt.runtime.engines.engine_file import sidecar_path, write_engine
from unetrt.runtime.errors import LONGEST, OutputError
from unetrt.runtime.files import atomic
from unetrt.runtime.files.atomic import locked
from unetrt.runtime.live.results import LiveStatus, Percentiles, State
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.model.spec import KEY
from unetrt.runtime.sessions.onnxruntime_options import Choice, Trial, folder

# Clears the screen, sets the title, and shows the rest of the line backwards.
CRAFTED = "\x1b[2J\x1b]0;title\x07\u202e"
LONG = 100_000 * "a"
FRAME = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)


NEVER = Percentiles()
STATUS = LiveStatus(State.WAITING, 0, 0, 0, 0, 0, 0, 0, "", 0.0, NEVER, NEVER, NEVER)


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run(capsys):
    """Runs a command; returns its exit status and all that it prints, which must be safe for a terminal."""

    def call(*arguments):
        status = main([str(argument) for argument in arguments])
        printed = "".join(capsys.readouterr())
        assert all(character.isprintable() or character == "\n" for character in printed)
        assert max(map(len, printed.splitlines()), default=0) < 2 * LONGEST
        return status, printed

    return call


def cached_engine(spec, source):
    path = EngineCache().folder / f"{FACTS.key}.engine"
    write_engine(path, b"plan", FACTS, spec, source)
    return path


def test_a_list_of_the_cache(run, tiny_model):
    cached_engine(read_spec(tiny_model), Path(f"{CRAFTED}.onnx"))
    Choice("first", 0, (Trial("first", 0.1), Trial("second", None, CRAFTED)), CRAFTED).save(folder() / "a.json", {})
    status, printed = run("cache", "list")
    assert status == 0
    assert printed.count(r"\x1b[2J\x1b]0;title\x07\u202e") == 3


def test_a_list_of_the_cache_with_a_large_sidecar(run, tiny_model):
    path = cached_engine(read_spec(tiny_model), Path(f"{LONG}.onnx"))
    assert run("cache", "list")[0] == 0
    os.truncate(sidecar_path(path), 10**9)
    assert "not readable" in run("cache", "list")[1]


def test_what_an_engine_contains(run, tiny_model):
    path = cached_engine(replace(read_spec(tiny_model), training={"note": CRAFTED, "long": LONG}), Path(CRAFTED))
    status, printed = run("info", path)
    assert status == 0
    assert r"\x1b[2J\x1b]0;title\x07\u202e" in printed


def test_all_of_a_model_is_json(run, tiny_model, tmp_path, capsys):
    describe(model := onnx.load(tiny_model), replace(read_spec(tiny_model), training={"note": CRAFTED, "long": LONG}))
    onnx.save(model, path := tmp_path / "model.onnx")
    run("info", path)
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"] == {"note": CRAFTED, "long": LONG}


SPECS = [
    {"head": LONG},
    {"border": CRAFTED},
    {"tile": LONG},
    {LONG: 1},
    {"schema": LONG},
    {"written_by": CRAFTED},
    LONG,
]


@pytest.mark.parametrize("changes", SPECS, ids=lambda changes: str(changes)[:20])
def test_a_damaged_spec(run, tiny_model, tmp_path, changes):
    model, spec = onnx.load(tiny_model), json.loads(read_spec(tiny_model).to_json())
    text = changes if isinstance(changes, str) else json.dumps(spec | changes)
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path := tmp_path / "model.onnx")
    status, printed = run("info", path)
    assert (status, printed.count("\n")) == (2, 1)


COMMANDS = [
    ["info", CRAFTED],
    ["info", LONG],
    ["info", f"a\n{CRAFTED}.onnx"],
    ["predict", "MODEL", CRAFTED, "-o", "out"],
    ["predict", "MODEL", "IMAGE", "-o", "out", "--backend", LONG],
    ["predict", "MODEL", "IMAGE", "-o", "out", "--backend", CRAFTED],
    ["predict", "MODEL", "IMAGE", "-o", "out", "--tile", LONG],
    ["predict", "MODEL", "IMAGE", "-o", "out", f"--{LONG}"],
    ["predict", "MODEL", "IMAGE", "-o", "out", "--backend-option", LONG],
    ["predict", "MODEL", "IMAGE", "-o", "out", "--backend-option", f"{CRAFTED}=1"],
    ["plan", "--frame", LONG],
    ["plan", "--frame", CRAFTED],
    ["plan", "--frame", "64", "--memory", LONG],
    ["retile", "MODEL", "-o", "out.onnx", "--tile", CRAFTED],
    ["export", CRAFTED],
    ["eval", CRAFTED, LONG],
    ["train", CRAFTED, "-o", "out"],
    ["cache", "clear", CRAFTED],
    ["cache", "clear", LONG],
    [LONG],
    [CRAFTED],
]


@pytest.mark.parametrize(
    "command", COMMANDS, ids=lambda command: " ".join(command)[:60].encode("unicode_escape").decode()
)
def test_an_option(run, tiny_model, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    tifffile.imwrite("a.tif", FRAME)
    status, printed = run(*({"MODEL": tiny_model, "IMAGE": "a.tif"}.get(word, word) for word in command))
    assert (status, printed.count("\n")) == (2, 1)


NAMES = [
    os.fsdecode(name) for name in ("\x1b[2J.tif", "two\nlines.tif", "[red]a.tif", b"not UTF-8 \xff.tif", "細胞.tif")
]


@pytest.mark.skipif(os.name != "posix", reason="such names do not exist on Windows")
@pytest.mark.parametrize("name", NAMES, ids=ascii)
@pytest.mark.parametrize("damaged", [False, True])
def test_a_name_of_an_image(run, tiny_model, tmp_path, name, damaged):
    tifffile.imwrite(tmp_path / "a.tif", FRAME)
    if damaged:
        (tmp_path / name).write_text("no image")
    else:
        (tmp_path / "a.tif").rename(tmp_path / name)
    status, printed = run("predict", tiny_model, tmp_path / name, "-o", tmp_path / "out", "--table", "--tile", "model")
    assert status == (2 if damaged else 0)
    assert printed.count("\n") == 1
    if not damaged:
        assert (tmp_path / "out" / name).is_file()
        assert (tmp_path / "out" / "objects.csv").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_beside_a_progress_bar(monkeypatch, tmp_path, name):
    with (tmp_path / "terminal").open("w", encoding="utf-8") as file:
        monkeypatch.setattr("rich.console.Console", lambda **_: Console(file=file, force_terminal=True, width=80))
        with predict._bar(1) as start:
            start(name)(1, 1)
    drawn = (tmp_path / "terminal").read_text(encoding="utf-8")
    assert "\x1b[2J" not in drawn
    assert name.encode("unicode_escape").decode() in drawn or name in drawn


def test_a_result_of_a_benchmark(run, tmp_path):
    text = Path("benchmarks/results/cpu-512.json").read_text(encoding="utf-8")
    titles = {contender["title"] for contender in json.loads(text)["contenders"]}
    for title in titles:
        text = text.replace(json.dumps(title), json.dumps(title + CRAFTED))
    (crafted := tmp_path / "crafted.json").write_text(text, encoding="utf-8")
    status, printed = run("bench", "--compare", crafted, crafted)
    assert status == 0
    assert r"\x1b[2J" in printed


def test_a_title_of_a_live_view(tmp_path):
    for terminal in (False, True):
        with (tmp_path / "terminal").open("w", encoding="utf-8") as file:
            console = Console(file=file, force_terminal=terminal, width=80)
            PlainLines(console, NAMES[3] + CRAFTED)
            console.print(drawing(Observer().look(STATUS), CRAFTED, "", console))
        shown = (tmp_path / "terminal").read_text(encoding="utf-8")
        assert shown.count(r"\x1b[2J") == 2
        assert CRAFTED[:4] not in shown


def test_a_log_of_a_library(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(atomic, "SILENT", 0.0)
    with locked(path := tmp_path / CRAFTED), pytest.raises(OutputError) as raised, locked(path, wait=0.1):
        pass
    assert "\x1b" not in caplog.text + str(raised.value)
    assert caplog.messages[0].startswith(f"waiting for process {os.getpid()}, which works on {tmp_path}/\\x1b[2J")


def test_what_the_terminal_cannot_encode_is_escaped(tiny_model, tmp_path):
    describe(model := onnx.load(tiny_model), replace(read_spec(tiny_model), classes=("background", "細胞")))
    onnx.save(model, path := tmp_path / "細胞.onnx")
    for command, status in (["info", path], 0), (["info", path.with_name("細.onnx")], 2):
        done = subprocess.run(
            [sys.executable, "-m", "unetrt", *command],
            env={**os.environ, "PYTHONIOENCODING": "ascii:strict"}, capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == status
        assert rb"\u7d30" in done.stdout + done.stderr
        assert b"Traceback" not in done.stderr

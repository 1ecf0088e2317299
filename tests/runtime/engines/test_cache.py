import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace

import onnx
import pytest

from tests import requirements
from tests.runtime.engines.machines import NONE
from unetrt.export.onnx_model import describe
from unetrt.runtime.engines import cache as cache_module
from unetrt.runtime.engines.build import Progress
from unetrt.runtime.engines.cache import EngineCache, place
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of, read_sidecar, sidecar_path
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.errors import EngineError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.model.onnx_file import read_spec

pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)

# A process that builds a model to a place, writing down what it did; at a step of the build it may be killed.
BUILDER = """
import os, signal, sys, time
from pathlib import Path
from unetrt.runtime.engines.cache import place
from unetrt.runtime.engines.engine_file import facts_of
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.machine import Machine
from unetrt.runtime.engines.engine_file import BuildOptions
from unetrt.runtime.engines.build import Progress
from unetrt.runtime.errors import EngineError
from unetrt.runtime.model.onnx_file import read_spec
model, out, after = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
facts = facts_of(model, read_spec(model), FLAVOURS[1], Machine(os="Linux x86_64"), BuildOptions())
seen = []
def step(phase):
    seen.append(phase)
    if len(seen) == after:
        os.kill(os.getpid(), signal.SIGKILL)
print("ready", flush=True)
sys.stdin.readline()
print(place(out, model, facts, Progress(step)), flush=True)
"""


@pytest.fixture
def facts(tiny_model):
    return facts_of(tiny_model, read_spec(tiny_model), FLAVOURS[1], NONE, BuildOptions())


@pytest.fixture
def cache(tmp_path):
    return EngineCache(tmp_path / "engines")


def start(model, out, after=0):
    command = [sys.executable, "-c", BUILDER, str(model), str(out), str(after)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def test_two_processes_that_build_the_same_end_with_one_whole_engine_built_once(tiny_model, facts, tmp_path):
    out = tmp_path / "here" / "model.engine"
    processes = [start(tiny_model, out) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=120)[0].strip() for process in processes]
    assert sorted(answers) == ["False", "True"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.engine", "model.engine.json"]
    assert read_sidecar(out).facts == facts


@pytest.mark.parametrize("after", [1, 40])
def test_a_build_that_is_killed_leaves_nothing_and_no_lock(tiny_model, facts, tmp_path, after):
    out = tmp_path / "here" / "model.engine"
    process = start(tiny_model, out, after)
    process.communicate("go\n", timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert not out.parent.exists()
    assert place(out, tiny_model, facts)


def test_a_failed_build_leaves_nothing(tiny_model, facts, tmp_path):
    def fail(phase):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        place(tmp_path / "here" / "model.engine", tiny_model, facts, Progress(fail))
    assert list(tmp_path.iterdir()) == []


def test_an_engine_is_built_once_and_found_again(cache, tiny_model, facts):
    path, built = cache.obtain(tiny_model, facts)
    assert (built, path.name) == (True, f"{facts.key}.engine")
    before = path.stat().st_mtime_ns
    os.utime(path, (1, 1))
    assert cache.obtain(tiny_model, facts) == (path, False)
    assert path.stat().st_mtime_ns >= before
    assert cache.obtain(tiny_model, facts, force=True) == (path, True)


@pytest.mark.parametrize("damage", ["cut", "without sidecar", "another's sidecar"])
def test_a_damaged_engine_is_built_again(cache, tiny_model, facts, damage):
    path, _ = cache.obtain(tiny_model, facts)
    whole = path.read_bytes()
    if damage == "cut":
        path.write_bytes(whole[:1000])
    elif damage == "without sidecar":
        sidecar_path(path).unlink()
    else:
        other, _ = cache.obtain(tiny_model, replace(facts, options=BuildOptions(level=1)))
        sidecar_path(path).write_bytes(sidecar_path(other).read_bytes())
    assert cache.obtain(tiny_model, facts) == (path, True)
    assert len(path.read_bytes()) == len(whole)


def spec_in(path, **changes):
    """Change the spec in a sidecar as an earlier version wrote it, without a digest."""
    stored = json.loads(sidecar_path(path).read_text())
    del stored["unetrt_sha256"]
    stored["spec"].update(changes)
    sidecar_path(path).write_text(json.dumps(stored))


def test_an_engine_with_another_spec_is_built_again(cache, tiny_model, facts, tmp_path):
    path, _ = cache.obtain(tiny_model, facts)
    out = tmp_path / "here.engine"
    assert place(out, tiny_model, facts)
    for changed in (path, out):
        spec_in(changed, halo=read_spec(tiny_model).halo + 4)
    assert cache.obtain(tiny_model, facts) == (path, True)
    assert place(out, tiny_model, facts)
    spec_in(out)
    assert not place(out, tiny_model, facts)
    assert read_sidecar(path).spec == read_sidecar(out).spec == read_spec(tiny_model)


def test_a_spec_with_a_number_that_json_does_not_have_is_up_to_date(cache, tiny_model, tmp_path):
    describe(model := onnx.load(tiny_model), replace(read_spec(tiny_model), training={"loss": float("nan")}))
    onnx.save(model, path := tmp_path / "nan.onnx")
    facts = facts_of(path, read_spec(path), FLAVOURS[1], NONE, BuildOptions())
    assert [cache.obtain(path, facts)[1] for _ in range(2)] == [True, False]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes")
@pytest.mark.parametrize("which", ["engine", "sidecar", "both", "pipe"])
def test_links_in_the_cache_are_replaced(cache, tiny_model, facts, tmp_path, which):
    path, _ = cache.obtain(tiny_model, facts)
    files = {"engine": [path], "sidecar": [sidecar_path(path)], "both": [path, sidecar_path(path)], "pipe": [path]}
    for file in files[which]:
        content, victim = file.read_bytes(), tmp_path / file.name
        file.unlink()
        if which == "pipe":
            os.mkfifo(file)
        else:
            victim.write_bytes(content)
            file.symlink_to(victim)
    before = {victim: victim.read_bytes() for victim in tmp_path.glob("*.engine*")}
    assert cache.obtain(tiny_model, facts) == (path, True)
    assert cache.obtain(tiny_model, facts) == (path, False)
    assert not any(file.is_symlink() for file in files[which])
    assert {victim: victim.read_bytes() for victim in tmp_path.glob("*.engine*")} == before


@pytest.mark.skipif(os.name != "posix", reason="links")
def test_links_are_not_engines_of_the_cache(cache, tiny_model, facts):
    path, _ = cache.obtain(tiny_model, facts)
    (link := path.with_name("a.engine")).symlink_to(path)
    cache.prune(keep=path.stat().st_size)
    assert [entry.path for entry in cache.entries()] == [path]
    assert sorted(cache.clear()) == sorted([path, link])
    assert list(cache.folder.iterdir()) == []


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
def test_the_folder_of_engines_is_private(cache, tiny_model, facts):
    cache.folder.mkdir(mode=0o777)
    cache.folder.chmod(0o777)
    cache.obtain(tiny_model, facts)
    assert cache.folder.stat().st_mode & 0o777 == 0o700


def test_it_is_said_what_changed_since_the_last_engine(cache, tiny_model, facts, caplog):
    with caplog.at_level(logging.INFO, "unetrt"):
        cache.obtain(tiny_model, facts)
        cache.obtain(tiny_model, replace(facts, options=BuildOptions(level=1)))
        cache.obtain(tiny_model, facts)
    said = [message for message in caplog.messages if message.startswith("an engine is built")]
    assert said == [
        f"an engine is built: {tiny_model} has no engine yet",
        "an engine is built: changed since the last one: option level None -> 1",
    ]


def test_the_cache_is_listed_cleared_and_bounded(cache, tiny_model, facts, monkeypatch):
    paths = [cache.obtain(tiny_model, replace(facts, options=BuildOptions(level=level)))[0] for level in (1, 2, 3)]
    for age, path in enumerate(paths):
        os.utime(path, (age, age))
    assert [entry.path for entry in cache.entries()] == paths[::-1]
    assert [entry.sidecar.facts.options.level for entry in cache.entries()] == [3, 2, 1]
    cache.prune(keep=2 * paths[0].stat().st_size + 1000)
    assert [entry.path for entry in cache.entries()] == paths[:0:-1]
    cache.prune(keep=0)
    assert [entry.path for entry in cache.entries()] == [paths[2]]
    assert cache.clear(("no such key",)) == []
    assert cache.clear((paths[2].name[:6],)) == [paths[2]]
    assert list(cache.folder.iterdir()) == []


def test_a_model_that_changes_under_a_build_leaves_no_engine(cache, tiny_model, facts, tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(tiny_model.read_bytes())

    def swap(phase):
        model.write_bytes(tiny_model.read_bytes() + b"\x08\x09")  # ir_version once more: the same model to any reader

    with pytest.raises(EngineError, match="was changed while its engine was built"):
        cache.obtain(model, facts, Progress(swap))
    assert list(cache.folder.glob("*")) == []


def test_listing_while_another_process_clears(cache, tiny_model, facts):
    path, _ = cache.obtain(tiny_model, facts)
    vanishing = path.with_name("0.engine")
    vanishing.symlink_to("nowhere")
    assert [entry.path for entry in cache.entries()] == [path]
    vanishing.unlink()
    sidecar_path(path).with_name("f.engine.json").write_text("{}")
    assert cache.clear() == [path]
    assert list(cache.folder.iterdir()) == []


def test_clearing_leaves_what_another_process_is_writing(cache, tmp_path):
    with whole_file(cache.folder / "a.engine") as writing:
        writing.touch()
        killed = writing.parent.with_name(writing.parent.name + "0")  # its process ended with its lock
        killed.mkdir()
        cache.clear()
        assert list(cache.folder.iterdir()) == [writing.parent]


def test_obtaining_prunes(cache, tiny_model, facts, monkeypatch):
    monkeypatch.setattr(cache_module.EngineCache.prune, "__defaults__", (0,))
    first, _ = cache.obtain(tiny_model, facts)
    second, _ = cache.obtain(tiny_model, replace(facts, options=BuildOptions(level=1)))
    assert not first.exists()
    assert second.exists()

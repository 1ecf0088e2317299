import json
import os

import onnx
import pytest

from tests import requirements
from tests.conftest import editable
from tests.runtime.engines.machines import HOPPER, TURING
from unetrt.cli import main
from unetrt.runtime.engines.cache import EngineCache

pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)


@pytest.fixture
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return EngineCache().folder


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_build_writes_an_engine_and_its_sidecar_once(tiny_model, own_cache_folder, tmp_path, capsys):
    out = tmp_path / "here" / "tiny.engine"
    command = ["build", tiny_model, "-o", out, "--workspace", "256MiB", "--level", 1, "--capability", "8.6"]
    assert run(*command) == 0
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny.engine", "tiny.engine.json"]
    options = json.loads(out.with_name("tiny.engine.json").read_text())["facts"]["options"]
    assert (options["workspace"], options["level"], options["capabilities"]) == (2**28, 1, ["8.6"])
    assert run(*command) == 0
    assert run(*command, "--force") == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["built:" in line for line in lines] == [True, False, True]
    assert "is up to date (--force rebuilds it)" in lines[1]
    assert not own_cache_folder.exists()


def test_without_a_place_engines_are_kept_listed_and_cleared(tiny_model, own_cache_folder, capsys):
    assert run("build", tiny_model) == 0
    assert run("build", tiny_model, "--level", 1) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert f"({tiny_model} has no engine yet)" in first
    assert "(changed since the last one: option level None -> 1)" in second
    keys = {path.stem for path in own_cache_folder.glob("*.engine")}
    assert run("cache", "list") == 0
    listed = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in listed[:2]} == {key[:12] for key in keys}
    assert all("60x76 x 1, fp32, tensorrt-rtx" in line for line in listed[:2])
    assert str(own_cache_folder) in listed[2]
    assert run("cache", "clear", "nothing") == 2
    assert run("cache", "clear", listed[0].split()[0]) == 0
    assert len(list(own_cache_folder.glob("*.engine"))) == 1
    assert run("cache", "clear") == 0
    assert list(own_cache_folder.iterdir()) == []


def test_info_tells_of_an_engine_and_whether_it_fits(tiny_model, own_cache_folder, tmp_path, capsys):
    out = tmp_path / "tiny.engine"
    assert run("build", tiny_model, "-o", out) == 0
    capsys.readouterr()
    assert run("info", out, "--json") == 0
    about = json.loads(capsys.readouterr().out)
    assert about["flavour"] == "tensorrt-rtx"
    assert about["spec"]["tile"] == [60, 76]
    assert about["fits this machine"] == "yes" or "needs a GPU (of compute capability 8" in about["fits this machine"]


@pytest.fixture
def here(monkeypatch):
    """Puts the command on another machine."""
    return lambda machine: monkeypatch.setattr("unetrt.runtime.machine.this_machine", lambda device=0: machine)


@pytest.mark.parametrize(
    ("machine", "flavour", "message"),
    [
        (HOPPER, "auto", "compute capability 9.0 (NVIDIA H100 80GB HBM3), only on"),
        (HOPPER, "tensorrt-rtx", "(pip install 'unetrt[gpu]'); to build for others, name them, such as --capability"),
        (
            TURING,
            "tensorrt-rtx",
            "only where it is named: use --capability 7.5, or name the capabilities of the GPUs",
        ),
    ],
)
def test_what_does_not_run_on_the_gpu_here_is_built_only_where_its_gpus_are_named(
    tiny_model, own_cache_folder, here, capsys, machine, flavour, message
):
    here(machine)
    assert run("build", tiny_model, "--flavour", flavour) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not own_cache_folder.exists()
    assert run("build", tiny_model, "--flavour", flavour, "--capability", "8.6") == 0
    assert run("build", tiny_model, "--flavour", flavour, "--capability", "9.0") == 2
    assert "cannot build for compute capability 9.0: use 7.5, 8.0" in capsys.readouterr().err


def test_info_names_what_runs_where_an_engine_cannot(tiny_model, own_cache_folder, here, tmp_path, capsys):
    out = tmp_path / "tiny.engine"
    assert run("build", tiny_model, "-o", out) == 0
    here(HOPPER)
    capsys.readouterr()
    assert run("info", out, "--json") == 0
    fits = json.loads(capsys.readouterr().out)["fits this machine"]
    assert "does not run on compute capability 9.0" in fits
    assert f"onnxruntime-cuda (pip install 'unetrt[gpu]'), and open {tiny_model} with it" in fits


BAD = [
    (["none.onnx"], "none.onnx does not exist"),
    (["MODEL", "--flavour", "tensorrt"], "TensorRT"),
    (["MODEL", "--level", "7"], "optimisation level must be 0 to 5 (got 7)"),
    (["MODEL", "--capability", "9.0", "--flavour", "tensorrt-rtx"], "cannot build for compute capability 9.0: use 7.5"),
    (["MODEL", "--version-compatible", "--flavour", "tensorrt-rtx"], "use --capability"),
    (["MODEL", "-o", "/dev/null/a.engine"], "cannot write to"),
    (["MODEL", "-o", "FOLDER"], "is a folder: name a file in it"),
    (["MODEL", "-o", "report"], "report is not the name of an engine file: use report.engine"),
    (["FOLDER"], "is a folder: `unetrt export"),
    (["x.engine"], "is an engine: give the ONNX file that it was built from"),
    (["MODEL", "--workspace", "much"], "'much' is not an amount of memory"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_gets_one_line(tiny_model, own_cache_folder, tmp_path, capsys, arguments, message):
    (folder := tmp_path / "folder.engine").mkdir()
    (engine := tmp_path / "x.engine").touch()
    places = {"MODEL": tiny_model, "FOLDER": folder, "x.engine": engine}
    assert run("build", *(places.get(argument, argument) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not own_cache_folder.exists()


@pytest.mark.parametrize("out", ["weights.engine", "link.engine"])
def test_what_is_read_is_not_overwritten(tiny_model, own_cache_folder, tmp_path, capsys, out):
    model, weights = tmp_path / "m.onnx", tmp_path / "weights.engine"
    onnx.save(editable(tiny_model), model, save_as_external_data=True, location=weights.name, size_threshold=0)
    (tmp_path / "link.engine").symlink_to(weights)
    before = weights.read_bytes()
    assert run("build", model, "-o", tmp_path / out) == 2
    assert "is read for this, and would be overwritten" in capsys.readouterr().err
    assert weights.read_bytes() == before


@pytest.mark.parametrize("sidecar", ["folder", "pipe", "link"])
def test_a_sidecar_that_cannot_be_written_is_refused_before_the_build(tiny_model, tmp_path, capsys, sidecar):
    place = tmp_path / "m.engine.json"
    {"folder": place.mkdir, "pipe": lambda: os.mkfifo(place), "link": lambda: place.symlink_to(tiny_model)}[sidecar]()
    before = tiny_model.read_bytes()
    assert run("build", tiny_model, "-o", tmp_path / "m.engine") == 2
    assert f"{place} is" in capsys.readouterr().err
    assert not (tmp_path / "m.engine").exists()
    assert tiny_model.read_bytes() == before


def test_info_reads_a_renamed_model(tiny_model, tmp_path, capsys):
    (tmp_path / "renamed.thing").write_bytes(tiny_model.read_bytes())
    assert run("info", tmp_path / "renamed.thing", "--json") == 0
    assert json.loads(capsys.readouterr().out)["tile"] == [60, 76]
    assert run("info", tmp_path / "none.thing") == 2
    assert "does not exist or is not a regular file: give a model file" in capsys.readouterr().err

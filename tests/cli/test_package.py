import onnx
import pytest
from click.testing import CliRunner

from tests.conftest import editable
from tests.runtime.engines.machines import FACTS, RTX
from unetrt.cli import main
from unetrt.runtime.engines.engine_file import write_engine
from unetrt.runtime.model.integrity import external_files
from unetrt.runtime.model.onnx_file import read_spec


@pytest.fixture
def engine(tiny_model, tmp_path):
    """A function that writes an engine of a flavour; what is in it is nobody's business here."""

    def of(facts):
        path = tmp_path / "built" / "tiny.engine"
        write_engine(path, b"a plan", facts, read_spec(tiny_model), tiny_model)
        return path

    return of


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_export_writes_a_package_instead_of_a_file(tiny_run, tmp_path, capsys):
    out = tmp_path / "cells.zip"
    shown = ("--package", "bioimageio", "--name", "Drawn cells", "--author", "A. Name", "--license", "CC-BY-4.0")
    assert run("export", tiny_run, "-o", out, "--tile", "60x76", "--head", "probabilities", *shown) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["cells.zip"]
    said = capsys.readouterr().out
    assert "parity with the network in FP32" in said
    assert f"{out}: a package for bioimageio" in said


def test_export_writes_a_model_of_a_repository(tiny_run, tmp_path):
    assert run("export", tiny_run, "-o", tmp_path, "--tile", "60", "--package", "triton", "--name", "cells") == 0
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["1", "cells", "config.pbtxt", "model.onnx"]


def test_package_takes_a_model_that_is_there(tiny_model, drawn_folder, tmp_path, capsys):
    image = drawn_folder / "images" / "0.tif"
    assert run("package", tiny_model, "bioimageio", "-o", tmp_path / "a.zip", "--images", image) == 0
    assert run("package", tiny_model, "triton", "-o", tmp_path / "models", "--max-batch", 4, "--instances", 2) == 0
    config = (tmp_path / "models" / "tiny" / "config.pbtxt").read_text()
    assert "max_batch_size: 4" in config
    assert "count: 2" in config
    assert "a package for triton" in capsys.readouterr().out


def test_package_takes_an_engine_of_tensorrt(engine, tmp_path):
    assert run("package", engine(FACTS), "triton", "-o", tmp_path / "models") == 0
    assert (tmp_path / "models" / "tiny" / "1" / "model.plan").read_bytes() == b"a plan"


def test_no_batching_is_an_answer(tiny_model, tmp_path):
    assert run("package", tiny_model, "triton", "-o", tmp_path, "--max-batch", 0) == 0
    assert "max_batch_size: 0" in (tmp_path / "tiny" / "config.pbtxt").read_text()


@pytest.mark.parametrize("kind", ["bioimageio", "triton"])
def test_weights_that_lie_beside_the_model_are_packed(tiny_model, drawn_folder, tmp_path, kind):
    model = tmp_path / "model.onnx"
    onnx.save(editable(tiny_model), model, save_as_external_data=True, location="w.bin", size_threshold=0)
    out, image = tmp_path / "out" / "a.zip", drawn_folder / "images" / "0.tif"
    chosen = ("--images", image) if kind == "bioimageio" else ("--max-batch", 0)
    assert run("package", model, kind, "-o", out, *chosen) == 0
    if kind == "triton":
        assert len(external_files(out / "model" / "1" / "model.onnx")) == 0


def test_after_an_export_in_bfloat16_comes_an_engine(tiny_run, tmp_path, capsys):
    out = tmp_path / "model.onnx"
    assert run("export", tiny_run, "-o", out, "--tile", "60x76", "--precision", "bf16") == 0
    *_, following = capsys.readouterr().out.splitlines()
    assert following == f"next: unetrt build {out} -o {tmp_path / 'model.engine'}"


BAD = [
    (["package", "MODEL", "bioimageio"], "shows the model on a raw image: give one with --images"),
    (
        ["package", "MODEL", "triton", "--author", "x"],
        "--author is for packages of bioimageio, not for triton: leave it out",
    ),
    (["package", "ENGINE", "bioimageio"], "holds an ONNX file: give the one that"),
    (
        ["package", "RTX", "triton"],
        "Triton loads engines of TensorRT, and .* is one of TensorRT for RTX: give",
    ),
    (
        ["export", "RUN", "--tile", "60", "--author", "x"],
        "--author is for packages of bioimageio, not for a single file",
    ),
    (["export", "RUN", "--package", "bioimageio", "--name", "a/b/c/d"], "the name 'a/b/c/d' does not fit bioimage.io"),
    (
        ["export", "RUN", "--package", "triton", "--author", "x"],
        "--author is for packages of bioimageio, not for triton",
    ),
    (["export", "RUN", "--package", "bioimageio", "-o", "pk"], "a bioimageio package is a .zip: use pk.zip"),
    (["package", "MODEL", "triton", "--instances", "0"], "instances must be 1 or more"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_what_makes_no_package(tiny_run, tiny_model, engine, tmp_path, monkeypatch, capsys, arguments, message):
    import re

    places = {"MODEL": tiny_model, "RUN": tiny_run}
    if "ENGINE" in arguments or "RTX" in arguments:
        places |= {"ENGINE": engine(FACTS)} if "ENGINE" in arguments else {"RTX": engine(RTX)}
    empty = tmp_path / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    assert run(*(places.get(argument, argument) for argument in arguments)) == 2
    said = capsys.readouterr().err
    assert re.search(message, said)
    assert said.count("\n") == 1
    assert list(empty.iterdir()) == []


def test_help_of_a_group_lists_its_commands():
    from unetrt.cli.cache import command

    assert {"list", "clear"} <= set(CliRunner().invoke(command, ["--help"]).output.split())

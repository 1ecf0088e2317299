"""The README's commands and programs run, and its links resolve."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tifffile

from tests import requirements
from unetrt.__main__ import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()

# A few steps of a tiny network replace the minutes of training; the commands are otherwise as printed.
SMALLER = {"--minutes 20": "--steps 4 --depth 2 --base 4 --tile 92"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_two_commands(drawn_folder, tmp_path, monkeypatch):
    shutil.copytree(drawn_folder, tmp_path / "cells")
    monkeypatch.chdir(tmp_path)
    (block,) = blocks("bash")
    commands = [line for line in block.splitlines() if line.startswith("unetrt ")]
    assert len(commands) == 2
    for command in commands:
        for printed, smaller in SMALLER.items():
            command = command.replace(printed, smaller)  # noqa: PLW2901
        assert main(shlex.split(command)[1:]) == 0
    assert sorted(path.name for path in (tmp_path / "labels").glob("*.tif")) == ["0.tif", "1.tif", "2.tif", "3.tif"]


def test_the_embedding_example(tiny_model, drawn_folder, tmp_path, monkeypatch, capsys):
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    shutil.copy(drawn_folder / "images" / "2.tif", tmp_path / "frame.tif")
    monkeypatch.chdir(tmp_path)
    example, _ = blocks("python")
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    exec(compile(example, "README.md", "exec"), names := {})
    assert re.fullmatch(r"\d+ cells in \d+\.\d\d s\n", capsys.readouterr().out)
    assert names["cells"].shape == tifffile.imread("frame.tif").shape


def test_the_acquisition_example(tiny_model, tmp_path):
    pytest.importorskip("mm_test_adapters", reason=requirements.MICRO_MANAGER)
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    _, example = blocks("python")
    shorter = example.replace('"loops": 10', '"loops": 2')
    assert shorter != example
    done = subprocess.run([sys.executable, "-c", shorter], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 submitted, 2 done, 0 dropped, 0 failed" in done.stdout
    assert {"raw.ome.zarr", "labels.ome.zarr", "labels.csv"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("command", re.findall(r"^\| `unetrt (\w+)", README, flags=re.MULTILINE))
def test_every_command_of_the_table_exists(command, capsys):
    assert main([command, "--help"]) == 0
    capsys.readouterr()


@pytest.mark.parametrize(
    "page", [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))], ids=str
)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)\s]+)\)", (ROOT / page).read_text()):
        path, _, section = target.partition("#")
        linked = (ROOT / page).parent / path if path else ROOT / page
        assert linked.exists(), target
        text = linked.read_text() if section else ""
        headings = [re.sub(r"[^\w\s-]", "", line).lower() for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
        assert not section or section in [heading.replace(" ", "-") for heading in headings], target

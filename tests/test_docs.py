"""The programs and commands of docs/ run, and its tables hold the measured figures."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unetrt.runtime.acquisition
from tests import requirements
from tests.export.adoption.foreign_nets import save, unpadded
from unetrt.__main__ import main
from unetrt.export.gate import CEILINGS, DEFAULTS
from unetrt.runtime.files.formats import SUFFIXES
from unetrt.runtime.files.outputs import KINDS
from unetrt.runtime.geometry.blocks import BlockPlan
from unetrt.runtime.model.onnx_file import read_spec, resolved

DOCS = Path(__file__).parents[1] / "docs"
EXPORT = (DOCS / "export.md").read_text()
DATA = (DOCS / "data.md").read_text()
SCALE = (DOCS / "scale.md").read_text()
# Side of a frame of a terapixel.
TERA = 1_000_000


def test_the_picture_of_the_augmentation(tmp_path):
    subprocess.run([sys.executable, DOCS / "augmentation.py", tmp_path / "a.png"], check=True, timeout=120)
    with Image.open(tmp_path / "a.png") as drawn, Image.open(DOCS / "augmentation.png") as kept:
        assert drawn.size == kept.size


def test_the_thresholds_are_those_of_the_gate():
    rows = re.findall(r"^\| (\w+)" + 3 * r" \| ([\d.]+), (?:up|down) to ([\d.]+)" + r" \|$", EXPORT, flags=re.MULTILINE)
    told = {precision: tuple(map(float, limits)) for precision, *limits in rows}
    for first, known in enumerate((DEFAULTS, CEILINGS)):
        shown = {precision: limits[first::2] for precision, limits in told.items()}
        assert shown == {name: (limit.error, limit.flips, limit.iou) for name, limit in known.items()}


def test_the_table_of_engines_shows_the_figures_that_were_measured():
    program = runpy.run_path(str(DOCS / "engines.py"), run_name="engines")
    results = json.loads(program["RESULTS"].read_text())
    assert len(results["engines"]) == 32
    assert program["page"](EXPORT, results) == EXPORT


def test_the_api_reference_has_the_public_names_and_builds_without_warnings(tmp_path):
    command = [sys.executable, "-W", "error::UserWarning", DOCS / "api.py", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    for module in (unetrt, unetrt.runtime, unetrt.runtime.acquisition):
        page = (tmp_path / f"{module.__name__.replace('.', '/')}.html").read_text()
        shown = set(re.findall(r'id="(\w+)"', page))
        assert set(module.__all__) - {"__version__"} <= shown
    index = (tmp_path / "index.html").read_text()
    assert "unetrt.export" in index
    assert "._" not in "".join(re.findall(r'href="(.*?)"', index))


def test_files_that_guides_name_exist():
    guides = [DOCS.parent / "CONTRIBUTING.md", DOCS / "architecture.md"]
    named = re.findall(r"`((?:runtime|export|unetrt|tests)/[\w/.]*)`", "".join(guide.read_text() for guide in guides))
    assert len(named) > 10
    assert [name for name in named if not (DOCS.parent / name).exists()] == []


def test_one_table_has_all_formats_that_are_read_and_written():
    heading = r"^\| format \| suffixes \| read as \| written by \| axes \| pixel size: from / to \|\n(.*?)\n\n"
    (table,) = re.findall(heading, DATA, re.M | re.S)
    assert {row.count(" | ") for row in table.splitlines()} == {5}
    assert [suffix for suffix in SUFFIXES if f"`{suffix}`" not in DATA] == []
    written = {kind.place.rpartition(".")[2] for kind in KINDS.values()}
    assert [suffix for suffix in written if f".{suffix}" not in table and suffix != "tif"] == []


def test_the_commands_run(tiny_run, drawn_folder, tmp_path, monkeypatch):
    """As printed, with a smaller tile for the other toolkit's network."""
    pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copy(drawn_folder / "images" / "0.tif", tmp_path / "one.tif")
    save(unpadded(), tmp_path / "net.onnx")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", EXPORT, flags=re.DOTALL)
    inline = [" ".join(found.split()) for found in re.findall(r"`(unetrt package .*?)`", EXPORT, flags=re.DOTALL)]
    commands = [line for block in blocks for line in block.splitlines()] + inline
    assert len(commands) == 5
    for command in commands:
        smaller = command.replace("2048x2048", "96x96").replace("--tile 1024", "--tile 64")
        assert main(shlex.split(smaller)[1:]) == 0, command


def test_the_commands_about_data_run(drawn_folder, tmp_path, monkeypatch):
    shutil.copytree(drawn_folder / "images", tmp_path / "images")
    monkeypatch.chdir(tmp_path)
    (block,) = re.findall(r"```bash\n(.*?)```", DATA, flags=re.DOTALL)
    for command in block.splitlines():
        assert main(shlex.split(command)[1:]) == 0, command
    assert len(list((tmp_path / "for-qupath" / "geojson").iterdir())) == 4


def test_the_table_of_written_files_has_all_kinds():
    rows = dict(re.findall(r"^\| `([\w-]+)`[^|]*\| `([^`]+)`", DATA, flags=re.MULTILINE))
    assert rows == {name: kind.place.replace("{}", "NAME") for name, kind in KINDS.items()}


def test_the_tiles_of_a_terapixel_are_those_of_the_planner():
    spec = read_spec(resolved("nuclei"))
    rows = re.findall(r"^\| (\d+) \| ([\d,]+) \| ([\d.]+) \|$", SCALE, flags=re.MULTILINE)
    assert len(rows) == 3
    for tile, tiles, share in rows:
        plan = replace(spec, tile=(int(tile), int(tile))).plan((TERA, TERA))
        count = len(plan.rows) * len(plan.columns)
        assert (tiles, share) == (f"{count:,}", f"{count * int(tile) ** 2 / TERA**2:.2f}")


def test_the_blocks_and_tasks_of_a_terapixel_are_those_of_the_code():
    """A task for each block that is classified, decoded and written, each row that is measured, and each region."""
    pytest.importorskip("dask", reason=requirements.DASK)
    from unetrt.runtime.blockwise.stages import CHUNK
    from unetrt.runtime.files.outputs.zarr_pyramid import Pyramid

    rows = re.findall(r"^\| (\d+) \| (\d+) \| ([\d,]+) \| ([\d,]+) \| (\d+) \| ([\d,]+) \|$", SCALE, flags=re.MULTILINE)
    assert len(rows) == 3
    for wished, side, blocks, tasks, chunk, chunks in rows:
        plan = BlockPlan(read_spec(resolved("nuclei")).plan((TERA, TERA)), (int(wished), int(wished)))
        size = plan.chunk(CHUNK)
        levels = Pyramid("a", (TERA, TERA), "uint32", chunk=size, block=plan.size)
        regions = sum(len(list(levels.regions(level))) for level in range(1, len(levels.shapes)))
        assert (int(side), blocks) == (plan.size[0], f"{len(plan):,}")
        assert tasks == f"{plan.shape[0] + 1 + 3 * len(plan) + 1 + regions:,}"
        assert (int(chunk), chunks) == (size[0], f"{(-(-TERA // size[0])) ** 2:,}")


def test_the_commands_about_scale_run(drawn_folder, tmp_path, monkeypatch):
    for package in ("dask", "zarr"):
        pytest.importorskip(package, reason=requirements.DASK)
    shutil.copy(drawn_folder / "images" / "0.tif", tmp_path / "slide.ome.tif")
    monkeypatch.chdir(tmp_path)
    block, *others = re.findall(r"```bash\n(.*?)```", SCALE, flags=re.DOTALL)
    for command in block.splitlines():
        assert main(shlex.split(command)[1:]) == 0, command
    assert (tmp_path / "out" / "ome-zarr" / "slide.ome.zarr").is_dir()
    assert ["--scheduler" in other for other in others] == [True]


def test_the_programs_about_scale_are_python_and_the_local_one_runs(tiny_model, drawn_folder, tmp_path, monkeypatch):
    pytest.importorskip("distributed", reason=requirements.DASK)
    shutil.copy(drawn_folder / "images" / "0.tif", tmp_path / "slide.ome.tif")
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    programs = re.findall(r"```python\n(.*?)```", SCALE, flags=re.DOTALL)
    for program in programs:
        compile(program, "scale.md", "exec")
    (local,) = (program for program in programs if "LocalCluster" in program)
    smaller = local.replace('"nuclei"', '"model.onnx"').replace(
        "dashboard_address=None", "dashboard_address=None, local_directory='local'"
    )
    exec(smaller, {"__name__": "__main__"})
    assert (tmp_path / "out" / "ome-zarr" / "slide.ome.zarr").is_dir()


def test_the_program_for_large_images_runs(tiny_model, drawn_folder, tmp_path, monkeypatch, capsys):
    zarr = pytest.importorskip("zarr", reason=requirements.DASK)
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    raw = zarr.create_array("raw.zarr", shape=(200, 300), dtype="uint16", chunks=(64, 64))
    raw[...] = 7
    programs = re.findall(r"```python\n(.*?)```", (DOCS / "embedding.md").read_text(), flags=re.DOTALL)
    (program,) = (program for program in programs if "segment_large" in program)
    exec(program, {})
    assert re.fullmatch(r"\d+ objects, 1 of 1 blocks computed\n", capsys.readouterr().out)
    assert (tmp_path / "out" / "ome-zarr" / "raw.ome.zarr").is_dir()


def test_the_program_that_embeds_runs(tiny_model, tmp_path, monkeypatch, capsys):
    shutil.copy(tiny_model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    program, *_ = re.findall(r"```python\n(.*?)```", (DOCS / "embedding.md").read_text(), flags=re.DOTALL)
    assert len(program.strip().splitlines()) <= 15
    exec(program, {"camera": [np.full((60, 70), 9, np.uint16), np.zeros(3)]})
    printed = capsys.readouterr().out
    assert "frame 1: the image has shape (3,)" in printed
    assert "2 submitted" in printed

"""Runs over blocks that are killed, stopped or damaged: `--resume` computes what is missing, and files are equal."""

import io
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import tifffile

from tests.cli.test_kills import gone
from unetrt.cli import main
from unetrt.runtime.blockwise.scratch import Scratch
from unetrt.runtime.files.atomic import locked
from unetrt.runtime.sessions import retile
from unetrt.trainer.drawn_cells import draw

pytest.importorskip("dask")
pytestmark = [pytest.mark.skipif(sys.platform != "linux", reason="needs /proc"), pytest.mark.timeout(1800)]

SAVED = ["--table", "--save", "labels", "--save", "geojson", "--save", "ome-zarr"]
WHERE_IT_IS_KEPT = "what was computed of {image} is kept in {scratch}: --resume (resume) goes on with it, "
WHERE_IT_IS_KEPT += "--restart starts again"


class Runs:
    """Runs `unetrt predict` in blocks on an image, in folders of its own."""

    def __init__(self, model: Path, root: Path, size: tuple[int, int], block: str) -> None:
        self.root, self.image, self.out = root, root / "cells.tif", root / "out"
        self.scratch = self.out / ".unfinished" / "cells" / "scratch"
        self.records = self.scratch / "records" / "classify" / "0"
        tifffile.imwrite(self.image, draw(size, seed=3).frame, tile=(64, 64))
        about = ["--tile", "model", "--block", block, "--workers", "1", *SAVED]
        self.arguments = [str(part) for part in ("predict", model, self.image, "-o", self.out, *about)]
        begin = time.monotonic()
        self.blocks, kept = self.finished(self.start())
        self.seconds, self.files = time.monotonic() - begin, self.written()
        assert kept == 0

    def start(self, *more: str) -> subprocess.Popen[str]:
        with (self.root / "said").open("w") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "unetrt", *self.arguments, *more],
                stdout=said, stderr=said, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            )  # fmt: skip

    @property
    def said(self) -> str:
        return (self.root / "said").read_text()

    def finished(self, process: subprocess.Popen[str]) -> tuple[int, int]:
        """Wait for a run that succeeds; return the number of blocks, and of those from an unfinished run."""
        assert process.wait(timeout=600) == 0, self.said
        return counted(self.said)

    def written(self) -> dict[str, bytes]:
        return contents(self.out)

    def recorded(self) -> int:
        """The number of blocks with a complete record of their classes."""
        scratch = Scratch(str(self.scratch))
        return sum(scratch.get(f"records/classify/0/{file.name}") is not None for file in self.records.glob("*"))


def counted(said: str) -> tuple[int, int]:
    blocks, kept = re.findall(r"(\d+) blocks, (\d+) of them from an unfinished run", said)[-1]
    return int(blocks), int(kept)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def runs(tiny_model, tmp_path):
    return Runs(tiny_model, tmp_path, (160, 200), "1x1")


@pytest.mark.parametrize("moments", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_kills_at_random_moments_lose_the_block_in_flight_alone(runs, moments):
    rng, found = random.Random(moments), []
    shutil.rmtree(runs.out)
    for index in range(moments):
        before, is_late = runs.recorded(), index % 3 == 2  # once all blocks have classes: numbered, written, coarsened
        process = runs.start("--resume")
        goal = runs.blocks if is_late else rng.randrange(before, runs.blocks)
        while len([*runs.records.glob("*")]) < goal and process.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 1.5 if is_late else 0.1))
        process.kill()
        is_killed = process.wait() != 0
        assert gone(process.pid)
        kept = runs.recorded() if is_killed else before
        found.append(kept)
        if kept == runs.blocks or not is_killed:
            said = runs.finished(runs.start("--resume")) if is_killed else counted(runs.said)
            assert said == (runs.blocks, kept)
            assert runs.written() == runs.files
            shutil.rmtree(runs.out)
    kept = runs.recorded()
    assert runs.finished(runs.start("--resume")) == (runs.blocks, kept)
    assert runs.written() == runs.files
    sys.stdout.write(f"{runs.blocks} blocks, recorded at each kill: {found}\n")


def stop_within(runs: Runs, number: int, blocks: int) -> int:
    """Send a signal to a run that has computed some blocks; return its exit code."""
    process = runs.start("--resume")
    while runs.recorded() < blocks and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(number)
    return process.wait(timeout=120)


@pytest.mark.parametrize(
    "number",
    [*(pytest.param(one, marks=pytest.mark.slow) for one in (signal.SIGTERM, signal.SIGINT)), signal.SIGHUP],
    ids=lambda number: number.name,
)
def test_a_signal_says_what_is_kept(runs, number):
    shutil.rmtree(runs.out)
    assert stop_within(runs, number, runs.blocks // 3) == 128 + number, runs.said
    kept = runs.recorded()
    assert runs.blocks // 3 <= kept <= runs.blocks  # all, if the signal waits for a busy machine
    by = "the user" if number == signal.SIGINT else number.name
    lines = [WHERE_IT_IS_KEPT.format(image=runs.image, scratch=runs.scratch), f"stopped by {by}"]
    assert [line for line in runs.said.splitlines() if line] == lines  # click ends the line of ^C
    assert runs.finished(runs.start("--resume")) == (runs.blocks, kept)
    assert runs.written() == runs.files


# Unfinished runs in this process

NOT_OURS = "holds files, and no run.json of an unfinished run: give another folder with --scratch"
SAME = ("--save", "labels")


class Unfinished:
    """Repeats a run in blocks in this process, in the folders where it was left unfinished.

    Attributes
    ----------
    undisturbed
        Files that the run writes where nothing happens to it, by name.
    """

    def __init__(self, model: Path, root: Path) -> None:
        self.root, self.image, self.out, self.model = root, root / "images" / "cells.tif", root / "out", model
        self.image.parent.mkdir()
        tifffile.imwrite(self.image, draw((120, 160), seed=4).frame)
        self.work = self.out / ".unfinished" / "cells"
        self.scratch = self.work / "scratch"
        assert self.run(*SAME)[0] == 0
        self.undisturbed = contents(self.out)
        shutil.rmtree(self.out)
        (wrong := self.out / "overlays" / "cells.png").mkdir(parents=True)  # the last file but one cannot be written
        status, said = self.run(*SAME)
        assert (status, said[0].split(": ")[1]) == (2, f"{wrong} is a folder")
        wrong.rmdir()
        shutil.copytree(self.out, root / "as-it-was")
        shutil.copytree(self.image.parent, root / "images-as-they-were")

    def restore(self) -> None:
        for kept, used in (("as-it-was", self.out), ("images-as-they-were", self.image.parent)):
            shutil.rmtree(used, ignore_errors=True)
            shutil.copytree(self.root / kept, used)

    def run(self, *more: object, block: str = "60x80", out: Path | None = None) -> tuple[int, list[str]]:
        """Run the command; return the exit code, and the lines that it printed."""
        options = ["--tile", "model", "--block", block, "--workers", "1", "--table", "--save", "geojson"]
        command = ["predict", self.model, self.image, "-o", out or self.out, *options, *more]
        said = io.StringIO()
        with redirect_stdout(said), redirect_stderr(said):
            status = main(list(map(str, command)))
        return status, said.getvalue().splitlines()

    def resumed(self, *more: object) -> tuple[int, int]:
        status, said = self.run("--resume", *more)
        assert status == 0, said
        return counted(said[-1])


@pytest.fixture(scope="module")
def prepared(tiny_model, tmp_path_factory):
    return Unfinished(tiny_model, tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def unfinished(prepared):
    prepared.restore()
    return prepared


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x55
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def empty(path: Path) -> None:
    path.write_bytes(b"")


SLOW = pytest.mark.slow


@pytest.mark.parametrize("damage", [flip, *(pytest.param(how, marks=SLOW) for how in (truncate, Path.unlink))])
@pytest.mark.parametrize(
    ("part", "again"),
    [
        ("records/classify/0/2", 1),
        ("classes/c/0/1/1", 1),
        ("probabilities/c/0/0/1/1", 1),
        ("records/decode/0/2", 0),
        ("objects/c/0/1/1", 0),
        ("records/write/0/2", 0),
        ("records/numbers/0/2", 0),
        ("confidence/0", 0),
        ("statistics/0", 0),
        ("classes/zarr.json", 0),
        ("../labels.ome.zarr/labels/objects/0/1/1", 0),
        ("../labels.ome.zarr/labels/objects/0/.zarray", 0),
    ],
)
def test_what_is_damaged_is_computed_again_alone(unfinished, part, again, damage):
    damage(unfinished.scratch / part)
    blocks, kept = unfinished.resumed(*SAME)
    assert blocks - kept == again
    assert contents(unfinished.out) == unfinished.undisturbed


def test_chunks_that_a_kill_cut_off_are_not_among_the_results(unfinished):
    """Zarr writes a chunk beside its place, and renames it."""
    partial = unfinished.work / "labels.ome.zarr" / "labels" / "objects" / "0" / "1" / "1.0123456789abcdef.partial"
    partial.write_bytes(b"cut off")
    (wrong := unfinished.out / "ome-zarr" / "cells.ome.zarr").mkdir(parents=True)
    (wrong / ".zgroup").touch()  # an OME-Zarr is replaced
    assert unfinished.resumed(*SAME, "--save", "ome-zarr")[1] > 1
    assert list(unfinished.out.rglob("*.partial")) == []
    assert (wrong / "labels" / "objects" / "0" / "1" / "1").is_file()


def test_a_run_whose_labels_were_complete_goes_on(unfinished):
    """As after a kill between the metadata and the rename."""
    shutil.rmtree(unfinished.out)
    (wrong := unfinished.out / "ome-zarr" / "cells.ome.zarr").mkdir(parents=True)
    (wrong / "mine").touch()
    assert unfinished.run("--save", "ome-zarr", "--no-overlays")[0] == 2
    assert (wrong / "mine").exists()
    shutil.rmtree(wrong)
    blocks, kept = unfinished.resumed("--save", "ome-zarr", "--no-overlays")
    assert blocks == kept > 1
    assert not unfinished.work.parent.exists()


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ((*SAME, "--min-area", "5"), "labels"),
        ((*SAME, "--tta"), "labels"),
        ((*SAME, "--block", "120x80"), "block"),
        ((*SAME, "--axes", "YX"), "reading"),
        ((*SAME, "--block", "120x80", "--tta"), "block, labels"),
    ],
)
def test_another_run_is_refused_in_one_line(unfinished, options, what):
    before = contents(unfinished.out)
    wanted = f"Error: the unfinished run in {unfinished.scratch} has another {what}: repeat its command with --resume, "
    assert unfinished.run("--resume", *options) == (2, [wanted + "or start again with --restart"])
    assert contents(unfinished.out) == before


@pytest.mark.parametrize("change", ["time", "size"])
def test_another_image_is_refused(unfinished, change):
    if change == "time":
        os.utime(unfinished.image, ns=(1, 1))
    else:
        tifffile.imwrite(unfinished.image, draw((120, 160), seed=5).frame, compression="zlib")
    status, said = unfinished.run("--resume", *SAME)
    assert (status, len(said)) == (2, 1)
    assert "has another image: repeat" in said[0]
    assert unfinished.run("--restart", *SAME)[0] == 0
    assert not unfinished.work.parent.exists()


def test_another_model_is_refused(unfinished, large_model, monkeypatch):
    monkeypatch.setattr(unfinished, "model", large_model)
    status, said = unfinished.run("--resume", *SAME)
    assert (status, len(said)) == (2, 1)
    assert "has another model, block: repeat" in said[0]


def test_a_run_goes_on_with_its_tile(unfinished, tmp_path):
    """The planned tile depends on the memory that is free and on the cache, which change between two runs."""
    said = unfinished.run("--tile", "planned", *SAME, out=tmp_path / "planned")[1]
    assert re.match(r"tile \d+x\d+, planned for these images", said[0])
    blocks, kept = unfinished.resumed("--tile", "planned", *SAME)
    assert blocks == kept > 1
    assert contents(unfinished.out) == unfinished.undisturbed


def test_a_run_with_a_planned_tile_goes_on(unfinished, tmp_path):
    (wrong := tmp_path / "overlays" / "cells.png").mkdir(parents=True)
    assert unfinished.run("--tile", "planned", *SAME, out=tmp_path)[0] == 2
    wrong.rmdir()
    assert retile.clear()
    status, said = unfinished.run("--resume", "--tile", "auto", *SAME, out=tmp_path)
    assert status == 0, said
    blocks, kept = counted(said[-1])
    assert blocks == kept >= 1


def test_an_unfinished_run_is_not_overwritten_unasked(unfinished):
    before = contents(unfinished.out)
    wanted = f"Error: {unfinished.scratch} holds an unfinished run of {unfinished.image}: --resume (resume) goes on "
    assert unfinished.run(*SAME) == (2, [wanted + "with it, --restart starts again"])
    assert contents(unfinished.out) == before


def test_a_run_that_computed_nothing_is_no_unfinished_run(unfinished):
    shutil.rmtree(unfinished.scratch / "records")
    blocks, kept = counted(unfinished.run(*SAME)[1][0])
    assert (blocks > 1, kept) == (True, 0)


@pytest.mark.parametrize("damage", [flip, truncate, empty, Path.unlink])
def test_a_damaged_description_is_named(unfinished, damage):
    damage(unfinished.scratch / "run.json")
    wanted = f"Error: {unfinished.scratch}/run.json is damaged: start again with --restart"
    assert unfinished.run("--resume", *SAME) == (2, [wanted])


@pytest.mark.parametrize(
    "part", ["records/numbers/0/2", "records/decode", "classes", "classes/c/0/1", "../labels.ome.zarr"]
)
def test_links_are_not_written_through(unfinished, tmp_path, part):
    """Nothing outside is changed, whether a link shows to a file or a folder; a new run removes the link alone."""
    link = unfinished.work / "labels.ome.zarr" if ".." in part else unfinished.scratch / part
    mine = tmp_path / "mine"
    shutil.move(link, mine)
    link.symlink_to(mine)
    before = contents(tmp_path) | {"itself": mine.read_bytes() if mine.is_file() else b""}
    wanted = f"Error: {link} is a link, and an unfinished run has none: start again with --restart"
    assert unfinished.run("--resume", *SAME) == (2, [wanted])
    assert unfinished.run("--restart", *SAME)[0] == 0
    assert contents(unfinished.out) == unfinished.undisturbed
    assert contents(tmp_path) | {"itself": mine.read_bytes() if mine.is_file() else b""} == before


def test_the_folder_of_unfinished_runs_may_be_a_link(unfinished, tmp_path):
    shutil.move(unfinished.work.parent, tmp_path / "fast")
    unfinished.work.parent.symlink_to(tmp_path / "fast")
    blocks, kept = unfinished.resumed(*SAME)
    assert blocks == kept > 1


@pytest.mark.parametrize("key", ["run.json", "records/decode/0/2", "records/classify/0/2", "statistics/0"])
def test_content_that_fits_its_checksum_alone_is_damaged(unfinished, key):
    content = b"{nonsense"
    (unfinished.scratch / key).write_bytes(b"%08x" % zlib.crc32(content) + content)
    status, said = unfinished.run("--resume", *SAME)
    if key == "run.json":
        assert (status, said) == (2, [f"Error: {unfinished.scratch}/run.json is damaged: start again with --restart"])
    else:
        assert status == 0, said
        assert contents(unfinished.out) == unfinished.undisturbed


def test_resume_without_an_unfinished_run_begins_one(unfinished, tmp_path):
    status, said = unfinished.run("--resume", *SAME, out=tmp_path / "new")
    blocks, kept = counted(said[0])
    assert (status, blocks > 1, kept) == (0, True, 0)


def test_two_runs_on_one_image_at_a_time(unfinished):
    with locked(unfinished.work):
        status, said = unfinished.run("--restart", *SAME)
    assert (status, len(said)) == (2, 1)
    assert f"process {os.getpid()} has worked on {unfinished.work}" in said[0]
    assert unfinished.resumed(*SAME)[1] > 1


def test_two_outputs_share_no_scratch_at_a_time(unfinished, tmp_path):
    with locked(tmp_path / "shared" / "cells"):
        status, said = unfinished.run("--scratch", tmp_path / "shared", *SAME, out=tmp_path / "other")
    assert (status, len(said)) == (2, 1)
    assert f"has worked on {tmp_path / 'shared' / 'cells'}" in said[0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", ["--resume", "--restart", "--block=60x80"])
def test_files_of_others_in_the_scratch_folder_stay(unfinished, tmp_path, how):
    mine = tmp_path / "scratch" / "cells" / "classes"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    wanted = f"Error: {mine.parent} {NOT_OURS}"
    assert unfinished.run(how, "--scratch", tmp_path / "scratch", *SAME, out=tmp_path / "out") == (2, [wanted])
    assert mine.read_text() == "mine"
    assert not (tmp_path / "out").exists()


def test_an_address_that_is_none(unfinished, tmp_path):
    status, said = unfinished.run("--scratch", "nonsense://a", *SAME, out=tmp_path / "out")
    assert (status, len(said)) == (2, 1)
    assert said[0].startswith("Error: nonsense://a/cells cannot hold unfinished blocks (Protocol not known: nonsense)")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("place", [".", "out", "images"])
def test_an_unfinished_run_is_no_image(unfinished, monkeypatch, place):
    """Folders that hold one are walked."""
    monkeypatch.setattr(unfinished, "image", unfinished.root / place)
    shutil.copy(unfinished.root / "images" / "cells.tif", unfinished.root / "out" / "more.tif")
    status, said = unfinished.run("--no-overlays", *SAME, out=unfinished.root / "elsewhere")
    written = {path.name for path in (unfinished.root / "elsewhere").rglob("*.tif")}
    shutil.rmtree(unfinished.root / "elsewhere")
    assert (status, written - {"cells.tif", "more.tif"}) == (0, set()), said


def test_relative_scratch_folders_are_those_of_the_working_folder(unfinished, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, said = unfinished.run("--scratch", "scratch", *SAME, out=tmp_path / "out")
    assert status == 0, said
    assert contents(tmp_path / "out") == unfinished.undisturbed
    assert not [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import filelock
import pytest

from unetrt.runtime.errors import OutputError
from unetrt.runtime.files import atomic
from unetrt.runtime.files.atomic import (
    cache_folder,
    clear_unfinished,
    require_writable,
    scratch_folder,
    whole_file,
    whole_folder,
    writable_folder,
)


def test_a_file_appears_whole_and_nothing_else(tmp_path):
    with whole_file(tmp_path / "new" / "a.txt") as temporary:
        temporary.write_text("content")
        assert not (tmp_path / "new" / "a.txt").exists()
        assert temporary.name == "a.txt"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(error), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("half")
        raise error
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_failure_leaves_no_folder_that_was_made_for_it(tmp_path):
    with pytest.raises(ValueError, match="half"), whole_file(tmp_path / "new" / "deep" / "a.txt"):
        raise ValueError("half")
    assert list(tmp_path.iterdir()) == []


def test_a_file_can_be_read_by_whom_any_new_file_can(tmp_path):
    (tmp_path / "usual").touch()
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.touch(mode=0o600)
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "deeper"):
        for asked in (require_writable, writable_folder):
            with pytest.raises(OutputError, match=r"cannot write to .*file is not a folder"):
                asked(place)


def test_asking_creates_nothing(tmp_path):
    require_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_line(tmp_path):
    with pytest.raises(OutputError, match="cannot write .*a.txt: No space left"), whole_file(tmp_path / "a.txt"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_appears_whole_and_nothing_else(tmp_path):
    with whole_folder(tmp_path / "new" / "a") as temporary:
        (temporary / "b").write_text("content")
        assert not (tmp_path / "new" / "a").exists()
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("*"))] == ["new", "new/a", "new/a/b"]
    (tmp_path / "usual").mkdir()
    assert (tmp_path / "new" / "a").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_no_folder(tmp_path, error):
    with pytest.raises(error), whole_folder(tmp_path / "new" / "a") as temporary:
        (temporary / "b").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_stays(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OutputError, match="a exists"), whole_folder(tmp_path / "a"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "a"]


def test_a_folder_that_holds_a_known_file_is_replaced_and_another_is_not(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "known").touch()
    with pytest.raises(OutputError, match="a exists"), whole_folder(tmp_path / "a", replace=["other"]):
        pytest.fail("it was entered")
    with pytest.raises(KeyError), whole_folder(tmp_path / "a", replace=["known"]):
        raise KeyError
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["known"]
    with whole_folder(tmp_path / "a", replace=["other", "known"]) as temporary:
        (temporary / "new").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_no_place_for_a_file(tmp_path):
    with (
        pytest.raises(OutputError, match="is a folder: name a file in it"),
        whole_file(tmp_path),
    ):
        pytest.fail("it was too late to say so")
    assert list(tmp_path.parent.glob(".unetrt-*")) == []


def test_what_is_no_regular_file_is_not_replaced_by_one(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="is not a regular file"), whole_file(tmp_path / "pipe"):
        pytest.fail("it was too late to say so")


def test_behind_a_link_lies_what_is_meant(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_file(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


# Writes a file and waits in the middle.
WRITER = """
import sys, time
from unetrt.runtime.files.atomic import scratch_folder, whole_file, whole_folder
with {opened} as temporary:
    print(temporary, flush=True)
    time.sleep(60)
"""
KINDS = ["whole_file('a.txt')", "whole_folder('a')", "scratch_folder()"]


@pytest.fixture
def writer(tmp_path, monkeypatch):
    """Start a process that writes and waits; return it, with its temporary path. All run in `tmp_path`."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with ExitStack() as running:

        def start(opened):
            process = running.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", WRITER.format(opened=opened)],
                    cwd=tmp_path, env={**os.environ, "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, text=True,
                )
            )  # fmt: skip
            running.callback(process.kill)
            return process, tmp_path / process.stdout.readline().strip()

        yield start


def write_another(folder):
    """Write a file and a scratch folder as the first call of a process in this folder."""
    atomic._forget.cache_clear()
    with whole_file(folder / "b.txt") as temporary:
        temporary.touch()
    with scratch_folder() as scratch:
        assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("opened", KINDS)
def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path, writer, opened):
    process, temporary = writer(opened)
    process.kill()
    process.wait()
    assert temporary.parent.is_dir(), "a killed process removes nothing"
    write_another(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["b.txt"]


@pytest.mark.parametrize("opened", KINDS)
def test_what_a_running_process_writes_stays(tmp_path, writer, opened):
    _, temporary = writer(opened)
    os.utime(temporary.parent, (1, 1))
    write_another(tmp_path)
    assert temporary.parent.is_dir()
    with whole_file(tmp_path / "c.txt") as of_this_process:
        of_this_process.touch()
        write_another(tmp_path)
        assert of_this_process.exists()


def hidden_of(folder, machine):
    """Return what a process on another machine left: a file in a hidden folder, unlocked."""
    hidden = folder / f".unetrt-{machine}-12345678"
    hidden.mkdir()
    (hidden / "a.txt").touch()
    return hidden


def test_of_another_machine_only_what_did_not_change_for_a_week_is_removed(tmp_path):
    name, start = atomic._machine()[:8], atomic._machine()[8:]
    restarted, renamed = hidden_of(tmp_path, f"{name}00000000"), hidden_of(tmp_path, f"00000000{start}")
    other, growing, old = (hidden_of(tmp_path, f"0000000{digit}00000000") for digit in (1, 2, 3))
    (earlier := tmp_path / ".unetrt-abc_1234").mkdir()  # of a version without machines
    for path in (growing, old, old / "a.txt", earlier):
        os.utime(path, (1, 1))
    write_another(tmp_path)
    assert [path.is_dir() for path in (restarted, renamed, other, growing, old, earlier)] == [
        False, False, True, True, False, False,
    ]  # fmt: skip


def test_machines_without_the_number_of_their_start_differ(monkeypatch):
    def machine(name):
        atomic._machine.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: name)
            patch.setattr(Path, "read_bytes", lambda path: (path / "missing").stat())  # as on Windows
            return atomic._machine()

    one, other = machine("one"), machine("other")
    atomic._machine.cache_clear()
    assert one[:8] != other[:8]
    assert one[8:] != other[8:]


def test_a_folder_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    def slow(**given):
        made = tempfile.mkdtemp(**given)
        clear_unfinished(tmp_path)
        assert not Path(made).exists()
        return made

    monkeypatch.setattr(atomic, "mkdtemp", slow)
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("content")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "content"


def test_what_only_has_such_a_name_stays(tmp_path):
    (target := tmp_path / "target").mkdir()
    (tmp_path / ".unetrt-link").symlink_to(target)
    (tmp_path / ".unetrt-demo").touch()
    os.utime(tmp_path / ".unetrt-demo", (1, 1))
    os.utime(target, (1, 1))
    clear_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unetrt-demo", ".unetrt-link", "target"]


def test_a_folder_of_the_cache_is_cleared_when_it_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "unetrt" / "part").mkdir(parents=True)
    hidden_of(tmp_path / "unetrt" / "part", atomic._machine())
    assert list(cache_folder("part").iterdir()) == []


def test_a_name_that_is_too_long_is_named_whatever_else_is_being_written(tmp_path):
    long = tmp_path / "new" / ("s" * 256)
    match = "cannot write .*/new/sss.*: File name too long"
    with pytest.raises(OutputError, match=match), whole_file(tmp_path / "a"), whole_file(long) as temporary:
        temporary.write_bytes(b"")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_whose_name_is_as_long_as_names_can_be_is_replaced(tmp_path):
    for content in ("first", "second"):
        with whole_folder(tmp_path / ("s" * 255), replace=["mark"]) as folder:
            (folder / "mark").write_text(content)
    assert [path.read_text() for path in tmp_path.glob("*/mark")] == ["second"]


@pytest.mark.parametrize("call", ["shutil.rmtree", "filelock.FileLock.release", "filelock.FileLock.acquire"])
def test_a_signal_while_a_file_is_begun_or_ended_leaves_no_hidden_folder(tmp_path, monkeypatch, call):
    arrived = []
    module, _, name = call.rpartition(".")
    owner = {"shutil": shutil, "filelock.FileLock": filelock.FileLock}[module]
    whole = getattr(owner, name)

    def interrupted(*arguments, **options):
        if not arrived:
            arrived.append(call)
            raise KeyboardInterrupt
        return whole(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / "a.txt") as temporary:
        temporary.write_text("a")
    assert arrived
    assert [path.name for path in tmp_path.iterdir()] in (["a.txt"], [])

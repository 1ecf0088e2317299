"""Caches and locks: folders and files of this user alone, no links, bounded reading and waiting."""

import logging
import os
import signal
import stat
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.runtime.engines.machines import FACTS
from unetrt.runtime.engines.build import TimingCache
from unetrt.runtime.engines.cache import RuntimeCache
from unetrt.runtime.errors import OutputError
from unetrt.runtime.files import atomic
from unetrt.runtime.files.atomic import (
    cache_folder,
    cached_file,
    locked,
    private_folder,
    read_cached,
)
from unetrt.runtime.geometry.planner import Budget, TileTime
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.records import open_regular, read_regular
from unetrt.runtime.sessions import chosen_backend, measured
from unetrt.runtime.sessions.onnxruntime_options import Choice, Trial
from unetrt.trainer.targets import cached_separation_weights

as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
on_posix = pytest.mark.skipif(os.name != "posix", reason="modes and users of POSIX")
OTHER = 54321


@pytest.fixture(autouse=True)
def own_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unetrt"


def mode(path):
    return stat.S_IMODE(path.lstat().st_mode)


@on_posix
def test_a_cache_is_a_folder_that_only_its_user_can_enter(own_cache_folder):
    with cached_file(cache_folder("part") / "a") as temporary:
        temporary.touch()
    assert [mode(folder) for folder in (own_cache_folder, own_cache_folder / "part")] == [0o700, 0o700]


@on_posix
@pytest.mark.parametrize("before", [0o755, 0o775, 0o777])
def test_permissions_of_others_are_taken_away(own_cache_folder, before):
    (own_cache_folder / "part").mkdir(parents=True)
    for folder in (own_cache_folder, own_cache_folder / "part"):
        folder.chmod(before)
    private_folder(cache_folder("part"))
    assert [mode(folder) for folder in (own_cache_folder, own_cache_folder / "part")] == [0o700, 0o700]


def given_away(folder):
    (folder / "part").mkdir(parents=True)
    os.chown(folder, OTHER, -1)


def part_given_away(folder):
    (folder / "part").mkdir(parents=True)
    os.chown(folder / "part", OTHER, -1)


def link_of_another(folder):
    target = folder.parent / "target"
    target.mkdir(parents=True)
    folder.symlink_to(target)
    os.chown(folder, OTHER, -1, follow_symlinks=False)


def link_to_anothers(folder):
    link_of_another(folder)
    os.chown(folder, os.geteuid(), -1, follow_symlinks=False)
    os.chown(folder.parent / "target", OTHER, -1)


def link_to_where_others_write(folder):
    (target := folder.parent / "target").mkdir(parents=True)
    target.chmod(0o777)
    folder.symlink_to(target)


def file(folder):
    folder.parent.mkdir(parents=True)
    folder.touch()


def dangling(folder):
    folder.parent.mkdir(parents=True)
    folder.symlink_to("nowhere")


BELONGS = f"belongs to user {OTHER}, and you are user 0"
NOT_OURS = [
    pytest.param(given_away, BELONGS, marks=as_root),
    pytest.param(part_given_away, BELONGS, marks=as_root),
    pytest.param(link_of_another, BELONGS, marks=as_root),
    pytest.param(link_to_anothers, BELONGS, marks=as_root),
    pytest.param(link_to_where_others_write, "others can write to the folder that it links to", marks=on_posix),
    pytest.param(file, "is not a folder"),
    pytest.param(dangling, "File exists", marks=on_posix),
]


@pytest.mark.parametrize(("made", "message"), NOT_OURS)
def test_a_folder_that_is_not_ours_is_refused(own_cache_folder, made, message):
    made(own_cache_folder)
    with pytest.raises(OutputError, match=message) as raised:
        private_folder(cache_folder("part"))
    assert "\n" not in str(raised.value)


def test_where_files_have_no_owner_the_cache_is_in_use(own_cache_folder, monkeypatch):
    """As on Windows."""
    for name in ("geteuid", "getuid", "O_NOFOLLOW"):
        monkeypatch.delattr(os, name, raising=False)
    with cached_file(cache_folder("part") / "a") as temporary:
        temporary.write_bytes(b"content")
    assert read_cached(cache_folder("part") / "a", 7) == b"content"


@on_posix
def test_a_link_of_the_user_to_a_folder_of_theirs_is_followed(own_cache_folder):
    (target := own_cache_folder.parent / "target").mkdir(parents=True, mode=0o755)
    own_cache_folder.symlink_to(target)
    assert mode(private_folder(cache_folder("part"))) == 0o700
    assert mode(target) == 0o755


@pytest.mark.parametrize("value", ["", "here", "./here", "~/here"])
def test_without_an_absolute_path_the_variable_is_ignored(tmp_path, monkeypatch, value):
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert cache_folder("part") == tmp_path / ".cache" / "unetrt" / "part"


# A process without a home folder, as in a container that runs as a user without an entry in /etc/passwd.
HOMELESS = f"""
import os, sys
from unetrt.runtime.files.atomic import cache_folder, cached_file, locked
os.setuid({OTHER})
folder = cache_folder("part")
with locked(folder / "a"), cached_file(folder / "a") as temporary:
    temporary.touch()
print(folder)
"""


@as_root
def test_without_a_home_folder_the_cache_is_a_temporary_folder():
    with tempfile.TemporaryDirectory() as name:  # other users cannot enter pytest's folders
        (temporary := Path(name)).chmod(0o777)
        environment = {**os.environ, "TMPDIR": name}
        del environment["HOME"], environment["XDG_CACHE_HOME"]
        done = subprocess.run(
            [sys.executable, "-c", HOMELESS],
            env=environment, cwd=temporary, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout.strip() == f"{temporary}/unetrt-{OTHER}/part", done.stderr
        assert [path.name for path in temporary.iterdir()] == [f"unetrt-{OTHER}"]


# Writers of each cache: one that is given a victim to which links lead, and writes its usual file; returns its path.
def write_times():
    setting = measured.Setting.here(chosen_backend("onnxruntime"), UNetShape(2, 4), "fp32", Budget())
    return setting.path, lambda: measured.keep(setting, [TileTime((44, 64), 0.2, 0.01, "2026-01-31")])


def write_weights():
    labels = np.zeros((20, 20), np.int32)
    labels[2:8, 2:8], labels[10:18, 10:18] = 1, 2
    cached_separation_weights(labels, 10.0, 5.0)
    (path,) = cache_folder("weight-maps").glob("*.npy")
    return path, lambda: cached_separation_weights(labels, 10.0, 5.0)


def write_choice():
    path = cache_folder("onnxruntime") / "a.json"
    choice = Choice("first", 0, (Trial("first", 0.1),), "model.onnx")
    return path, lambda: choice.save(path, {})


def write_kernels():
    cache = RuntimeCache(FACTS, FACTS.machine)
    return cache.path, lambda: cache.keep(SimpleNamespace(serialize=lambda: b"kernels"))


def write_timings():
    cache = TimingCache(FACTS)
    times = SimpleNamespace(serialize=lambda: b"times", combine=lambda *others, **options: None)
    config = SimpleNamespace(get_timing_cache=lambda: times, create_timing_cache=lambda content: times)
    return cache.path, lambda: cache.keep(config)


def write_holder():
    path = cache_folder("part") / "a"
    with locked(path):
        (holder,) = cache_folder("locks").glob("*.holder")

    def again():
        with locked(path):
            pass

    return holder, again


def write_lock():
    holder, again = write_holder()
    return holder.with_suffix(".lock"), again


WRITERS = [write_times, write_weights, write_choice, write_kernels, write_timings, write_holder, write_lock]


@on_posix
@pytest.mark.parametrize("prepared", WRITERS)
def test_a_link_in_a_cache_is_replaced_and_its_target_stays(tmp_path, prepared):
    path, write = prepared()
    (victim := tmp_path / "victim").write_text("precious")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(victim)
    write()
    assert victim.read_text() == "precious"
    assert path.is_file()
    assert not path.is_symlink()


@on_posix
@pytest.mark.parametrize("prepared", WRITERS[:5])
def test_a_pipe_in_a_cache_is_replaced_too(prepared):
    path, write = prepared()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    write()
    assert path.is_file()


def linked(path):
    path.with_name("other").write_bytes(b"content")
    path.symlink_to(path.with_name("other"))


def device(path):
    path.symlink_to("/dev/zero")


def of_a_gigabyte(path):
    path.touch()
    os.truncate(path, 10**9)


def of_another(path):
    path.write_bytes(b"content")
    os.chown(path, OTHER, -1)


def missing(path):
    pass


UNREADABLE = [
    pytest.param(linked, "it is a link", marks=on_posix),
    pytest.param(device, "it is a link", marks=on_posix),
    pytest.param(os.mkfifo, "it is not a regular file", marks=on_posix),
    pytest.param(os.mkdir, "it is not a regular file"),
    pytest.param(of_a_gigabyte, "it has 1000000000 bytes, and at most 7 are read"),
    pytest.param(of_another, f"it belongs to user {OTHER}", marks=as_root),
    pytest.param(missing, "No such file"),
]


@pytest.mark.parametrize(("made", "message"), UNREADABLE)
def test_what_is_not_a_file_of_ours_is_not_read(tmp_path, made, message):
    made(tmp_path / "a")
    with pytest.raises(OSError, match=message):
        read_cached(tmp_path / "a", 7)


def test_a_file_of_ours_is_read(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    assert read_cached(tmp_path / "a", 7) == read_regular(tmp_path / "a", 7) == b"content"


@on_posix
def test_elsewhere_a_link_to_a_regular_file_is_followed(tmp_path):
    linked(tmp_path / "a")
    with open_regular(tmp_path / "a") as opened:
        assert opened.read() == b"content"
    device(tmp_path / "b")
    with pytest.raises(OSError, match="it is not a regular file"), open_regular(tmp_path / "b"):
        pass


@on_posix
def test_without_a_writable_cache_locks_are_in_a_private_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with locked(tmp_path / "a"):
        folder = tmp_path / f"unetrt-{os.geteuid()}"
        assert [mode(each) for each in (folder, folder / "locks")] == [0o700, 0o700]


@as_root
def test_a_temporary_folder_that_another_user_prepared_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (folder := tmp_path / "unetrt-0").mkdir()
    os.chown(folder, OTHER, -1)
    with pytest.raises(OutputError, match=f"unetrt-0 .*{BELONGS}.*XDG_CACHE_HOME"), locked(tmp_path / "a"):
        pass


# A process that holds the lock of a path until it is killed.
HOLDER = """
import sys, time
from unetrt.runtime.files.atomic import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(600)
"""


@contextmanager
def stopped_holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@on_posix
def test_a_lock_of_a_stopped_process_is_waited_for_a_limited_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(atomic, "SILENT", 0.1)
    path = tmp_path / "a"
    with stopped_holder(path) as process:
        message = f"process {process.pid} has worked on {path} for more than 0.3 s.*locks/.*[.]lock.*end it"
        with (
            caplog.at_level(logging.WARNING, "unetrt"),
            pytest.raises(OutputError, match=message),
            locked(path, wait=0.3),
        ):
            pass
        with pytest.raises(OutputError, match=f"process {process.pid}"), locked(path, wait=0):
            pass
    assert caplog.messages == [f"waiting for process {process.pid}, which works on {path}, 0.3 s at most"]
    with locked(path, wait=0.1):  # the holder was killed
        pass

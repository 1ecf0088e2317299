import os

import pytest

from unetrt.runtime.errors import OutputError
from unetrt.runtime.files.atomic import require_writable, whole_file, whole_folder, writable_folder


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


def test_what_a_killed_process_left_a_day_ago_is_removed(tmp_path):
    for name in ("old", "new"):
        (tmp_path / f".unetrt-{name}").mkdir()
    os.utime(tmp_path / ".unetrt-old", (1, 1))
    with whole_file(tmp_path / "a.txt") as temporary:
        temporary.touch()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unetrt-new", "a.txt"]

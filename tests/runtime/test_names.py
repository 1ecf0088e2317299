"""Names that are made of text from elsewhere."""

import pytest

from unetrt.runtime.errors import OptionError
from unetrt.runtime.files.names import LONGEST, require_name, safe_name, safe_names, same_name

SAFE = {
    "Pos0": "Pos0",
    "A 1.2 (b)": "A 1.2 (b)",
    "../x": "_x",
    "/": "_",
    "..": "",
    "": "",
    "a\\b:c": "a_b_c",
    'a*b?c"d<e>f|g': "a_b_c_d_e_f_g",
    "a\0b\nc\x7f": "a_b_c_",
    "\u202egnp.exe": "_gnp.exe",
    "\ud800": "_",
    "x. .": "x",
    "CON": "_CON",
    "con.ome.zarr": "_con.ome.zarr",
    "Com1": "_Com1",
    "LPT²": "_LPT²",
    "CONIN$": "_CONIN$",
    "console": "console",
    "COM10": "COM10",
    "日本": "日本",
}


@pytest.mark.parametrize(("text", "name"), SAFE.items())
def test_a_text_becomes_a_name_of_a_file(tmp_path, text, name):
    assert safe_name(text) == name
    assert safe_name(name) == name
    if name:
        (tmp_path / name).touch()
        assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_long_text_is_cut_between_letters():
    assert safe_name("日" * 200) == "日" * (LONGEST // 3)
    assert len(safe_name("x" * 5000)) == LONGEST


def test_names_are_told_apart_as_any_disk_does():
    texts = ["a", "A", "a_1", "", "..", "A\u030a", "Å", "OME", "x" * 200, "x" * 201, "2"]
    names = safe_names(texts, taken=("ome",))
    assert len({same_name(name) for name in names} | {"ome"}) == len(texts) + 1
    assert names[:3] == ["a", "A_1", "a_1_2"]
    assert safe_names(names) == names


@pytest.mark.parametrize("name", ["", "..", "a/../b", "/a", "a\\b", "C:x", "NUL", "plate/con.1", "a ", "\ud800", 3])
def test_a_name_that_a_disk_does_not_take_is_refused(name):
    with pytest.raises(OptionError, match="name must be that of files"):
        require_name(name)


def test_usual_names_are_taken():
    for name in ("slide", "plate/A/1", "x" * 200, "日本"):
        require_name(name)

"""The first usable candidate of a table, or the reasons against all of them."""

import pytest

from unetrt.runtime.candidates import first_usable, is_installed, why_not_importable
from unetrt.runtime.errors import BackendUnavailableError


def test_the_first_usable_candidate_is_returned_and_later_ones_are_not_probed():
    probed = []

    def probe(name):
        probed.append(name)
        return None if name == "b" else f"{name} is missing"

    assert first_usable("abc", probe) == "b"
    assert probed == ["a", "b"]


@pytest.mark.parametrize(
    ("problem", "message"), [("", "no a; no b"), ("nothing is usable", "nothing is usable; no a; no b")]
)
def test_the_reasons_against_all_candidates_are_listed_in_order(problem, message):
    with pytest.raises(BackendUnavailableError) as caught:
        first_usable("ab", lambda name: f"no {name}", problem)
    assert str(caught.value) == message


@pytest.mark.parametrize("module", ["no_such_module", "no_such_package.module"])
def test_a_missing_module_says_what_to_install(module):
    assert not is_installed(module)
    assert why_not_importable(module, "It", "cpu") == "It is not installed: pip install 'unetrt[cpu]'"


def test_a_module_that_does_not_load_says_how_to_repair_it(monkeypatch, tmp_path):
    (tmp_path / "broken_module.py").write_text("raise ImportError('undefined symbol: x\\nat y')")
    monkeypatch.syspath_prepend(tmp_path)
    said = "It does not load (undefined symbol: x): pip install --force-reinstall "
    assert why_not_importable("broken_module", "It", "cpu") == f"{said}'unetrt[cpu]'"
    assert why_not_importable("broken_module", "It", "cpu", "package") == f"{said}package"
    assert why_not_importable("json", "It", "cpu") is None

import subprocess
import sys

import pytest

from unetrt.benchmarks import resources


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's own file says it")
def test_the_peak_is_this_processs_own():
    """A child does not begin with its parent's peak, and memory that was given back counts."""
    kept = bytearray(b"x") * (200 << 20)
    program = """
from unetrt.benchmarks.resources import peak_memory
before = peak_memory()
taken = bytearray(b"x") * (300 << 20)
del taken
print(before, peak_memory())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before < len(kept)
    assert 300 << 20 <= after - before + (20 << 20) < 400 << 20


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    """The kernel's folder of two processors, a part of one of them, and the memory's."""
    zones = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:1": "package-1", "intel-rapl:2": "psys"}
    zones |= {"intel-rapl-mmio:0": "package-0"}
    for zone, name in zones.items():
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "name").write_text(f"{name}\n")
        (tmp_path / zone / "energy_uj").write_text("1500000\n")
    monkeypatch.setattr(resources, "POWERCAP", tmp_path)
    return tmp_path


def test_energy_is_that_of_all_processors(powercap):
    assert resources.joules(gpu=False) == 3.0
    (powercap / "intel-rapl:1" / "energy_uj").write_text("no number")
    assert resources.joules(gpu=False) is None


def test_where_nobody_tells_there_is_no_energy(tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "POWERCAP", tmp_path / "none")
    assert resources.joules(gpu=False) is None


@pytest.mark.parametrize(("before", "after", "joules"), [(1.0, 3.5, 2.5), (None, 3.5, None), (3.0, 1.0, None)])
def test_a_counter_that_began_anew_tells_nothing(before, after, joules):
    assert resources.between(before, after) == joules

import numpy as np
import pytest
from click.testing import CliRunner

from unetrt.benchmarks import weight_map as module
from unetrt.benchmarks.history import read
from unetrt.benchmarks.record import Record
from unetrt.benchmarks.weight_map import ALLOWED, command, for_each_object, require_equal, weight_map
from unetrt.runtime.errors import ParityError
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.targets import separation_weights

CELLS = draw((96, 80), 0).labels


def test_the_other_way_is_the_formula():
    """d1 and d2 by looking at every pixel of every object."""
    objects = draw((40, 40), 1).labels
    places = np.stack(np.indices(objects.shape), axis=-1).reshape(-1, 2)
    each = [places[(objects == number).ravel()] for number in range(1, objects.max() + 1)]
    assert len(each) >= 2
    distances = [np.sqrt(((places[:, None] - own[None]) ** 2).sum(axis=-1)).min(axis=1) for own in each]
    d1, d2 = np.sort(distances, axis=0)[:2]
    expected = 10 * np.exp(-((d1 + d2) ** 2) / 50)
    np.testing.assert_allclose(for_each_object(objects).ravel(), expected, rtol=1e-9, atol=1e-12)


def test_both_ways_agree_on_the_background():
    require_equal(CELLS)
    ours, others = separation_weights(CELLS), for_each_object(CELLS)
    outside = CELLS == 0
    assert np.abs(ours - others)[outside].max() <= ALLOWED
    assert others[outside].max() > 5
    # The one difference that is meant: inside an object, its own border is as far as it is.
    assert np.abs(ours - others)[~outside].max() > 0.1


def test_nothing_is_timed_where_they_differ(monkeypatch):
    monkeypatch.setattr(module, "separation_weights", lambda *given: 1.01 * separation_weights(*given))
    monkeypatch.setattr(module, "fresh", lambda *_: pytest.fail("timed all the same"))
    with pytest.raises(ParityError, match=r"differ by up to 0\.0\d+: 0\.0001 is allowed"):
        weight_map((96,), 1)


@pytest.mark.slow
def test_figures_follow_from_their_rounds(tmp_path):
    path = tmp_path / "weight-map.json"
    arguments = ["--side", "64", "--side", "520", "--rounds", "2", "--json", str(path)]
    done = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    record = Record.load(path)
    ours, one = record["64: unetrt"], record["64: one transform"]
    assert len(ours.rounds) == 2
    assert record["64: unetrt, rate"].rounds == pytest.approx([64 * 64 / 1e6 / seconds for seconds in ours.rounds])
    ratios = [other / mine for other, mine in zip(one.rounds, ours.rounds, strict=True)]
    assert record["64: unetrt against one transform"].rounds == pytest.approx(ratios)
    # A transform an object is taken up to 512 only.
    assert {figure.name for figure in record.figures if "an object" in figure.name} == {
        "64: a transform an object",
        "64: unetrt against a transform an object",
    }
    assert record["520: unetrt"].median > 0
    (run,) = read(tmp_path / "history.jsonl")
    assert [figure.median for figure in run.figures] == [figure.median for figure in record.figures]
    assert "520: unetrt, rate" in done.output

"""The benchmarks of images in blocks."""

import numpy as np
import pytest

from unetrt.benchmarks.block_runs import require_same_objects
from unetrt.benchmarks.blocks import BlockMemory, BlockSpeed
from unetrt.benchmarks.cases import measure
from unetrt.benchmarks.networks import fitted, write_model
from unetrt.benchmarks.result import CaseResult
from unetrt.export.exporter import Options
from unetrt.runtime.errors import OptionError, ParityError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.trainer.checkpoint import untrained_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "fitted.onnx"
    write_model(fitted(4, 2), Options((316, 316)), path)
    return path


@pytest.mark.alone
def test_both_rates_their_ratio_and_the_peak(model):
    result = measure(BlockSpeed(str(model), 700, 900, 512), rounds=2)
    alone, stores, ratio, peak = result.figures
    assert [figure.unit for figure in result.figures] == ["Mpixel/s", "Mpixel/s", "x", "MiB"]
    assert ratio.rounds == pytest.approx([mine / own for mine, own in zip(stores.rounds, alone.rounds, strict=True)])
    assert (ratio.goal, peak.met, peak.median > 1) == (0.9, True, True)
    about = {"frame": [700, 900], "part": [512, 512], "model": str(model), "tile": [316, 316]}
    assert about.items() <= result.detail.items()
    assert result.detail["objects"] > 50


@pytest.mark.alone
def test_the_peak_for_two_sizes_and_the_objects_of_a_part():
    result = measure(BlockMemory((600, 1200), crop=300, every=1), rounds=1)
    assert [figure.name for figure in result.figures if figure.goal] == [
        "600: peak memory",
        "1200: peak memory",
        "smallest image's peak against the largest's",
    ]
    assert min(result.detail["compared"].values()) > 5


@pytest.mark.alone
@pytest.mark.slow
def test_memory_does_not_grow_with_the_image():
    result = measure(BlockMemory((5000, 10_000), crop=1500), rounds=1)
    assert all(figure.met for figure in result.figures if figure.goal)


def test_a_model_of_two_channels_is_refused(tmp_path):
    path = tmp_path / "two.onnx"
    write_model(untrained_checkpoint(UNetShape(2, 4, channels=2), 0), Options((316, 316)), path)
    with pytest.raises(OptionError, match="takes 2 channels"):
        measure(BlockSpeed(str(path), 600, 600), rounds=1)


LABELS = np.zeros((9, 9), int)
LABELS[0, 0], LABELS[2:4, 2:4], LABELS[6, 6] = 1, 2, 3


@pytest.mark.parametrize(
    ("place", "number"), [((2, 2), 0), ((4, 4), 4), ((6, 6), 2), ((3, 3), 5)], ids=["less", "more", "merged", "split"]
)
def test_other_objects_are_found(place, number):
    other = LABELS.copy()
    assert require_same_objects(other * 7, LABELS) == 2
    other[place] = number
    with pytest.raises(ParityError):
        require_same_objects(other, LABELS)


def test_objects_at_the_border_may_differ():
    other = LABELS.copy()
    other[0, :3] = 9
    assert require_same_objects(other, LABELS) == 2


@pytest.mark.alone
def test_the_command_times_blocks(model, capsys, tmp_path):
    from unetrt.__main__ import main

    arguments = ["bench", "--blocks", str(model), "--frame", "600", "--rounds", "1", "--json", str(tmp_path / "a.json")]
    assert main(arguments) == 0
    assert "store to store against the session" in capsys.readouterr().out
    assert len(CaseResult.load(tmp_path / "a.json").figures) == 4

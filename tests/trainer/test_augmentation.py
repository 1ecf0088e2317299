from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import coordinate_frame
from unetrt.trainer.augmentation import NONE, Augmentation, coordinates, displacements, look_up, vary_grey_values


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_without_any_variation_a_tile_is_a_mirrored_window():
    frame = torch.from_numpy(coordinate_frame(20, 30))[None]
    at = coordinates((31, 17), torch.tensor([5.0, 6.0]), NONE, seeded())
    expected = np.pad(frame[0].numpy(), 40, mode="reflect")[40 + 5 - 15 : 40 + 5 + 16, 40 + 6 - 8 : 40 + 6 + 9]
    for mode in ("nearest", "bilinear"):
        np.testing.assert_allclose(look_up(frame, at, mode)[0], expected, atol=0.02)


def test_image_and_target_move_together():
    """The frame is its own target: whatever is looked up in both must agree, to the half pixel of the rounding."""
    frame = torch.from_numpy(np.indices((60, 80)).astype(np.float32))
    for seed in range(5):
        at = coordinates((50, 40), torch.tensor([30.0, 40.0]), Augmentation(), seeded(seed))
        assert (look_up(frame, at, "bilinear") - look_up(frame, at, "nearest")).abs().max() <= 0.5001


@pytest.mark.parametrize("how", [replace(NONE, rotation=180.0), replace(NONE, flips=True)])
def test_rotations_and_flips_keep_distances(how):
    at = coordinates((9, 9), torch.tensor([3.0, 4.0]), how, seeded(2))
    assert (at[1:] - at[:-1]).norm(dim=-1).numpy() == pytest.approx(1, abs=1e-5)
    assert at[4, 4].tolist() == pytest.approx([3, 4], abs=1e-5)


def test_displacements_have_the_asked_deviation_at_the_coarse_grid_and_are_smooth():
    how = Augmentation()
    corners = torch.stack([displacements((65, 65), how, seeded(s))[::32, ::32] for s in range(300)])
    assert corners.std().item() == pytest.approx(10, rel=0.05)
    field = displacements((257, 257), how, seeded(1))
    assert field.diff(dim=0).abs().max() < 1
    assert displacements((9, 9), NONE, seeded()).abs().max() == 0


def test_grey_values_vary_by_gain_offset_and_noise():
    tile = torch.linspace(0, 1, 10000).reshape(1, 100, 100)
    assert torch.equal(vary_grey_values(tile, NONE, seeded()), tile)
    changed = vary_grey_values(tile, replace(NONE, gain=0.2, offset=0.1), seeded())
    slope, shift = np.polyfit(tile.ravel(), changed.ravel(), 1)
    assert slope != pytest.approx(1, abs=1e-3)
    assert shift != pytest.approx(0, abs=1e-3)
    noisy = vary_grey_values(tile, replace(NONE, noise=0.1), seeded()) - tile
    assert 0 < noisy.std() < 0.1


def test_gamma_bends_grey_values_between_the_percentiles_only():
    tile = torch.linspace(-0.5, 1.5, 2001).reshape(1, 3, 667)
    inside = (tile > 0) & (tile < 1)
    changed = vary_grey_values(tile, replace(NONE, gamma=0.5), seeded())
    assert torch.equal(changed[~inside], tile[~inside])
    powers = changed[inside].log() / tile[inside].log()
    assert powers.std() < 1e-2
    assert powers.mean() != pytest.approx(1, abs=1e-2)


def test_a_share_of_the_tiles_is_inverted():
    tile = torch.linspace(0, 1, 100).reshape(1, 10, 10)
    how = replace(NONE, invert=0.25)
    inverted = [vary_grey_values(tile, how, seeded(seed)) for seed in range(400)]
    assert all(torch.equal(each, tile) or torch.equal(each, 1 - tile) for each in inverted)
    assert 60 < sum(torch.equal(each, 1 - tile) for each in inverted) < 140
    assert torch.equal(vary_grey_values(tile, replace(how, invert=1.0), seeded()), 1 - tile)


def test_a_seed_repeats_itself():
    first, second, other = (coordinates((9, 9), torch.zeros(2), Augmentation(), seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)

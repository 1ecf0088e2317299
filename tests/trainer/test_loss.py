import numpy as np
import pytest
import torch

from unetrt.trainer.loss import weighted_cross_entropy


@pytest.mark.parametrize("classes", [2, 5])
def test_it_is_the_papers_energy_in_float64(classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(2, classes, 7, 6)) * 5
    truth, weights = rng.integers(0, classes, (2, 7, 6)), rng.random((2, 7, 6)) * 12
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    picked = np.take_along_axis(soft, truth[:, None], axis=1)[:, 0]
    expected = -(weights * np.log(picked)).sum() / weights.sum()
    given = weighted_cross_entropy(torch.tensor(logits).float(), torch.tensor(truth), torch.tensor(weights).float())
    assert given.item() == pytest.approx(expected, rel=1e-5)


def test_pixels_of_weight_zero_do_not_count():
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.ones(1, 4, 4)
    weights[0, 1, 2] = 0
    weighted_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.long), weights).backward()
    assert not logits.grad[0, :, 1, 2].any()
    assert logits.grad[0, :, 0, 0].all()


def test_nothing_that_counts_gives_zero_and_not_nan():
    assert weighted_cross_entropy(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2)) == 0

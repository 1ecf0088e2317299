"""Training on a CUDA device; run with `make gpu-check`."""

import pytest
import torch

from unetrt.trainer.checkpoint import LAST, load
from unetrt.trainer.dataset import read_dataset
from unetrt.trainer.recipe import RECIPES
from unetrt.trainer.run import TrainingBudget, TrainingRun
from unetrt.trainer.training import Training

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

RECIPE = RECIPES["modern"].with_options(depth=2, base=8, tile=92, batch=4)


def training(folder, out, recipe=RECIPE):
    train, validation = read_dataset(folder).split(0.25, seed=0)
    return Training(train, validation, recipe, TrainingRun(out))


def test_it_learns_in_16_bits_and_goes_on(drawn_folder, tmp_path):
    run = training(drawn_folder, tmp_path)
    run.run(TrainingBudget(steps=60))
    losses = run.history.losses
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    again = training(drawn_folder, tmp_path)
    again.restore(load(tmp_path / LAST))
    again.run(TrainingBudget(steps=70))
    assert again.steps == 70


def test_tiles_are_the_cpus_but_for_their_noise(drawn_folder):
    from unetrt.runtime.pixels.normalisation import Normalisation
    from unetrt.trainer.samples import Sampler, prepare

    samples = prepare(read_dataset(drawn_folder), RECIPE, Normalisation())
    cpu = Sampler(samples, RECIPE, 0).batch(3)
    gpu = Sampler(samples, RECIPE, 0, torch.device("cuda")).batch(3)
    assert gpu.tiles.is_cuda
    assert cpu.names == gpu.names
    agree = (cpu.classes == gpu.classes.cpu()).float().mean().item()
    assert agree > 0.999
    # Both drew noise of their own, of up to 0.03.
    assert (cpu.tiles - gpu.tiles.cpu()).abs().median().item() < 0.05


def test_the_first_losses_are_the_cpus(drawn_folder, tmp_path, monkeypatch):
    from dataclasses import replace

    recipe = replace(RECIPE, mixed=False, augmentation=replace(RECIPE.augmentation, noise=0.0))
    on_gpu = training(drawn_folder, tmp_path / "gpu", recipe)
    on_gpu.run(TrainingBudget(steps=3))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = training(drawn_folder, tmp_path / "cpu", recipe)
    on_cpu.run(TrainingBudget(steps=3))
    assert on_gpu.history.losses == pytest.approx(on_cpu.history.losses, rel=5e-3)

import os
import platform
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from unetrt.runtime.errors import OptionError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.records import from_json, to_json
from unetrt.trainer import learner as learners
from unetrt.trainer.learner import FOLDER_OF_COMPILED, Learner, alone, compile_privately, fastest_dtype, has_fast_bf16
from unetrt.trainer.recipe import RECIPES, Recipe
from unetrt.trainer.samples import Batch

RECIPE = RECIPES["modern"].with_options(depth=1, base=2, tile=60, mixed=False)


def learner(recipe=RECIPE, **options):
    return Learner(UNetShape(1, 2), recipe, 0, alone(), **options)


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.rand(1, 1, 60, 60, generator=generator)
    return Batch(("a",), tiles, (tiles[:, 0, 8:-8, 8:-8] > 0.5).long(), torch.ones(1, 44, 44))


def weights_of(net):
    return torch.cat([parameter.detach().flatten().clone() for parameter in net.parameters()])


def test_the_average_follows_the_weights_and_forgets_the_first():
    learning = learner(RECIPE.with_options(average=0.9))
    kept, done = weights_of(learning.net), 0
    for step in range(8):
        learning.step(batch(), step + 1, 1e-2)
        now = weights_of(learning.net)
        decay = min(0.9, (1 + done) / (10 + done)) if done else 0.0
        kept, done = decay * kept + (1 - decay) * now, done + 1
        torch.testing.assert_close(weights_of(learning.result), kept, rtol=1e-5, atol=1e-6)
    assert learning.result is not learning.net


def test_without_an_average_the_weights_themselves_are_the_result():
    learning = learner(RECIPE.with_options(average=0))
    assert learning.result is learning.net


@pytest.mark.parametrize(("schedule", "at"), [
    ("constant", {0: 1, 0.5: 1, 1: 1}),
    ("cosine", {0: 0.2, 0.5: 0.5, 1: 0}),
    ("poly", {0: 0.2, 0.5: 0.5**0.9, 1: 0}),
])  # fmt: skip
def test_schedules(schedule, at):
    recipe = RECIPE.with_options(schedule=schedule, rate=1.0)
    assert [recipe.rate_at(spent) for spent in at] == pytest.approx(list(at.values()), abs=1e-9)


def test_options_of_recipe_and_augmentation_are_set_by_name():
    recipe = Recipe().with_options(zoom=1.5, base=8, rate=None)
    assert (recipe.augmentation.zoom, recipe.base, recipe.rate) == (1.5, 8, 1e-3)
    with pytest.raises(OptionError, match=r"invalid invert 2: use a share"):
        Recipe().with_options(invert=2)
    with pytest.raises(OptionError, match=r"separation-border is an option of target border, not of cores"):
        RECIPES["modern"].with_options(separation_border=3)
    for name in ("rim", "core"):
        with pytest.raises(OptionError, match=f"{name} is an option of target cores, not of border"):
            Recipe().with_options(**{name: 0.1})
    with pytest.raises(OptionError, match=r"invalid zoom 0.5: use 1 or more"):
        Recipe().with_options(zoom=0.5)
    assert from_json(to_json(recipe), Recipe, "recipe") == recipe


def test_half_precision_scales_gradients_and_steps_alike(monkeypatch):
    """float16 with a scaler, as on a GPU without bfloat16, forced here on the CPU."""
    monkeypatch.setattr(learners, "fastest_dtype", lambda device: torch.float16)
    half, full = learner(replace(RECIPE, mixed=True)), learner()
    losses = [[each.step(batch(), step, 1e-3) for step in range(1, 6)] for each in (half, full)]
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    state = half.state()
    assert state["scale"][0] > 1
    again = learner(replace(RECIPE, mixed=True))
    again.restore(state)
    assert again.step(batch(), 6, 1e-3) == half.step(batch(), 6, 1e-3)


def test_16_bits_are_used_where_the_device_has_them_and_nowhere_else():
    cpu = torch.device("cpu")
    assert learner(replace(RECIPE, mixed=False)).dtype == torch.float32
    assert learner(replace(RECIPE, mixed=True)).dtype == fastest_dtype(cpu)
    assert fastest_dtype(cpu) == (torch.bfloat16 if has_fast_bf16(cpu) else torch.float32)


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize("given", [None, "elsewhere"])
def test_compiled_code_is_kept_where_only_the_user_can_enter(tmp_path, monkeypatch, given):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(FOLDER_OF_COMPILED, given or "")
    if given is None:
        monkeypatch.delenv(FOLDER_OF_COMPILED)
    compile_privately(abs)
    folder = tmp_path / "unetrt" / "inductor"
    assert os.environ[FOLDER_OF_COMPILED] == given or str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700 if given is None else not folder.exists()


@pytest.mark.slow
def test_a_compiled_network_learns_the_same():
    compiled, eager = learner(compiled=True), learner()
    losses = [[each.step(batch(), step, 1e-3) for step in range(1, 4)] for each in (compiled, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_the_fused_optimiser_steps_as_torchs_plain_loop_does():
    """Of up-convolutions too, whose weights and gradients must have the same memory layout."""
    learning = Learner(UNetShape(1, 8), RECIPE.with_options(base=8), 0, alone())
    plain = [parameter.detach().clone() for parameter in learning.net.parameters()]
    reference = torch.optim.AdamW(plain, weight_decay=1e-4, foreach=False, fused=False)
    for step in range(1, 4):
        learning.step(batch(), step, 1e-3)
        for parameter, learnt in zip(plain, learning.net.parameters(), strict=True):
            parameter.grad = learnt.grad
        reference.step()
    assert (torch.cat([each.flatten() for each in plain]) - weights_of(learning.net)).abs().max() < 1e-6


FAULTS = """
import resource, sys, torch
from unetrt.trainer.learner import keep_freed_memory
if sys.argv[1] == "kept":
    keep_freed_memory()
for turn in range(15):
    torch.ones(2**24)
    if turn == 4:  # the heap has grown by then
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told to keep freed memory")
def test_a_process_that_keeps_freed_memory_does_not_map_it_again():
    def faults(how):
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True).stdout)

    assert faults("kept") < 0.2 * faults("returned")

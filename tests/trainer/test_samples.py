from collections import Counter

import numpy as np
import pytest
import torch

from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.dataset import AnnotatedImage, Dataset
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.recipe import RECIPES
from unetrt.trainer.samples import Sampler, prepare
from unetrt.trainer.targets import cut_between, separation_weights

RECIPE = RECIPES["modern"].with_options(target="border", w0=10, foreground=1, depth=1, base=2, tile=60, batch=3)
NAMES = ("background", "foreground")


def drawn(number, ignored=None):
    drawing = draw((70, 80), seed=number)
    return AnnotatedImage(str(number), drawing.frame[None], drawing.labels, ignored)


def sampler(images, recipe=RECIPE, seed=0):
    data = Dataset(tuple(images), NAMES, instances=True)
    return Sampler(prepare(data, recipe, Normalisation()), recipe, seed)


def test_classes_are_cut_and_weights_are_the_sum_of_both():
    image = drawn(0)
    (sample,) = prepare(Dataset((image,), NAMES, True), RECIPE.with_options(balance=True), Normalisation())
    classes = cut_between(image.labels, 2) > 0
    np.testing.assert_array_equal(sample.target[0], classes)
    share = classes.mean()
    expected = np.where(classes, 0.5 / share, 0.5 / (1 - share)) + separation_weights(image.labels)
    np.testing.assert_allclose(sample.target[1], expected, rtol=1e-5)


def test_pixels_of_objects_weigh_more_than_background_and_cores_more_than_rims():
    image = drawn(0)
    recipe = RECIPE.with_options(target="cores", w0=0, foreground=1.5, core=2)
    (sample,) = prepare(Dataset((image,), NAMES, True), recipe, Normalisation())
    np.testing.assert_array_equal(sample.target[0] > 0, image.labels > 0)
    assert set(np.unique(sample.target[0])) == {0, 1, 2}
    np.testing.assert_array_equal(
        sample.target[1], np.array([1, 1.5, 3], np.float32)[sample.target[0].numpy().astype(int)]
    )
    border = RECIPES["modern"].with_options(target="border", w0=0, depth=1, base=2, tile=60)
    (sample,) = prepare(Dataset((image,), NAMES, True), border, Normalisation())
    assert set(np.unique(sample.target[1])) == {1, np.float32(border.foreground)}


def test_what_is_not_annotated_weighs_nothing_and_counts_for_no_class():
    ignored = np.zeros((70, 80), bool)
    ignored[:, 40:] = True
    image = drawn(0, ignored)
    (sample,) = prepare(Dataset((image,), NAMES, True), RECIPE.with_options(balance=True, w0=0), Normalisation())
    assert not sample.target[1, :, 40:].any()
    known = cut_between(image.labels, 2)[:, :40] > 0
    assert sample.target[1, :, :40].numpy()[known].sum() == pytest.approx(known.size / 2, rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    centres = torch.stack([sample.centre(generator) for _ in range(200)])
    assert centres[:, 1].min() < 5
    assert 35 < centres[:, 1].max() <= 39.5
    assert centres[:, 0].max() > 60


def test_each_image_comes_once_before_any_comes_again():
    draws = sampler([drawn(number) for number in range(5)])
    names = [name for step in range(10) for name in draws.batch(step).names]
    assert all(set(Counter(names[start : start + 5]).values()) == {1} for start in range(0, 30, 5))
    assert names[:5] != names[5:10]


def test_a_tile_depends_on_seed_step_and_place_alone():
    images = [drawn(number) for number in range(4)]
    one, other, reseeded = sampler(images), sampler(images), sampler(images, seed=1)
    for step in (7, 2):
        whole, late = one.batch(step), other.batch(step, range(2, 3))
        assert whole.names[2:] == late.names
        for kind in ("tiles", "classes", "weights"):
            assert torch.equal(getattr(whole, kind)[2:], getattr(late, kind))
    assert not torch.equal(one.batch(0).tiles, one.batch(1).tiles)
    assert not torch.equal(one.batch(0).tiles, reseeded.batch(0).tiles)


def test_shapes():
    batch = sampler([drawn(0)]).batch(0)
    assert batch.tiles.shape == (3, 1, 60, 60)
    assert batch.classes.shape == batch.weights.shape == (3, 44, 44)
    assert batch.classes.dtype == torch.int64

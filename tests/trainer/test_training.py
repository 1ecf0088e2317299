import csv
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from unetrt.runtime.errors import OptionError, TrainingError
from unetrt.runtime.geometry.planner import best_tile
from unetrt.runtime.model.spec import Decoding
from unetrt.trainer.augmentation import Augmentation
from unetrt.trainer.dataset import read_dataset
from unetrt.trainer.drawn_cells import draw
from unetrt.trainer.history import History
from unetrt.trainer.recipe import RECIPES, Recipe
from unetrt.trainer.run import TrainingBudget, TrainingRun
from unetrt.trainer.samples import normalisation_for, target_for
from unetrt.trainer.training import Training, validations_of
from unetrt.trainer.unet import UNet
from unetrt.trainer.validation import TIE, Scores, ValidationPlan, Validator, wrong_pixels

SMALL = RECIPES["modern"].with_options(depth=2, base=4, tile=92, target="border")


def training(folder, out, recipe=SMALL, seed=0):
    train, validation = read_dataset(folder).split(0.25, seed=0)
    return Training(train, validation, recipe, TrainingRun(out, seed))


def test_it_learns(drawn_folder, tmp_path):
    run = training(drawn_folder, tmp_path, SMALL.with_options(rate=3e-3))
    run.run(TrainingBudget(steps=120))
    losses = run.history.losses
    assert np.mean(losses[-20:]) < 0.7 * np.mean(losses[:10])
    assert run.history.best_scores.iou > 0.6


@pytest.mark.parametrize(
    ("best", "others"),
    [
        # Two validations of one run: SEG alone would take the network that finds cells in half of the background.
        (Scores(0.870, 0.187, 0.083, 8), [Scores(0.509, 0.210, 0.007, 8)]),
        # The same objects, and specks where there are none, which SEG does not count.
        (Scores(0.87, 0.79, 0.85, 52), [Scores(0.87, 0.79, 0.73, 52)]),
        # No object in any validation image, and one where one is found nevertheless.
        (Scores(1.0, None, None, 0), [Scores(0.0, None, 0.0, 0)]),
        (Scores(0.8), [Scores(0.7)]),
    ],
    ids=["half the background", "specks", "no objects", "class maps"],
)
def test_the_best_network_is_best_by_all_scores_together(best, others):
    history = History()
    for step, scores in enumerate([*others, best, *others], 1):
        history.add_scores(step, scores)
    assert history.best_scores == best


def test_what_a_run_leaves(tiny_run, tiny_checkpoint):
    assert sorted(path.name for path in tiny_run.iterdir()) == [
        "best.safetensors", "curves.png", "history.csv", "last.safetensors", "validation.png",
    ]  # fmt: skip
    with (tiny_run / "history.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == [str(step) for step in range(1, 13)]
    assert rows[-1]["seg"] != ""
    with Image.open(tiny_run / "curves.png") as picture:
        assert picture.size[0] > picture.size[1] > 100
    about = tiny_checkpoint.training
    assert about["recipe"]["base"] == 4
    assert tiny_checkpoint.decoding == Decoding("components", 2)
    assert tiny_checkpoint.frame_sizes


def test_the_same_seed_gives_the_same_losses(drawn_folder, tmp_path):
    exact = replace(SMALL, mixed=False)
    losses = []
    for seed in (0, 0, 1):
        run = training(drawn_folder, tmp_path, exact, seed)
        run.run(TrainingBudget(steps=3))
        losses.append(run.history.losses)
    assert losses[0] == losses[1] != losses[2]


def test_a_loss_that_is_not_finite_stops_with_step_image_and_advice(drawn_folder, tmp_path):
    run = training(drawn_folder, tmp_path)
    with torch.no_grad():
        run.net.classify.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1, in \d: lower the learning rate"):
        run.run(TrainingBudget(steps=3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", [Recipe(depth=2, base=4, tile=92), replace(SMALL, normalisation="fixed", w0=0)])
def test_other_recipes_run(drawn_folder, tmp_path, recipe):
    run = training(drawn_folder, tmp_path, recipe)
    run.run(TrainingBudget(steps=2))
    assert np.isfinite(run.history.losses).all()


def test_several_channels_and_classes(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for number in range(2):
        drawing = draw((64, 72), seed=number)
        rgb = np.stack([drawing.frame >> bits for bits in (8, 9, 10)], axis=-1).astype(np.uint8)
        Image.fromarray(rgb).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray((drawing.labels % 3).astype(np.uint8)).save(tmp_path / "labels" / f"{number}.png")
    data = read_dataset(tmp_path, classes=3)
    run = Training(data, data, SMALL, TrainingRun(tmp_path / "run"))
    best = run.run(TrainingBudget(steps=2))
    from unetrt.trainer.checkpoint import load

    assert (load(best).shape.channels, load(best).shape.classes, load(best).decoding) == (3, 3, Decoding())


def test_fixed_normalisation_is_mean_and_deviation_of_the_training_set(drawn_folder):
    data = read_dataset(drawn_folder)
    fixed = normalisation_for(replace(SMALL, normalisation="fixed"), data)
    pixels = np.concatenate([fixed(image.frame).ravel() for image in data.images])
    assert (pixels.mean(), pixels.std()) == pytest.approx((0, 1), abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "either minutes or steps"),
        ({"minutes": 1, "steps": 1}, "either"),
        ({"steps": 0}, "above 0"),
        ({"minutes": float("inf")}, "above 0"),
    ],
)
def test_what_is_no_budget(arguments, message):
    with pytest.raises(OptionError, match=message):
        TrainingBudget(**arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tile": 100}, "tile 100"), ({"batch": 0}, "batch 0"), ({"rate": 0}, "rate 0"), ({"sigma": 0}, "sigma 0")],
)
def test_what_is_no_recipe(options, message):
    with pytest.raises(OptionError, match=message):
        Recipe().with_options(**options)


def test_the_help_of_train_tells_the_recipes():
    from unetrt.cli.train import command

    said = " ".join((command.help or "").split())
    modern, paper = RECIPES["modern"], RECIPES["paper"]
    assert f"modern: depth {modern.depth}, base {modern.base}, tile {modern.tile}, AdamW" in said
    assert f"cosine, average {modern.average}" in said
    assert f"cores with a rim of {modern.rim}, w0 {modern.w0:g}, foreground {modern.foreground}, " in said
    assert f"core {modern.core}, zoom {modern.augmentation.zoom}; paper" in said
    assert f"class weights, separation border {paper.separation_border}, w0 {paper.w0:g}" in said
    assert f"paper: depth {paper.depth}, base {paper.base}, tile {paper.tile}, drop-out {paper.dropout}" in said
    for recipe in (modern, paper):
        assert f"batch {recipe.batch}, sigma {recipe.sigma:g}, {recipe.normalisation} normalisation" in said
        assert f"w0 {recipe.w0:g}" in said
        assert recipe.rate == 1e-3


def test_the_papers_recipe_is_the_paper():
    paper = RECIPES["paper"]
    assert (paper.depth, paper.base, paper.optimiser, paper.tile, paper.batch) == (4, 64, "sgd", 572, 1)
    assert (paper.w0, paper.sigma, paper.balance) == (10, 5, True)
    assert (paper.target, paper.separation_border) == ("border", 2)
    assert (paper.augmentation.displacement, paper.augmentation.coarse) == (10, 3)
    assert paper.legal_tile() == 572
    assert Recipe(tile=580).legal_tile() == 572
    assert Augmentation() == paper.augmentation


def test_validation_can_average_over_turned_copies(drawn_folder, tmp_path):
    """The same network, scored alone and averaged: other scores, and the same for a turned data set."""
    run = training(drawn_folder, tmp_path, SMALL.with_options(rate=3e-3))
    run.run(TrainingBudget(steps=40))
    data = read_dataset(drawn_folder)
    turned = [
        replace(image, frame=image.frame[:, ::-1, ::-1], labels=image.labels[::-1, ::-1]) for image in data.images
    ]
    sets = [data, replace(data, images=tuple(turned))]
    scores = [
        [
            Validator(each, run.net, normalisation_for(SMALL, each), target_for(SMALL, each), tta)()[0].iou
            for each in sets
        ]
        for tta in (False, True)
    ]
    assert scores[1][0] == pytest.approx(scores[1][1], abs=1e-4)
    assert abs(scores[0][0] - scores[1][0]) > 1e-4


def test_tensorboard_gets_losses_and_scores(drawn_folder, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from unetrt.cli.train import run_with_bar

    run_with_bar(training(drawn_folder, tmp_path), TrainingBudget(steps=4), tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert set(events.Tags()["scalars"]) >= {"learning rate", "validation/iou", "validation/seg"}


def test_tensorboard_that_fails_is_dropped_and_the_training_goes_on(drawn_folder, tmp_path, monkeypatch, caplog):
    from torch.utils.tensorboard.writer import SummaryWriter

    from unetrt.cli.train import run_with_bar

    monkeypatch.setattr(SummaryWriter, "add_scalar", lambda *_: 1 / 0)
    best = run_with_bar(training(drawn_folder, tmp_path), TrainingBudget(steps=3), tensorboard=True)
    assert best.is_file()
    assert [record.getMessage() for record in caplog.records] == [
        "no more events for TensorBoard are written: division by zero"
    ]


# Sizes of the 12 validation images of nuclei, 2.4 Mpixel.
NUCLEI = Counter({(256, 256): 4, (520, 696): 4, (360, 360): 2, (512, 640): 1, (260, 347): 1})


@pytest.mark.parametrize(
    ("steps", "tta", "count"), [(200, False, 1), (1000, False, 5), (14000, False, 10), (5000, True, 2)]
)
def test_validations_take_at_most_a_tenth_of_a_run(steps, tta, count):
    modern = RECIPES["modern"]
    shape = modern.shape(1, 3)
    validation, step = ValidationPlan(NUCLEI, shape, tta).macs, 3 * shape.macs(284, 284)
    assert validations_of(validation / (steps * step)) == count
    assert count * validation <= 0.1 * steps * step


def test_a_step_budget_validates_at_the_same_steps_for_a_tenth_of_the_arithmetic(drawn_folder, tmp_path):
    train, validation = read_dataset(drawn_folder).split(0.25, seed=0)
    shape = SMALL.shape(1, 2)
    for steps in (1, 60):
        run = Training(train, validation, SMALL, TrainingRun(tmp_path / str(steps)))
        run.run(TrainingBudget(steps=steps))
        at = [step for step, _ in run.history.scores]
        passes = len(at) * ValidationPlan(validation.sizes, shape).macs / shape.macs(92, 92)
        assert at == [round(steps * part / len(at)) for part in range(1, len(at) + 1)]
        assert passes <= 0.1 * 3 * steps or len(at) == 1
    assert len(at) > 1


def test_a_budget_in_minutes_validates_for_a_tenth_of_the_time(drawn_folder, tmp_path, monkeypatch):
    validate, seconds = Validator.__call__, []

    def slow(validator):
        begin = time.perf_counter()
        time.sleep(0.1)
        result = validate(validator)
        seconds.append(time.perf_counter() - begin)
        return result

    monkeypatch.setattr(Validator, "__call__", slow)
    training(drawn_folder, tmp_path).run(TrainingBudget(minutes=0.05))
    assert len(seconds) <= 3  # the first, before its time is known; one or two more at 0.1 s or longer in 3 s


def test_images_of_each_size_have_their_own_tile_up_to_a_number_of_tiles():
    shape = SMALL.shape(1, 2)
    few, many = Counter({(64, 96): 2, (200, 100): 1}), Counter({(64 + 16 * n, 100): 1 for n in range(20)})
    plan = ValidationPlan(few, shape)
    assert all(best_tile([size], shape).tile == tile for size, tile in plan.tiles.items())
    assert plan.macs < best_tile(few.elements(), shape).macs
    tiles = ValidationPlan(many, shape).tiles
    assert (tiles.keys(), len(set(tiles.values())) <= 8) == (many.keys(), True)
    assert ValidationPlan(few, shape, tta=True).macs >= 8 * plan.macs


def test_images_of_several_sizes_are_validated_in_their_order(drawn_folder):
    data = read_dataset(drawn_folder)
    first = data.images[0]
    cut = replace(first, frame=first.frame[:, :40, :56], labels=first.labels[:40, :56])
    mixed = replace(data, images=(first, cut, data.images[1], cut))
    net = UNet(SMALL.shape(1, 2)).initialise(torch.Generator().manual_seed(0))
    validate = Validator(mixed, net, normalisation_for(SMALL, mixed), target_for(SMALL, mixed))
    _, results = validate()
    assert [result.image for result in results] == list(mixed.images)
    assert [result.labels.shape for result in results] == [image.labels.shape for image in mixed.images]
    np.testing.assert_array_equal(results[1].labels, results[3].labels)


def test_names_of_images_are_no_mathematics(drawn_folder, tmp_path):
    from dataclasses import replace as changed

    from unetrt.trainer.dataset import Dataset

    data = read_dataset(drawn_folder)
    odd = Dataset(tuple(changed(image, name=rf"c$\q${image.name}") for image in data.images), data.class_names, True)
    Training(odd, odd, SMALL, TrainingRun(tmp_path)).run(TrainingBudget(steps=1))
    assert (tmp_path / "validation.png").exists()


def test_the_sheet_shows_validation_images_beside_their_annotation(tiny_run):
    with Image.open(tiny_run / "validation.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).astype(int)
    coloured = (pixels.max(axis=2) - pixels.min(axis=2) > 60).mean(axis=0)
    assert pixels.shape[0] > 200
    assert coloured[: pixels.shape[1] // 4].any(), "the annotation's outlines, on the left"


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_ties_are_left_out_as_the_scores_spread(scale):
    """Of four pixels one is a tie, one is wrong by more than that; scores of a trained network are larger."""
    margin = np.array([[2.0, -2.0, 0.5 * TIE, 4 * TIE]], np.float32) * scale
    scores = np.stack([np.zeros_like(margin), margin])
    labels = np.array([[1, 0, 0, 0]], np.uint8)
    assert wrong_pixels(labels, scores) == pytest.approx(1 / 3)
    assert wrong_pixels(np.array([[1, 0, 0, 1]], np.uint8), scores) == 0

"""Class maps of blocks are parts of the class map of the whole frame, bit by bit."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.conftest import coordinate_frame, small_spec
from unetrt.runtime.errors import FrameError, OptionError
from unetrt.runtime.geometry.blocks import BlockPlan
from unetrt.runtime.geometry.plan import BORDERS
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.pixels.scores import SQUARE
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.cpu import CropSession, WorkerSession

AS_IT_IS = Normalisation("fixed", offset=(0.0,), scale=(1.0,))
SIZES = st.integers(1, 130)


class PlaceSession(WorkerSession):
    """Scores that depend on the place in the tile and on the pixels around, up to the halo, in its own direction."""

    def __init__(self, **fields):
        super().__init__(small_spec(**fields), "depends on the place in the tile")

    def compute(self, frames, scores):
        halo, (height, width) = self.spec.halo, scores.shape[-2:]
        far, near = frames[:, 0, :height, :width], frames[:, 0, halo : halo + height, halo : halo + width]
        ramp = np.linspace(-1, 1, width) + np.linspace(-2, 2, height)[:, None]
        if self.spec.head == "labels":
            scores[...] = np.round(near + 0.1 * far + ramp) % 3
            return
        for index in range(scores.shape[1]):
            scores[:, index] = np.cos(index + near * (index + 1) + 0.3 * far) + ramp * index


def frame_of(height, width, channels=1, dtype=np.uint16):
    return np.random.default_rng(height * 1000 + width).integers(0, 200, (channels, height, width)).astype(dtype)


def assembled(segmenter, frame, blocks, order=None, **options):
    """Return labels and probabilities of a frame (C, H, W), computed block by block."""
    spec = segmenter.spec
    affine = None if spec.takes_raw else spec.normalisation.measure(frame)
    labels = np.full(frame.shape[1:], 99, np.uint8)
    probabilities = np.full((len(spec.classes), *frame.shape[1:]), np.nan, np.float32)
    for index in range(len(blocks)) if order is None else order:
        block = blocks[index]
        rows, columns = segmenter.window_of(block, tta=options.get("tta", False))
        # A copy, so that no pixel outside of the window can be read.
        found = segmenter.classify_block(frame[:, rows, columns].copy(), block, affine, **options)
        assert found.labels.dtype == np.uint8
        labels[block.rows, block.columns] = found.labels
        if found.probabilities is not None:
            probabilities[:, block.rows, block.columns] = found.probabilities
    return labels, probabilities


@settings(max_examples=50)
@given(SIZES, SIZES, st.integers(1, 100), st.sampled_from(BORDERS), st.sampled_from([1, 3]), st.booleans())
@example(97, 33, 32, "reflect", 1, True)
@example(1, 1, 1, "symmetric", 3, True)
def test_they_are_those_of_the_frame(height, width, side, border, batch, tta):
    frame = frame_of(height, width)
    classes = ("background", "rim", "core")
    with PlaceSession(border=border, batch=batch, classes=classes) as session, Segmenter(session) as segmenter:
        whole = segmenter.segment(frame[0], tta=tta, probabilities=True)
        plain = segmenter.segment(frame[0], tta=tta)
        blocks = BlockPlan(segmenter.spec.plan((height, width)), (side, side + 17))
        labels, probabilities = assembled(segmenter, frame, blocks, tta=tta, probabilities=True)
        np.testing.assert_array_equal(probabilities.view(np.uint32), whole.probabilities.view(np.uint32))
        np.testing.assert_array_equal(labels, whole.labels)
        labels, _ = assembled(segmenter, frame, blocks, reversed(range(len(blocks))), tta=tta)
        np.testing.assert_array_equal(labels, plain.labels)


@pytest.mark.parametrize("head", ["logits", "probabilities", "labels"])
@pytest.mark.parametrize("channels", [1, 3])
def test_heads_and_channels(head, channels):
    normalisation = Normalisation("zscore")
    frame = frame_of(90, 131, channels)
    with (
        PlaceSession(head=head, channels=channels, normalisation=normalisation) as session,
        Segmenter(session) as segmenter,
    ):
        blocks = BlockPlan(segmenter.spec.plan((90, 131)), (40, 70))
        assert len(blocks) > 3
        labels, _ = assembled(segmenter, frame, blocks)
        np.testing.assert_array_equal(labels, segmenter.segment(frame[0] if channels == 1 else frame).labels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_a_graph_that_takes_raw_pixels(dtype):
    frame = frame_of(90, 70, dtype=dtype)
    fixed = Normalisation("fixed", offset=(90.0,), scale=(0.013,))
    segmenter = Segmenter(CropSession(small_spec(normalisation=fixed, input_dtype=dtype)))
    blocks = BlockPlan(segmenter.spec.plan((90, 70)), (32, 32))
    labels, _ = assembled(segmenter, frame, blocks)
    np.testing.assert_array_equal(labels, segmenter.segment(frame[0]).labels)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("tta", [False, True])
def test_engines_of_a_cpu(tiny_model, backend, tta):
    frame = np.random.default_rng(0).integers(0, 4096, (1, 150, 173)).astype(np.uint16)
    with Segmenter(tiny_model, backend=backend) as segmenter:
        whole = segmenter.segment(frame[0], probabilities=True, tta=tta)
        blocks = BlockPlan(segmenter.spec.plan((150, 173)), (50, 80))
        labels, probabilities = assembled(segmenter, frame, blocks, probabilities=True, tta=tta)
        np.testing.assert_array_equal(probabilities, whole.probabilities)
        np.testing.assert_array_equal(labels, whole.labels)
        np.testing.assert_array_equal(
            assembled(segmenter, frame, blocks, tta=tta)[0], segmenter.segment(frame[0], tta=tta).labels
        )


def test_several_threads_get_what_one_gets():
    frame = frame_of(150, 150)
    with PlaceSession() as session, Segmenter(session) as segmenter, ThreadPoolExecutor(4) as pool:
        blocks = BlockPlan(segmenter.spec.plan((150, 150)), (32, 32))
        affine, whole = segmenter.spec.normalisation.measure(frame), segmenter.segment(frame[0]).labels

        def classes(block):
            rows, columns = block.window
            return segmenter.classify_block(frame[:, rows, columns], block, affine).labels

        for block, labels in zip(blocks, pool.map(classes, blocks), strict=True):
            np.testing.assert_array_equal(labels, whole[block.rows, block.columns])


def test_a_block_reads_no_more_than_its_tiles_do():
    segmenter = Segmenter(CropSession(small_spec(normalisation=AS_IT_IS)))
    blocks = BlockPlan(segmenter.spec.plan((1000, 1000)), (100, 100))
    middle = blocks[len(blocks) // 2 + blocks.shape[1] // 2]
    assert segmenter.window_of(middle) == middle.window
    rows, columns = segmenter.window_of(middle, tta=True)
    reach = max(segmenter.spec.tile) + segmenter.spec.halo
    for side, plain, part in zip((rows, columns), middle.window, (middle.rows, middle.columns), strict=True):
        assert side.start <= plain.start < plain.stop <= side.stop
        assert part.start - reach <= side.start < side.stop <= part.stop + reach


@pytest.mark.parametrize("symmetry", SQUARE)
def test_parts_of_a_transformed_frame(symmetry):
    frame = coordinate_frame(9, 14)
    part = slice(2, 5), slice(3, 11)
    rows, columns = symmetry.part(part, (9, 14))
    np.testing.assert_array_equal(symmetry.apply(frame)[rows, columns], symmetry.apply(frame[part]))
    assert symmetry.part_before((rows, columns), (9, 14)) == part


def block_and_affine(segmenter, number=0, size=(150, 150)):
    blocks = BlockPlan(segmenter.spec.plan(size), (32, 32))
    return blocks[number], AS_IT_IS.measure(np.empty((0, 0, 0)))


@pytest.mark.parametrize(
    ("error", "message", "change"),
    [
        (FrameError, r"shape \(5, 5\): give those of the block's window, \(1, \d+, \d+\), from row \d+ and column \d+",
         lambda pixels, block, affine: (np.zeros((5, 5)), block, affine)),
        (FrameError, "shape", lambda pixels, *rest: (pixels[:, :-1], *rest)),
        (FrameError, "the image is complex128", lambda pixels, *rest: (pixels * 1j, *rest)),
        (FrameError, "cannot be converted to an array", lambda pixels, *rest: (None, *rest)),
        (OptionError, r"block must be a Block of a BlockPlan \(got 3\)", lambda pixels, _, affine: (pixels, 3, affine)),
        (OptionError, "other tiles than the model's", lambda pixels, _, affine: (pixels, of_another_plan(), affine)),
        (OptionError, "needs the normalisation of the whole frame", lambda *first: (*first[:2], None)),
        (OptionError, "affine is for 2 channels, and the model has 1",
         lambda *given: (*given[:2], replace_channels(given[2]))),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(error, message, change):
    segmenter = Segmenter(CropSession(small_spec(normalisation=AS_IT_IS)))
    block, affine = block_and_affine(segmenter)
    rows, columns = block.window
    with pytest.raises(error, match=message) as caught:
        segmenter.classify_block(*change(np.zeros((1, 150, 150))[:, rows, columns], block, affine))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("block", [3, None, "0"])
def test_what_is_no_block_has_no_window(block):
    segmenter = Segmenter(CropSession(small_spec(normalisation=AS_IT_IS)))
    with pytest.raises(OptionError, match="block must be a Block of a BlockPlan"):
        segmenter.window_of(block)
    with pytest.raises(OptionError, match="other tiles than the model's"):
        segmenter.window_of(of_another_plan())


def of_another_plan():
    return BlockPlan(small_spec(depth=1).plan((150, 150)), (32, 32))[0]


def replace_channels(affine):
    return affine._replace(offset=np.zeros(2, np.float32), scale=np.zeros(2, np.float32))


def test_a_pixel_that_is_not_finite_is_named_by_its_place_in_the_frame():
    segmenter = Segmenter(CropSession(small_spec(normalisation=AS_IT_IS)))
    block, affine = block_and_affine(segmenter, 7)
    frame = np.zeros((1, 150, 150), np.float32)
    row, column = block.rows.start + 3, block.columns.start + 1
    assert row != 3
    assert column != 1
    frame[0, row, column] = np.nan
    with pytest.raises(FrameError, match=f"1 pixels are NaN or infinite, the first at row {row}, column {column}"):
        segmenter.classify_block(frame[:, block.window[0], block.window[1]], block, affine)


def test_options_that_the_model_does_not_have():
    segmenter = Segmenter(CropSession(small_spec(normalisation=AS_IT_IS, head="labels")))
    block, affine = block_and_affine(segmenter)
    pixels = np.zeros((1, 150, 150))[:, block.window[0], block.window[1]]
    for options in ({"tta": True}, {"probabilities": True}):
        with pytest.raises(OptionError, match="--head logits or probabilities"):
            segmenter.classify_block(pixels, block, affine, **options)
    raw = Segmenter(CropSession(replace(segmenter.spec, input_dtype="uint8")))
    with pytest.raises(OptionError, match="give None for affine"):
        raw.classify_block(pixels.astype(np.uint8), block, affine)
    with pytest.raises(FrameError, match="this model takes raw uint8"):
        raw.classify_block(pixels.astype(np.uint16), block, None)

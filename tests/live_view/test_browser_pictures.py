import json
import zlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from tests.conftest import coordinate_frame
from unetrt.live_view.pictures import Display, colours, encoded, index_text, label_codes, reduced
from unetrt.runtime import LiveResult, LiveSequence, Outcome
from unetrt.runtime.live.results import StreamKey
from unetrt.runtime.pixels.drawing import overlay


def result(frame, labels, index=None):
    return LiveResult(Outcome.DONE, 7, index, {}, None, frame, labels=labels, objects=int(labels.max()))


def decoded(body):
    length = int.from_bytes(body[:4], "big")
    head = json.loads(body[4 : 4 + length])
    jpeg = body[4 + length : 4 + length + head["jpeg"]]
    codes = np.frombuffer(zlib.decompress(body[4 + length + head["jpeg"] :]), np.uint8)
    return head, np.asarray(Image.open(BytesIO(jpeg))), codes.reshape(head["height"], head["width"])


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_pixel_is_the_mean_of_those_it_stands_for(step, dtype):
    frame = np.random.default_rng(0).integers(0, 250, (step * 5, step * 7)).astype(dtype)
    means = frame.reshape(5, step, 7, step).mean(axis=(1, 3))
    np.testing.assert_allclose(reduced(frame, step), means, rtol=1e-6)


@pytest.mark.parametrize("step", [2, 5, 9])
def test_what_is_left_at_the_edge_is_shown_at_its_place(step):
    frame = coordinate_frame(step * 3 + 1, step * 2 + 1)
    small = reduced(frame, step)
    assert small.shape == (4, 3)
    assert small[-1, -1] == frame[-1, -1]
    inner = frame[: step * 3, : step * 2].reshape(3, step, 2, step).mean(axis=(1, 3))
    np.testing.assert_allclose(small[:-1, :-1], inner, atol=500)


def test_channels_are_reduced_each():
    frame = np.stack([coordinate_frame(6, 8), coordinate_frame(6, 8) * 2])
    np.testing.assert_allclose(reduced(frame, 2)[1], reduced(frame[1], 2))


def test_codes_give_the_colours_that_predict_draws():
    labels = np.zeros((20, 30), np.int32)
    labels[2:9, 3:12], labels[2:9, 12:20], labels[12:18, 4:20] = 1, 2, 33
    codes = label_codes(labels)
    table = np.array([[0, 0, 0], *colours(), *colours()])
    drawn = overlay(np.zeros((20, 30), np.uint8), labels)
    edge = codes > 32
    np.testing.assert_array_equal(table[codes][edge], drawn[edge])
    np.testing.assert_array_equal(codes > 0, labels > 0)
    assert not edge[5, 7]
    assert codes[5, 7] == codes[14, 10]  # 1 and 33 share a colour


@pytest.mark.parametrize(
    ("shape", "size", "step"),
    [((40, 50), (40, 50), 1), ((1024, 300), (1024, 300), 1), ((1025, 300), (513, 150), 2), ((1, 5000), (1, 1000), 5)],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_picture_has_a_frame_and_labels_of_one_size(shape, size, step, dtype):
    frame = (coordinate_frame(*shape) % 200).astype(dtype)
    labels = np.zeros(shape, np.int32)
    labels[:, 10:30] = 3
    head, grey, codes = decoded(encoded(result(frame, labels, {"t": 3, "c": 0})))
    assert (grey.shape, codes.shape, grey.dtype) == (size, size, np.uint8)
    assert (head["shape"], head["dtype"], head["step"]) == (list(shape), np.dtype(dtype).name, step)
    assert (head["number"], head["index"], head["objects"]) == (7, "t 3  c 0", 3)
    np.testing.assert_array_equal(codes, label_codes(labels[::step, ::step]))


def test_grey_values_are_stretched_as_predict_does():
    frame = np.random.default_rng(0).normal(3000, 5, (64, 64)).astype(np.uint16)
    frame[:32] += 900
    _, grey, _ = decoded(encoded(result(frame, np.zeros((64, 64), np.int32))))
    assert grey[:30].mean() > 240
    assert grey[34:].mean() < 15


@pytest.mark.parametrize(
    "frame",
    [np.stack([np.eye(9)] * 3), np.eye(9)[None], np.eye(9, dtype=bool), np.eye(9).tolist()],
    ids=["three channels", "one channel", "bool", "lists"],
)
def test_whatever_the_segmenter_takes_is_shown(frame):
    head, grey, _ = decoded(encoded(result(frame, np.zeros((9, 9), np.uint8))))
    assert head["shape"] == list(np.shape(frame))
    assert grey.shape == (9, 9)
    assert grey.max() > 200


def test_a_frame_that_numpy_cannot_read_is_black():
    class Elsewhere:
        shape = (8, 9)

        def __array__(self, *args, **kwargs):
            raise TypeError("it lies on a GPU")

    head, grey, codes = decoded(encoded(result(Elsewhere(), np.ones((8, 9), np.int32))))
    assert (head["shape"], head["dtype"]) == ([], "not on the host")
    assert not grey.any()
    assert codes.all()


@pytest.mark.parametrize(
    ("index", "text"), [(None, ""), ({"t": 1, "z": 2}, "t 1  z 2"), ((3, 4), "(3, 4)"), ("x" * 99, "x" * 60)]
)
def test_an_index_is_shown_as_people_read_it(index, text):
    assert index_text(index) == text


def test_contrast_limits_are_the_given_ones_and_else_percentiles():
    frame = np.tile(np.arange(256, dtype=np.uint16) + 1000, (64, 1))
    none = np.zeros(frame.shape, np.int32)
    head, grey, _ = decoded(encoded(result(frame, none)))
    assert head["limits"] == pytest.approx(np.percentile(frame, (1, 99.8)).tolist())
    assert head["range"] == [1000, 1255]
    head, grey, _ = decoded(encoded(result(frame, none), Display.clamped(1100, 1200, 0.5)))
    assert head["limits"] == [1100, 1200]
    expected = 255 * np.clip((frame - 1100.0) / 100, 0, 1) ** 0.5
    assert np.abs(grey - expected).max() < 24
    assert np.abs(grey - expected).mean() < 2
    assert decoded(encoded(result(frame, none), Display.clamped(1100, None, 1)))[0]["limits"][0] == 1100


@pytest.mark.parametrize("frame", [np.full((8, 8), 7, np.uint16), np.full((8, 8), 3e38, np.float32), np.eye(8) * -1e30])
@pytest.mark.parametrize(
    ("low", "high"), [(None, None), (5, 5), (9, 2), (-1e308, 1e308), (1e308, None), (None, -1e308)]
)
@pytest.mark.parametrize("gamma", [-1, 0, 1, 1e300])
def test_limits_without_sense_still_give_a_picture(frame, low, high, gamma):
    head, grey, _ = decoded(encoded(result(frame, np.zeros((8, 8), np.int32)), Display.clamped(low, high, gamma)))
    assert grey.shape == (8, 8)
    assert np.isfinite(head["limits"]).all()


def test_a_frame_of_several_channels_is_shown_as_their_mean():
    frame = np.random.default_rng(0).integers(0, 255, (3, 40, 50), np.uint8)
    head, grey, _ = decoded(encoded(result(frame, np.zeros((40, 50), np.int32)), Display.clamped(0, 255, 1)))
    assert head["shape"] == [3, 40, 50]
    assert np.abs(grey - frame.mean(axis=0)).mean() < 8


INFOS = ({"camera_label": "B", "pixel_size_um": 2.0}, {"camera_label": "A", "pixel_size_um": 3.0})


@pytest.mark.parametrize(
    ("meta", "infos", "size"),
    [
        ({"pixel_size_um": 0.5}, INFOS, 0.5),
        ({}, INFOS, 3.0),
        ({"pixel_size_um": 0.0}, INFOS[:1], 2.0),
        ({}, (), None),
        ({}, None, None),
        ({"pixel_size_um": 0.0}, (), None),
        ({"pixel_size_um": "much"}, ("no info", 5), None),
        ({"pixel_size_um": float("nan")}, 7, None),
        ({"pixel_size_um": -1}, [{"pixel_size_um": float("inf")}], None),
        ({"pixel_size_um": [1, 2]}, [{}], None),
    ],
)
def test_the_pixel_size_is_that_of_the_frame_and_else_of_its_camera(meta, infos, size):
    sequence = LiveSequence(0, None, {"image_infos": infos})
    given = LiveResult(Outcome.DONE, 0, None, meta, sequence, np.eye(9), np.zeros((9, 9)), 0, stream=StreamKey("A"))
    assert decoded(encoded(given))[0]["pixel_size"] == size


@pytest.mark.parametrize(
    ("event", "position"),
    [
        (None, ""),
        (object(), ""),
        ({"pos_name": "a\nb"}, r"a\nb"),
        ({"pos_name": 7}, "7"),
        ({"pos_name": "x" * 99}, "x" * 60),
    ],
)
def test_names_are_one_short_line(event, position):
    frame = np.eye(9)
    stream = StreamKey("Camera\x1b[31m", "D" * 99)
    given = LiveResult(Outcome.DONE, 0, None, {"mda_event": event}, None, frame, np.zeros((9, 9)), 0, stream=stream)
    head = decoded(encoded(given))[0]
    assert (head["position"], head["camera"], head["channel"]) == (position, r"Camera\x1b[31m", "D" * 60)

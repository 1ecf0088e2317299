"""Cases that `test_napari` runs in a process with a display; `UNETRT_MODEL` is the model."""

import os
import threading
import time

import dask.array
import napari
import numpy as np
import pytest
import zarr
from napari.utils.notifications import notification_manager
from qtpy.QtCore import QEvent
from qtpy.QtWidgets import QApplication

from tests.conftest import small_spec
from tests.runtime.test_segmenter import FunctionSession
from unetrt.napari.widget import SegmentWidget
from unetrt.runtime import Segmenter, instances
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.sessions.cpu import CropSession

MODEL = os.environ["UNETRT_MODEL"]
THREE = Normalisation("fixed", offset=(0.5,) * 3, scale=(1.0,) * 3)
RANDOM = np.random.default_rng(0)
SESSIONS = []  # which a test opened itself
FRAME = RANDOM.integers(0, 4000, (150, 170)).astype(np.uint16)


def until(reached, seconds=20.0):
    """Process Qt events until a condition is true."""
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "it did not happen in time"
        QApplication.processEvents()
        time.sleep(0.002)


def our_threads():
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("unetrt")]


@pytest.fixture(scope="session")
def window():
    """One viewer for all cases: each new one takes a second."""
    viewer = napari.Viewer(show=False)
    yield viewer
    viewer.close()


@pytest.fixture
def viewer(window):
    window.layers.clear()
    notification_manager.records.clear()
    return window


@pytest.fixture
def widget(viewer):
    dock, widget = viewer.window.add_plugin_dock_widget("unetrt", "unetrt: segment")
    assert isinstance(widget, SegmentWidget)
    widget.form.model.setText(MODEL)
    yield widget
    if dock.widget() is not None:
        viewer.window.remove_dock_widget(widget)
    while SESSIONS:
        SESSIONS.pop().close()
    until(lambda: not our_threads())


def press_segment(widget):
    widget.form.segment.click()
    until(lambda: not widget.work.background.busy)


def go_live(widget):
    widget.form.live.click()
    until(lambda: widget.work.live is not None and widget.work.live.layer is not None)
    return widget.work.live.layer


def expected(image, min_area=0):
    with Segmenter(MODEL) as segmenter:
        classes = segmenter.segment(image).labels
        return instances(classes, segmenter.spec.decoding, min_area)


def use(widget, session):
    """Use a session of the test instead of the model file."""
    SESSIONS.append(session)
    widget.work.path, widget.work.segmenter = MODEL, Segmenter(session)


def slow_session(seconds):
    return FunctionSession(lambda frames, scores: time.sleep(seconds))


def messages():
    return [record.message for record in notification_manager.records]


# Attributes that place a layer in the world.
PLACES = {
    "pixel size": {"scale": (0.5, 0.25), "translate": (3, 4)},
    "mirrored": {"scale": (-0.5, 0.25), "translate": (7, -8)},
    "rotated": {"scale": (0.5, 0.25), "translate": (3, 4), "rotate": 30},
    "sheared": {"scale": (0.5, 2), "rotate": -20, "shear": (0.3,)},
    "affine": {"scale": (2, 3), "rotate": 10, "affine": [[0.8, 0.1, 30], [-0.2, 1.1, -12], [0, 0, 1]]},
}
# As many for a stack; one rotation stands its planes upright, and its affine lays them down again.
UPRIGHT = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
STACKS = {
    "pixel size": {"scale": (5, 0.5, 0.25), "translate": (9, 3, 4)},
    "rotated": {"scale": (5, 0.5, 0.25), "translate": (9, 3, 4), "rotate": (0, 0, 25)},
    "affine": {"affine": [[2, 0, 0, 7], [0, 0.8, 0.1, 30], [0, -0.2, 1.1, -12], [0, 0, 0, 1]]},
    "tilted": {"scale": (3, 1, 2), "translate": (9, 3, 4), "rotate": (10, 20, 30), "affine": np.diag([2, 3, 4, 1.0])},
    "laid down": {"scale": (3, 1, 2), "rotate": np.array(UPRIGHT)[:3, :3], "affine": UPRIGHT},
    "deskewed": {"scale": (3, 1, 2), "shear": [[1, 0, 0], [0.4, 1, 0], [0, 0, 1]], "translate": (9, 3, 4)},
}


def plane_on_canvas(layer):
    """The transform by which napari draws the last two axes of a layer: (2, 3)."""
    origin, *columns = (
        np.array(layer.data_to_world(pixel))[-2:] for pixel in (np.zeros(layer.ndim), *np.eye(layer.ndim)[-2:])
    )
    return np.column_stack([*(column - origin for column in columns), origin])


def assert_in_place(labels, image):
    """Each pixel of the labels is where napari draws that of the image, in the same units."""
    np.testing.assert_allclose(plane_on_canvas(labels), plane_on_canvas(image), atol=1e-9)
    assert labels.units == image.units[-labels.ndim :]
    assert labels.axis_labels == image.axis_labels[-labels.ndim :]


def test_a_frame_gets_the_labels_of_the_segmenter(viewer, widget):
    layer = viewer.add_image(FRAME, name="cells", scale=(0.5, 0.25), translate=(3, 4), metadata={"slide": 7})
    widget.form.area.setValue(5)
    press_segment(widget)
    labels = viewer.layers["cells (instances)"]
    np.testing.assert_array_equal(labels.data, expected(FRAME, min_area=5))
    np.testing.assert_array_equal(labels.extent.world, layer.extent.world)
    assert labels.metadata["slide"] == 7
    assert labels.metadata["unetrt"]["model"] == MODEL
    assert widget.form.figures.text() == f"{labels.data.max()} objects"
    assert "tile 60 x 76 px" in widget.form.about.text()
    assert messages() == []


def test_classes(viewer, widget):
    viewer.add_image(FRAME, name="cells")
    widget.form.kind.setCurrentText("classes")
    press_segment(widget)
    with Segmenter(MODEL) as segmenter:
        np.testing.assert_array_equal(viewer.layers["cells (classes)"].data, segmenter.segment(FRAME).labels)


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr"])
def test_a_stack_frame_by_frame(viewer, widget, kind):
    stack = np.stack([FRAME, FRAME.T[:150].repeat(2, axis=1)[:, :170], FRAME[::-1]])
    lazy = {"numpy": np.asarray, "dask": dask.array.from_array, "zarr": zarr.array}[kind](stack)
    viewer.add_image(lazy, name="film", scale=(9, 1, 2))
    parts = []
    widget.work.background.progressed.connect(lambda done, total: parts.append((done, total)))
    press_segment(widget)
    labels = viewer.layers["film (instances)"]
    np.testing.assert_array_equal(labels.data, expected(stack))
    np.testing.assert_array_equal(labels.scale, (9, 1, 2))
    assert parts[0][0] < parts[-1][0] == parts[-1][1] > 3
    assert parts == sorted(parts)


@pytest.mark.parametrize("colours", [False, True])
def test_channels_become_one_plane_of_labels(viewer, widget, colours):
    session = CropSession(small_spec(channels=3, normalisation=THREE, head="labels"))
    use(widget, session)
    image = RANDOM.integers(0, 2, (3, 40, 50)).astype(np.uint8)
    given = np.moveaxis(image, 0, -1) if colours else image
    viewer.add_image(given, name="cells", rgb=colours, scale=(2, 3) if colours else (5, 2, 3))
    widget.form.kind.setCurrentText("classes")
    press_segment(widget)
    labels = viewer.layers["cells (classes)"]
    np.testing.assert_array_equal(labels.data, Segmenter(session).segment(image).labels)
    np.testing.assert_array_equal(labels.scale, (2, 3))


@pytest.mark.parametrize(
    ("model", "image", "message"),
    [("", FRAME, "no model is chosen"), ("nowhere.onnx", FRAME, "nowhere.onnx"),
     (MODEL, np.full((40, 50), np.nan, np.float32), "NaN")],
)  # fmt: skip
def test_an_error_is_a_notification_of_one_line(viewer, widget, model, image, message):
    viewer.add_image(image, contrast_limits=(0, 1), name="cells")
    widget.form.model.setText(model)
    press_segment(widget)
    (told,) = messages()
    assert message in told
    assert "\n" not in told
    assert widget.form.segment.text() == "Segment"


def test_without_an_image_it_says_so(viewer, widget):
    press_segment(widget)
    assert messages() == ["there is no image layer to segment: open an image first"]


def test_colours_do_not_fit_one_channel(viewer, widget):
    viewer.add_image(np.zeros((40, 50, 3), np.uint8), name="photo", rgb=True)
    press_segment(widget)
    widget.form.live.click()
    until(lambda: len(messages()) == 2)
    assert all("'photo' is in colour" in message for message in messages())
    assert not widget.form.live.isChecked()


def test_cancel_comes_back_at_once(viewer, widget):
    use(widget, slow_session(0.2))
    viewer.add_image(np.zeros((400, 400), np.uint8), name="large")
    widget.form.segment.click()
    assert widget.form.segment.text() == "Cancel"
    widget.form.segment.click()
    assert widget.form.segment.text() == "Segment"
    until(lambda: not [name for name in our_threads() if name == "unetrt-napari"])
    assert [layer.name for layer in viewer.layers] == ["large"]
    assert messages() == []


def test_live_labels_follow_the_layer(viewer, widget):
    layer = viewer.add_image(FRAME, name="preview", scale=(2, 2))
    labels = go_live(widget)
    assert labels.name == "preview (unetrt live)"
    np.testing.assert_array_equal(labels.data, expected(FRAME))
    np.testing.assert_array_equal(labels.scale, (2, 2))
    for frame in (FRAME[::-1], FRAME[:100, :90].copy()):
        layer.data = frame
        wanted = expected(frame)
        until(lambda: np.array_equal(labels.data, wanted))  # noqa: B023
    layer.data[:50] = 0
    layer.refresh()
    wanted = expected(layer.data)
    until(lambda: np.array_equal(labels.data, wanted))
    until(lambda: "frames/s, latency" in widget.form.figures.text())
    widget.form.live.click()
    until(lambda: not any("live" in name for name in our_threads()))
    assert "preview (unetrt live)" in viewer.layers


def test_what_it_shows_does_not_make_new_frames(viewer, widget):
    viewer.add_image(FRAME, name="preview")
    go_live(widget)
    live = widget.work.live.live
    live.flush(10)
    before = live.status().submitted
    end = time.monotonic() + 0.5
    until(lambda: time.monotonic() > end)
    assert live.status().submitted == before <= 3


def test_live_shows_the_plane_of_the_slider(viewer, widget):
    stack = np.stack([FRAME, FRAME[::-1]])
    viewer.add_image(stack, name="film", scale=(5, 1, 1))
    labels = go_live(widget)
    for plane in (1, 0, 1):
        viewer.dims.set_point(0, plane * 5)
        wanted = expected(stack[plane])
        until(lambda: np.array_equal(labels.data, wanted))  # noqa: B023


def test_frames_faster_than_the_model_are_dropped_and_the_gui_goes_on(viewer, widget):
    use(widget, slow_session(0.3))
    layer = viewer.add_image(np.zeros((20, 30), np.uint8), name="preview")
    go_live(widget)
    for value in range(40):
        layer.data = np.full((20, 30), value, np.uint8)
        QApplication.processEvents()
    live = widget.work.live.live
    live.flush(60)
    status = live.status()
    assert status.dropped > status.done  # if it had waited for each frame, none would be dropped
    assert status.failed == 0
    assert status.submitted == status.done + status.dropped


def test_a_failing_frame_is_reported_once(viewer, widget):
    layer = viewer.add_image(np.full((40, 50), np.nan, np.float32), name="preview", contrast_limits=(0, 1))
    widget.form.live.click()
    until(messages)
    layer.refresh()
    live = widget.work.live.live
    until(lambda: live.status().failed >= 2)
    end = time.monotonic() + 0.1
    until(lambda: time.monotonic() > end)
    (told,) = messages()
    assert "NaN" in told


def test_channels_on_the_last_axis_are_no_frames(viewer, widget):
    """Neither for a whole image, nor for what a slider shows of it."""
    viewer.add_image(np.zeros((64, 64, 5), np.uint8), name="cells")
    press_segment(widget)
    widget.form.live.click()
    until(lambda: len(messages()) == 2)
    assert all("64 frames of 64 x 5 px, or 64 x 64 px with the channels last" in message for message in messages())


@pytest.mark.parametrize("which", ["preview", "preview (unetrt live)"])
def test_removing_a_layer_ends_live(viewer, widget, which):
    viewer.add_image(FRAME, name="preview")
    go_live(widget)
    viewer.layers.remove(which)
    assert widget.work.live is None
    assert not widget.form.live.isChecked()
    until(lambda: not any("live" in name for name in our_threads()))


@pytest.mark.parametrize("how", ["removed", "closed"])
def test_the_end_of_the_widget_ends_everything(viewer, widget, how):
    viewer.add_image(FRAME, name="preview")
    go_live(widget)
    if how == "removed":
        viewer.window.remove_dock_widget(widget)
    else:
        widget.close()
    assert widget.work.segmenter is None
    until(lambda: not our_threads())
    viewer.add_image(FRAME, name="another")


def test_closing_the_viewer_ends_everything():
    viewer = napari.Viewer(show=False)
    _, widget = viewer.window.add_plugin_dock_widget("unetrt", "unetrt: segment")
    viewer.add_image(FRAME, name="preview")
    widget.form.model.setText(MODEL)
    go_live(widget)
    viewer.close()
    QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    until(lambda: not our_threads())


def test_the_model_is_remembered(viewer, widget):
    widget.choose(MODEL)
    until(lambda: widget.work.segmenter is not None)
    assert SegmentWidget(viewer).form.model.text() == MODEL


def test_another_model_takes_the_place_of_the_first(viewer, widget):
    viewer.add_image(FRAME, name="cells")
    go_live(widget)
    first = widget.work.segmenter
    widget.choose(f" {MODEL.replace('/', '//', 1)}")
    until(lambda: not widget.work.background.busy)
    assert widget.work.segmenter is not first
    assert widget.work.live is None
    assert not widget.form.live.isChecked()


def test_the_list_of_images_follows_the_viewer(viewer, widget):
    first = viewer.add_image(FRAME, name="one")
    viewer.add_labels(FRAME.astype(np.int32), name="no image")
    viewer.add_image(FRAME, name="two")
    assert widget.images.layer() is first
    first.name = "uno"
    assert [widget.images.itemText(index) for index in range(2)] == ["two", "uno"]
    viewer.layers.remove(first)
    assert widget.images.layer() is viewer.layers["two"]


def test_labels_lie_where_the_image_lies(viewer, widget):
    for name, place in PLACES.items():
        image = viewer.add_image(FRAME, name=name, units=("um", "nm"), axis_labels=("y", "x"), **place)
        widget.form.image.setCurrentText(name)
        press_segment(widget)
        labels = viewer.layers[f"{name} (instances)"]
        assert_in_place(labels, image)
        for pixel in ((0, 0), (149, 0), (70, 169)):
            np.testing.assert_allclose(labels.data_to_world(pixel), image.data_to_world(pixel))
        np.testing.assert_array_equal(labels.scale, image.scale)
        np.testing.assert_array_equal(labels.rotate, image.rotate)


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")
def test_live_labels_lie_in_the_plane_of_a_stack(viewer, widget):
    for place in STACKS.values():
        image = viewer.add_image(np.stack([FRAME, FRAME[::-1]]), name="film", units=("um", "nm", "nm"), **place)
        labels = go_live(widget)
        assert labels.ndim == 2
        assert_in_place(labels, image)
        np.testing.assert_array_equal(labels.scale, image.scale[-2:])
        viewer.layers.clear()
        assert widget.work.live is None


def test_live_labels_move_with_the_image(viewer, widget):
    image = viewer.add_image(FRAME, name="preview")
    labels = go_live(widget)
    for place in PLACES.values():
        for name, value in place.items():
            setattr(image, name, value)
            assert_in_place(labels, image)
    image.units, image.axis_labels = ("um", "nm"), ("y", "x")
    assert_in_place(labels, image)
    for name, value in {"scale": (1, 1), "translate": (0, 0), "rotate": 0, "shear": (0,), "affine": np.eye(3)}.items():
        setattr(image, name, value)
    assert_in_place(labels, image)
    np.testing.assert_allclose(plane_on_canvas(labels), [[1, 0, 0], [0, 1, 0]], atol=1e-12)


def test_live_labels_move_while_a_frame_is_segmented(viewer, widget):
    """Also when the layer gets axes, and when the first labels are not there yet."""
    use(widget, slow_session(0.2))
    image = viewer.add_image(FRAME[:40, :50], name="preview")
    widget.form.live.click()
    until(lambda: widget.work.live is not None)
    assert widget.work.live.layer is None
    image.rotate = 40
    until(lambda: widget.work.live.layer is not None)
    labels = widget.work.live.layer
    assert_in_place(labels, image)
    image.data = np.zeros((3, 30, 20), np.uint16)
    image.translate = (5, 6, 7)
    assert_in_place(labels, image)
    until(lambda: labels.data.shape == (30, 20))
    image.data = FRAME[:40, :50]
    assert_in_place(labels, image)
    until(lambda: labels.data.shape == (40, 50))


def test_labels_stay_when_live_has_ended(viewer, widget):
    image = viewer.add_image(FRAME, name="preview", scale=(2, 3))
    labels = go_live(widget)
    widget.form.live.click()
    image.scale = (5, 7)
    np.testing.assert_array_equal(labels.scale, (2, 3))
    live_again = go_live(widget)
    viewer.layers.remove(image)
    image.scale = (1, 1)
    np.testing.assert_array_equal(live_again.scale, (5, 7))


def test_live_labels_of_colours_and_of_several_levels_move(viewer, widget):
    session = CropSession(small_spec(channels=3, normalisation=THREE, head="labels"))
    use(widget, session)
    photo = np.zeros((2, 40, 50, 3), np.uint8)
    image = viewer.add_image(photo, rgb=True, name="photo", scale=(4, 2, 3), units=("s", "um", "um"))
    labels = go_live(widget)
    image.rotate = (0, 0, 15)
    assert_in_place(labels, image)
    viewer.layers.clear()
    until(lambda: widget.work.live is None)
    levels = [np.zeros((3, 160, 120), np.uint8), np.zeros((3, 80, 60), np.uint8)]
    image = viewer.add_image(levels, multiscale=True, name="large", scale=(1, 0.5, 0.5), translate=(0, 4, 6))
    labels = go_live(widget)
    image.affine = [[1, 0, 0, 0], [0, 0.8, 0.1, 30], [0, -0.2, 1.1, -12], [0, 0, 0, 1]]
    assert_in_place(labels, image)
    assert labels.data.shape == (160, 120)


@pytest.mark.parametrize("place", [{}, {"rotate": np.diag([1, 1, 1, -1.0]), "translate": (7, 8, 9, 10)}])
def test_a_film_with_channels_has_labels_at_its_times(viewer, widget, place):
    """The labels have an axis of channels, of length 1, that reaches over all of them: a slider moves its own axis."""
    session = CropSession(small_spec(channels=3, normalisation=THREE, head="labels"))
    use(widget, session)
    film = RANDOM.integers(0, 2, (2, 3, 40, 50)).astype(np.uint8)
    image = viewer.add_image(film, name="film", scale=(60, 5, 2, 3), units=("s", "pixel", "um", "um"), **place)
    widget.form.kind.setCurrentText("classes")
    press_segment(widget)
    labels = viewer.layers["film (classes)"]
    np.testing.assert_array_equal(labels.data, Segmenter(session).segment(film).labels[:, None])
    assert_in_place(labels, image)
    for time_point, channel in ((0, 0), (1, 0), (1, 2)):
        position = image.data_to_world((time_point, channel, 11, 13))
        assert np.round(labels.world_to_data(position)).tolist() == [time_point, 0, 11, 13]


def test_live_shows_the_plane_that_napari_shows_in_other_units(viewer, widget):
    """The sliders are in the units of the viewer, which need not be those of a layer."""
    stack = np.stack([FRAME, FRAME[::-1], FRAME[:, ::-1]])
    viewer.add_image(stack, name="film", units="um", scale=(5, 1, 1))
    viewer.add_image(np.zeros((3, 150, 170)), name="other", units="nm", scale=(5000, 1000, 1000))
    labels = go_live(widget)
    for plane in (1, 2, 0):
        viewer.dims.set_current_step(0, plane)
        wanted = expected(stack[plane])
        until(lambda: np.array_equal(labels.data, wanted))  # noqa: B023


def test_a_long_segmentation_outlives_a_change_of_axes(viewer, widget):
    """The labels of a stack whose layer shows one frame by now are not lost."""
    use(widget, slow_session(0.02))
    image = viewer.add_image(np.zeros((2, 30, 40), np.uint8), name="film", scale=(9, 2, 3))
    widget.form.segment.click()
    image.data = np.zeros((30, 40), np.uint8)
    until(lambda: not widget.work.background.busy)
    labels = viewer.layers["film (instances)"]
    assert labels.data.shape == (2, 30, 40)
    np.testing.assert_array_equal(labels.scale, (1, 2, 3))
    assert messages() == []

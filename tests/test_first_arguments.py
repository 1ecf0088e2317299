"""Public functions against first arguments of any type: each is refused by an error of unetrt that says what came.

The names are those that the public modules list in `__all__`; a new one has to be added to `CALLS`, or to `VALUES`.
"""

import threading
from importlib import import_module

import numpy as np
import pytest

from unetrt.runtime.errors import UnetrtError, shown

PUBLIC = ("unetrt", "unetrt.runtime", "unetrt.runtime.acquisition", "unetrt.export.packages", "unetrt.export.adoption")


class NoArray:
    def __array__(self, *_arguments, **_options):
        raise RuntimeError("no array")


class NoIndex:
    shape = (5, 5)


class NoShape:
    shape = "HW"

    def __getitem__(self, _index):
        return self


class NoText:
    def __repr__(self):
        raise RuntimeError("no text")


GIVEN = {
    "None": None,
    "a list": [1, 2],
    "an empty list": [],
    "a ragged list": [[1], [1, 2]],
    "text": "text",
    "text with a null byte": "a\0b",
    "long text": 3000 * "x",
    "bytes": b"bytes",
    "a dict": {"a": 1},
    "a set": {1},
    "a tuple": (1, 2),
    "an object": object(),
    "a class": int,
    "a function": len,
    "a generator": (one for one in ()),
    "a float": 1.5,
    "nan": float("nan"),
    "infinity": float("inf"),
    "a negative number": -1,
    "a huge number": 10**400,
    "a number without text": 10**6000,
    "a memoryview": memoryview(b"abcd"),
    "an array that is none": NoArray(),
    "a shape without pixels": NoIndex(),
    "a shape that is none": NoShape(),
    "an object without text": NoText(),
    "a list of such": [NoText()],
    "0 axes": np.array(3),
    "1 axis": np.arange(3),
    "9 axes": np.zeros(9 * (1,)),
    "no pixels": np.zeros((0, 0)),
    "objects": np.full((5, 5), None),
    "integers as objects": np.ones((5, 5), object),
    "text pixels": np.full((5, 5), "a"),
    "complex pixels": np.ones((5, 5), complex),
    "dates": np.zeros((5, 5), "M8[s]"),
    "records": np.zeros((5, 5), [("a", "i4")]),
    "nan pixels": np.full((30, 30), np.nan),
    "infinite pixels": np.full((30, 30), np.inf),
    "pixels beyond float32": np.full((30, 30), 1e300),
}
# Arrays that numpy users have, and that are images or class maps as good as any.
IMAGES = {
    "big-endian": np.arange(900).reshape(30, 30).astype(">u2"),
    "not contiguous": np.arange(3600).reshape(60, 60)[::2, ::-2],
    "read-only": np.broadcast_to(np.uint8(1), (30, 30)),
    "float16": np.ones((30, 30), np.float16),
    "longdouble": np.ones((30, 30), np.longdouble),
    "negative": -np.ones((30, 30), np.int64),
    "the largest uint64": np.full((30, 30), 2**64 - 1, np.uint64),
}
# Values that unetrt returns, or base classes and options: nobody passes a file, a frame or a number to them.
VALUES = {
    "Adoption", "BACKENDS", "Choices", "DroppedFrames", "FeedStatus", "KINDS", "Kind", "LiveResult", "LiveSequence",
    "LiveStatus", "ModelSpec", "Objects", "Outcome", "ReceptiveField", "ResultOutput", "ResultStream", "Segmentation",
    "Session", "StreamKey", "Tile", "TrialLimits", "UnetrtError", "__version__",
}  # fmt: skip


@pytest.fixture(scope="module")
def calls(tiny_model, tiny_checkpoint, drawn_folder, tmp_path_factory):
    """Name -> function of the first argument. Names after a space are other arguments."""
    from unetrt import BrowserView, LiveSegmenter, ModelSpec, Segmenter, instances, open_session, runtime
    from unetrt.export import adoption, exporter, packages
    from unetrt.runtime import Geometry, TilePlan, acquisition
    from unetrt.runtime.files.images import read_label_stack, read_labels, read_stack

    geometry, frame, new = Geometry.unet(2), np.ones((30, 30)), tmp_path_factory.mktemp("new")
    choices = adoption.Choices
    segmenter = Segmenter(tiny_model, backend="onnxruntime")
    live = LiveSegmenter(segmenter)
    files = [drawn_folder / "images" / "0.tif"]

    def result_of(given):
        if error := live.submit(given).result(60).error:
            raise error

    yield {
        "BrowserView": BrowserView,
        "Geometry": lambda given: Geometry(given, 16),
        "Geometry grid": lambda given: Geometry(92, given),
        "Geometry.unet": Geometry.unet,
        "Geometry.require": geometry.require,
        "LabelWriter": acquisition.LabelWriter,
        "LiveModeFeed": lambda given: acquisition.LiveModeFeed(given, live),
        "LiveSegmenter": lambda given: LiveSegmenter(given, backend="onnxruntime"),
        "LiveSegmenter capacity": lambda given: LiveSegmenter(segmenter, policy="block", capacity=given).close(),
        "LiveSegmenter kind": lambda given: LiveSegmenter(segmenter, kind=given).close(),
        "LiveSegmenter normalisation": lambda given: LiveSegmenter(segmenter, normalisation=given).close(),
        "LiveSegmenter on_result": lambda given: LiveSegmenter(segmenter, on_result=given).close(),
        "LiveSegmenter outputs": lambda given: LiveSegmenter(segmenter, outputs=given).close(),
        "LiveSegmenter policy": lambda given: LiveSegmenter(segmenter, policy=given).close(),
        "LiveSegmenter.results": live.results,
        "LiveSegmenter.submit": result_of,
        "ModelSpec.from_json": ModelSpec.from_json,
        "Replay": acquisition.Replay,
        "Segmenter": lambda given: Segmenter(given, backend="onnxruntime"),
        "Segmenter backend": lambda given: Segmenter(tiny_model, backend=given),
        "Segmenter backend_options": lambda given: Segmenter(
            tiny_model, backend="onnxruntime", backend_options=given
        ).close(),
        "Segmenter device": lambda given: Segmenter(tiny_model, backend="onnxruntime", device=given).close(),
        "Segmenter lanes": lambda given: Segmenter(segmenter.session, lanes=given),
        "Segmenter.objects": segmenter.objects,
        "Segmenter.objects min_area": lambda given: segmenter.objects(frame, min_area=given),
        "Segmenter.scores": segmenter.scores,
        "Segmenter.segment": segmenter.segment,
        "Segmenter.segment measure": lambda given: segmenter.segment(frame, measure=given),
        "Segmenter.segment out": lambda given: segmenter.segment(frame, out=given),
        "Segmenter.segment progress": lambda given: segmenter.segment(frame, progress=given),
        "TilePlan": lambda given: TilePlan(given, (60, 60), geometry),
        "TilePlan geometry": lambda given: TilePlan((30, 30), (60, 60), given),
        "TilePlan tile": lambda given: TilePlan((30, 30), given, geometry),
        "adopt": lambda given: adoption.adopt(given, new / "adopted.onnx", choices),
        "by_kind": acquisition.by_kind,
        "export": lambda given: exporter.export(given, new / "new.onnx", exporter.Options((60, 60))),
        "export options": lambda given: exporter.export(tiny_checkpoint, new / "new.onnx", given),
        "PixelSize": lambda given: runtime.PixelSize(given, 1),
        "PixelSize unit": lambda given: runtime.PixelSize(1, 1, None, given),
        "instances": instances,
        "instances decoding": lambda given: instances(np.ones((5, 5), int), given),
        "instances min_area": lambda given: instances(np.ones((5, 5), int), None, given),
        "list_images": runtime.list_images,
        "load_replay_camera": lambda given: acquisition.load_replay_camera(given, files),
        "named_kind": packages.named_kind,
        "open_session": lambda given: open_session(given, "onnxruntime"),
        "planned_tile": exporter.planned_tile,
        "read_label_stack": read_label_stack,
        "read_labels": read_labels,
        "read_stack": read_stack,
        "segment_large": lambda given: runtime.segment_large(given, frame, new / "large"),
        "segment_large block": lambda given: runtime.segment_large(segmenter, frame, new / "large", block=given),
        "segment_large folder": lambda given: runtime.segment_large(segmenter, frame, given, resume=False),
        "segment_large image": lambda given: runtime.segment_large(segmenter, given, new / "large", resume=False),
        "segment_large name": lambda given: runtime.segment_large(
            segmenter, frame, new / "large", name=given, resume=False
        ),
        "segment_large save": lambda given: runtime.segment_large(segmenter, frame, new / "large", given),
        "segment_large scratch": lambda given: runtime.segment_large(segmenter, frame, new / "large", scratch=given),
        "stem_of": runtime.stem_of,
        "write": lambda given: packages.write(given, tiny_model, new / "package"),
        "write model": lambda given: packages.write("triton", given, new / "package"),
        "write_labels": lambda given: runtime.write_labels(given, np.ones((5, 5), np.uint8)),
        "write_labels labels": lambda given: runtime.write_labels(new / "labels.tif", given),
        "write_labels axes": lambda given: runtime.write_labels(new / "a.tif", np.ones((5, 5), np.uint8), axes=given),
        "write_labels pixel_size": lambda given: runtime.write_labels(
            new / "a.tif", np.ones((5, 5), np.uint8), pixel_size=given
        ),
    }
    live.close()
    segmenter.close()


def test_all_public_names_are_called(calls):
    public = {name for module in PUBLIC for name in import_module(module).__all__}
    assert public - VALUES - {name.split(" ")[0].split(".")[0] for name in calls} == set()
    assert VALUES - public - {"BACKENDS"} == set()


def refusal(call, given):
    """Call with an argument; return None, or the message of the error, which is one to show a user."""
    try:
        call(given)
    except UnetrtError as error:
        return str(error)
    except (OSError, TypeError, ValueError) as error:
        # Of pathlib and of the system: the argument is no path, or no path can be like that.
        if not any(words in str(error) for words in ("os.PathLike", "null byte", "File name too long")):
            raise
    return None


@pytest.fixture(scope="module")
def threads():
    """Threads that other tests left, such as those of Dask, which it keeps."""
    return threading.active_count()


@pytest.mark.parametrize("what", GIVEN)
def test_an_argument_of_another_type_is_refused_in_one_line(threads, calls, tmp_path, monkeypatch, what):
    monkeypatch.chdir(tmp_path)
    for name, call in calls.items():
        if callable(GIVEN[what]) and name in ("Segmenter.segment measure", "Segmenter.segment progress"):
            continue  # what they raise is the caller's
        if text := refusal(call, GIVEN[what]):
            assert len(text.splitlines()) == 1, name
            assert len(text) < (7000 if what == "long text" else 400), (name, text)
    assert threading.active_count() - threads < 20  # no segmenter that could not be made leaves its threads


@pytest.mark.parametrize("what", IMAGES)
def test_arrays_that_numpy_users_have_are_images(calls, what):
    for name in ("Segmenter.segment", "Segmenter.objects", "Segmenter.scores", "LiveSegmenter.submit"):
        calls[name](IMAGES[what])
    if IMAGES[what].dtype.kind in "iu":
        calls["instances"](IMAGES[what])


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("instances", [1, 2], r"a class map must be integers \(..., H, W\) \(got int64 \(2,\)\)"),
        ("instances", np.ones((5, 5)), r"a class map must be integers .*got float64 \(5, 5\).: scores become one with"),
        ("Segmenter.segment", None, "a NoneType cannot be converted to an array .*: give a numpy array"),
        ("Segmenter.segment progress", "bar", "progress must be a function .got 'bar'."),
        ("Segmenter backend", ["openvino"], r"backend must be one of auto, .* \(got \['openvino'\]\)"),
        ("LiveSegmenter capacity", 0.5, "invalid queue capacity 0.5: use a whole number of frames, 1 or more"),
        ("open_session", None, "path must be that of a model file .got None."),
        ("Geometry.unet", 10**400, r"invalid depth 10+\.\.\.: .*use a depth of 1 or more, up to 16"),
        ("TilePlan", 300, "frame must be a height and a width, two integers of pixels .got 300."),
        ("write_labels labels", np.ones((5, 5)), r"labels must be a numpy array of integers .*got float64 \(5, 5\)"),
        ("write_labels labels", -np.ones((5, 5), int), "labels must be from 0 to 4294967295 .got -1 to -1."),
        ("by_kind", "a.tif", "files must be a list of paths of images .got 'a.tif'."),
        ("planned_tile", "run", r"checkpoint must be a Checkpoint, such as load\('run'\) \(got 'run'\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_message_says_what_came_and_the_rule(calls, name, given, message):
    with pytest.raises(UnetrtError, match=f"^{message}"):
        calls[name](given)


def test_what_is_shown_of_an_argument_is_short():
    assert shown([1, "a"]) == "[1, 'a']"
    assert shown("x" * 100) == "'" + "x" * 56 + "..."
    assert shown([np.zeros((2, 2))]) == "[array([[0., 0.], [0., 0.]])]"
    assert [shown(given) for given in (NoText(), [NoText()], 10**6000)] == ["a NoText", "a list", "a int"]

"""`LiveModeFeed`: segments Micro-Manager's live mode, the newest image of a camera that runs continuously.

A thread, the `Poller`, wakes when the core reports that its camera started, reads the newest image about a hundred
times a second, and submits each new one. Nothing is removed from the core's buffer, so viewers still get all images.

All cameras that run share the core's buffer, which holds no images of the Multi Camera itself. `NewestImages` therefore
searches it from the newest image back, until it has one of each camera that is followed.

    with LiveSegmenter("model.onnx") as live, LiveModeFeed(core, live):
        core.startContinuousSequenceAcquisition()  # or the button "Live" of the host program
        for result in live.results():
            ...
"""

import logging
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from unetrt.runtime.closing import Closable
from unetrt.runtime.errors import OptionError, one_line, shown
from unetrt.runtime.live.frame_metadata import CAMERA, CAMERAS, IMAGE_NUMBER
from unetrt.runtime.live.results import StreamKey

if TYPE_CHECKING:
    from unetrt.runtime.live.live_segmenter import LiveSegmenter

log = logging.getLogger("unetrt.live")
Answer = TypeVar("Answer")

# Polling interval in seconds: a hundred images a second, more than a display shows.
INTERVAL = 0.01
# Longest polling interval in seconds; a thread cannot wait for an endless time.
LONGEST = 3600.0
# Seconds before the core is called again after it raised.
RETRY = 0.2
# The metadata that distinguishes two images of one number (MMCore, `TimeReceivedByCore`).
RECEIVED = "TimeReceivedByCore"
# Signals of the core for the start of a camera.
STARTS = ("continuousSequenceAcquisitionStarted", "sequenceAcquisitionStarted")
# Maximum number of images that one search of the core's buffer copies, where one camera is much faster than another.
SEARCHED = 64
# Name that ends in the channel of a camera with several, as in "Multi-CameraChannelName" (MMCore). For a Multi Camera
# it is the label of the physical camera.
CHANNEL = "CameraChannelName"
# Properties of a camera that combines others, such as the Multi Camera of Utilities, with the labels of these.
PHYSICAL = "Physical Camera "


@dataclass(frozen=True)
class FeedCounts:
    """Numbers of images of one camera: submitted, and skipped because a newer one was ready."""

    submitted: int = 0
    skipped: int = 0


@dataclass(frozen=True)
class FeedStatus:
    """Snapshot of a feed.

    Attributes
    ----------
    running
        Whether the camera runs and its images are submitted.
    cameras
        Numbers of images of each camera, by its device label.
    overflows
        Number of times the camera stopped because the core's buffer was full (`stopOnOverflow`).
    errors
        Number of exceptions raised by the core.
    last_error
        The last of these, in one line; empty if there was none.
    """

    running: bool = False
    cameras: Mapping[str, FeedCounts] = field(default_factory=dict)
    overflows: int = 0
    errors: int = 0
    last_error: str = ""

    @property
    def submitted(self) -> int:
        """Number of images submitted, of all cameras."""
        return sum(counts.submitted for counts in self.cameras.values())

    @property
    def skipped(self) -> int:
        """Number of images not submitted because a newer one was ready, of all cameras."""
        return sum(counts.skipped for counts in self.cameras.values())


class LiveModeFeed(Closable):
    """Submits the newest image of a running camera to a live segmenter, each image once.

    It follows every run of the camera, regardless of which code starts or stops it, except for the sequences of
    `core.mda`, whose frames are delivered to `LiveSegmenter.frameReady`. Each run of the camera is a sequence without a
    plan; its results have the index {"image": the camera's image number}, and their `stream` names the camera.

    The cameras of a Multi Camera are followed together and never mixed: each has its own image numbers and counts, and
    the index has another key, {"cam": which, from 0}. Images of other cameras that run at the same time are left out.

    A continuous acquisition clears a full buffer and continues; a sequence with `stopOnOverflow` stops, which is
    counted as an overflow and logged. Images between two polls are counted in `FeedStatus.skipped`, not in
    `LiveStatus.missed`: the camera delivered them.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    live
        The live segmenter; not closed by this object.
    interval
        Polling interval in seconds, above 0 and up to an hour.
    most
        Maximum number of images submitted, of all cameras; None for no limit. The camera keeps running.
    camera
        Device label of the camera to follow, such as one of those that a Multi Camera combines; None for the core's
        camera at the start of each run.

    Raises
    ------
    OptionError
        The interval or `most` is not as above, or the core has no such camera.
    """

    def __init__(
        self,
        core: Any,
        live: "LiveSegmenter",
        interval: float = INTERVAL,
        *,
        most: int | None = None,
        camera: str | None = None,
    ) -> None:
        if not (isinstance(interval, int | float) and 0 < interval <= LONGEST):
            raise OptionError(
                f"invalid interval {shown(interval)} s: use one above 0 to {LONGEST:g}, such as 0.01 for 100 polls "
                "a second"
            )
        if not (most is None or (isinstance(most, int) and most >= 0)):
            raise OptionError(f"invalid most={shown(most)}: use a whole number of images, or None for no limit")
        if not hasattr(core, "mda"):
            raise OptionError(f"core must be a CMMCorePlus (got {shown(core)})")
        if camera is not None:
            require_camera(core, camera)
        self._poller = poller = Poller(core, live, interval, most, camera)
        thread = threading.Thread(target=poller.run, name="unetrt-live-mode", daemon=True)
        # Runs also when this object is collected, and at the interpreter's end, which a thread inside the core must not
        # outlive.
        self._finalizer = weakref.finalize(self, _end, poller, thread, live.thread)
        poller.connect()
        thread.start()

    def status(self) -> FeedStatus:
        """Return a snapshot; from any thread."""
        return self._poller.status

    def close(self) -> None:
        """Stop the thread; the camera keeps running. Idempotent."""
        self._finalizer()


class Poller:
    """The thread of a feed: polls a core for its newest image while the camera runs.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    live
        The live segmenter.
    interval, most, camera
        As for `LiveModeFeed`.

    Attributes
    ----------
    status
        Snapshot; replaced by the thread, read by any.
    closing
        Set when `run` is to return.
    """

    def __init__(self, core: Any, live: "LiveSegmenter", interval: float, most: int | None, camera: str | None) -> None:
        self.status = FeedStatus()
        self.closing = threading.Event()
        self._core, self._live = core, live
        self._interval, self._most, self._camera = interval, most, camera
        self._changed = threading.Event()
        self._changed.set()  # the camera may run already
        self._images = NewestImages(core)

    def wake(self, *_: Any) -> None:
        """Check whether the camera runs; from any thread."""
        self._changed.set()

    def run(self) -> None:
        """Wait for the camera to start, follow it until it stops, and repeat until closed."""
        while not self.closing.is_set():
            self._changed.wait()
            self._changed.clear()
            if not self.closing.is_set() and self._runs(default=False):
                self._follow()

    def connect(self) -> None:
        """Connect to the signals of the core."""
        for signal in STARTS:
            getattr(self._core.events, signal).connect(self.wake)

    def end(self) -> None:
        """Disconnect from the core and let `run` return."""
        for signal in STARTS:
            getattr(self._core.events, signal).disconnect(self.wake)
        self.closing.set()
        self._changed.set()

    def _follow(self) -> None:
        """Submit the images of a running camera until it stops: one sequence."""
        self._images = self._ask(lambda: newest_images(self._core, self._camera), NewestImages(self._core))
        self.status = replace(self.status, running=True)
        unknown: list[dict[str, Any]] = []
        self._live.sequenceStarted(None, {"image_infos": self._ask(self._infos, unknown)})
        runs = True
        while runs and not self.closing.is_set():
            errors = self.status.errors
            runs = self._runs(default=True)  # before the poll: the last image arrives before the camera stops
            self._ask(self._look, None)
            self.closing.wait(self._interval if errors == self.status.errors else RETRY)
        self._ask(self._finish, None)
        self.status = replace(self.status, running=False)

    def _runs(self, default: bool) -> bool:
        """Return whether the camera runs, and not for `core.mda`; `default` if the core raises."""
        core = self._core
        which = () if self._camera is None else (self._camera,)
        return bool(self._ask(lambda: core.isSequenceRunning(*which) and not core.mda.is_running(), default))

    def _infos(self) -> list[dict[str, Any]]:
        """Return the metadata of each camera that labels need, keyed as in Micro-Manager's `image_infos`."""
        size = self._core.getPixelSizeUm()
        cameras: Sequence[str] = self._images.cameras or [""]
        several = {"num_camera_adapter_channels": len(cameras)} if len(cameras) > 1 else {}
        return [{"camera_label": camera, "pixel_size_um": size, **several} for camera in cameras]

    def _look(self) -> None:
        """Submit the newest image of each camera, unless it was submitted before."""
        for image in self._images.search():
            if self.status.submitted == self._most:
                return
            self._count(image)
            index = {"image": image.number}
            if len(cameras := self._images.cameras) > 1:
                index[CAMERAS] = cameras.index(image.stream.camera)
            # Not copied: the core returns a new array for each call.
            self._live.submit(image.pixels, index, {"camera_metadata": image.metadata}, copy=False, stream=image.stream)

    def _count(self, image: "CameraImage") -> None:
        camera, cameras = image.stream.camera, self.status.cameras
        before = cameras.get(camera, FeedCounts())
        counts = FeedCounts(before.submitted + 1, before.skipped + image.skipped)
        self.status = replace(self.status, cameras={**cameras, camera: counts})

    def _finish(self) -> None:
        if self._core.isBufferOverflowed():
            self.status = replace(self.status, overflows=self.status.overflows + 1)
            log.warning("the camera stopped because the core's buffer was full: enlarge it, or acquire continuously")
        if not self._core.mda.is_running():  # else the current sequence is that of the acquisition
            self._live.sequenceFinished()

    def _ask(self, question: Callable[[], Answer], default: Answer) -> Answer:
        """Return the result of a call to the core; if it raises, log and count the error, and return `default`."""
        try:
            return question()
        except Exception as error:  # device adapters raise anything; the host program must not see it
            message = one_line(error, kind=True)
            if message != self.status.last_error:
                log.exception("the core raised in live mode")
            self.status = replace(self.status, errors=self.status.errors + 1, last_error=message)
            return default


@dataclass(frozen=True)
class CameraImage:
    """An image in the core's buffer.

    Attributes
    ----------
    stream
        Its camera.
    number
        The camera's image number, from 0; None if the camera gives none.
    received
        When the core received it, as text; None if unknown.
    pixels
        (H, W), or (H, W, 3) of a colour camera; owned by this image.
    metadata
        The core's metadata of the image.
    skipped
        Number of images of this camera between the last one that was found and this one.
    """

    stream: StreamKey
    number: int | None
    received: str | None
    pixels: Any = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)
    skipped: int = 0

    def is_same(self, other: "CameraImage | None") -> bool:
        """Whether both are one image; images without number and time are all different."""
        mine = (self.stream, self.number, self.received)
        return other is not None and mine[1:] != (None, None) and mine == (other.stream, other.number, other.received)


class NewestImages:
    """Finds the newest image of each of several cameras in the core's buffer, each image once; removes none.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    cameras
        Device labels; empty: any camera.
    channels
        Number of channels that one of these cameras has.

    Attributes
    ----------
    cameras
        Those labels.
    """

    def __init__(self, core: Any, cameras: Sequence[str] = (), channels: int = 1) -> None:
        self.cameras = tuple(cameras)
        self._core, self._streams = core, max(1, len(cameras), channels)
        self._top: CameraImage | None = None  # the newest image at the last search, of any camera
        self._found: dict[StreamKey, CameraImage] = {}  # the last image of each stream, without pixels

    def search(self) -> list[CameraImage]:
        """Return the newest images that were not returned before, at most one of each camera, in order of arrival."""
        newest: dict[StreamKey, CameraImage] = {}
        top = None
        for back in range(SEARCHED):
            image = self._read(back)
            if image is None or image.is_same(self._top):
                break  # all older images were there at the last search
            top = top or image
            # The buffer moves while it is searched: an image can be read twice.
            if image.stream.camera in (self.cameras or (image.stream.camera,)):
                newest.setdefault(image.stream, image)
            if len(newest) == self._streams:
                break
        self._top = self._top if top is None else replace(top, pixels=None)
        return [
            self._noted(image)
            for image in reversed(newest.values())
            if not image.is_same(self._found.get(image.stream))
        ]

    def _read(self, back: int) -> CameraImage | None:
        """Return the image before the `back` newest ones; None if there is none."""
        core = self._core
        try:
            pixels, found = core.getNBeforeLastImageAndMD(back) if back else core.getLastImageAndMD()
        except IndexError:  # no image yet, or another program removed it
            return None
        tags = dict(found)
        number = tags.get(IMAGE_NUMBER, "")
        return CameraImage(
            self._stream(tags), int(number) if number.isdigit() else None, tags.get(RECEIVED), pixels, tags
        )

    def _stream(self, tags: Mapping[str, str]) -> StreamKey:
        only = self.cameras[0] if len(self.cameras) == 1 else ""
        camera = tags.get(CAMERA) or only
        channel = next((value for name, value in tags.items() if name.endswith(CHANNEL)), "")
        return StreamKey(camera, "" if channel == camera else channel)

    def _noted(self, image: CameraImage) -> CameraImage:
        """Return an image with the number of those skipped before it, and note it as found."""
        before = self._found.get(image.stream)
        self._found[image.stream] = replace(image, pixels=None)
        if before is None or before.number is None or image.number is None:
            return image
        # A lower number: the camera was restarted between two searches.
        return replace(image, skipped=max(0, image.number - before.number - 1))


def newest_images(core: Any, camera: str | None) -> NewestImages:
    """Return a search for the images that a camera delivers: its own, or those of the cameras that it combines.

    Parameters
    ----------
    core
        A `CMMCorePlus`.
    camera
        Device label; None for the core's camera.
    """
    channels = core.getNumberOfCameraChannels() if camera in (None, core.getCameraDevice()) else 1
    camera = camera or core.getCameraDevice()
    loaded = cameras_of(core)
    names = [name for name in core.getDevicePropertyNames(camera) if name.startswith(PHYSICAL)]
    combined = [core.getProperty(camera, name) for name in names]
    cameras = [label for label in dict.fromkeys(combined) if label in loaded] or [camera]
    return NewestImages(core, cameras, channels)


def cameras_of(core: Any) -> list[str]:
    """Return the labels of all cameras of a core."""
    from pymmcore_plus import DeviceType

    return [str(label) for label in core.getLoadedDevicesOfType(DeviceType.CameraDevice)]


def require_camera(core: Any, camera: str) -> None:
    """Raise OptionError unless a core has a camera with a device label."""
    cameras = cameras_of(core)
    if camera not in cameras:
        known = f"use {' or '.join(cameras)}" if cameras else "load a configuration with a camera first"
        raise OptionError(f"no camera has the label {shown(camera)}: {known}")


def _end(poller: Poller, thread: threading.Thread, results: threading.Thread) -> None:
    """Stop a poller and join its thread, unless called on it, or on the thread of results, for which it may wait."""
    poller.end()
    if threading.current_thread() not in (thread, results):
        thread.join()

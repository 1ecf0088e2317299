"""Frames that lie on the GPU, and labels that stay there: bit for bit what the host's way gives."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from unetrt.benchmarks.networks import write_model  # noqa: E402
from unetrt.export.exporter import Options  # noqa: E402
from unetrt.runtime.errors import FrameError, OptionError  # noqa: E402
from unetrt.runtime.pixels.normalisation import Normalisation  # noqa: E402
from unetrt.runtime.segment.segmenter import Segmenter  # noqa: E402

pytestmark = pytest.mark.gpu

SIZE = (101, 163)
DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64", "bool")
# Cut in other ways: every other pixel, mirrored, transposed, a window that does not begin at the memory's start.
VIEWS = {
    "whole": lambda frame: frame,
    "every other": lambda frame: frame[::2, ::3],
    "transposed": lambda frame: frame.T,
    "a window": lambda frame: frame[7:80, 13:99],
    "smaller than the halo": lambda frame: frame[:9, :5],
    "one pixel": lambda frame: frame[:1, :1],
}


class DlpackOnly:
    """A producer with DLPack only, as some libraries have."""

    def __init__(self, tensor):
        self.tensor, self.shape = tensor, tuple(tensor.shape)

    def __dlpack__(self, **arguments):
        return self.tensor.__dlpack__(**arguments)

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()


class InterfaceOnly:
    """A producer with the CUDA Array Interface only."""

    def __init__(self, tensor):
        self.shape, self.__cuda_array_interface__ = tuple(tensor.shape), tensor.__cuda_array_interface__
        self.tensor = tensor


@pytest.fixture(scope="module")
def segmenter(engine, plain):
    with Segmenter(plain, backend=engine, lanes=3) as opened:
        yield opened


def as_labels(tensor):
    assert tensor.is_cuda
    return tensor.cpu().numpy()


def empty(shape):
    return torch.full(shape, 77, dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(segmenter, frames, dtype):
    frame = frames(1, SIZE)[0]
    host = frame > frame.mean() if dtype == "bool" else (frame % 120).astype(dtype)
    expected = segmenter.segment(host).labels
    there = torch.from_numpy(host).cuda()
    labels = segmenter.segment(there).labels
    assert isinstance(labels, np.ndarray)
    np.testing.assert_array_equal(labels, expected)
    out = empty(SIZE)
    result = segmenter.segment(there, out=out)
    assert result.labels is out
    np.testing.assert_array_equal(as_labels(out), expected)


@pytest.mark.parametrize("view", VIEWS)
def test_views(segmenter, frames, view):
    frame = frames(1, SIZE)[0]
    expected = segmenter.segment(np.ascontiguousarray(VIEWS[view](frame))).labels
    there = VIEWS[view](torch.from_numpy(frame.copy()).cuda())
    np.testing.assert_array_equal(segmenter.segment(there).labels, expected)
    out = empty((*expected.shape, 2))[..., 1]
    segmenter.segment(there, out=out)
    np.testing.assert_array_equal(as_labels(out), expected)


@pytest.mark.parametrize("producer", [DlpackOnly, InterfaceOnly])
def test_producers_that_speak_one_protocol(segmenter, frames, producer):
    frame = frames(1, SIZE)[0]
    expected = segmenter.segment(frame).labels
    there = producer(torch.from_numpy(frame.astype(np.float32)).cuda())
    torch.cuda.synchronize()  # the interface names no stream before its version 3
    np.testing.assert_array_equal(segmenter.segment(there).labels, expected)


def test_stacks(segmenter, frames):
    stack = frames(5, SIZE)
    there = torch.from_numpy(stack.copy()).cuda()
    expected = segmenter.segment(stack).labels
    np.testing.assert_array_equal(segmenter.segment(there).labels, expected)
    out = empty(stack.shape)
    segmenter.segment(there, out=out)
    np.testing.assert_array_equal(as_labels(out), expected)


def test_frames_of_the_host_with_labels_on_the_gpu(segmenter, frames):
    stack, out = frames(3, SIZE), empty((3, *SIZE))
    segmenter.segment(stack, out=out)
    np.testing.assert_array_equal(as_labels(out), segmenter.segment(stack).labels)


def test_probabilities_are_for_the_host(segmenter, frames):
    there = torch.from_numpy(frames(1, SIZE)[0].copy()).cuda()
    with pytest.raises(OptionError, match=r"give tensor\.cpu\(\)"):
        segmenter.segment(there, probabilities=True)


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("head", ["labels", "logits"])
def test_every_kind_of_model(engine, exported, frames, head, dtype, batch):
    stack = frames(3, SIZE, "uint8" if dtype == "uint8" else "uint16")
    model = exported(Options((60, 76), "fp16", head, batch, dtype))
    with Segmenter(model, backend=engine) as segmenter:
        expected = segmenter.segment(stack).labels
        there = torch.from_numpy(stack.copy()).cuda()
        np.testing.assert_array_equal(segmenter.segment(there).labels, expected)
        out = empty(stack.shape)
        segmenter.segment(there, out=out)
        np.testing.assert_array_equal(as_labels(out), expected)


@pytest.mark.parametrize("mode", ["percentile", "zscore"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_what_is_measured_on_each_frame(engine, settled_checkpoint, frames, tmp_path, mode, dtype):
    model = tmp_path / "model.onnx"
    write_model(replace(settled_checkpoint, normalisation=Normalisation(mode)), Options((60, 76)), model)
    stack = frames(3, SIZE, dtype)
    with Segmenter(model, backend=engine) as segmenter:
        expected = segmenter.segment(stack).labels
        labels = segmenter.segment(torch.from_numpy(stack.copy()).cuda()).labels
    np.testing.assert_array_equal(labels, expected)


def test_what_another_stream_still_computes_is_waited_for(segmenter, frames):
    """The frame is the end of a long queue of work: read early, it would be zeros."""
    frame = frames(1, SIZE)[0].astype(np.float32)
    expected = segmenter.segment(frame).labels
    source, stream = torch.from_numpy(frame).cuda(), torch.cuda.Stream()
    large = torch.ones(4096, 4096, device="cuda")
    torch.cuda.synchronize()
    for _ in range(5):
        with torch.cuda.stream(stream):
            there = torch.zeros(SIZE, device="cuda")
            for _ in range(40):
                large = large @ large * 0
            there += source + large[0, 0]
            labels = segmenter.segment(there).labels
        np.testing.assert_array_equal(labels, expected)


def test_labels_are_there_when_the_call_returns(segmenter, frames):
    frame = frames(1, SIZE)[0]
    expected = segmenter.segment(frame).labels
    there, out = torch.from_numpy(frame.copy()).cuda(), empty(SIZE)
    for _ in range(20):
        out.fill_(77)
        segmenter.segment(there, out=out)
        copied = out.clone()  # on torch's stream, at once
        np.testing.assert_array_equal(as_labels(copied), expected)


def test_torch_may_use_its_memory_again_at_once(segmenter, frames):
    frame = frames(1, SIZE)[0]
    expected = segmenter.segment(frame).labels
    for _ in range(20):
        there = torch.from_numpy(frame.copy()).cuda()
        labels = segmenter.segment(there).labels
        del there
        torch.full(SIZE, 9, dtype=torch.uint16, device="cuda")  # where the frame was
        np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.zeros(SIZE, device="cuda", dtype=torch.bfloat16), "bfloat16|float32"),
        (lambda: torch.zeros(SIZE, device="cuda", dtype=torch.complex64), "complex|float32"),
        (lambda: torch.zeros(SIZE, device="cuda").requires_grad_(), "detach"),
        (lambda: torch.full(SIZE, torch.nan, device="cuda"), f"{SIZE[0] * SIZE[1]} pixels are NaN or infinite"),
    ],
)
def test_what_is_no_frame_is_refused(segmenter, make, message):
    with pytest.raises(FrameError, match=message):
        segmenter.segment(make())


def test_an_out_that_does_not_fit_is_refused(segmenter, frames):
    frame = torch.from_numpy(frames(1, SIZE)[0].copy()).cuda()
    for out in (empty((50, 50)), torch.empty(SIZE, dtype=torch.int32, device="cuda")):
        with pytest.raises(FrameError, match="give uint8"):
            segmenter.segment(frame, out=out)

"""Every kind of file is exported, verified, run and built."""

from dataclasses import replace

import onnx
import pytest

from tests import requirements
from tests.export.variants import ALL, FEW, PAIRWISE, REST, name, pairs, singles
from unetrt.export.exporter import export
from unetrt.export.gate import DEFAULTS
from unetrt.runtime.engines.build import build
from unetrt.runtime.engines.engine_file import BuildOptions, facts_of
from unetrt.runtime.engines.flavours import FLAVOURS
from unetrt.runtime.errors import BackendUnavailableError
from unetrt.runtime.machine import Machine
from unetrt.runtime.model.onnx_file import read_spec
from unetrt.runtime.segment.segmenter import Segmenter
from unetrt.runtime.sessions.retile import retile
from unetrt.trainer.torch_session import TorchSession

LOWER = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "INT8"}


@pytest.mark.parametrize(
    "options",
    [pytest.param(options, marks=[] if options in FEW else pytest.mark.slow) for options in PAIRWISE],
    ids=name,
)
def test_every_pair_of_choices_is_exported_verified_and_built(steady, tmp_path, options):
    prove(steady(options.input), tmp_path, options)


@pytest.mark.slow
@pytest.mark.parametrize("options", REST, ids=name)
def test_every_other_variant_too(steady, tmp_path, options):
    prove(steady(options.input), tmp_path, options)


def prove(checkpoint, folder, options):
    """Export, hold the file against its spec and its network, build a real engine of it."""
    path = folder / "model.onnx"
    parity = export(checkpoint, path, options)
    assert list(folder.iterdir()) == [path]
    assert not parity.misses(DEFAULTS[options.precision])
    spec, model = read_spec(path), onnx.load(path)
    for choice in ("tile", "precision", "head", "batch"):
        assert getattr(spec, choice) == getattr(options, choice)
    assert spec.input_dtype == options.input
    assert spec.weights_sha256 == checkpoint.weights_sha256()
    types = {onnx.TensorProto.DataType.Name(tensor.data_type) for tensor in model.graph.initializer}
    assert types & set(LOWER.values()) == {LOWER.get(options.precision)} - {None}
    segment(path, spec, checkpoint)
    has_the_same_labels_with_another_tile(path, spec, checkpoint)
    pytest.importorskip("tensorrt_rtx", reason=requirements.RTX)
    facts = facts_of(path, spec, FLAVOURS[1], Machine(os="Linux x86_64"), BuildOptions())
    assert len(build(path, facts)) > 100_000


def has_the_same_labels_with_another_tile(path, spec, checkpoint):
    other = path.with_name("retiled.onnx")
    retile(path, other, (92, 60), spec.batch)
    onnx.checker.check_model(onnx.load(other), full_check=True)
    assert read_spec(other) == replace(spec, tile=(92, 60))
    with Segmenter(path) as expected, Segmenter(other) as given:
        labels = [segmenter.segment(checkpoint.frames[0][0]).labels for segmenter in (expected, given)]
    assert (labels[0] != labels[1]).mean() <= DEFAULTS[spec.precision].flips


def segment(path, spec, checkpoint):
    """Use the file as its users do: with OpenVINO, and with ONNX Runtime where that has the type."""
    frame = checkpoint.frames[0][0]
    engines = ["openvino", "onnxruntime"]
    if spec.precision == "bf16":
        with pytest.raises(BackendUnavailableError, match="has no bfloat16 convolutions.*OpenVINO.*unetrt build"):
            Segmenter(path, backend=engines.pop())
    eager = TorchSession(checkpoint.network(), replace(spec, precision="fp32", head="logits", input_dtype="float32"))
    with Segmenter(eager) as network:
        expected = network.segment(frame).labels
    for engine in engines:
        with Segmenter(path, backend=engine) as exported:
            changed = exported.segment(frame).labels != expected
        assert changed.mean() <= DEFAULTS[spec.precision].flips, engine


def test_the_pairs_are_all_there():
    assert set().union(*map(pairs, PAIRWISE)) == set().union(*map(pairs, ALL))
    assert set().union(*map(singles, FEW)) == set().union(*map(singles, ALL))
    assert len(PAIRWISE) + len(REST) == len(ALL) == 144

import json
import pickle
import random
import shutil

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from unetrt.runtime.errors import ModelFileError
from unetrt.runtime.model.spec import Decoding
from unetrt.trainer import checkpoint


def test_saved_and_read_again(tiny_checkpoint, tmp_path):
    tiny_checkpoint.save(tmp_path / "a.safetensors")
    again = checkpoint.load(tmp_path / "a.safetensors")
    assert again.weights_sha256() == tiny_checkpoint.weights_sha256()
    assert (again.shape, again.class_names, again.normalisation, again.decoding, again.frame_sizes) == (
        tiny_checkpoint.shape,
        tiny_checkpoint.class_names,
        tiny_checkpoint.normalisation,
        tiny_checkpoint.decoding,
        tiny_checkpoint.frame_sizes,
    )
    for ours, theirs in zip(again.frames, tiny_checkpoint.frames, strict=True):
        assert ours.dtype == np.uint16
        np.testing.assert_array_equal(ours, theirs)


def test_a_flipped_bit_is_refused_or_harmless(tiny_run, tmp_path):
    for name in (checkpoint.BEST, checkpoint.LAST):
        content, rng, refused = (tiny_run / name).read_bytes(), random.Random(0), 0
        header = 8 + int.from_bytes(content[:8], "little")
        expected, path = _contents(tiny_run / name), tmp_path / name
        for end in [len(content)] * 40 + [header] * 160:
            bit = rng.randrange(8 * end)
            changed = bytearray(content)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            error = _refusal(path)
            refused += error is not None
            assert "\n" not in error if error else _contents(path) == expected, bit
        assert refused > 150


def _refusal(path):
    try:
        checkpoint.load(path)
    except ModelFileError as error:
        return str(error)
    return None


def _contents(path):
    """Everything in a checkpoint, as bytes and text."""
    loaded = vars(checkpoint.load(path)).copy()
    arrays = {name: loaded.pop(name) for name in ("weights", "state")}
    arrays["frames"] = dict(enumerate(loaded.pop("frames")))
    return repr(loaded), {
        (part, name): (array.shape, array.dtype, array.tobytes())
        for part, found in arrays.items()
        for name, array in found.items()
    }


def test_a_checkpoint_of_an_earlier_version_states_no_digest(tiny_run, tmp_path):
    stored = {"unetrt": json.dumps(header_of(tiny_run / "best.safetensors"))}
    save_file(load_file(tiny_run / "best.safetensors"), tmp_path / "a.safetensors", stored)
    assert _contents(tmp_path / "a.safetensors") == _contents(tiny_run / "best.safetensors")
    wrong = stored | {"unetrt_sha256": "0" * 64}
    save_file(load_file(tiny_run / "best.safetensors"), tmp_path / "a.safetensors", wrong)
    with pytest.raises(ModelFileError, match="a.safetensors is damaged: its contents do not have the SHA-256 that it"):
        checkpoint.load(tmp_path / "a.safetensors")


def test_a_folder_means_its_best(tiny_run, tiny_checkpoint):
    assert checkpoint.load(tiny_run).weights_sha256() == tiny_checkpoint.weights_sha256()
    assert not checkpoint.load(tiny_run).network().training


def test_the_hash_follows_each_weight(tiny_checkpoint):
    before = tiny_checkpoint.weights_sha256()
    name, array = next(iter(tiny_checkpoint.weights.items()))
    changed = dict(tiny_checkpoint.weights) | {name: array + np.float32(1e-6)}
    other = checkpoint.Checkpoint(**{**vars(tiny_checkpoint), "weights": changed})
    assert other.weights_sha256() != before


def test_a_checkpoint_of_schema_2_decodes_as_it_did(tiny_checkpoint, tmp_path):
    """Its header had the width of the separation border, and no decoding."""
    tiny_checkpoint.save(tmp_path / "new.safetensors")
    with safe_open(tmp_path / "new.safetensors", framework="numpy") as file:
        header = json.loads(file.metadata()["unetrt"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    del header["decoding"]
    header |= {"schema": 2, "separation_border": 3}
    save_file(tensors, tmp_path / "old.safetensors", {"unetrt": json.dumps(header)})
    assert checkpoint.load(tmp_path / "old.safetensors").decoding == Decoding("components", 3)


def _malicious(path):
    class Payload:
        def __reduce__(self):
            return (shutil.rmtree, (str(path.parent / "precious"),))

    path.write_bytes(pickle.dumps(Payload()))


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b""), "not a safetensors checkpoint"),
        (lambda path: path.write_bytes(b"x" * 200), "not a safetensors checkpoint"),
        (lambda path: torch.save({"a": torch.ones(3)}, path), "not a safetensors checkpoint"),
        (_malicious, "not a safetensors checkpoint"),
        (lambda path: save_file({"a": np.ones(3)}, path), "not written by `unetrt train`"),
        (lambda path: save_file({"a": np.ones(3)}, path, {"unetrt": "{"}), "header of .* is not a JSON object"),
        (lambda path: save_file({"a": np.ones(3)}, path, {"unetrt": "{}"}), "header of .* missing .* field `schema`"),
        (lambda path: save_file({"a": np.ones(3)}, path, {"unetrt": '{"schema": 9}'}), "has schema 9"),
        (lambda path: None, "does not exist: `unetrt train` writes"),
    ],
)
def test_what_is_no_checkpoint(tmp_path, write, message):
    (tmp_path / "precious").mkdir()
    write(tmp_path / "a.safetensors")
    with pytest.raises(ModelFileError, match=message):
        checkpoint.load(tmp_path / "a.safetensors")
    assert (tmp_path / "precious").exists()


def test_a_run_that_has_not_been_validated_yet_says_how_to_go_on(tiny_run, tmp_path):
    shutil.copy(tiny_run / "last.safetensors", tmp_path)
    with pytest.raises(ModelFileError, match="no best.safetensors yet.*--resume.*or give .*last.safetensors"):
        checkpoint.load(tmp_path)
    assert checkpoint.load(tmp_path / "last.safetensors").progress["budget"] == {"minutes": None, "steps": 12}


def header_of(path):
    with safe_open(path, "numpy") as file:
        return json.loads(file.metadata()["unetrt"])


def test_a_checkpoint_without_a_weight_is_refused(tiny_run, tmp_path):
    tensors = load_file(tiny_run / "best.safetensors")
    tensors.pop("weights.classify.bias")
    save_file(tensors, tmp_path / "a.safetensors", {"unetrt": json.dumps(header_of(tiny_run / "best.safetensors"))})
    with pytest.raises(ModelFileError, match="do not fit together"):
        checkpoint.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"annotation": "cells"}, "annotation: invalid enum value 'cells'"),
        ({"normalisation": {"mode": "percentile", "low": 99, "high": 1}}, "normalisation: percentiles 99.0 and 1.0"),
        ({"frame_sizes": [[64, 64]]}, r"frame_sizes\[0\]: expected `array` of length 3"),
        ({"network": {"depth": "2", "base": 4, "channels": 1}}, "network.depth: expected `int`, got `str`"),
        ({"network": {"depth": 0, "base": 4, "channels": 1}}, "do not fit together: .*depth 0: use 1 to 16"),
        (
            {"network": {"depth": 10**9, "base": 4, "channels": 1}},
            "do not fit together: .*depth 1000000000: use 1 to 16",
        ),
        (
            {"network": {"depth": 2, "base": 10**18, "channels": 1}},
            "do not fit together: .*base 1000000000000000000: use 1 to 65536",
        ),
    ],
)
def test_a_header_is_validated(tiny_run, tmp_path, changes, message):
    header = header_of(tiny_run / "best.safetensors") | changes
    tensors = load_file(tiny_run / "best.safetensors")
    save_file(tensors, tmp_path / "a.safetensors", {"unetrt": json.dumps(header)})
    with pytest.raises(ModelFileError, match=message):
        checkpoint.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "network", [{"depth": 2, "base": 16384}, {"depth": 16, "base": 4}, {"depth": 16, "base": 65536}]
)
def test_a_network_far_larger_than_its_weights_takes_no_memory(tiny_run, tmp_path, network):
    """Its layers would take 15 GB to many exabytes."""
    resource = pytest.importorskip("resource")
    header = header_of(tiny_run / "best.safetensors") | {"network": network | {"channels": 1}}
    path = tmp_path / "a.safetensors"
    save_file(load_file(tiny_run / "best.safetensors"), path, {"unetrt": json.dumps(header)})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError, match="do not fit together"):
        checkpoint.load(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000  # kB


def test_weights_of_another_type_become_float32(tiny_run, tiny_checkpoint, tmp_path):
    tensors = {
        name: array.astype(np.float16) if name.startswith("weights.") else array
        for name, array in load_file(tiny_run / "best.safetensors").items()
    }
    save_file(tensors, tmp_path / "a.safetensors", {"unetrt": json.dumps(header_of(tiny_run / "best.safetensors"))})
    net = checkpoint.load(tmp_path / "a.safetensors").network()
    assert {weight.dtype for weight in net.parameters()} == {torch.float32}
    assert all(weight.requires_grad and not weight.is_meta for weight in net.parameters())


def test_training_a_network_does_not_change_its_checkpoint(tiny_checkpoint):
    before = tiny_checkpoint.weights_sha256()
    with torch.no_grad():
        for weight in tiny_checkpoint.network().parameters():
            weight.add_(1)
    assert tiny_checkpoint.weights_sha256() == before


def test_keys_of_later_versions_are_ignored(tiny_run, tiny_checkpoint, tmp_path):
    header = header_of(tiny_run / "best.safetensors") | {"later": 1}
    tensors = load_file(tiny_run / "best.safetensors")
    save_file(tensors, tmp_path / "a.safetensors", {"unetrt": json.dumps(header)})
    assert checkpoint.load(tmp_path / "a.safetensors").weights_sha256() == tiny_checkpoint.weights_sha256()

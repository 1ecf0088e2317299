"""Checkpoints: a safetensors file with weights as tensors and everything else as JSON in its header.

Nothing is unpickled. `best.safetensors` holds a trained network and what its exporter needs; `last.safetensors` also
holds the state from which the training resumes. The header states the SHA-256 of the JSON and of all tensors; files of
earlier versions state none, and are read as they are.

>>> load("run").network()
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from unetrt._version import __version__
from unetrt.runtime.errors import ModelFileError, OutputError, UnetrtError, one_line
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import Annotation, Decoding
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.runtime.records import parse, validated
from unetrt.trainer.unet import UNet

# Keys of the safetensors header: the JSON, and the digest.
KEY, DIGEST = "unetrt", "unetrt_sha256"
# Schema 2: a ReLU follows each up-convolution. Schema 3: `decoding`, of which schema 2 had only the reach, as
# `separation_border`.
SCHEMA = 3
# Prefixes of tensor names.
WEIGHTS, FRAMES, STATE = "weights.", "frames.", "state."
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network, what its exporter needs, and the state of its training.

    Attributes
    ----------
    shape
        Shape of the network.
    weights
        float32 arrays, by the names of the network's state.
    class_names
        Background first.
    normalisation
        Normalisation of grey values to network input.
    annotation
        `instances` or `classes`.
    decoding
        How classes become objects.
    frames
        Raw frames (C, H, W) held back from training, on which exports are verified.
    frame_sizes
        (height, width, number) of the training frames, for which tiles are planned.
    training
        Summary of the training, as JSON: steps, seconds, seed, images, validation scores and recipe.
    state
        Arrays that a training needs to resume, by name; empty in a best checkpoint.
    progress
        JSON that a training needs to resume (`unetrt.trainer.run.ResumeState`); empty in a best checkpoint.
    """

    shape: UNetShape
    weights: Mapping[str, NDArray[np.float32]]
    class_names: tuple[str, ...]
    normalisation: Normalisation
    annotation: Annotation
    decoding: Decoding = field(default_factory=Decoding)
    frames: tuple[NDArray[Any], ...] = ()
    frame_sizes: tuple[tuple[int, int, int], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> UNet:
        """Return the network with a copy of these weights, in evaluation mode."""
        with torch.device("meta"):  # shapes without memory: a header may state a network far larger than its weights
            net = UNet(self.shape)
        weights = {name: torch.from_numpy(np.array(array, np.float32)) for name, array in self.weights.items()}
        net.load_state_dict(weights, assign=True)
        return net.eval()

    def weights_sha256(self) -> str:
        """Return the SHA-256 of names, shapes and values of the weights, in hexadecimal."""
        return _sha256(self.weights)

    def save(self, path: str | Path) -> None:
        """Write the checkpoint atomically: after a crash or a power cut `path` holds the old file or the new one.

        Raises
        ------
        OutputError
            The folder cannot be written to, or the disk is full.
        """
        header = {
            "schema": SCHEMA,
            "written_by": __version__,
            "network": {"depth": self.shape.depth, "base": self.shape.base, "channels": self.shape.channels},
            "class_names": self.class_names,
            "normalisation": self.normalisation.to_dict(),
            "annotation": self.annotation,
            "decoding": asdict(self.decoding),
            "frame_sizes": self.frame_sizes,
            "training": dict(self.training),
            "progress": dict(self.progress),
        }
        tensors = {WEIGHTS + name: np.ascontiguousarray(array) for name, array in self.weights.items()}
        tensors |= {f"{FRAMES}{index:03d}": np.ascontiguousarray(frame) for index, frame in enumerate(self.frames)}
        tensors |= {STATE + name: np.require(array, requirements="C") for name, array in self.state.items()}
        text = json.dumps(header)
        with whole_file(path, durable=True) as temporary:
            try:
                save_file(tensors, temporary, metadata={KEY: text, DIGEST: _sha256(tensors, text)})
            except SafetensorError as error:
                raise OutputError(f"cannot write {path}: {one_line(error)}") from error


def _sha256(arrays: Mapping[str, NDArray[Any]], text: str = "") -> str:
    """Return the SHA-256 of a text, and of names, shapes, dtypes and values of arrays, in hexadecimal."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.shape} {array.dtype}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def state_of(net: UNet) -> dict[str, NDArray[np.float32]]:
    """Return a copy of a network's weights as float32 arrays by name."""
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in net.state_dict().items()}


def untrained_checkpoint(shape: UNetShape, seed: int = 0) -> Checkpoint:
    """Return a network with random weights: as fast as a trained one."""
    net = UNet(shape).initialise(torch.Generator().manual_seed(seed))
    names = ("background", *(f"class {number}" for number in range(1, shape.classes)))
    return Checkpoint(shape, state_of(net), names, Normalisation(), "classes")


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint.

    Parameters
    ----------
    path
        A file, or the folder of a training, whose `best.safetensors` is read.

    Raises
    ------
    ModelFileError
        The file is missing, damaged, not a safetensors file, not written by `unetrt train`, or inconsistent.
    """
    path = Path(path)
    if path.is_dir():
        path = _best_in(path)
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist: `unetrt train` writes checkpoints")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a safetensors checkpoint: {error}; `unetrt train` writes them") from error
    stored = metadata.get(KEY)
    if stored is None:
        raise ModelFileError(f"{path} was not written by `unetrt train`: its header does not describe the network")
    if metadata.get(DIGEST, "") not in ("", _sha256(tensors, stored)):
        raise ModelFileError(
            f"{path} is damaged: its contents do not have the SHA-256 that it states; copy it again, or retrain"
        )
    return _assembled(path, _header(path, stored), tensors)


def _best_in(folder: Path) -> Path:
    """Return the path of the best checkpoint of a training; raises ModelFileError before the first validation."""
    if (folder / LAST).is_file() and not (folder / BEST).is_file():
        raise ModelFileError(
            f"{folder} has no {BEST} yet, as its training stopped before a validation: continue with "
            f"`unetrt train --resume {folder}`, or give {folder / LAST}"
        )
    return folder / BEST


# A number or size of frames.
Positive = Annotated[int, Meta(ge=1, le=1 << 24)]


@dataclass(frozen=True)
class _Network:
    depth: int
    base: int
    channels: int


@dataclass(frozen=True)
class _Header:
    """The JSON in a checkpoint's header, under `KEY`."""

    schema: int
    network: _Network
    class_names: tuple[str, ...]
    normalisation: Normalisation
    annotation: Annotation
    decoding: Decoding
    frame_sizes: tuple[tuple[Positive, Positive, Positive], ...]
    training: dict[str, Any]
    progress: dict[str, Any] = field(default_factory=dict)


def _header(path: Path, stored: str) -> _Header:
    name = f"the header of {path}"
    header = parse(stored, name)
    if header.get("schema") == 2:
        header["decoding"] = {"method": "components", "reach": header.get("separation_border", 0)}
    elif header.get("schema", SCHEMA) != SCHEMA:
        raise ModelFileError(
            f"{path} has schema {header['schema']}, this version reads 2 and {SCHEMA}: retrain, or use the version of "
            f"unetrt that wrote it ({header.get('written_by', 'unknown')})"
        )
    return validated(header, _Header, name, unknown=True)


def _assembled(path: Path, header: _Header, tensors: Mapping[str, NDArray[Any]]) -> Checkpoint:
    """Return the checkpoint made of header and tensors; raises ModelFileError where they do not make a network."""
    try:
        checkpoint = Checkpoint(
            shape=UNetShape(**asdict(header.network), classes=len(header.class_names)),
            weights=_part(tensors, WEIGHTS),
            class_names=header.class_names,
            normalisation=header.normalisation,
            annotation=header.annotation,
            decoding=header.decoding,
            frames=tuple(tensors[name] for name in sorted(tensors) if name.startswith(FRAMES)),
            frame_sizes=header.frame_sizes,
            training=header.training,
            state=_part(tensors, STATE),
            progress=header.progress,
        )
        checkpoint.network()
    except (TypeError, RuntimeError, UnetrtError) as error:
        reason = one_line(error, first=True)
        raise ModelFileError(
            f"{path} is a checkpoint whose parts do not fit together: {reason}; retrain, or restore the file"
        ) from error
    return checkpoint


def _part(tensors: Mapping[str, NDArray[Any]], prefix: str) -> dict[str, NDArray[Any]]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}

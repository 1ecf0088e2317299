"""Checkpoints: one safetensors file, weights as tensors and all else as JSON in its header. Nothing is unpickled."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from unetrt._version import __version__
from unetrt.runtime.errors import ModelFileError, UnetrtError
from unetrt.runtime.files.atomic import whole_file
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.runtime.model.spec import Annotation
from unetrt.runtime.pixels.normalisation import Normalisation
from unetrt.trainer.unet import UNet

KEY = "unetrt"
# 2: a ReLU follows each up-convolution.
SCHEMA = 2
WEIGHTS, FRAMES, STATE = "weights.", "frames.", "state."
BEST, LAST = "best.safetensors", "last.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A trained network and what its exporter must know.

    Attributes
    ----------
    shape
        The network's numbers.
    weights
        The network's state: float32 arrays by name.
    class_names
        Background first.
    normalisation
        How grey values become network input.
    annotation
        `instances` or `classes`.
    separation_border
        Pixels of background that training cut between touching objects; 0 for class maps.
    frames
        Raw frames (C, H, W) held back from training, on which an export is verified.
    frame_sizes
        Height, width and number of the training frames: what a tile is planned for.
    training
        What is worth knowing of the training.
    state
        What a training needs to continue, besides the weights above: arrays by name; empty in a best checkpoint.
    progress
        The same, as JSON.
    """

    shape: UNetShape
    weights: Mapping[str, NDArray[np.float32]]
    class_names: tuple[str, ...]
    normalisation: Normalisation
    annotation: Annotation
    separation_border: int
    frames: tuple[NDArray[Any], ...] = ()
    frame_sizes: tuple[tuple[int, int, int], ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    state: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    progress: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> UNet:
        """Return the network with these weights, in evaluation mode."""
        net = UNet(self.shape)
        net.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()})
        return net.eval()

    def weights_sha256(self) -> str:
        """Return a hash over names, shapes and values of the weights, in hexadecimal."""
        digest = hashlib.sha256()
        for name in sorted(self.weights):
            array = np.ascontiguousarray(self.weights[name])
            digest.update(f"{name} {array.shape} {array.dtype}".encode())
            digest.update(array.tobytes())
        return digest.hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the checkpoint, whole or not at all."""
        about = {
            "schema": SCHEMA,
            "written_by": __version__,
            "network": {"depth": self.shape.depth, "base": self.shape.base, "channels": self.shape.channels},
            "class_names": self.class_names,
            "normalisation": self.normalisation.to_dict(),
            "annotation": self.annotation,
            "separation_border": self.separation_border,
            "frame_sizes": self.frame_sizes,
            "training": dict(self.training),
            "progress": dict(self.progress),
        }
        tensors = {WEIGHTS + name: np.ascontiguousarray(array) for name, array in self.weights.items()}
        tensors |= {f"{FRAMES}{index:03d}": np.ascontiguousarray(frame) for index, frame in enumerate(self.frames)}
        tensors |= {STATE + name: np.require(array, requirements="C") for name, array in self.state.items()}
        with whole_file(path, durable=True) as temporary:
            save_file(tensors, temporary, metadata={KEY: json.dumps(about)})


def state_of(net: UNet) -> dict[str, NDArray[np.float32]]:
    """Return a copy of a network's weights as float32 arrays by name."""
    return {name: tensor.detach().float().cpu().numpy().copy() for name, tensor in net.state_dict().items()}


def untrained_checkpoint(shape: UNetShape, seed: int = 0) -> Checkpoint:
    """Return a network with random weights: as fast as a trained one."""
    net = UNet(shape).initialise(torch.Generator().manual_seed(seed))
    names = ("background", *(f"class {number}" for number in range(1, shape.classes)))
    return Checkpoint(shape, state_of(net), names, Normalisation(), "classes", separation_border=0)


def load(path: str | Path) -> Checkpoint:
    """Read a checkpoint: a file, or a training's folder, whose `best.safetensors` is taken.

    Raises
    ------
    ModelFileError
        The file is missing, is no safetensors file, or was not written by `unetrt train`.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise ModelFileError(f"{path} does not exist: `unetrt train` writes checkpoints")
    try:
        with safe_open(path, framework="numpy") as file:
            stored = (file.metadata() or {}).get(KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a safetensors checkpoint: {error}; `unetrt train` writes them") from error
    if stored is None:
        raise ModelFileError(f"{path} was not written by `unetrt train`: its header does not say what network it holds")
    return _checkpoint(path, stored, tensors)


def _in_folder(folder: Path) -> Path:
    """Return the best checkpoint of a training's folder; raises ModelFileError where no validation has chosen one."""
    if (folder / LAST).is_file() and not (folder / BEST).is_file():
        raise ModelFileError(
            f"{folder} has no {BEST} yet, as its training stopped before a validation: continue with "
            f"`unetrt train --resume {folder}`, or give {folder / LAST}"
        )
    return folder / BEST


def _checkpoint(path: Path, stored: str, tensors: dict[str, NDArray[Any]]) -> Checkpoint:
    try:
        about = json.loads(stored)
        if about["schema"] != SCHEMA:
            raise ModelFileError(
                f"{path} has schema {about['schema']}, this version reads {SCHEMA}: train anew, or use the version of "
                f"unetrt that wrote it ({about.get('written_by', 'unknown')})"
            )
        names = tuple(about["class_names"])
        checkpoint = Checkpoint(
            shape=UNetShape(**about["network"], classes=len(names)),
            weights={name.removeprefix(WEIGHTS): array for name, array in tensors.items() if name.startswith(WEIGHTS)},
            class_names=names,
            normalisation=Normalisation.from_dict(about["normalisation"]),
            annotation=about["annotation"],
            separation_border=about["separation_border"],
            frames=tuple(tensors[name] for name in sorted(tensors) if name.startswith(FRAMES)),
            frame_sizes=tuple((height, width, often) for height, width, often in about["frame_sizes"]),
            training=about["training"],
            state={name.removeprefix(STATE): array for name, array in tensors.items() if name.startswith(STATE)},
            progress=about.get("progress", {}),
        )
        checkpoint.network()
    except ModelFileError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, UnetrtError) as error:
        reason = str(error).splitlines()[0]
        raise ModelFileError(f"{path} is a checkpoint whose parts do not fit together: {reason}") from error
    return checkpoint

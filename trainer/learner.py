"""One step of training: network, optimiser, number format and average of the weights, in one process or several.

`torchrun` starts several processes; each learns from its share of every batch, and gradients are averaged over all of
them (torch's DistributedDataParallel). A process alone is a team of one.
"""

import ctypes
import math
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, distributed, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from unetrt.runtime.errors import OptionError, TrainingError, TrainingStoppedError
from unetrt.runtime.files.atomic import cache_folder, private_folder
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.samples import DROPOUT, WEIGHTS, Batch, generator_for, seed_for
from unetrt.trainer.unet import UNet, weighted_cross_entropy

Tensors = list[Tensor] | tuple[Tensor, ...]

# The paper's momentum (section 3): many earlier samples determine each step.
MOMENTUM = 0.99
# Timeout of the processes' communication: one validates alone, on any number of images.
TIMEOUT = timedelta(hours=12)
# glibc's mallopt: parameters (malloc.h), and the bytes of freed memory at the end of the heap that a process keeps.
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
KEPT = 2**30
# torch's variable for the folder of compiled code.
FOLDER_OF_COMPILED = "TORCHINDUCTOR_CACHE_DIR"
# Names in `Learner.state`.
NET, AVERAGE, OPTIMISER, UPDATES, SCALE = "net.", "average.", "optimiser.", "updates", "scale"


@dataclass(frozen=True)
class Team:
    """The processes that train together, seen from this one.

    Attributes
    ----------
    rank, size
        Index of this process, from 0, and number of processes.
    device
        Device of this process.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process validates, saves and reports."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Return the indices of this process's tiles of a batch.

        Raises
        ------
        OptionError
            The batch does not divide evenly.
        """
        if batch % self.size:
            raise OptionError(
                f"a batch of {batch} does not divide among {self.size} processes: use --batch {self.size} or a multiple"
            )
        each = batch // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def distribute(self, net: nn.Module) -> nn.Module:
        """Return the network wrapped so that its gradients are averaged over all processes."""
        if self.size == 1:
            return net
        return DistributedDataParallel(net, device_ids=[self.device] if self.device.type == "cuda" else None)

    def sum(self, values: Tensor) -> Tensor:
        """Sum `values` over all processes, in place, and return them."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def from_leader(self, *values: float) -> list[float]:
        """Return the leader's values, in all processes."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(shared, 0)
        return shared.tolist()


@contextmanager
def team() -> Iterator[Team]:
    """Join the processes that torchrun started (its RANK, WORLD_SIZE and LOCAL_RANK), or form a team of one.

    CUDA devices communicate through NCCL, CPUs through gloo.

    Raises
    ------
    OptionError
        There are fewer GPUs than processes.
    """
    size, local = (int(os.environ.get(name, default)) for name, default in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise OptionError(
            f"process {local} has no GPU, there are {torch.cuda.device_count()}: "
            f"use torchrun --nproc-per-node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)  # for calls that use the current device
    if size == 1:
        yield Team(0, 1, device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=TIMEOUT)
    try:
        yield Team(distributed.get_rank(), size, device)
        distributed.barrier()
    except TrainingStoppedError:
        distributed.barrier()  # all processes stop after the same step
        raise
    finally:
        # After the barrier: the C++ runtime aborts a process that leaves while the leader still saves.
        distributed.destroy_process_group()


def is_leader() -> bool:
    """Return whether this process leads those that torchrun started; valid before and after they form a team."""
    return os.environ.get("RANK", "0") == "0"


def alone() -> Team:
    """Return a team of one, on the GPU if there is one."""
    return Team(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def keep_freed_memory() -> None:
    """Let this process keep freed memory, up to 1 GiB, for the next allocation; has an effect with glibc only.

    glibc returns large blocks to the system when they are freed. Every activation of every step is then a new mapping
    whose pages the system has to clear, which takes up to a third of a pass on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT)


def compile_privately(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """Return torch.compile of a function; the compiled code is kept in the user's cache, which only they can enter.

    By default torch loads it from a folder of a known name in the system's temporary folder, which another user may
    have prepared. A folder in `TORCHINDUCTOR_CACHE_DIR` is used as it is.

    Raises
    ------
    OutputError
        The cache is not usable.
    """
    if FOLDER_OF_COMPILED not in os.environ:
        os.environ[FOLDER_OF_COMPILED] = str(private_folder(cache_folder("inductor")))
    compiled: Callable[..., Any] = torch.compile(function, **options)
    return compiled


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 in hardware; emulated, it is slower than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported() and torch.cpu._is_avx512_bf16_supported())


def fastest_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where a device has it in hardware, otherwise float16 on GPUs and float32 on CPUs."""
    if has_fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if device.type == "cuda" else torch.float32


class Learner:
    """A network, its optimiser and its average.

    Parameters
    ----------
    shape
        Shape of the network.
    recipe
        Optimiser, number format and average.
    seed
        Seed of the initial weights and of drop-out.
    team
        The processes that train together.
    compiled
        Whether to compile the network with torch.compile.
    initial
        Initial weights, float32 arrays by their names in the network's state; those left out are drawn.
    """

    def __init__(
        self,
        shape: UNetShape,
        recipe: Recipe,
        seed: int,
        team: Team,
        compiled: bool = False,
        initial: Mapping[str, NDArray[np.float32]] | None = None,
    ) -> None:
        self._recipe, self._seed, self._team = recipe, seed, team
        net = UNet(shape, recipe.dropout).initialise(generator_for(seed, WEIGHTS))
        given = {name: torch.from_numpy(array) for name, array in (initial or {}).items()}
        net.load_state_dict(net.state_dict() | given)
        self.net: UNet = net.to(team.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.train()
        self._optimiser = _optimiser(self.net, recipe)
        self.dtype = fastest_dtype(team.device) if recipe.mixed else torch.float32
        # Gradients vanish in float16 alone, whose exponent has 5 bits.
        self._scaler = GradScaler(team.device.type, enabled=self.dtype == torch.float16)
        self._average = _average(self.net, recipe.average) if recipe.average else None
        forward: Callable[[Tensor], Tensor] = team.distribute(self.net)
        self._forward = compile_privately(forward) if compiled else forward

    @property
    def result(self) -> UNet:
        """The network to validate and to save: the average if there is one."""
        if self._average is None:
            return self.net
        assert isinstance(self._average.module, UNet)
        return self._average.module

    def step(self, batch: Batch, step: int, rate: float) -> float:
        """Learn from this process's share of a batch; return the loss of the whole batch.

        Raises
        ------
        TrainingError
            The loss is not finite; nothing has changed.
        """
        device = self._team.device
        if self._recipe.dropout:
            torch.manual_seed(seed_for(self._seed, DROPOUT, step, self._team.rank))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        tiles = batch.tiles.to(device, memory_format=torch.channels_last)
        classes, weights = batch.classes.to(device), batch.weights.to(device)
        with torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self._forward(tiles)
        loss = weighted_cross_entropy(logits, classes, weights, self._team.sum(weights.sum()))
        value = self._team.sum(loss.detach().clone()).item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step}, in {', '.join(batch.names)}: "
                f"lower the learning rate (--rate, now {rate:.2g}) or look at that image"
            )
        # DistributedDataParallel averages the processes' gradients; the batch's gradient is their sum.
        self._descend(loss * self._team.size)
        if self._average is not None:
            self._average.update_parameters(self.net)
        return value

    def _descend(self, loss: Tensor) -> None:
        """Compute the gradients of a loss and let the optimiser take one step."""
        self._optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(self._scaler.scale(loss))
        self._scaler.step(self._optimiser)
        self._scaler.update()

    def state(self) -> dict[str, Tensor]:
        """Return everything that `restore` needs, by name, on the CPU."""
        state = {NET + name: tensor for name, tensor in self.net.state_dict().items()}
        for index, values in self._optimiser.state_dict()["state"].items():
            state |= {f"{OPTIMISER}{index}.{name}": value for name, value in values.items() if value is not None}
        scaler = self._scaler.state_dict()
        state[SCALE] = torch.tensor([scaler.get("scale", 1.0), scaler.get("_growth_tracker", 0)], dtype=torch.float64)
        if self._average is not None:
            state |= {AVERAGE + name: tensor for name, tensor in self._average.module.state_dict().items()}
            state[UPDATES] = self._average.n_averaged
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Restore a state; raises KeyError or RuntimeError if it is of another network or recipe."""
        self.net.load_state_dict(_part(state, NET))
        if self._average is not None:
            self._average.module.load_state_dict(_part(state, AVERAGE))
            self._average.n_averaged.copy_(state[UPDATES])
        scale, tracker = state[SCALE].tolist()
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(self._scaler.state_dict() | {"scale": scale, "_growth_tracker": int(tracker)})
        self._optimiser.load_state_dict(self._optimiser.state_dict() | {"state": self._optimiser_state(state)})

    def _optimiser_state(self, state: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Return the optimiser's tensors of each parameter, in the parameter's memory layout.

        Kernels for other layouts sum in another order, and the next step would not be the same bit for bit.
        """
        parameters = list(self.net.parameters())
        restored: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(state, OPTIMISER).items():
            index, key = name.split(".", 1)
            like = parameters[int(index)]
            laid_out = torch.empty_like(like).copy_(value) if value.shape == like.shape else value.clone()
            restored.setdefault(int(index), {})[key] = laid_out.detach()
        return restored


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _optimiser(net: UNet, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimiser == "sgd":
        return torch.optim.SGD(net.parameters(), lr=recipe.rate, momentum=MOMENTUM)
    return torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=1e-4, fused=True)


def _average(net: UNet, decay: float) -> AveragedModel:
    """Return the exponential moving average of a network's weights, which forgets the first weights faster."""

    @torch.no_grad()
    def update(averaged: Tensors, current: Tensors, updates: Tensor | int) -> None:
        done = int(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + done) / (10 + done)))

    return AveragedModel(net, multi_avg_fn=update)

"""Several processes that train one network, as `torchrun` starts them; alone, all of this does nothing."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from unetrt.runtime.errors import OptionError, TrainingStoppedError

# How long processes wait for each other: one validates alone, on as many images as there are.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class Team:
    """Who this process is among those that train together.

    Attributes
    ----------
    rank, size
        Which process of how many.
    device
        Where it computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process validates, saves and reports."""
        return self.rank == 0

    def share(self, batch: int) -> range:
        """Return which tiles of a batch are this process's.

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

    def wrapped(self, net: nn.Module) -> nn.Module:
        """Return the network so that its gradients become the mean over all processes."""
        if self.size == 1:
            return net
        return DistributedDataParallel(net, device_ids=[self.device] if self.device.type == "cuda" else None)

    def summed(self, values: Tensor) -> Tensor:
        """Return the sum of `values` over all processes."""
        if self.size > 1:
            distributed.all_reduce(values)
        return values

    def led(self, *values: float) -> list[float]:
        """Return the leader's values, in all processes."""
        if self.size == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.broadcast(told, 0)
        return told.tolist()


@contextmanager
def team() -> Iterator[Team]:
    """Join the processes that torchrun started (its RANK, WORLD_SIZE and LOCAL_RANK), or be alone; leave them after.

    CUDA devices talk through NCCL, CPUs through gloo.
    """
    size, local = (int(os.environ.get(name, usual)) for name, usual in (("WORLD_SIZE", "1"), ("LOCAL_RANK", "0")))
    cuda = torch.cuda.is_available()
    if cuda and local >= torch.cuda.device_count():
        raise OptionError(
            f"process {local} has no GPU, there are {torch.cuda.device_count()}: "
            f"use torchrun --nproc-per-node {torch.cuda.device_count()}"
        )
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)  # what asks for the current device means this one
    if size == 1:
        yield Team(0, 1, device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    try:
        yield Team(distributed.get_rank(), size, device)
        distributed.barrier()
    except TrainingStoppedError:
        distributed.barrier()  # all of them stop after the same step
        raise
    finally:
        # Only together: a process that leaves while the leader still saves is torn down by the C++ runtime.
        distributed.destroy_process_group()


def leads() -> bool:
    """Tell whether this process speaks for all that torchrun started, before and after they are a team."""
    return os.environ.get("RANK", "0") == "0"


def alone() -> Team:
    """Return the team of one, on the GPU where there is one."""
    return Team(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))

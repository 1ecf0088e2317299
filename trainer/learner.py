"""The network as it learns: weights, optimiser and average, one step at a time."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from unetrt.runtime.errors import TrainingError
from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.trainer.loss import weighted_cross_entropy
from unetrt.trainer.precision import Precision
from unetrt.trainer.recipe import Recipe
from unetrt.trainer.samples import Batch
from unetrt.trainer.seeds import DROPOUT, WEIGHTS, generator_for, seed_for
from unetrt.trainer.team import Team
from unetrt.trainer.unet import UNet

# The paper's momentum (section 3), so high that many earlier samples decide each step.
MOMENTUM = 0.99
NET, AVERAGE, OPTIMISER, UPDATES, SCALE = "net.", "average.", "optimiser.", "updates", "scale"


class Learner:
    """A network and all that changes it.

    Parameters
    ----------
    shape
        The network's numbers.
    recipe
        Optimiser, precision and average.
    seed
        Of the first weights and of drop-out.
    team
        The processes that train together.
    compiled
        Whether torch.compile translates the network first.
    """

    def __init__(self, shape: UNetShape, recipe: Recipe, seed: int, team: Team, compiled: bool = False) -> None:
        self._recipe, self._seed, self._team = recipe, seed, team
        net = UNet(shape, recipe.dropout).initialise(generator_for(seed, WEIGHTS)).to(team.device)
        self.net: UNet = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.net.train()
        self._optimiser = _optimiser(self.net, recipe)
        self._precision = Precision(team.device, recipe.mixed)
        self._average = AveragedModel(self.net, multi_avg_fn=_towards(recipe.average)) if recipe.average else None
        forward: Callable[[Tensor], Tensor] = team.wrapped(self.net)
        self._forward = torch.compile(forward) if compiled else forward

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        return self._precision.dtype

    @property
    def result(self) -> UNet:
        """The network to validate and to keep: the average where there is one."""
        if self._average is None:
            return self.net
        assert isinstance(self._average.module, UNet)
        return self._average.module

    def step(self, batch: Batch, step: int, rate: float) -> float:
        """Learn from this process's part of a batch; return the loss of all of it.

        Raises
        ------
        TrainingError
            The loss is not finite; nothing has changed then.
        """
        device = self._team.device
        if self._recipe.dropout:
            torch.manual_seed(seed_for(self._seed, DROPOUT, step, self._team.rank))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        tiles = batch.tiles.to(device, memory_format=torch.channels_last)
        classes, weights = batch.classes.to(device), batch.weights.to(device)
        with self._precision.autocast():
            logits = self._forward(tiles)
        total = self._team.summed(weights.sum())
        loss = weighted_cross_entropy(logits, classes, weights, total)
        value = self._team.summed(loss.detach().clone()).item()
        if not math.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {step}, in {', '.join(batch.names)}: "
                f"lower the learning rate (--rate, now {rate:.2g}) or look at that image"
            )
        # Processes average their gradients, where the whole batch's is their sum.
        self._precision.update(loss * self._team.size, self._optimiser)
        if self._average is not None:
            self._average.update_parameters(self.net)
        return value

    def state(self) -> dict[str, Tensor]:
        """Return everything that a later `restore` needs, by name."""
        state = {NET + name: tensor for name, tensor in self.net.state_dict().items()}
        for index, values in self._optimiser.state_dict()["state"].items():
            state |= {f"{OPTIMISER}{index}.{name}": value for name, value in values.items() if value is not None}
        state[SCALE] = self._precision.state()
        if self._average is not None:
            state |= {AVERAGE + name: tensor for name, tensor in self._average.module.state_dict().items()}
            state[UPDATES] = self._average.n_averaged
        return {name: tensor.detach().cpu() for name, tensor in state.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a state; raises KeyError or RuntimeError where it is another network's or recipe's."""
        self.net.load_state_dict(_part(state, NET))
        if self._average is not None:
            self._average.module.load_state_dict(_part(state, AVERAGE))
            self._average.n_averaged.copy_(state[UPDATES])
        self._precision.restore(state[SCALE])
        self._optimiser.load_state_dict(self._optimiser.state_dict() | {"state": self._optimiser_state(state)})

    def _optimiser_state(self, state: Mapping[str, Tensor]) -> dict[int, dict[str, Tensor]]:
        """Return what the optimiser remembers of each parameter, laid out in memory as the parameter is.

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
    return torch.optim.AdamW(net.parameters(), lr=recipe.rate, weight_decay=1e-4)


def _towards(decay: float) -> Any:
    """Return the rule of an exponential moving average, which forgets the first weights faster than later ones."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], updates: Tensor) -> None:
        done = int(updates)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + done) / (10 + done)))

    return update

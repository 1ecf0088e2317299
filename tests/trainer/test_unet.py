from math import sqrt

import numpy as np
import pytest
import torch
from torch import nn

from unetrt.runtime.geometry.unet_shape import UNetShape
from unetrt.trainer import unet
from unetrt.trainer.unet import UNet, incoming, weighted_cross_entropy


def _convolutions(net):
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]


def test_the_papers_network():
    net = UNet()
    assert len(_convolutions(net)) == 23
    assert sum(parameter.numel() for parameter in net.parameters()) == 31_030_658
    with torch.device("meta"):
        assert UNet()(torch.zeros(1, 1, 572, 572)).shape == (1, 2, 388, 388)


@pytest.mark.parametrize("shape", [UNetShape(1, 3), UNetShape(2, 4, 3, 5), UNetShape(3, 2)])
def test_the_output_is_the_core(shape):
    tile = (shape.geometry.side_for(9), shape.geometry.side_for(40))
    out = UNet(shape)(torch.zeros(2, shape.channels, *tile))
    assert out.shape == (2, shape.classes, *(shape.geometry.core(side) for side in tile))


def test_weights_are_drawn_with_the_connections_that_enter_a_neuron():
    net = UNet(UNetShape(2, 32)).initialise(torch.Generator().manual_seed(0))
    for layer in _convolutions(net)[1:-1]:
        assert layer.weight.std().item() == pytest.approx(sqrt(2 / incoming(layer)), rel=0.05)
        assert not layer.bias.any()


def test_connections_are_counted_by_pushing_ones_through():
    """With weights of 1 an inner output pixel is the number of its incoming connections."""
    for layer in (nn.Conv2d(3, 5, 3), nn.Conv2d(3, 5, 1), nn.ConvTranspose2d(6, 3, 2, stride=2)):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        out = layer(torch.ones(1, layer.in_channels, 6, 6))
        assert (out == incoming(layer)).all()


def second_moments(net, monkeypatch):
    """The mean square of what each convolution takes in, and of what it gives after its ReLU.

    The largest of four is larger than their mean, so that pooling lifts the moment; the rule for weights does not speak
    of that, and every second pixel is taken instead.
    """
    monkeypatch.setattr(unet.F, "max_pool2d", lambda x, kernel_size: x[..., ::kernel_size, ::kernel_size])
    moments = []
    for layer in _convolutions(net)[:-1]:
        layer.register_forward_hook(
            lambda layer, given, out: moments.append((layer, given[0].square().mean(), out.relu().square().mean()))
        )
    with torch.no_grad():
        net(torch.randn(1, 1, 188, 188, generator=torch.Generator().manual_seed(9)))
    return moments


def test_the_second_moment_stays_from_the_first_to_the_last_layer(monkeypatch):
    """At depth 4, within a factor of 2, on average over the draws of a thin net."""
    nets = [UNet(UNetShape(4, 24), 0).initialise(torch.Generator().manual_seed(seed)) for seed in range(4)]
    moments = [[out for _, _, out in second_moments(net, monkeypatch)] for net in nets]
    assert len(moments[0]) == 22
    each_layer = torch.tensor(moments).log().mean(dim=0).exp()
    assert each_layer.min() > 0.5
    assert each_layer.max() < 2


@pytest.mark.parametrize(("by_torch", "gain"), [(False, 1.0), (True, 0.5)])
def test_torchs_own_helper_would_halve_it_at_each_up_convolution(monkeypatch, by_torch, gain):
    net = UNet(UNetShape(4, 24), 0).initialise(torch.Generator().manual_seed(0))
    if by_torch:
        for layer in net.up:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=torch.Generator().manual_seed(1))
    moments = second_moments(net, monkeypatch)
    gains = [out / given for layer, given, out in moments if isinstance(layer, nn.ConvTranspose2d)]
    assert len(gains) == 4
    assert torch.stack(gains).mean().item() == pytest.approx(gain, rel=0.2)


def test_the_same_seed_gives_the_same_weights():
    first, second, other = (UNet(UNetShape(1, 2)).initialise(torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


def test_dropout_sits_at_the_end_of_the_contracting_path():
    net = UNet(UNetShape(3, 4), dropout=0.5).initialise(torch.Generator().manual_seed(0)).train()
    dropped = []
    net.drop.register_forward_hook(lambda module, given, out: dropped.append(tuple(out.shape[1:2])))
    net(torch.zeros(1, 1, 92, 92))
    assert dropped == [(16,), (32,)]


@pytest.mark.parametrize("classes", [2, 5])
def test_the_loss_is_the_papers_energy_in_float64(classes):
    rng = np.random.default_rng(classes)
    logits = rng.normal(size=(2, classes, 7, 6)) * 5
    truth, weights = rng.integers(0, classes, (2, 7, 6)), rng.random((2, 7, 6)) * 12
    soft = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    picked = np.take_along_axis(soft, truth[:, None], axis=1)[:, 0]
    expected = -(weights * np.log(picked)).sum() / weights.sum()
    given = weighted_cross_entropy(torch.tensor(logits).float(), torch.tensor(truth), torch.tensor(weights).float())
    assert given.item() == pytest.approx(expected, rel=1e-5)


def test_pixels_of_weight_zero_do_not_count():
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.ones(1, 4, 4)
    weights[0, 1, 2] = 0
    weighted_cross_entropy(logits, torch.zeros(1, 4, 4, dtype=torch.long), weights).backward()
    assert not logits.grad[0, :, 1, 2].any()
    assert logits.grad[0, :, 0, 0].all()


def test_nothing_that_counts_gives_zero_and_not_nan():
    assert weighted_cross_entropy(torch.ones(1, 2, 2, 2), torch.zeros(1, 2, 2).long(), torch.zeros(1, 2, 2)) == 0


def test_training_crops_the_same_pixels_and_its_gradients_keep_the_memory_layout():
    """Trained and evaluated without drop-out: the same logits and gradients, bit for bit, by faster additions."""
    net = UNet(UNetShape(2, 8, 1, 3), dropout=0).initialise(torch.Generator().manual_seed(0))
    net = net.to(memory_format=torch.channels_last)
    tiles = torch.randn(2, 1, 92, 92, generator=torch.Generator().manual_seed(1))
    layouts, found = [], []

    def look(_block, _inputs, skip):
        skip.register_hook(lambda gradient: layouts.append(gradient.is_contiguous(memory_format=torch.channels_last)))

    hook = net.contracting[0].register_forward_hook(look)
    for training in (True, False):
        net.train(training).zero_grad()
        logits = net(tiles)
        logits.square().mean().backward()
        found.append([logits.detach(), *(parameter.grad.clone() for parameter in net.parameters())])
    hook.remove()
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert layouts == [True, False]

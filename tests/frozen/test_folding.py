"""Normalisation folded into convolutions: the same outputs, from fewer layers."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from conr_ray.frozen.folding import folded
from conr_ray.pretrained import load_pretrained
from tests.frozen.conftest import LITE, LITE_WEIGHTS


def _norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def test_a_network_with_real_weights_is_folded_whole() -> None:
    network = load_pretrained(LITE, LITE_WEIGHTS, 64).module.layers.eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    images = torch.randn(4, 3, 64, 64)
    lighter = folded(network, torch.randn(2, 3, 64, 64))
    assert _norms(network) == 49 and _norms(lighter) == 0
    with torch.no_grad():
        torch.testing.assert_close(lighter(images), network(images), atol=1e-4, rtol=1e-4)
    # The network itself is as it was.
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_nfnet"])
def test_other_kinds_of_networks_give_what_they_gave(name: str) -> None:
    network = timm.create_model(name, num_classes=0).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    side = network.pretrained_cfg["input_size"][-1]
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        lighter = folded(network, torch.randn(2, 3, side, side))
        torch.testing.assert_close(lighter(images), network(images), atol=1e-4, rtol=1e-4)


class _Shared(nn.Module):
    """A convolution that is used twice, once without its normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.convolution(self.convolution(x))).mean((2, 3))


def test_what_is_used_twice_is_not_folded() -> None:
    network = _Shared().eval()
    network.norm.running_var.fill_(9)
    images = torch.randn(2, 3, 8, 8)
    lighter = folded(network, images)
    assert lighter is network


def test_a_program_that_cannot_be_traced_stays_as_it_is() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    network = Branching()
    assert folded(network, torch.randn(2, 3, 8, 8)) is network

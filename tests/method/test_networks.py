from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from conr_ray.method.networks import (
    BACKBONES,
    ConvNet,
    Encoder,
    ResNet,
    TargetNetwork,
    head,
    make_predictor,
)


@pytest.fixture
def online() -> Encoder:
    return Encoder(ConvNet(1, (4, 6)), 16, 5)


def _views() -> tuple[Tensor, Tensor]:
    return torch.randn(9, 1, 8, 8), torch.randn(9, 1, 8, 8)


def test_target_starts_as_a_copy_of_its_own(online: Encoder) -> None:
    target = TargetNetwork(online)
    pairs = zip(target.encoder.parameters(), online.parameters(), strict=True)
    for mine, theirs in pairs:
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() != theirs.data_ptr()
        assert not mine.requires_grad
        assert theirs.requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.3, 0.9, 0.996, 1.0])
def test_target_follows_by_an_exponential_moving_average(online: Encoder, momentum: float) -> None:
    target = TargetNetwork(online)
    for parameter in online.parameters():
        nn.init.normal_(parameter)
    before = [p.clone() for p in target.parameters()]
    target.follow(online, momentum)
    for old, new, theirs in zip(before, target.parameters(), online.parameters(), strict=True):
        exact = momentum * old.double() + (1 - momentum) * theirs.double()
        torch.testing.assert_close(new.double(), exact, rtol=1e-6, atol=1e-7)
        assert momentum < 1 or torch.equal(new, old)
        assert momentum > 0 or torch.equal(new, theirs)


def test_following_leaves_online_and_the_targets_own_statistics_alone(
    online: Encoder,
) -> None:
    target = TargetNetwork(online)
    online(_views()[0])
    target(_views()[0])
    before = copy.deepcopy(online.state_dict())
    buffers = copy.deepcopy(dict(target.named_buffers()))
    assert not torch.equal(
        buffers["encoder.projector.1.running_mean"], before["projector.1.running_mean"]
    )
    target.follow(online, 0.5)
    assert all(torch.equal(value, before[name]) for name, value in online.state_dict().items())
    assert all(torch.equal(value, buffers[name]) for name, value in target.named_buffers())


def test_predictor_starts_small_and_without_bias() -> None:
    linears = [layer for layer in make_predictor(64, 512) if isinstance(layer, nn.Linear)]
    assert len(linears) == 2
    for layer in linears:
        assert not layer.bias.any()
        assert layer.weight.mean().item() == pytest.approx(0, abs=5e-4)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.03)
    # The projector is not small.
    assert Encoder(ConvNet(1, (4,)), 16, 64).projector[3].weight.std().item() > 0.02


def test_heads_have_the_published_shape() -> None:
    layers = head(7, 16, 5)
    assert [type(layer) for layer in layers] == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Linear]
    assert layers(torch.randn(3, 7)).shape == (3, 5)


@pytest.mark.parametrize(
    ("stem", "sizes"), [("cifar", [32, 32, 16, 8, 4]), ("imagenet", [16, 8, 4, 2, 1])]
)
def test_stem_decides_the_resolution_of_a_resnet(stem: str, sizes: list[int]) -> None:
    network = ResNet(18, stem, 3).eval()
    seen: list[int] = []
    layers = network.layers
    for stage in (layers.conv1, layers.layer1, layers.layer2, layers.layer3, layers.layer4):
        stage.register_forward_hook(lambda _m, _i, output: seen.append(output.shape[-1]))
    with torch.no_grad():
        assert network(torch.randn(1, 3, 32, 32)).shape == (1, 512)
    assert seen == sizes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "convnet"])
def test_backbones_take_grey_and_colour_and_tell_their_width(
    name: str, stem: str, channels: int
) -> None:
    network = BACKBONES[name]((channels, 12, 12), stem, (4, 8, 6)).eval()
    with torch.no_grad():
        features = network(torch.randn(2, channels, 12, 12))
    assert features.shape == (2, network.out_features)
    assert network.out_features == (6 if name == "convnet" else 512)
    assert torch.isfinite(features).all()
    assert not any(isinstance(m, nn.Linear) for m in network.modules())


def test_depths_differ_in_their_number_of_convolutions() -> None:
    counts = []
    for depth in (18, 34):
        layers = ResNet(depth, "cifar", 3).modules()
        counts.append(sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in layers))
    assert counts == [17, 33]


@pytest.mark.parametrize(("name", "width"), [("identity", 7), ("mlp", 6)])
def test_backbones_of_vectors_tell_their_width(name: str, width: int) -> None:
    network = BACKBONES[name]((7,), "cifar", (4, 6))
    vectors = torch.randn(3, 7)
    features = network(vectors)
    assert features.shape == (3, network.out_features) == (3, width)
    assert (name == "identity") == torch.equal(features, vectors) == (not [*network.parameters()])

"""Frozen networks with random weights in place of published ones."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alitok.networks import frozen
from alitok.networks.frozen import CONVNEXT_SMALL, VGG16, Network


def resnet() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(weights=None)


class EveryBuffer(nn.Module):
    """A network with each kind of buffer: running statistics, a table, and a table that is in no state dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.batch_norm = nn.BatchNorm2d(8)
        self.instance_norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.register_buffer("table", torch.arange(8.0).view(8, 1, 1) + 1)
        self.register_buffer("hidden", torch.full((1,), 0.5), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return self.instance_norm(self.batch_norm(self.conv(images))) * self.table * self.hidden


NETWORKS = [
    VGG16,
    CONVNEXT_SMALL,
    Network("ResNet-18", "resnet18.pth", resnet),
    Network("every buffer", "every.pth", EveryBuffer),
]


def run(network: Network, module: nn.Module, images: Tensor) -> None:
    (nn.Sequential(*module["features"]) if network is VGG16 else module)(images)  # type: ignore[index,operator]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_activations_of_a_random_network_are_neither_large_nor_small(network: Network) -> None:
    state = torch.get_rng_state()
    module = frozen.load(network, "random:0", "cpu")
    assert torch.equal(torch.get_rng_state(), state)
    seen: list[tuple[float, float]] = []

    def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
        seen.append((float(output.abs().max()), float(output.std())))

    for layer in module.modules():
        if not list(layer.children()):
            layer.register_forward_hook(keep)
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        run(network, module, images)
    assert max(largest for largest, _ in seen) < 1000
    assert min(spread for _, spread in seen) > 0.1


@pytest.mark.parametrize("build", [resnet, EveryBuffer])
def test_buffers_are_those_of_a_fresh_network(build: Callable[[], nn.Module]) -> None:
    module = frozen.load(Network(build.__name__, "none.pth", build), "random:3", "cpu")
    found, fresh = dict(module.named_buffers()), dict(build().named_buffers())
    assert found.keys() == fresh.keys()
    for name, value in fresh.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value), name

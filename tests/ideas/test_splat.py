"""The splat decoder: where Gaussians begin, what a map of them is, and that they move."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from alitok.common.errors import BadInput
from alitok.ideas.splat import SplatDecoder, SplatHead

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_prefix": 0, "code_dim": 4, "width": 32}
SIZES |= {"depth": 1, "heads": 2, "causal": False}


def head(fixed: bool = False, cells: int = 2) -> SplatHead:
    torch.manual_seed(0)
    return SplatHead(8, rows=2, patch_size=4, channels=3, cells=cells, hidden=8, fixed=fixed)


def test_gaussians_begin_on_their_patches() -> None:
    found = head().gaussians(torch.randn(1, 4, 8))[0]
    torch.testing.assert_close(found[:, 3:], torch.tensor([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]))
    torch.testing.assert_close(found[:, :2], torch.full((4, 2), 1 / 3))  # a patch has a side of 1
    torch.testing.assert_close(found[:, 2], torch.zeros(4))


def test_a_map_is_the_sum_over_gaussians() -> None:
    made = head()
    gaussians = torch.tensor([[[0.3, 0.5, 0.6, 0.2, -0.4], [0.1, 0.2, -0.3, -0.9, 0.9]]])
    found = made.weights(gaussians)[0]
    assert found.shape == (2, 4, 4)
    for number, (sx, sy, r, x, y) in enumerate(gaussians[0].tolist()):
        for row in range(4):
            for column in range(4):
                u, w = ((2 * column / 3 - 1) - x) / sx, ((2 * row / 3 - 1) - y) / sy
                value = math.exp(-(u * u - 2 * r * u * w + w * w) / (2 * (1 - r * r)))
                if abs(u) > 3 or abs(w) > 3:
                    value = 0.0
                assert float(found[number, row, column]) == pytest.approx(value, rel=1e-4, abs=1e-7)
    assert (found == 0).any()
    seen: list[torch.Tensor] = []
    made.network.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    x = torch.randn(1, 4, 8)
    made(x, 2)
    weights, features = made.weights(made.gaussians(x))[0], made.features(x)[0]
    expected = sum(weights[k][None] * features[k][:, None, None] for k in range(4))
    torch.testing.assert_close(seen[0][0], expected)


def test_gaussians_that_are_fixed_render_as_those_that_have_not_moved() -> None:
    free, fixed = SplatDecoder(**SIZES), SplatDecoder(**SIZES, fixed=True)
    fixed.load_state_dict(free.state_dict(), strict=False)
    latents = torch.randn(2, 16, 4)
    assert torch.equal(free(latents)["image"], fixed(latents)["image"])
    free(latents)["image"].square().sum().backward()
    gradient = free.image_head.shape.weight.grad  # type: ignore[union-attr]
    assert isinstance(gradient, torch.Tensor)
    assert gradient.any(1).all()  # all five
    assert not any("shape" in name for name, _ in fixed.named_parameters())


def test_extreme_tokens_stay_finite() -> None:
    decoder = SplatDecoder(**SIZES)
    nn.init.normal_(decoder.image_head.shape.weight, std=100.0)  # type: ignore[union-attr, arg-type]
    image = decoder(torch.randn(2, 16, 4))["image"]
    image.sum().backward()
    assert ((image >= 0) & (image <= 1)).all()
    assert all(p.grad.isfinite().all() for p in decoder.parameters() if p.grad is not None)


def test_a_gaussian_learns_where_it_belongs() -> None:
    """One Gaussian is to light the nearest pixel of the opposite patch; farther ones it does not reach, or by luck."""
    made = head(cells=4)
    target = torch.zeros(8, 8)
    target[4, 4] = 1
    x = torch.randn(1, 4, 8)
    assert made.shape is not None
    optimizer = torch.optim.Adam(made.shape.parameters(), 0.02)
    start = made.gaussians(x)[0, 0, 3:].detach()
    for _ in range(100):
        loss = (made.weights(made.gaussians(x))[0, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    place = torch.full((2,), 2 * 4 / 7 - 1)
    assert (made.gaussians(x)[0, 0, 3:] - place).norm() < 0.1 * (start - place).norm()


def test_cells_must_divide_the_patch() -> None:
    with pytest.raises(BadInput, match="3 cells do not divide a patch of 4 pixels"):
        SplatDecoder(**SIZES, cells=3)

"""The causal encoder: token i is a function of patches 0..i, and of all of them."""

import pytest
import torch
from torch import Tensor

from alitok.models.encoder import Encoder

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "code_dim": 6,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "init": "local",
    "causal": True,
}


def changed(encoder: torch.nn.Module, images: Tensor, patch: int) -> list[int]:
    """The tokens that move when one patch of 4 x 4 pixels changes."""
    other = images.clone()
    row, column = divmod(patch, 4)
    other[..., 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 0.3
    with torch.no_grad():
        difference = (encoder(images) - encoder(other)).abs().amax(dim=(0, 2))
    return (difference > 1e-6).nonzero().flatten().tolist()


def test_a_token_sees_its_own_patch_and_those_before() -> None:
    torch.manual_seed(0)
    encoder = Encoder(num_latents=16, **SIZES)
    images = torch.rand(2, 3, 16, 16)
    assert encoder(images).shape == (2, 16, 6)
    for patch in (0, 5, 15):
        assert changed(encoder, images, patch) == list(range(patch, 16))


def test_prefix_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="num_latents must be 16"):
        Encoder(num_latents=20, **SIZES)

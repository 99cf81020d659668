"""The T2T stem against plain loops and products."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alitok.common.errors import BadInput
from alitok.ideas.t2t import SoftSplits, T2TEncoder, TokenTransformer

SIZES: dict[str, Any] = {
    "image_size": 16,
    "patch_size": 4,
    "num_latents": 20,
    "code_dim": 4,
    "width": 32,
    "depth": 2,
    "heads": 2,
}


def stirred(part: Any) -> Any:
    torch.manual_seed(0)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.3)
    return part


def test_a_split_lays_overlapping_squares_side_by_side() -> None:
    stem, images = stirred(SoftSplits(4, 32, 64, 1.0, 0.0)), torch.rand(2, 3, 16, 16)
    found = stem(images)
    padded = F.pad(images, (2, 2, 2, 2))
    for row in range(4):
        for column in range(4):
            square = padded[:, :, 4 * row : 4 * row + 7, 4 * column : 4 * column + 7].flatten(1)
            torch.testing.assert_close(found[:, :, row, column], stem.proj(square))
    assert found.shape == (2, 32, 4, 4)


@torch.no_grad()
def test_a_token_transformer_by_hand() -> None:
    block, x = stirred(TokenTransformer(27, 8)), torch.randn(2, 5, 27)
    q, k, v = block.qkv(block.norm1(x)).chunk(3, -1)
    weights = (q @ k.mT / 27**0.5).softmax(-1)
    y = v + block.proj(weights @ v)
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))
    assert block.qkv.bias is None


@pytest.mark.parametrize(("size", "patch", "transformers"), [(32, 4, 0), (64, 8, 1), (128, 16, 2)])
def test_the_grid_is_that_of_the_patches(size: int, patch: int, transformers: int) -> None:
    stem = SoftSplits(patch, 32, 16, 3.0, 0.5)
    assert stem(torch.rand(1, 3, size, size)).shape == (1, 32, 8, 8)
    assert len(stem.transformers) == transformers
    # what pads a gray picture is gray, too, so each place shows the same, but at borders that a later split pads
    inner = slice(transformers, 8 - transformers)
    flat = stem(torch.full((1, 3, size, size), 0.5))[..., inner, inner].flatten(2)
    torch.testing.assert_close(flat, flat[..., :1].expand_as(flat), atol=1e-5, rtol=0)


def test_the_encoder_is_the_base_but_for_its_patches() -> None:
    encoder, images = T2TEncoder(**SIZES), torch.rand(2, 3, 16, 16)
    found = encoder(images)
    assert found.shape == (2, 20, 4)
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.patch_embed.parameters())
    other = images.clone()
    other[:, :, :, 3] += 1  # the last column of the first patches is seen by their neighbors
    moved = (encoder.patch_embed(other) - encoder.patch_embed(images)).abs().amax((0, 1, 2)) > 1e-6
    assert moved.tolist() == [True, True, False, False]


def test_pixels_count_from_gray_unless_as_in_the_paper() -> None:
    paper, local = T2TEncoder(**SIZES).patch_embed, T2TEncoder(**SIZES, init="local").patch_embed
    assert [(stem.scale, stem.shift) for stem in (paper, local)] == [(1.0, 0.0), (3.0, 0.5)]
    images = torch.rand(1, 3, 16, 16)
    paper.load_state_dict(local.state_dict())
    torch.testing.assert_close(local(images), paper(3 * (images - 0.5)))


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="patch_size must be one of 4, 8, 16 for a T2T stem, not 2"):
        T2TEncoder(**{**SIZES, "patch_size": 2, "num_latents": 64})
    with pytest.raises(BadInput, match="inner must be 1 or more, not 0"):
        T2TEncoder(**SIZES, inner=0)

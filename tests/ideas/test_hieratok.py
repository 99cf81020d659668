"""Tokens of several scales: how the map is pooled, and who sees whom."""

from itertools import accumulate
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.ideas.hieratok import HieraDecoder, HieraEncoder, ScaleAttention, scale_sides
from alitok.models.transformer import Attention

SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "code_dim": 4, "width": 32, "depth": 4, "heads": 2}
TOKENS = [1, 4, 16]
N = sum(TOKENS)


def stirred(part: Any) -> Any:
    torch.manual_seed(0)
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.3)
    return part


def scale_of() -> Tensor:
    return torch.repeat_interleave(torch.arange(len(TOKENS)), torch.tensor(TOKENS))


def test_the_scales_of_a_grid() -> None:
    assert [scale_sides(rows, None) for rows in (1, 8, 12, 16)] == [
        [1],
        [1, 2, 4, 8],
        [1, 2, 4, 8, 12],
        [1, 2, 4, 8, 16],
    ]
    assert scale_sides(8, [2, 8]) == [2, 8]
    for wrong in ([1, 2, 4], [1, 1, 8], [0, 8], [8, 4, 8], []):
        with pytest.raises(BadInput, match="rise from 1 or more to the 8 rows of patches, not"):
            scale_sides(8, wrong)


def test_attention_is_that_of_a_block_mask() -> None:
    torch.manual_seed(0)
    plain = Attention(32, 2, causal=False)
    x = torch.randn(2, N, 32, requires_grad=True)
    found = ScaleAttention(plain, list(accumulate(TOKENS)))(x)
    q, k, v = (part.view(2, N, 2, 16).transpose(1, 2) for part in plain.qkv(x).chunk(3, -1))
    mask = scale_of()[:, None] >= scale_of()
    weights = ((q @ k.mT) / 4).masked_fill(~mask, -torch.inf).softmax(-1)
    expected = plain.proj((weights @ v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(y.square().sum(), x, retain_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_a_block_of_the_decoder_lets_no_scale_see_a_finer_one() -> None:
    decoder = stirred(HieraDecoder(**SIZES, buffer_tokens=2))
    hidden: list[Tensor] = []
    decoder.blocks[-1].register_forward_hook(lambda _, __, output: hidden.append(output[:, 2:]))
    latents = torch.randn(1, N, 4)
    plain = decoder(latents)["image"]
    for token in range(N):
        other = latents.clone()
        other[:, token] += 1
        image = decoder(other)["image"]
        moved = (hidden[-1] - hidden[0]).abs().amax(-1)[0] > 1e-6
        assert torch.equal(moved, scale_of() >= scale_of()[token])
        patches = (image - plain).abs().unfold(2, 4, 4).unfold(3, 4, 4).amax((1, 4, 5)).flatten()
        assert (patches > 1e-6).all()  # every token reaches the whole image


@torch.no_grad()
def test_the_encoder_pools_its_map_to_every_scale() -> None:
    encoder = stirred(HieraEncoder(**SIZES))
    assert (encoder.num_latents, encoder.full_depth) == (N, 2)
    x = torch.randn(2, 16, 32)
    pooled = encoder.pooled(x)
    grid = x.view(2, 4, 4, 32)
    torch.testing.assert_close(pooled[:, 0], grid.mean((1, 2)))
    torch.testing.assert_close(pooled[:, 1 + 2], grid[:, 2:, :2].mean((1, 2)))  # second row, first column of 2 x 2
    torch.testing.assert_close(pooled[:, 5:], x)


@torch.no_grad()
def test_the_encoder_is_causal_between_scales_after_pooling() -> None:
    encoder, images = stirred(HieraEncoder(**SIZES)), torch.rand(1, 3, 16, 16)
    plain = encoder(images)
    pooled = encoder.pooled
    for token in (0, 2, 20):
        push = F.one_hot(torch.tensor(token), N)[None, :, None] * torch.randn(32)
        with patch.object(encoder, "pooled", lambda x, push=push: pooled(x) + push):
            moved = (encoder(images) - plain).abs().amax(-1)[0] > 1e-6
        assert torch.equal(moved, scale_of() >= scale_of()[token])
    other = images.clone()
    other[..., -1, -1] += 1  # before pooling every patch sees every other
    assert ((encoder(other) - plain).abs().amax(-1) > 1e-6).all()


def test_coarse_tokens_begin_at_the_mean_place_of_their_patches() -> None:
    encoder = HieraEncoder(**SIZES, init="local")
    torch.testing.assert_close(encoder.latent_positions[0], encoder.patch_positions.mean(0))
    assert torch.equal(encoder.latent_positions[5:], encoder.patch_positions)


def test_other_scales() -> None:
    encoder, decoder = HieraEncoder(**SIZES, scales=[2, 4]), HieraDecoder(**SIZES, scales=[2, 4])
    latents = encoder(torch.rand(1, 3, 16, 16))
    assert latents.shape == (1, 20, 4)
    assert decoder.num_latents == 20
    assert decoder(latents)["image"].shape == (1, 3, 16, 16)


def test_other_numbers_of_tokens_than_the_scales_have_are_refused() -> None:
    for kind, name, count in ((HieraEncoder, "num_latents", 21), (HieraDecoder, "num_prefix", 5)):
        with pytest.raises(BadInput, match=f"{name} is {count}, not 20"):
            kind(**SIZES, **{name: 20})

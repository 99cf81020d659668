"""Attention within windows against a mask over the whole sequence."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.ideas.window_attention import WindowAttention, WindowEncoder, stretched
from alitok.models.transformer import Attention

ROWS, WINDOW, PREFIX, WIDTH, HEADS = 4, 2, 3, 32, 2
PATCHES = ROWS * ROWS
T = 2 * PATCHES + PREFIX
SIZES: dict[str, Any] = {"num_latents": PATCHES + PREFIX, "code_dim": 4, "width": 32, "depth": 4, "heads": 2}


def place(token: int) -> tuple[int, int] | None:
    """Row and column of a token of [patches ; prefix ; latents]; None for the prefix."""
    if token >= PATCHES:
        token -= PATCHES + PREFIX
    return None if token < 0 else divmod(token, ROWS)


def plain(attention: WindowAttention, x: Tensor) -> Tensor:
    """The same by one masked product over all tokens."""
    bias = torch.full((HEADS, T, T), -torch.inf)
    for query in range(T):
        for key in range(T):
            here, there = place(query), place(key)
            if here is None:
                bias[:, query, key] = 0
            elif there is not None and [a // WINDOW for a in here] == [a // WINDOW for a in there]:
                row, column = (a - b + WINDOW - 1 for a, b in zip(here, there, strict=True))
                bias[:, query, key] = attention.bias[row * (2 * WINDOW - 1) + column]
    q, k, v = (part.view(len(x), T, HEADS, -1).transpose(1, 2) for part in attention.qkv(x).chunk(3, -1))
    weights = (q @ k.mT / (WIDTH / HEADS) ** 0.5 + bias).softmax(-1)
    return attention.proj((weights @ v).transpose(1, 2).flatten(2))


def test_attention_is_that_of_a_mask_and_a_table_of_offsets() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(Attention(WIDTH, HEADS, causal=False), ROWS, WINDOW, PREFIX)
    nn.init.normal_(attention.bias)
    x = torch.randn(2, T, WIDTH, requires_grad=True)
    found, expected = attention(x), plain(attention, x)
    torch.testing.assert_close(found, expected)
    gradients = [
        torch.autograd.grad(y.square().sum(), [x, attention.bias], retain_graph=True) for y in (found, expected)
    ]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


def test_one_window_without_prefix_is_plain_attention() -> None:
    torch.manual_seed(0)
    whole = Attention(WIDTH, HEADS, causal=False)
    x = torch.randn(2, 2 * PATCHES, WIDTH)
    torch.testing.assert_close(WindowAttention(whole, ROWS, ROWS, 0)(x), whole(x))


@torch.no_grad()
def test_a_latent_of_windows_alone_depends_on_its_window() -> None:
    torch.manual_seed(0)
    encoder, images = WindowEncoder(16, 4, pattern="w", **SIZES), torch.rand(1, 3, 16, 16)
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    other = images.clone()
    other[:, :, :4, :4] += 1  # the first patch
    moved = ((encoder(other) - encoder(images)).abs().amax(-1)[0] > 1e-6).tolist()
    assert moved[:PREFIX] == [True] * PREFIX
    assert moved[PREFIX:] == [row < WINDOW and column < WINDOW for row in range(ROWS) for column in range(ROWS)]


def test_the_pattern_is_stretched_over_the_blocks() -> None:
    assert stretched("ttww", 2) == ["t", "w"]
    assert stretched("tw", 5) == ["t", "t", "t", "w", "w"]
    encoder = WindowEncoder(16, 4, **SIZES)
    kinds = [type(block.attention).__name__ for block in encoder.blocks]
    assert kinds == ["Attention", "Attention", "WindowAttention", "WindowAttention"]
    assert encoder(torch.rand(1, 3, 16, 16)).shape == (1, PATCHES + PREFIX, 4)


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match=r"pattern must be letters t \(all\) and w \(window\), not 'tx'"):
        WindowEncoder(16, 4, pattern="tx", **SIZES)
    with pytest.raises(BadInput, match="4 rows of patches do not divide into windows of 3"):
        WindowEncoder(16, 4, window=3, **SIZES)
    with pytest.raises(BadInput, match="16 or more, not 8"):
        WindowEncoder(16, 4, **{**SIZES, "num_latents": 8})
    with pytest.raises(BadInput, match="is not causal"):
        WindowEncoder(16, 4, causal=True, **{**SIZES, "num_latents": 16})

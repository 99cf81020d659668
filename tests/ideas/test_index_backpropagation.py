"""Index backpropagation: values, gradients and losses against the formula written out with whole matrices."""

from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F

from alitok.common.errors import BadInput
from alitok.ideas import index_backpropagation
from alitok.ideas.index_backpropagation import IndexBackpropagation


def module() -> IndexBackpropagation:
    torch.manual_seed(1)
    quantizer = IndexBackpropagation(12, 4, beta=0.25)
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


def latents() -> torch.Tensor:
    return torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)


@pytest.mark.parametrize("block", [1 << 22, 24])  # all tokens at once, or two of them
def test_values_and_gradients_are_those_of_the_straight_through_one_hot(block: int) -> None:
    quantizer, z, target = module(), latents(), torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(2))
    with patch.object(index_backpropagation, "BLOCK_ELEMENTS", block):
        found = quantizer(z)
        loss = F.mse_loss(found.quantized, target) + sum(found.losses.values())
        got = torch.autograd.grad(loss, [z, quantizer.codebook.weight])

    codes = quantizer.codebook.weight
    soft = (z @ codes.T).softmax(-1)
    hard = F.one_hot(soft.argmax(-1), 12).float()
    q, plain = (hard - soft.detach() + soft) @ codes, hard @ codes
    losses = {
        "index": (q - z).square().mean(),
        "commitment": (plain.detach() - z).square().mean(),
        "codebook": 0.25 * (plain - z.detach()).square().mean(),
    }
    assert torch.equal(found.ids, soft.argmax(-1))
    torch.testing.assert_close(found.quantized, plain)
    for name, value in losses.items():
        torch.testing.assert_close(found.losses[name], value)
    expected = torch.autograd.grad(F.mse_loss(q, target) + sum(losses.values()), [z, codes])
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_every_code_gets_a_gradient_from_the_decoder() -> None:
    quantizer = module()
    quantizer(latents()).quantized.square().sum().backward()
    assert bool(quantizer.codebook.weight.grad.abs().sum(1).gt(0).all())  # type: ignore[union-attr]


def test_ids_are_the_largest_products_and_look_up_to_what_the_decoder_gets() -> None:
    quantizer, z = module().eval(), latents().detach()
    ids = quantizer.ids(z)
    assert torch.equal(ids, (z @ quantizer.codebook.weight.T).argmax(-1))
    torch.testing.assert_close(quantizer.lookup(ids), quantizer(z).quantized)
    assert quantizer.train()(z).statistics is None


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="beta must be 0 or more, not -1"):
        IndexBackpropagation(12, 4, beta=-1)
    with pytest.raises(BadInput, match="has 0 codes"):
        IndexBackpropagation(0, 4)

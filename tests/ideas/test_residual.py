"""Residual codes: the recursion by hand, and a codebook that all depths move."""

from typing import Any

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.entropy import CodebookEntropy
from alitok.ideas.residual import ResidualQuantizer
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.tokenizer import Tokenizer

V, D, DEPTH, IMAGES, TOKENS = 8, 4, 3, 4, 5
STEP = Step(0, 1, 10, IMAGES, range(IMAGES))


def module(anchor: str = "nearest") -> ResidualQuantizer:
    torch.manual_seed(1)
    quantizer = ResidualQuantizer(V, D, DEPTH, anchor=anchor)  # type: ignore[arg-type]
    torch.nn.init.normal_(quantizer.codebook.weight)
    return quantizer


def latents() -> torch.Tensor:
    return torch.randn(IMAGES, TOKENS, D, generator=torch.Generator().manual_seed(0))


def test_ids_sums_losses_and_gradients_by_hand() -> None:
    quantizer, z = module(), latents().requires_grad_()
    found = quantizer(z, STEP)
    codes = quantizer.codebook.weight
    rest, total, codebook, commitment = z.detach(), torch.zeros_like(z), [], []
    for depth in range(DEPTH):
        ids = torch.cdist(rest, codes.detach()).argmin(-1)
        assert torch.equal(found.ids[..., depth], ids)
        codebook.append((codes[ids] - rest).square().mean())
        total = total + codes[ids].detach()
        rest = z.detach() - total
        commitment.append((z - total).square().mean())
    torch.testing.assert_close(found.quantized, total)
    torch.testing.assert_close(found.losses["codebook"], sum(codebook) / DEPTH)
    torch.testing.assert_close(found.losses["commitment"], 0.25 * sum(commitment) / DEPTH)
    got = torch.autograd.grad(sum(found.losses.values()), [z, codes])
    expected = torch.autograd.grad((sum(codebook) + 0.25 * sum(commitment)) / DEPTH, [z, codes])
    for mine, other in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_depths_bring_the_sum_nearer() -> None:
    """With the zero vector among the codes no depth can move the sum away."""
    quantizer, z = module().eval(), latents()
    with torch.no_grad():
        quantizer.codebook.weight[0] = 0
        ids = quantizer.ids(z)
        parts = quantizer.codebook(ids).cumsum(-2)
        errors = (parts - z[:, :, None]).square().sum(-1)
    assert ids.shape == (IMAGES, TOKENS, DEPTH)
    assert bool((errors.diff(dim=-1) <= 1e-6).all())
    assert float(errors[..., -1].mean()) < float(errors[..., 0].mean())
    torch.testing.assert_close(quantizer.lookup(ids), parts[..., -1, :])
    torch.testing.assert_close(quantizer(z).quantized, quantizer.lookup(ids))


def test_statistics_are_of_all_depths() -> None:
    quantizer = module("random").train()
    z = latents()
    found = quantizer(z, STEP)
    assert torch.equal(found.statistics.count, torch.bincount(found.ids.flatten(), minlength=V))
    assert bool(found.statistics.distance.eq(0).all())
    rests, rest = [], z
    for depth in range(DEPTH):
        rests.append(rest)
        rest = rest - quantizer.codebook(found.ids[..., depth])
    for code in range(V):  # an anchor of code v is a residual of depth v mod S
        own = rests[code % DEPTH].flatten(0, 1)
        assert bool((own - found.statistics.feature[code]).abs().amax(1).lt(1e-6).any())
    assert quantizer.eval()(z).statistics is None


@pytest.mark.parametrize("anchor", ["nearest", "random"])
def test_parts_of_a_batch_merge_to_the_whole(anchor: str) -> None:
    quantizer, z = module(anchor).train(), latents()
    whole = quantizer(z, STEP).statistics
    halves = [quantizer(z[i : i + 2], Step(0, 1, 10, IMAGES, range(i, i + 2))).statistics for i in (0, 2)]
    for name, value in vars(halves[0].merge(halves[1])).items():
        torch.testing.assert_close(value, getattr(whole, name))


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="sub_codes must be 2 or more, not 1"):
        ResidualQuantizer(V, D, 1)
    sizes: dict[str, Any] = {"image_size": 16, "patch_size": 8, "code_dim": D, "width": 8, "heads": 2, "depth": 1}
    tokenizer = Tokenizer(Encoder(num_latents=4, **sizes), module(), Decoder(num_prefix=0, causal=True, **sizes))
    with pytest.raises(BadInput, match="a codebook for each sub-code"):
        CodebookEntropy().attach(tokenizer)

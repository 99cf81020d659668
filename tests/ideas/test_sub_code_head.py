"""The head that draws sub-codes one after the other."""

import itertools

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.ideas.sub_code_head import SubCodeHead, SubCodeHeadGenerator
from alitok.sampling.generate import generate


def head(sub_codes: int = 3, codes: int = 4) -> SubCodeHead:
    torch.manual_seed(0)
    module = SubCodeHead(16, codes, sub_codes, width=32, depth=2, heads=2).eval()
    for layer in module.last:
        torch.nn.init.normal_(layer.weight, std=0.5)
    return module


@torch.no_grad()
def test_the_probabilities_of_all_tokens_add_up_to_one() -> None:
    """And the loss is the mean over sub-codes of minus their logarithm."""
    module, hidden = head(), torch.randn(1, 1, 16)
    tokens = torch.tensor(list(itertools.product(range(4), repeat=3)))  # (64, 3)
    nats = module.loss(hidden.expand(64, 1, 16), tokens[:, None])["nats"][:, 0]
    assert float((-3 * nats).exp().sum()) == pytest.approx(1, abs=1e-5)


@torch.no_grad()
def test_a_sub_code_sees_those_before_it_only() -> None:
    module, hidden, known = head(), torch.randn(2, 16), torch.tensor([[1, 2], [1, 2]])
    base = module(hidden, known)
    changed = module(hidden, torch.tensor([[1, 3], [0, 2]]))
    torch.testing.assert_close(changed[0, :2], base[0, :2])
    assert not torch.allclose(changed[0, 2], base[0, 2])
    torch.testing.assert_close(changed[1, :1], base[1, :1])
    assert not torch.allclose(changed[1, 1], base[1, 1])


@torch.no_grad()
def test_draws_follow_the_law() -> None:
    """20,000 draws of one hidden state against the enumerated probabilities; guidance is asked for each sub-code."""
    module, hidden, count = head(2), torch.randn(1, 16), 20_000
    asked = []

    def guide(logits: torch.Tensor) -> torch.Tensor:
        asked.append(logits.shape)
        first, second = logits.chunk(2)
        return first + 0 * second

    noise = torch.rand(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = module.draw(hidden.expand(2 * count, 16), noise, guide, 1.0)
    assert asked == [(2 * count, 4)] * 2
    tokens = torch.tensor(list(itertools.product(range(4), repeat=2)))
    law = (-2 * module.loss(hidden[None].expand(16, 1, 16), tokens[:, None])["nats"][:, 0]).exp()
    found = torch.bincount(drawn[:, 0] * 4 + drawn[:, 1], minlength=16) / count
    assert float((found - law).abs().max()) < 0.015


@torch.no_grad()
def test_it_samples_with_guidance() -> None:
    torch.manual_seed(0)
    words = {"head": {"width": 16, "depth": 1, "heads": 2}, "num_classes": 3, "num_prefix": 1, "grid": (2, 2)}
    generator = SubCodeHeadGenerator(8, 2, width=32, depth=1, heads=2, **words).eval()
    ids = generate(generator, torch.tensor([0, 1, 2]), guidance=2.0, seed=3)
    assert ids.shape == (3, 5, 2)
    assert 0 <= int(ids.min()) <= int(ids.max()) < 8
    alone = generate(generator, torch.tensor([2]), guidance=2.0, seed=3, indices=[2])
    assert torch.equal(alone[0], ids[2])


def test_heads_that_do_not_fit() -> None:
    with pytest.raises(BadInput, match="width 30 must divide into 4 heads"):
        SubCodeHead(16, 4, 2, width=30, depth=1, heads=4)

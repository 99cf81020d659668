"""The entropy loss of a codebook: its formula, its memory, and that a cut batch is the same batch."""

from typing import Any

import pytest
import torch
from torch import nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas import entropy
from alitok.ideas.entropy import CodebookEntropy
from alitok.ideas.several_codebooks import SeveralCodebooks
from alitok.models.decoder import Decoder
from alitok.models.encoder import Encoder
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.seams import Quantizer
from alitok.models.tokenizer import Tokenizer

STEP = Step(0, 0, 10, 4, range(4))


def tokenizer(quantizer: Quantizer, channels: int = 4) -> Tokenizer:
    return Tokenizer(
        Encoder(16, 4, 16, channels, 16, 1, 1), quantizer, Decoder(16, 4, 0, channels, 16, 1, 1, causal=False)
    )


def attached(quantizer: Quantizer, channels: int = 4, **arguments: Any) -> tuple[CodebookEntropy, Tokenizer]:
    model, term = tokenizer(quantizer, channels), CodebookEntropy(**arguments)
    term.attach(model)
    return term, model


def plain(
    latents: torch.Tensor, codes: torch.Tensor, temperature: float, share: torch.Tensor, products: bool
) -> torch.Tensor:
    """The formula, term by term."""
    total = torch.zeros(())
    for z in latents.flatten(0, -2):
        if products:
            logits = torch.stack([z.dot(c) / temperature for c in codes])
        else:
            logits = torch.stack([-((z / z.norm() - c / c.norm()) ** 2).sum() / temperature for c in codes])
        p = (logits - logits.logsumexp(0)).exp()
        total = total - (p * p.clamp_min(1e-30).log()).sum() + (p * share.log()).sum()
    return total / latents.shape[:-1].numel()


@pytest.mark.parametrize(("block", "products"), [(1 << 22, False), (24, False), (24, True)])
def test_the_formula_and_its_gradients_whatever_the_blocks(
    block: int, products: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entropy, "BLOCK_ELEMENTS", block)
    torch.manual_seed(0)
    term, model = attached(ClusteredQuantizer(8, 4), temperature=0.3, products=products)
    nn.init.normal_(model.quantizer.codebook.weight)
    share = torch.rand(8).softmax(0)
    term.head.get_buffer("share").copy_(share[None])
    grads, values = [], []
    for kind in (term, None):
        latents = torch.randn(4, 5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
        codes = model.quantizer.codebook.weight
        codes.grad = None
        if kind is None:
            value = plain(latents, codes, 0.3, share, products)
        else:
            value = kind({"image": torch.zeros(4, 3, 16, 16)}, {"latents": latents}, STEP)
        value.backward()
        values.append(value.detach())
        grads.append((latents.grad, codes.grad))
    torch.testing.assert_close(*values)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-6)


def test_a_cut_batch_is_the_same_batch_and_the_share_follows_it() -> None:
    torch.manual_seed(0)
    term, model = attached(ClusteredQuantizer(8, 4), temperature=0.3)
    nn.init.normal_(model.quantizer.codebook.weight)
    batch, latents = {"image": torch.zeros(4, 3, 16, 16)}, torch.randn(4, 5, 4)
    whole, statistics = term.evaluate(batch, {"latents": latents}, STEP)
    parts = [term.evaluate(batch, {"latents": part}, STEP) for part in latents.split(2)]
    torch.testing.assert_close(whole, sum(value for value, _ in parts) / 2)
    merged = parts[0][1].merge(parts[1][1])
    term.update(statistics)
    once = term.head.get_buffer("share").clone()
    term.update(merged)
    torch.testing.assert_close(term.head.get_buffer("share"), once)
    torch.testing.assert_close(once.sum(), torch.tensor(1.0))
    # with m = E p the diversity has the value -H(E p)
    value = term(batch, {"latents": latents}, STEP)
    certain = CodebookEntropy(0.3, diversity=0.0)
    certain.attach(model)
    difference = value - certain(batch, {"latents": latents}, STEP)
    torch.testing.assert_close(difference, (once * once.log()).sum())
    assert term.evaluate(batch, {"latents": latents}, None)[1] is None


def test_several_codebooks_are_their_mean() -> None:
    torch.manual_seed(0)
    term, model = attached(SeveralCodebooks(8, 4, 2), channels=8, temperature=0.3)
    nn.init.normal_(model.quantizer.codebook.weight)
    latents = torch.randn(4, 5, 8)
    uniform = torch.full((8,), 1 / 8)
    halves = zip(latents.chunk(2, -1), model.quantizer.codebook.weight.chunk(2), strict=True)
    expected = sum(plain(part, codes, 0.3, uniform, False) for part, codes in halves) / 2
    torch.testing.assert_close(term({"image": torch.zeros(4, 3, 16, 16)}, {"latents": latents}, STEP), expected)


def test_descending_it_spreads_crowded_latents_over_the_codes() -> None:
    torch.manual_seed(0)
    term, model = attached(ClusteredQuantizer(16, 4), temperature=0.5)
    codes = nn.functional.normalize(nn.init.normal_(model.quantizer.codebook.weight), dim=-1)
    latents = nn.Parameter(codes[0].detach() + 0.05 * torch.randn(4, 16, 4))

    def taken() -> int:
        with torch.no_grad():
            return len((nn.functional.normalize(latents, dim=-1) @ codes.T).argmax(-1).unique())

    before = taken()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for _ in range(60):
        value, statistics = term.evaluate({"image": torch.zeros(4, 3, 16, 16)}, {"latents": latents}, STEP)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        term.update(statistics)
    assert before < 3
    assert taken() > 8


def test_what_it_refuses() -> None:
    with pytest.raises(BadInput, match="temperature must be above 0, not 0"):
        CodebookEntropy(0.0)
    with pytest.raises(BadInput, match="Linear has none: take a ClusteredQuantizer"):
        CodebookEntropy().attach(nn.Linear(1, 1))
    term, model = attached(ClusteredQuantizer(8, 4))
    outputs = model(torch.rand(1, 3, 16, 16), ids=torch.zeros(1, 16, dtype=torch.int64))
    with pytest.raises(BadInput, match="leave it out if the tokens are given"):
        term({"image": torch.rand(1, 3, 16, 16)}, outputs, STEP)

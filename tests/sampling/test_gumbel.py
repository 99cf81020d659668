"""Draws by Gumbel numbers: the law is the softmax, and a number depends on its image, place and code alone."""

from typing import Any

import pytest
import torch

from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.ideas.masked import MaskedGenerator
from alitok.ideas.masked_bits import MaskedBitGenerator
from alitok.models.seams import draw, gumbel, image_keys
from alitok.sampling.generate import Sampler
from tests.sampling.test_windows import INDICES, LABELS, SIZE, made, sampled


def test_the_law_is_the_softmax() -> None:
    logits = torch.tensor([2.0, -1.0, 0.5, 0.0])
    count = 40_000
    drawn = draw(logits.expand(count, -1), image_keys(0, range(count)))
    shares = drawn.bincount(minlength=4) / count
    law = logits.softmax(0)
    assert ((shares - law).abs() < 4 * (law * (1 - law) / count).sqrt()).all()


def test_gumbel_numbers() -> None:
    """Mean Euler's constant, variance pi^2 / 6; a code's number does not depend on how many codes there are."""
    keys = image_keys(3, [5, 7], 4)
    numbers = gumbel(keys, 5_000)
    assert numbers.shape == (2, 4, 5_000)
    assert numbers.dtype == torch.float64
    assert numbers.isfinite().all()
    assert numbers.mean().item() == pytest.approx(0.5772, abs=0.03)
    assert numbers.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.05)
    assert torch.equal(gumbel(keys, 10), numbers[..., :10])
    assert torch.corrcoef(numbers.flatten(0, 1)).sub(torch.eye(8)).abs().max() < 0.06
    assert torch.equal(image_keys(3, [7], 4)[0], keys[1])
    assert len({*keys.flatten().tolist(), *image_keys(4, [5, 7], 4).flatten().tolist()}) == 16


@pytest.mark.parametrize("kind", ["plain", "sub-codes"])
@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_windows_and_batches_draw_the_same(kind: str, guidance: float) -> None:
    generator = made(kind)
    words: dict[str, Any] = {"noise": "gumbel", "guidance": guidance}
    expected = sampled(generator, 1, **words)
    assert not torch.equal(expected, sampled(generator, 1, guidance=guidance))
    for window in (2, 5, 99):
        assert torch.equal(sampled(generator, window, **words), expected)
    alone = Sampler(generator, Draw(seed=5, **words)).sample(LABELS[2:3], INDICES[2:3])
    assert torch.equal(alone[0], expected[2])
    assert torch.equal(sampled(generator, 1, keep=7, **words), expected[:, :7])


def test_greedy_at_a_low_temperature() -> None:
    generator = made()
    cold = [sampled(generator, 1, temperature=1e-6, noise=noise) for noise in ("inverse", "gumbel")]
    assert torch.equal(*cold)


def test_what_draws_otherwise_is_refused() -> None:
    head = {"width": 16, "depth": 1, "rounds": [2, 2]}
    bits = MaskedBitGenerator(codebook_size=16, head=head, **SIZE)
    with pytest.raises(BadInput, match="MaskedBitHead draws a token in a way of its own"):
        Sampler(bits, Draw(noise="gumbel"))
    with pytest.raises(BadInput, match="compile and Gumbel noise"):
        Sampler(MaskedGenerator(codebook_size=16, **SIZE), Draw(noise="gumbel"))

"""BSQ's and Instella's binary codes."""

import math

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.bits import BernoulliQuantizer, SphereQuantizer
from alitok.ideas.shared.bits import bit_entropy

STEP = Step(0, 1, 10, 4, range(4))


def latents(images: int = 4, bits: int = 6) -> torch.Tensor:
    return torch.randn(images, 3, bits, generator=torch.Generator().manual_seed(0))


def entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def test_the_entropy_of_a_bit() -> None:
    for logit in (-3.0, 0.0, 0.7, 5.0):
        p = 1 / (1 + math.exp(-logit))
        assert float(bit_entropy(torch.tensor(logit))) == pytest.approx(entropy(p), rel=1e-5)
    assert torch.isfinite(bit_entropy(torch.tensor([1e4, -1e4]))).all()


def test_the_loss_of_bsq_by_hand() -> None:
    """sigmoid(-4 u tau / sqrt(D)) is the other bit's probability, of the same entropy."""
    quantizer, z = SphereQuantizer(6, tau=2.0, entropy=0.5, diversity=0.7), latents()
    quantizer.usage.copy_(torch.tensor([0.5, 0.2, 0.9, 0.4, 0.6, 0.5]))
    total = 0.0
    for row in z.flatten(0, 1):
        unit = row / row.norm()
        for bit in range(6):
            p = 1 / (1 + math.exp(-4 * float(unit[bit]) * 2.0 / math.sqrt(6)))
            mean = float(quantizer.usage[bit])
            total += entropy(p) - 0.7 * -(p * math.log(mean) + (1 - p) * math.log(1 - mean))
    assert float(quantizer(z).losses["entropy"]) == pytest.approx(0.5 * total / 12, rel=1e-4)


def test_statistics_merge_to_the_mean_of_the_whole_batch() -> None:
    quantizer, z = SphereQuantizer(6).train(), latents()
    whole = quantizer(z).statistics
    parts = [quantizer(part).statistics for part in z.split([1, 3])]
    merged = parts[0].merge(parts[1])
    torch.testing.assert_close(merged.total, whole.total)
    quantizer.update(merged)
    unit = z / z.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(quantizer.usage, torch.sigmoid(4 * unit / 6**0.5).mean((0, 1)))
    assert quantizer.eval()(z).statistics is None


def test_the_loss_turns_a_bit_that_is_always_one() -> None:
    """Its gradient pushes the mean of an uneven bit towards a half."""
    quantizer = SphereQuantizer(4, entropy=1.0, diversity=5.0)
    quantizer.usage.copy_(torch.tensor([0.95, 0.5, 0.5, 0.5]))
    z = torch.randn(64, 1, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    quantizer(z).losses["entropy"].backward()
    assert z.grad is not None
    assert float(z.grad[..., 0].mean()) > 0  # a step against it lowers the channel


@pytest.mark.parametrize("kind", [SphereQuantizer, BernoulliQuantizer])
def test_ids_are_the_bits(kind: type) -> None:
    quantizer, z = kind(6).eval(), latents()
    found = quantizer(z)
    expected = ((z > 0).long() * 2 ** torch.arange(6)).sum(-1)
    assert torch.equal(found.ids, expected)
    torch.testing.assert_close(quantizer.lookup(expected), found.quantized)
    codes = quantizer.lookup(expected)
    assert codes.unique().tolist() == pytest.approx([-(6**-0.5), 6**-0.5] if kind is SphereQuantizer else [0.0, 1.0])
    with pytest.raises(BadInput, match="6 bits take 6 channels, the latents have 5"):
        quantizer(z[..., :5])
    with pytest.raises(BadInput, match="1 to 24 channels"):
        kind(25)


def test_bernoulli_draws_by_place_and_share() -> None:
    quantizer = BernoulliQuantizer(6, temperature=0.5).train()
    z, step = latents(2000), Step(0, 1, 10, 2000, range(2000))
    found = quantizer(z, step)
    assert set(found.quantized.detach().round().unique().tolist()) == {0.0, 1.0}
    expected = torch.sigmoid(z / 0.5)
    bins = expected.mul(10).long()
    for number in range(10):
        inside = bins == number
        assert float(found.quantized[inside].mean()) == pytest.approx(float(expected[inside].mean()), abs=0.03)
    part = quantizer(z[50:60], Step(0, 1, 10, 2000, range(50, 60)))
    assert torch.equal(part.ids, found.ids[50:60])
    assert torch.equal(quantizer(z).ids, quantizer.ids(z))  # without a step nothing is drawn


def test_bernoullis_gradient_is_that_of_the_share() -> None:
    quantizer, z = BernoulliQuantizer(6, saturation=1.0).train(), latents().requires_grad_()
    quantizer(z, STEP).quantized.sum().backward()
    share = torch.sigmoid(z.detach())
    torch.testing.assert_close(z.grad, share * (1 - share))
    assert float(quantizer(z, STEP).losses["saturation"]) == pytest.approx(float((share * (1 - share)).mean()))
    broken = latents()
    broken[0, 0, 0] = torch.inf
    assert quantizer(broken, STEP).quantized[0, 0, 0].isnan()
    with pytest.raises(BadInput, match="temperature must be above 0"):
        BernoulliQuantizer(4, temperature=0.0)

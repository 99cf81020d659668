"""A codebook of moving averages: the recursion by hand, dead codes, and statistics that merge."""

from unittest.mock import patch

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.ema import AverageQuantizer
from alitok.ideas.shared import sums
from alitok.ideas.shared.sums import sums_by_code
from alitok.training.records import merge_over_processes

V, D, IMAGES, TOKENS = 6, 3, 4, 5


def module(**more: float) -> AverageQuantizer:
    torch.manual_seed(1)
    quantizer = AverageQuantizer(V, D, **more)
    quantizer.codebook.weight.normal_()
    quantizer.total.copy_(quantizer.codebook.weight / V)
    return quantizer.train()


def latents(seed: int = 0) -> torch.Tensor:
    return torch.randn(IMAGES, TOKENS, D, generator=torch.Generator().manual_seed(seed))


def step(number: int = 0) -> Step:
    return Step(0, number, 10, IMAGES, range(IMAGES))


def test_codes_are_the_averages_written_out() -> None:
    quantizer = module(decay=0.9, dead=1e-6)  # nothing is dead in three steps
    share, total, codes = torch.full((V,), 1 / V), quantizer.total.clone(), quantizer.codebook.weight.clone()
    for number in range(3):
        z = latents(number)
        found = quantizer(z, step(number))
        quantizer.update(found.statistics)
        ids = torch.cdist(z.flatten(0, 1), codes).argmin(1)
        assert torch.equal(found.ids.flatten(), ids)
        for code in range(V):
            own = z.flatten(0, 1)[ids == code]
            share[code] = 0.9 * share[code] + 0.1 * len(own) / len(ids)
            total[code] = 0.9 * total[code] + 0.1 * own.sum(0) / len(ids)
            codes[code] = total[code] / share[code]
        torch.testing.assert_close(quantizer.codebook.weight, codes)


def test_a_code_that_nobody_chooses_is_moved_onto_a_latent_of_the_batch() -> None:
    quantizer = module(decay=0.5, dead=0.2)
    quantizer.codebook.weight[4] = quantizer.total[4] = 100.0
    z = latents()
    for number in range(3):  # the share of code 4: 1/2, 1/4, 1/8 of the average
        assert float(quantizer.codebook.weight[4].abs().max()) > 50
        quantizer.update(quantizer(z, step(number)).statistics)
    assert bool((z.flatten(0, 1) - quantizer.codebook.weight[4]).abs().amax(1).lt(1e-6).any())
    assert float(quantizer.share[4]) == pytest.approx(1 / V)
    assert bool(quantizer.codebook.weight.isfinite().all())


@pytest.mark.parametrize("cuts", [[1, 3], [2, 1, 1]])
def test_parts_of_a_batch_merge_to_the_whole(cuts: list[int]) -> None:
    whole, cut = module(dead=0.9), module(dead=0.9)  # so that many codes are moved
    z = latents()
    whole.update(whole(z, step()).statistics)
    parts, first = [], 0
    for count in cuts:
        part = Step(0, 0, 10, IMAGES, range(first, first + count))
        parts.append(cut(z[first : first + count], part).statistics)
        first += count
    cut.update(merge_over_processes(parts))
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(cut.state_dict()[name], value)


def test_the_state_is_in_buffers_and_nothing_is_left_for_an_optimizer() -> None:
    quantizer = module()
    assert list(quantizer.parameters()) == []
    assert quantizer.state_dict().keys() == {"codebook.weight", "share", "total"}
    z = latents().requires_grad_()
    found = quantizer(z, step())
    assert found.losses.keys() == {"commitment"}
    chosen = quantizer.lookup(found.ids)
    torch.testing.assert_close(found.losses["commitment"], 0.25 * (z - chosen).square().mean())
    found.quantized.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))
    torch.testing.assert_close(found.quantized, chosen)
    assert quantizer.eval()(z).statistics is None


def test_sums_by_code_in_blocks() -> None:
    rows, ids = latents().flatten(0, 1), torch.arange(IMAGES * TOKENS) % 4
    with patch.object(sums, "BLOCK_ELEMENTS", 3 * V):
        found = sums_by_code(rows, ids, V)
    torch.testing.assert_close(found, torch.zeros(V, D).index_add_(0, ids, rows))


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="decay must be above 0 and below 1, not 1"):
        AverageQuantizer(V, D, decay=1)
    with pytest.raises(BadInput, match="dead must be above 0 and below 1, not 0"):
        AverageQuantizer(V, D, dead=0)

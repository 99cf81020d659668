"""A frozen codebook behind a linear layer: codes and losses written out; one step moves every code."""

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.ideas.simvq import SimVQ

V, D = 7, 3


def module() -> SimVQ:
    torch.manual_seed(1)
    return SimVQ(V, D)


def latents() -> torch.Tensor:
    return torch.randn(4, 5, D, generator=torch.Generator().manual_seed(0))


def test_codes_ids_and_losses_written_out() -> None:
    quantizer, z = module().train(), latents()
    layer = quantizer.codebook.linear
    codes = quantizer.codebook.table @ layer.weight.T + layer.bias
    found = quantizer(z)
    ids = torch.cdist(z.flatten(0, 1), codes).argmin(1).view(4, 5)
    assert torch.equal(found.ids, ids)
    torch.testing.assert_close(found.quantized, codes[ids])
    torch.testing.assert_close(quantizer.lookup(ids), codes[ids])
    torch.testing.assert_close(found.losses["codebook"], (codes[ids] - z).square().mean())
    torch.testing.assert_close(found.losses["commitment"], 0.25 * (codes[ids] - z).square().mean())
    assert found.statistics is None


def test_a_code_is_the_same_under_autocast() -> None:
    quantizer, ids = module(), torch.arange(V)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        looked_up = quantizer.lookup(ids)
    assert looked_up.dtype == torch.float32
    assert torch.equal(looked_up, quantizer.lookup(ids))


def test_a_step_moves_codes_that_nobody_chose() -> None:
    quantizer, z = module(), latents()
    before, table = quantizer.codebook.weight.detach(), quantizer.codebook.table.clone()
    one = before[2].expand(1, 4, D) + 0.01 * z[:1, :4]  # all choose code 2
    found = quantizer(one)
    assert found.ids.unique().tolist() == [2]
    found.losses["codebook"].backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    assert bool(((quantizer.codebook.weight - before).abs().amax(1) > 0).all())
    assert torch.equal(quantizer.codebook.table, table)


def test_only_the_linear_layer_is_trained_and_all_of_it_is_saved() -> None:
    quantizer, z = module(), latents().requires_grad_()
    assert [name for name, _ in quantizer.named_parameters()] == ["codebook.linear.weight", "codebook.linear.bias"]
    assert quantizer.state_dict().keys() == {"codebook.table", "codebook.linear.weight", "codebook.linear.bias"}
    quantizer(z).quantized.sum().backward()
    torch.testing.assert_close(z.grad, torch.ones_like(z))
    other = SimVQ(V, D)
    assert not torch.equal(other(z).ids, quantizer(z).ids)
    other.load_state_dict(quantizer.state_dict())
    torch.testing.assert_close(other(z).quantized, quantizer(z).quantized, rtol=0, atol=0)


def test_the_table_has_the_papers_variance() -> None:
    assert float(SimVQ(4096, 16).codebook.table.var()) == pytest.approx(1 / 16, rel=0.03)
    with pytest.raises(BadInput, match="0 codes"):
        SimVQ(0, D)

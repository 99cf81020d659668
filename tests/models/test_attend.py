"""The training kernel of attention: every path gives the same numbers."""

import pytest
import torch
import torch.nn.functional as F

from alitok.models.transformer import CAUSAL_BLOCK, PLAIN_ATTENTION_LENGTH, attend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [5, 2 * CAUSAL_BLOCK + 7])
def test_bfloat16_training_equals_the_fused_kernel(causal: bool, length: int) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, length, 8).bfloat16().requires_grad_() for _ in range(3))
    gradient = torch.randn(2, 3, length, 8).bfloat16()
    results = []
    for function in (attend, lambda *args, causal: F.scaled_dot_product_attention(*args, is_causal=causal)):
        output = function(q, k, v, causal=causal)
        results.append((output, *torch.autograd.grad(output, (q, k, v), gradient)))
    for ours, fused in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours, fused, rtol=0.03, atol=0.03)


def test_the_plain_formula_is_for_shorter_sequences() -> None:
    assert 2 * CAUSAL_BLOCK + 7 <= PLAIN_ATTENTION_LENGTH


def test_dropout_acts_on_the_plain_path() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 4, 16, 8).bfloat16().requires_grad_() for _ in range(3))
    dropped = attend(q, k, torch.ones_like(v), causal=True, dropout=0.5).float()
    assert (attend(q, k, torch.ones_like(v), causal=True).float() - 1).abs().max() < 0.02  # weights sum to one
    assert dropped.std() > 0.2
    assert abs(dropped.mean() - 1) < 0.1  # dropout keeps the mean

import math

import pytest
import torch

from alitok.sampling.guidance import PowerCosine


def test_scale_starts_at_one_and_rises_to_the_given_one():
    rule = PowerCosine(16.0, 1.8)
    scales = [rule.scale_at(step, 273) for step in range(273)]
    assert scales[0] == 1
    assert scales == sorted(scales)
    assert scales[-1] == pytest.approx(16, abs=0.01)
    assert rule.scale_at(100, 273) == pytest.approx(1 + 15 * (1 - math.cos(math.pi * (100 / 273) ** 1.8)) / 2)


def test_scale_of_one_is_the_conditional_branch():
    conditional, unconditional = torch.randn(2, 3, 5)
    for step in (0, 7):
        logits = PowerCosine(1.0, 2.0)(conditional, unconditional, step, 8)
        torch.testing.assert_close(logits, conditional)


def test_branches_are_combined_around_the_unconditional_one():
    conditional, unconditional = torch.tensor([[2.0]]), torch.tensor([[1.0]])
    rule = PowerCosine(5.0, 1.0)  # half of the way: 1 + 4 / 2
    assert rule(conditional, unconditional, 4, 8).item() == pytest.approx(1 + 3 * 1)

import math

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.sampling.guidance import SCHEDULES, Constant, Linear, PowerCosine, SoftCFG, make_guidance


def scales(rule, steps: int) -> list[float]:
    return [float(rule.scale_at(step, steps)) for step in range(steps)]


def test_power_cosine_starts_at_one_and_rises_to_the_given_scale():
    rule = PowerCosine(16.0, 1.8)
    found = scales(rule, 273)
    assert found[0] == 1
    assert found == sorted(found)
    assert found[-1] == pytest.approx(16, abs=0.01)
    assert found[100] == pytest.approx(1 + 15 * (1 - math.cos(math.pi * (100 / 273) ** 1.8)) / 2)


def test_constant_and_linear():
    assert scales(Constant(4.0), 5) == [4.0] * 5
    assert scales(Linear(5.0), 4) == [2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize("rule", [PowerCosine(1.0, 2.0), Constant(1.0), Linear(1.0), SoftCFG(1.0, 2.0)])
def test_scale_of_one_is_the_conditional_branch(rule):
    conditional, unconditional = torch.randn(2, 3, 5)
    for step in (0, 7):
        torch.testing.assert_close(rule(conditional, unconditional, step, 8), conditional)


@pytest.mark.parametrize("rule", [PowerCosine(6.0, 1.5), Constant(6.0), Linear(6.0)])
def test_step_as_a_tensor_is_the_step_as_a_number(rule):
    conditional, unconditional = torch.randn(2, 3, 5)
    for step in range(4):
        logits = rule(conditional, unconditional, step, 4)
        assert torch.equal(rule(conditional, unconditional, torch.tensor([step]), 4), logits)
        expected = unconditional + scales(rule, 4)[step] * (conditional - unconditional)
        torch.testing.assert_close(logits, expected)


def test_value_weights_take_away_one_token_in_all():
    confidence = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weights = SoftCFG(3.0).value_weights(confidence)
    torch.testing.assert_close(weights[0], torch.tensor([0.5, 0.8, 0.7, 1.0]))
    assert weights[1].tolist() == [0, 1, 1, 1]
    assert weights[2].tolist() == [1, 1, 1, 1]


def test_rules_by_name():
    assert make_guidance("power-cosine", 16, 1.8) == PowerCosine(16.0, 1.8)
    assert make_guidance("constant", 2) == Constant(2.0)
    assert make_guidance("linear", 2) == Linear(2.0)
    assert make_guidance("softcfg", 2, 0.5) == SoftCFG(2.0, 0.5)
    assert all(make_guidance(name, 0) is None for name in SCHEDULES)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("liner", 2), "'liner'.*did you mean 'linear'"),
        (("linear", -1), "scale must be 0"),
        (("linear", math.inf), "scale must be 0"),
        (("linear", math.nan), "scale must be 0"),
        (("power-cosine", 2, 0), "power must be above 0"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(BadInput, match=words):
        make_guidance(*arguments)

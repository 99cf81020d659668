import math

import pytest
import torch

from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.sampling.generate import generate
from alitok.sampling.guidance import SCHEDULES, BySubCode, Constant, Guidance, Linear, PowerCosine, SoftCFG, guidance_of


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
        torch.testing.assert_close(rule.combine([conditional, unconditional], torch.tensor([step]), 8), conditional)


@pytest.mark.parametrize("rule", [PowerCosine(6.0, 1.5), Constant(6.0), Linear(6.0)])
def test_every_row_has_the_scale_of_its_own_position(rule):
    conditional, unconditional = torch.randn(2, 4, 5)
    rows = rule.combine([conditional, unconditional], torch.arange(4), 4)
    for step in range(4):
        expected = unconditional[step] + scales(rule, 4)[step] * (conditional[step] - unconditional[step])
        torch.testing.assert_close(rows[step], expected)
        alone = rule.combine([conditional, unconditional], torch.tensor([step]), 4)
        assert torch.equal(alone[step], rows[step])


def test_value_weights_take_away_one_token_in_all():
    confidence = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.9, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    weights = SoftCFG(3.0).value_weights(confidence)
    torch.testing.assert_close(weights[0], torch.tensor([0.5, 0.8, 0.7, 1.0]))
    assert weights[1].tolist() == [0, 1, 1, 1]
    assert weights[2].tolist() == [1, 1, 1, 1]


def test_rules_by_name():
    assert guidance_of(Draw(16, 1.8)) == PowerCosine(16.0, 1.8)
    assert guidance_of(Draw(2, schedule="constant")) == Constant(2.0)
    assert guidance_of(Draw(2, schedule="linear")) == Linear(2.0)
    assert guidance_of(Draw(2, 0.5, "softcfg")) == SoftCFG(2.0, 0.5)
    assert all(type(guidance_of(Draw(0, schedule=name))) is Guidance for name in SCHEDULES)


class Half(Guidance):
    """Of somebody's own: takes no scale."""

    def __init__(self, power: float) -> None:
        self.power = power


def test_rules_by_class_path_and_block():
    path = f"{__name__}.Half"
    assert guidance_of(Draw(0, 1.5, path)).power == 1.5  # it takes no scale, so 0 does not turn it off
    assert guidance_of(Draw(3, 1.5, {"class_path": path, "init_args": {"power": 0.5}})).power == 0.5
    rules = [{"class_path": "alitok.sampling.guidance.Constant", "init_args": {"scale": s}} for s in (1.75, 2.0)]
    block = {"class_path": "alitok.sampling.guidance.BySubCode", "init_args": {"rules": rules}}
    assert guidance_of(Draw(1.0, schedule=block)) == BySubCode([Constant(1.75), Constant(2.0)])
    assert guidance_of(Draw(1.0, schedule={"class_path": "softcfg", "init_args": {"scale": 4.0}})) == SoftCFG(4.0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((2, 1, "liner"), "'liner'.*did you mean 'linear'"),
        ((2, 1, "torch.nn.Linear"), "torch.nn.Linear is no guidance"),
        ((2, 1, "no_such.Thing"), "cannot be imported"),
        ((-1,), "scale must be 0"),
        ((math.inf,), "scale must be 0"),
        ((math.nan,), "scale must be 0"),
        ((2, 0), "power must be above 0"),
        ((2, 1, "linear", 0.0), "temperature must be above 0"),
        ((2, 1, "linear", 1.0, 0, "float16"), "'float16' is unknown"),
    ],
)
def test_refusals(arguments, words):
    with pytest.raises(BadInput, match=words):
        guidance_of(Draw(*arguments))


def test_a_rule_as_version_0_1_had_them_is_refused_and_not_passed_over():
    with pytest.raises(BadInput, match="a Guidance defines `combine`"):
        type("Old", (Constant,), {"__call__": lambda self, c, u, step, steps: c})
    with pytest.raises(BadInput, match=r"subclass alitok\.sampling\.guidance\.Guidance"):
        generate(None, torch.tensor([0]), guidance=lambda c, u, step, steps: c)

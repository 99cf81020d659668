"""Which tokens a flow sees at which time: D-AR's groups and Selftok's first k."""

import pytest
import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.flow_decoder import FlowDecoder
from alitok.ideas.shared.flow import TokenSchedule
from alitok.ideas.shared.flow_sampler import FlowSampler
from alitok.ideas.token_schedules import FirstTokens, Groups


def decoder(schedule: TokenSchedule, sampler: FlowSampler) -> FlowDecoder:
    torch.manual_seed(0)
    made = FlowDecoder(8, 2, num_latents=16, code_dim=4, width=32, depth=2, heads=2, tokens=schedule, sampler=sampler)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def test_d_ars_windows() -> None:
    """In D-AR's own time, 0 at noise and before its warp, group g is round(8 t): the first ends at 1/16."""
    own = torch.linspace(0, 1, 321) + 1e-4
    warped = own / (own + 2 * (1 - own))
    seen = Groups(8, shift=2.0).visible(1 - warped, 32)
    expected = (8 * own).round().clamp(max=7)
    assert torch.equal(seen.sum(1), torch.full((321,), 4))
    assert torch.equal(seen.float().argmax(1), (4 * expected).long())
    assert seen[own < 1 / 16, :4].all()
    assert seen[own > 13 / 16, 28:].all()


def test_a_sampler_with_a_step_a_group_takes_each_once() -> None:
    times = torch.tensor(FlowSampler(steps=8, shift=2.0).times()[:-1])
    assert torch.equal(Groups(8, shift=2.0).visible(times, 8), torch.eye(8, dtype=torch.bool))


def test_selftoks_knots() -> None:
    times = torch.tensor([0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
    seen = FirstTokens().visible(times, 512)
    assert seen.sum(1).tolist() == [0, 96, 192, 376, 448, 496, 504, 512]
    assert all(torch.equal(row, torch.arange(512) < row.sum()) for row in seen)
    assert FirstTokens([0.5, 1.0]).visible(torch.tensor([0.0, 0.5, 1.0]), 8).sum(1).tolist() == [4, 6, 8]


@pytest.mark.parametrize("schedule", [Groups(4, shift=1.0), FirstTokens([0.0, 1.0])])
@torch.no_grad()
def test_tokens_act_at_their_times_alone(schedule: TokenSchedule) -> None:
    made, latents, noised = decoder(schedule, FlowSampler(steps=4)), torch.randn(1, 16, 4), torch.randn(1, 3, 8, 8)
    for time in (0.1, 0.45, 0.8, 1.0):
        t = torch.tensor([time])
        plain = made.velocity(noised, t, made.condition(latents))
        for token in range(16):
            other = latents.clone()
            other[:, token] += 1
            moved = (made.velocity(noised, t, made.condition(other)) - plain).abs().max() > 1e-6
            assert moved == schedule.visible(t, 16)[0, token]


@torch.no_grad()
def test_the_image_is_made_group_after_group() -> None:
    """What a group of a later step says does not change what the steps before have made."""
    made = decoder(Groups(4, shift=1.0), FlowSampler(steps=4))
    latents, noise = torch.randn(1, 16, 4), torch.randn(1, 3, 8, 8)

    def states(z: Tensor) -> list[Tensor]:
        """x at each step, and the end."""
        condition, visited = made.condition(z), []

        def field(x: Tensor, t: float, _: bool) -> Tensor:
            visited.append(x)
            return made.velocity(x, torch.full((1,), t), condition)

        end = made.sampler.integrate(field, noise)
        return [*visited, end]

    plain = states(latents)
    for group in range(4):
        other = latents.clone()
        other[:, 4 * group : 4 * group + 4] += 1
        same = [torch.equal(one, two) for one, two in zip(plain, states(other), strict=True)]
        assert same == [True] * (group + 1) + [False] * (4 - group)


def test_the_encoder_gets_a_gradient_at_visible_tokens_alone() -> None:
    schedule = Groups(4, shift=1.0)
    made = decoder(schedule, FlowSampler())
    latents, images = torch.randn(3, 16, 4, requires_grad=True), torch.rand(3, 3, 8, 8)
    outputs = made(latents, images, Step(0, 0, 10, 3, range(3)))
    (gradient,) = torch.autograd.grad(outputs["velocity"].square().sum(), latents)
    assert torch.equal(gradient.abs().amax(-1) > 0, schedule.visible(outputs["time"], 16))


def test_bad_arguments() -> None:
    with pytest.raises(BadInput, match="at least two groups make an order, not 1"):
        Groups(1)
    for wrong in ([0.0, 0.5], [1.0], [0.5, 0.2, 1.0], [-0.5, 1.0]):
        with pytest.raises(BadInput, match="shares must rise to 1"):
            FirstTokens(wrong)

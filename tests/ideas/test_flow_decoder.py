"""Flow decoders: the laws of the time, the solvers, guidance, and what a decoder draws and sees."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import DEMO, module_of
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.config import compose_run
from alitok.ideas.flow_decoder import FlowBlock, FlowDecoder
from alitok.ideas.patch_flow import PatchFlow
from alitok.ideas.shared.flow import Flow, FlowMatching, TimeLaw
from alitok.ideas.shared.flow_sampler import FlowSampler
from alitok.ideas.shift import ShiftedDecoder
from alitok.ideas.splat import SplatDecoder
from alitok.ideas.stacked import StackedDecoder
from alitok.studies import small

KINDS = ["flow", "patch"]
SMALL = {"image_size": 16, "patch_size": 4, "num_prefix": 4, "code_dim": 4, "width": 16, "depth": 2, "heads": 1}
SPLAT = {**SMALL, "causal": False}


def decoder(kind: str, **arguments: Any) -> Any:
    """A small decoder of 8 x 8 pixels whose zero weights are stirred, so that all of it acts."""
    torch.manual_seed(0)
    shared = {"image_size": 8, "patch_size": 2, "code_dim": 4, "width": 32, "depth": 2, "heads": 2, **arguments}
    shared = {"sampler": FlowSampler(steps=4), **shared}
    made: Flow = FlowDecoder(num_latents=16, **shared) if kind == "flow" else PatchFlow(num_prefix=0, **shared)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.2)
    return made


def step(images: int, seed: int = 0, number: int = 3, first: int = 0, size: int = 8) -> Step:
    return Step(seed, number, 10, size, range(first, first + images))


def test_logit_normal_uniform_and_mixture_by_quantile() -> None:
    normal = torch.distributions.Normal(0.5, 2.0)
    for quantile in (0.01, 0.3, 0.5, 0.99):
        expected = torch.sigmoid(normal.icdf(torch.tensor(quantile))).item()
        assert TimeLaw(mean=0.5, std=2.0).at(quantile) == pytest.approx(expected, rel=1e-4)
        assert TimeLaw(uniform=1.0).at(quantile) == pytest.approx(quantile)
    mixture = TimeLaw(uniform=0.1)
    assert mixture.at(0.05) == pytest.approx(0.5)
    assert mixture.at(0.1 + 0.9 * 0.3) == pytest.approx(TimeLaw().at(0.3))
    assert all(0 < law.at(end) < 1 for law in (TimeLaw(), TimeLaw(uniform=1.0), mixture) for end in (0.0, 1.0))


def test_the_shift_is_the_mirror_of_d_ars_warp() -> None:
    for t in (0.1, 0.5, 0.9):
        data_time = 1 - t  # D-AR's time is 1 at the data
        warped = data_time / (data_time + 2 * (1 - data_time))
        assert TimeLaw(uniform=1.0, shift=2.0).at(t) == pytest.approx(1 - warped)


def test_times_are_of_seed_step_and_place() -> None:
    law = TimeLaw()
    whole = law.draw(step(8))
    assert torch.equal(torch.cat([law.draw(step(4)), law.draw(step(4, first=4))]), whole)
    assert not torch.equal(law.draw(step(8, seed=1)), whole)
    assert not torch.equal(law.draw(step(8, number=4)), whole)
    drawn = torch.cat([law.draw(step(8, number=number)) for number in range(500)])
    logits = torch.logit(drawn)
    assert abs(logits.mean().item()) < 0.06
    assert logits.std().item() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_validation_draws_for_an_image_whatever_its_batch(kind: str) -> None:
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    flow, latents = decoder(kind).eval(), torch.randn(4, 16, 4)
    with torch.no_grad():
        whole = flow(latents, images)
        parts = [flow(*pair) for pair in zip(latents.split(1), images.split(1), strict=True)]
    assert len(whole["time"].unique()) == 4
    for name, value in whole.items():
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), value)


def test_stratified_times_fall_into_the_stratum_of_their_place() -> None:
    law = TimeLaw(uniform=1.0, stratified=True)
    times = law.draw(step(8))
    assert torch.equal((times * 8).floor(), torch.arange(8.0))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("ab2", 2), ("rk4", 4)])
@pytest.mark.parametrize("power", [1.0, 2.0])
def test_solvers_converge_with_their_order(solver: Any, order: int, power: float) -> None:
    """dx/dt = x cos(3 t): x(0) = x(1) exp(-sin(3) / 3)."""
    exact = math.exp(-math.sin(3) / 3)

    def error(steps: int) -> float:
        sampler = FlowSampler(steps=steps, solver=solver, power=power)
        found = sampler.integrate(lambda x, t, _: x * math.cos(3 * t), torch.ones(1, 1, dtype=torch.float64))
        return abs(found.item() - exact)

    assert order - 0.3 < math.log2(error(32) / error(64)) < order + 0.7


def test_the_grid_runs_from_noise_to_data() -> None:
    assert FlowSampler(steps=4).times() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert FlowSampler(steps=2, power=4.0).times() == [1.0, 0.0625, 0.0]
    assert FlowSampler(steps=2, shift=2.0).times() == pytest.approx([1.0, 2 / 3, 0.0])


@pytest.mark.parametrize("steps", [1, 3])
def test_the_true_velocity_leads_to_the_image(steps: int) -> None:
    image, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    found = FlowSampler(steps=steps).integrate(lambda x, t, _: (x - image) / t, noise)
    torch.testing.assert_close(found, image)


def test_guidance_extrapolates_inside_its_interval() -> None:
    asked: list[tuple[float, bool]] = []

    def field(x: Tensor, t: float, with_tokens: bool) -> Tensor:
        asked.append((t, with_tokens))
        return torch.full_like(x, 1.0 if with_tokens else 0.5)

    sampler = FlowSampler(steps=4, guidance=3.0, interval=(0.4, 0.8))
    found = sampler.integrate(field, torch.zeros(1, 2))
    # t = 1, 0.75, 0.5, 0.25: guided at the two in the middle, 0.5 + 3 (1 - 0.5) = 2
    torch.testing.assert_close(found, torch.full((1, 2), -(1 + 2 + 2 + 1) / 4))
    assert asked == [(1.0, True), (0.75, True), (0.75, False), (0.5, True), (0.5, False), (0.25, True)]


def test_projected_guidance_is_the_formula() -> None:
    with_tokens, without = torch.randn(2, 3), torch.randn(2, 3) * 3
    found = FlowSampler(steps=2, guidance=7.5, projected=True).integrate(
        lambda x, t, tokens: (with_tokens if tokens else without)[0 if t == 1 else 1].expand(2, 3), torch.zeros(2, 3)
    )
    x, running = torch.zeros(3), torch.zeros(3)
    for number in range(2):
        given = with_tokens[number]
        running = given - without[number] - 0.5 * running
        difference = running * min(1.0, 2.5 / running.norm().item())
        difference = difference - (difference @ given) / (given @ given) * given
        x = x - 0.5 * (given + 6.5 * difference)
    torch.testing.assert_close(found, x.expand(2, 3))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_what_a_step_gives(kind: str) -> None:
    made, latents, images = decoder(kind, scale=0.6), torch.randn(4, 16, 4), torch.rand(4, 3, 8, 8)
    outputs = made(latents, images, step(4))
    t = outputs["time"][:, None, None, None]
    pixels = 0.6 * (2 * images - 1)
    noise = 0.6 * outputs["velocity_target"] + pixels
    assert noise.std().item() == pytest.approx(1, abs=0.1)
    noised = (1 - t) * pixels + t * noise
    velocity = made.velocity(noised, outputs["time"], made.condition(latents))
    torch.testing.assert_close(outputs["velocity"], velocity / 0.6)
    torch.testing.assert_close(outputs["image"], ((noised - t * velocity) / 0.6 + 1) / 2)
    value = FlowMatching()({"image": images}, outputs)
    torch.testing.assert_close(value, ((velocity - (noise - pixels)) / 0.6).square().mean())


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_step_draws_by_seed_number_and_place(kind: str) -> None:
    made, latents, images = decoder(kind, null=0.5).train(), torch.randn(8, 16, 4), torch.rand(8, 3, 8, 8)
    whole = made(latents, images, step(8))["velocity"]
    parts = [made(latents[i : i + 4], images[i : i + 4], step(4, first=i))["velocity"] for i in (0, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    for other in (step(8, seed=1), step(8, number=4)):
        assert (made(latents, images, other)["velocity"] - whole).abs().flatten(1).amax(1).min() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_decoding_depends_on_the_seed_and_the_index_alone(kind: str) -> None:
    made, latents = decoder(kind), torch.randn(8, 16, 4)
    whole = made.decode(latents, 3, range(8))
    torch.testing.assert_close(made.decode(latents[5:6], 3, [5]), whole[5:6], rtol=0, atol=1e-5)
    for other in (made.decode(latents, 4, range(8)), made.decode(latents, 3, range(1, 9))):
        assert (other - whole).abs().flatten(1).amax(1).min() > 1e-3
    assert torch.equal(made(latents)["image"], made.decode(latents))


@torch.no_grad()
def test_every_latent_reaches_the_whole_image_and_any_prefix_decodes() -> None:
    made, latents = decoder("flow"), torch.randn(1, 16, 4)
    whole = made.decode(latents)
    for token in (0, 7, 15):
        other = latents.clone()
        other[:, token] += 1
        moved = (made.decode(other) - whole).abs()
        assert (moved.unfold(2, 2, 2).unfold(3, 2, 2).amax((1, 4, 5)) > 1e-6).float().mean() > 0.9
        if token:
            prefix = made.decode(latents[:, :token])
            assert (prefix - whole).abs().max() > 1e-6
            other[:, token - 1] += 1
            assert (made.decode(other[:, :token]) - prefix).abs().max() > 1e-6
    with pytest.raises(BadInput, match="made for 16 latents and is given 17"):
        made.decode(torch.zeros(1, 17, 4))


@torch.no_grad()
def test_the_head_keeps_patches_apart_and_the_body_runs_once() -> None:
    made, latents = decoder("patch"), torch.randn(1, 16, 4)
    condition, noised, t = made.condition(latents), torch.randn(1, 3, 8, 8), torch.tensor([0.7])
    other = noised.clone()
    other[..., 2:4, 4:6] += 1
    moved = (made.velocity(other, t, condition) - made.velocity(noised, t, condition)).abs().amax((0, 1))
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:4, 4:6] = True
    assert torch.equal(moved > 1e-6, inside)
    runs: list[Any] = []
    made.body.blocks[0].register_forward_hook(lambda *_: runs.append(0))
    made.decode(latents)
    assert len(runs) == 1


@torch.no_grad()
def test_a_share_of_the_images_loses_its_tokens_in_training() -> None:
    made, latents, images = decoder("flow", null=0.3), torch.randn(8, 16, 4), torch.rand(8, 3, 8, 8)
    lost = 0
    for number in range(40):
        plain, other = (made.train()(z, images, step(8, number=number))["velocity"] for z in (latents, -latents))
        lost += int((plain - other).abs().flatten(1).amax(1).eq(0).sum())
    assert lost / 320 == pytest.approx(0.3, abs=0.08)
    plain, other = (made.eval()(z, images, step(8))["velocity"] for z in (latents, -latents))
    assert (plain - other).abs().flatten(1).amax(1).min() > 0


@torch.no_grad()
def test_guidance_changes_what_is_decoded() -> None:
    plain, guided = (decoder("flow", null=0.1, sampler=FlowSampler(4, guidance=g)) for g in (1.0, 2.0))
    latents = torch.randn(2, 16, 4)
    assert (plain.decode(latents) - guided.decode(latents)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_which_image_belongs_to_which_tokens(kind: str) -> None:
    torch.manual_seed(0)
    arguments: dict[str, Any] = {"image_size": 8, "patch_size": 2, "code_dim": 4, "width": 32, "depth": 2, "heads": 2}
    arguments |= {"init": "local", "sampler": FlowSampler(steps=8)}
    made: Flow = (
        FlowDecoder(num_latents=16, **arguments)
        if kind == "flow"
        else PatchFlow(num_prefix=0, head_depth=2, **arguments)
    )
    images, latents = torch.rand(2, 3, 8, 8), torch.randn(2, 16, 4)
    optimizer = torch.optim.Adam(made.parameters(), 3e-3)
    for number in range(150):
        chosen = torch.arange(16) % 2
        outputs = made(latents[chosen], images[chosen], step(16, number=number, size=16))
        optimizer.zero_grad()
        FlowMatching()({"image": images}, outputs).backward()
        optimizer.step()
    with torch.no_grad():
        copies = made.decode(latents)
    assert F.mse_loss(copies, images) < 0.5 * F.mse_loss(copies, images.flip(0))


@pytest.mark.parametrize("name", ["flow-decoder", "patch-flow"])
def test_validation_measures_what_the_sampler_makes(name: str, tmp_path: Path) -> None:
    files = [DEMO / "tokenizer-stage2.yaml", DEMO.parent / "ideas" / f"{name}.yaml"]
    module = module_of(small.small(compose_run(files, ["--define.run", str(tmp_path)]))).eval()
    for parameter in module.tokenizer.decoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    batch = {"image": torch.rand(2, 3, 64, 64), "index": torch.tensor([4, 9])}
    module.note_validation = lambda *_: None
    with torch.no_grad():
        measured = module.validation_step(batch, 0)["image"]
        tokenizer = module.tokenizer
        assert torch.equal(measured, tokenizer.reconstruct(batch["image"], indices=[4, 9]))
        tokenizer.decoder.sampler.steps += 1
        assert not torch.equal(measured, tokenizer.reconstruct(batch["image"], indices=[4, 9]))


@torch.no_grad()
def test_a_new_decoder_has_no_velocity() -> None:
    for made in (FlowDecoder(8, 2, 16, 4, 32, 2, 2), PatchFlow(8, 2, 0, 4, 32, 2, 2)):
        velocity = made.velocity(torch.randn(2, 3, 8, 8), torch.rand(2), made.condition(torch.randn(2, 16, 4)))
        assert torch.equal(velocity, torch.zeros(2, 3, 8, 8))


@torch.no_grad()
def test_a_block_is_the_formula() -> None:
    """Shifts, scales and gates of patches and latents apart, against a plain computation, small gates in bfloat16."""
    torch.manual_seed(0)
    block, x, time = FlowBlock(8, 2), torch.randn(2, 5, 8), torch.randn(2, 8)
    first = block.modulation(time).view(2, 2, 6, 8).repeat_interleave(torch.tensor([3, 2]), 1)  # of each token
    gate1, gate2, shift1, scale1, shift2, scale2 = first.unbind(2)
    hidden = F.layer_norm(x, (8,)) * (1 + scale1) + shift1
    q, k, v = (part.view(2, 5, 2, 4).transpose(1, 2) for part in block.qkv(hidden).chunk(3, -1))
    seen = (F.layer_norm(q, (4,)) @ F.layer_norm(k, (4,)).mT / 2).softmax(-1) @ v
    middle = x + gate1 * block.proj(seen.transpose(1, 2).flatten(2))
    gate, up = block.up(F.layer_norm(middle, (8,)) * (1 + scale2) + shift2).chunk(2, -1)
    expected = middle + gate2 * block.down(F.silu(gate) * up)
    torch.testing.assert_close(block(x, time, 3), expected)
    nn.init.constant_(block.modulation.weight, 0)
    nn.init.constant_(block.modulation.bias, 1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        moved = (block(x, time, 3) - x).abs().max()
    assert 0 < float(moved) < 0.1


def test_bad_arguments() -> None:
    with pytest.raises(BadInput, match="at least one step, not 0"):
        FlowSampler(steps=0)
    with pytest.raises(BadInput, match="solver must be euler, ab2 or rk4, not heun"):
        FlowSampler(solver="heun")  # type: ignore[arg-type]
    for wrong in ({"patch_size": 3}, {"heads": 3}):
        with pytest.raises(BadInput, match="8 pixels must divide"):
            decoder("flow", **wrong)
    with pytest.raises(BadInput, match="train with null"):
        decoder("flow", sampler=FlowSampler(guidance=2.0))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: TimeLaw(std=0), "std and shift must be above 0"),
        (lambda: TimeLaw(uniform=1.5), "uniform in 0..1"),
        (lambda: TimeLaw(shift=0), "std and shift must be above 0"),
        (lambda: FlowSampler(power=0), "power and shift must be above 0"),
        (lambda: FlowSampler(shift=-1), "power and shift must be above 0"),
        (lambda: FlowDecoder(16, 4, 4, 4, 16, 1, 1, null=2.0), "null is a share of the images"),
        (lambda: SplatDecoder(**SPLAT, cells=0), "0 cells do not divide"),
        (lambda: SplatDecoder(**SPLAT, hidden=12), "hidden must be a multiple of 8 channels"),
        (lambda: StackedDecoder(**SMALL, causal=False), "leave `causal: false` out"),
        (lambda: ShiftedDecoder(**SMALL, causal=True, drop_prefix=True), "set drop_prefix to false"),
    ],
)
def test_numbers_outside_their_range_get_a_sentence(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make()

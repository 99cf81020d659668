"""GFT: the loss is the mixture's, and sampling takes one row an image."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.gft import GuidanceFree, GuidanceFreeGenerator
from alitok.models.generator import Generator
from alitok.models.seams import draw, image_uniforms
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import PowerCosine

SIZE: dict[str, Any] = {"num_classes": 3, "num_prefix": 2, "grid": (3, 3), "width": 16, "depth": 2, "heads": 2}
STEP = Step(0, 3, 10, 8, range(2, 6))
LABELS = torch.tensor([0, 3, 1, 2])


def made(dropout: float = 0.0) -> GuidanceFreeGenerator:
    torch.manual_seed(0)
    generator = GuidanceFreeGenerator(codebook_size=7, dropout=dropout, **SIZE)
    for layer in (generator.output, generator.temperature[2]):
        assert isinstance(layer, nn.Linear)
        nn.init.normal_(layer.weight, std=0.5)
    return generator


def ids() -> torch.Tensor:
    return torch.randint(7, (4, 11), generator=torch.Generator().manual_seed(1))


def test_the_loss_is_the_cross_entropy_of_the_mixture() -> None:
    generator = made()
    outputs = generator.train().losses(ids(), LABELS, step=STEP)
    beta = torch.stack([torch.rand((), generator=STEP.stream("beta", place)) for place in STEP.places])
    beta[1] = 1.0  # no class
    x = torch.cat([generator.embed_labels(LABELS), generator.embed_tokens(ids()[:, :-1])], 1)
    x = x + generator.embed_beta(beta)[:, None]
    for block in generator.blocks:
        x = block(x, generator.rope[:11])
    plain = generator(ids(), torch.full_like(LABELS, 3))
    logits = beta[:, None, None] * generator.output(generator.norm(x)) + (1 - beta[:, None, None]) * plain
    assert_close(outputs["nats"], F.cross_entropy(logits.mT, ids(), reduction="none"))


def test_no_gradient_and_no_dropout_in_the_row_without_a_class() -> None:
    generator = made(dropout=0.5).train()
    seen: list[tuple[bool, bool]] = []

    def hook(*_: Any) -> None:
        seen.append((generator.blocks[0].training, torch.is_grad_enabled()))

    generator.output.register_forward_hook(hook)
    generator.losses(ids(), LABELS, step=STEP)
    assert seen == [(False, False), (True, True)]
    assert all(layer.training for layer in generator.modules())


def test_a_beta_of_one_is_the_plain_generator() -> None:
    generator = made().eval()
    assert torch.equal(generator.embed_beta(torch.ones(3)), torch.zeros(3, 16))
    plain = Generator(codebook_size=7, dropout=0.0, **SIZE).eval()
    plain.load_state_dict({k: v for k, v in generator.state_dict().items() if not k.startswith("temperature.")})
    assert torch.equal(generator(ids(), LABELS), plain(ids(), LABELS))
    assert torch.equal(generator.losses(ids(), LABELS, step=STEP)["nats"], plain.losses(ids(), LABELS)["nats"])
    assert torch.equal(generate(generator, LABELS, seed=4), generate(plain, LABELS, seed=4))


@pytest.mark.parametrize("window", [1, 4])
@torch.no_grad()
def test_sampling_takes_one_row_whose_beta_follows_the_schedule(window: int) -> None:
    generator = made().eval()
    sampler = Sampler(generator, Draw(3.0, 0.7, "alitok.ideas.gft.GuidanceFree", seed=4, window=window))
    (branch,) = sampler.branches(LABELS, range(4))
    scale = PowerCosine(3.0, 0.7).scale_at(torch.arange(11), 11)
    assert branch.condition is not None
    assert_close(branch.condition[2], generator.embed_beta((1 / scale).float()))
    drawn = sampler.sample(LABELS).clone()
    x = torch.cat([generator.embed_labels(LABELS), generator.embed_tokens(drawn[:, :-1])], 1) + branch.condition
    for block in generator.blocks:
        x = block(x, generator.rope[:11])
    logits = generator.output(generator.norm(x))
    assert torch.equal(draw(logits.flatten(0, 1), image_uniforms(4, range(4), 11).flatten()).view(4, 11), drawn)
    assert not torch.equal(drawn, generate(generator, LABELS, seed=4))


def test_a_scale_of_one_or_less_is_no_guidance() -> None:
    generator = made().eval()
    (branch,) = GuidanceFree(1.0).branches(generator, LABELS, 0, range(4))
    assert branch.condition is not None
    assert not branch.condition.any()
    with pytest.raises(BadInput, match="trained by GFT"):
        GuidanceFree(2.0).branches(Generator(codebook_size=7, **SIZE), LABELS, 0, range(4))


def test_bfloat16_weights() -> None:
    drawn = Sampler(made().eval(), Draw(3.0, schedule="alitok.ideas.gft.GuidanceFree", precision="bfloat16"))
    assert drawn.sample(LABELS).shape == (4, 11)

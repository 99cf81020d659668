"""Latent perturbation: which tokens change into what, and that nothing but seed, step and place decides it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.fsq import FiniteScalarQuantizer
from alitok.ideas.index_backpropagation import IndexBackpropagation
from alitok.ideas.perturbation import LatentPerturbation, nearest_codes, swap_ids
from alitok.models import seams
from alitok.models.quantizer import ClusteredQuantizer
from alitok.models.tokenizer import Tokenizer

SIZE = 10  # of the global batch


@pytest.fixture
def quantizer() -> ClusteredQuantizer:
    torch.manual_seed(0)
    module = ClusteredQuantizer(64, 4)
    module.codebook.weight.data.normal_()
    return module.eval()


@pytest.fixture
def latents() -> Tensor:
    return torch.randn(SIZE, 30, 4, generator=torch.Generator().manual_seed(1))


def perturbed(
    quantizer: Any, latents: Tensor, first: int = 0, step: int = 0, seed: int = 0, **options: Any
) -> tuple[Tensor, Tensor]:
    """The ids behind the perturbed latents, and those before."""
    bottleneck = LatentPerturbation(**{"beta": 1.0, "delta": 8, **options})
    found = quantizer(latents)
    place = Step(seed, step, 100, SIZE, range(first, first + len(latents)))
    (decoding,) = bottleneck(found, quantizer, place)
    changed = decoding.latents
    return quantizer(changed.detach()).ids, found.ids


def test_nearest_codes_are_those_of_all_distances(quantizer, latents, monkeypatch):
    codes = quantizer.codebook.weight
    expected = torch.cdist(latents, codes.expand(SIZE, -1, -1)).argsort(-1)[..., :7]
    assert torch.equal(nearest_codes(latents, quantizer, 7), expected)
    monkeypatch.setattr("alitok.models.quantizer.BLOCK_ELEMENTS", 64 * 11)  # blocks of eleven tokens
    assert torch.equal(nearest_codes(latents, quantizer, 7), expected)
    assert torch.equal(expected[..., 0], quantizer(latents).ids)


def test_codes_of_a_bounded_latent_are_near_to_what_is_rounded():
    fsq = FiniteScalarQuantizer([8, 5, 5])
    found = fsq(3 * torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(0)))
    near = nearest_codes(found.latents, fsq, 4)
    assert (near[..., 0] == found.ids).float().mean() > 0.99  # but for ties of rounding
    assert len(near.unique()) > 50


def test_each_near_code_is_as_likely_and_the_true_one_is_among_them():
    near = torch.arange(5).expand(1, 40_000, 5)
    ids = torch.zeros(1, 40_000, dtype=torch.int64)
    uniforms = torch.rand(1, 40_000, 2, generator=torch.Generator().manual_seed(0))
    share = torch.bincount(swap_ids(ids, near, 0.6, uniforms).flatten(), minlength=5) / 40_000
    torch.testing.assert_close(share, torch.tensor([0.4 + 0.12, 0.12, 0.12, 0.12, 0.12]), atol=0.01, rtol=0)
    largest = torch.full_like(uniforms, 1 - 2**-24)  # that torch.rand gives
    for count in (5, 100, 280, 360):
        swapped = swap_ids(ids, torch.arange(count).expand(1, 40_000, count), 1.0, largest)
        assert (swapped == count - 1).all()


def test_the_first_images_of_the_global_batch_are_perturbed_and_no_others(quantizer, latents):
    after, before = perturbed(quantizer, latents, beta=0.3)
    changed = (after != before).any(1)
    assert changed.tolist() == [True] * 3 + [False] * 7
    near = nearest_codes(latents, quantizer, 8)
    assert (after[..., None] == near).any(-1).all()
    share = (after[:3] != before[:3]).float().mean()
    assert float(share) == pytest.approx(1 - 1 / 8, abs=0.1)
    untouched, before = perturbed(quantizer, latents, beta=0.09)
    assert torch.equal(untouched, before)


def test_parts_of_a_batch_are_as_the_whole(quantizer, latents):
    whole, _ = perturbed(quantizer, latents, beta=0.7)
    parts = [perturbed(quantizer, latents[first : first + 2], first, beta=0.7)[0] for first in range(0, SIZE, 2)]
    assert torch.equal(torch.cat(parts), whole)
    torch.manual_seed(5)  # the global generator has no part in it
    assert torch.equal(perturbed(quantizer, latents, beta=0.7)[0], whole)
    for other in ({"seed": 1}, {"step": 1}):
        assert not torch.equal(perturbed(quantizer, latents, beta=0.7, **other)[0], whole)


def test_alpha_and_delta_fall_over_the_share_of_the_run(quantizer, latents):
    bottleneck = LatentPerturbation(anneal=(0.2, 0.6), final=0.5)
    ratios = [bottleneck.ratio(step / 100) for step in (0, 20, 40, 60, 99)]
    assert ratios == pytest.approx([1, 1, 0.75, 0.5, 0.5])
    changed = {}
    for step in (0, 60):
        after, before = perturbed(quantizer, latents, step=step, delta=20)
        near = nearest_codes(latents, quantizer, 20 if step == 0 else 10)
        assert (after[..., None] == near).any(-1).all()
        changed[step] = float((after != before).float().mean())
    assert changed == pytest.approx({0: 0.95, 60: 0.45}, abs=0.08)
    after, before = perturbed(quantizer, latents, step=99, final=0.0)
    assert torch.equal(after, before)


def test_the_gradient_goes_straight_through_and_the_quantizer_sees_nothing(quantizer, latents):
    latents.requires_grad_()
    found = quantizer(latents)
    bottleneck = LatentPerturbation(beta=0.5, delta=8)
    ids = found.ids.clone()
    changed = bottleneck(found, quantizer, Step.alone(SIZE))[0].latents
    weight = torch.randn_like(changed)
    (gradient,) = torch.autograd.grad((changed * weight).sum(), latents, retain_graph=True)
    torch.testing.assert_close(gradient, weight)
    assert torch.equal(found.ids, ids)
    assert torch.equal(changed[5:], found.quantized[5:])
    codes = quantizer.codebook.weight.detach()
    assert float(torch.cdist(changed[:5].detach().flatten(0, 1), codes).amin(1).max()) < 1e-3


def test_a_phase_without_quantization_is_left_alone(quantizer, latents):
    bottleneck = LatentPerturbation(beta=1.0, delta=8)
    found = replace(quantizer(latents), quantized=None)
    assert bottleneck(found, quantizer, Step.alone(SIZE))[0].latents is found.latents


def test_given_tokens_become_codes_near_to_their_own(quantizer):
    """Post-training gives the decoder tokens, whose latents are their codes."""
    tokenizer = Tokenizer(SimpleEncoder(), quantizer, SimpleDecoder(), LatentPerturbation(beta=0.5, delta=8)).train()
    ids = torch.randint(64, (SIZE, 30), generator=torch.Generator().manual_seed(0))
    codes = tokenizer(torch.zeros(SIZE), ids=ids)["image"]
    after = quantizer(codes.detach()).ids
    near = nearest_codes(quantizer.lookup(ids), quantizer, 8)
    assert torch.equal(near[..., 0], ids)
    assert (after[..., None] == near).any(-1).all()
    assert float((after[:5] != ids[:5]).float().mean()) == pytest.approx(1 - 1 / 8, abs=0.1)
    assert torch.equal(after[5:], ids[5:])
    assert torch.equal(tokenizer.eval()(torch.zeros(SIZE), ids=ids)["image"], quantizer.lookup(ids))


class SimpleEncoder(seams.Encoder):
    """30 latents of 4 channels."""

    num_latents = 30

    def forward(self, images: Tensor, step: Any = None) -> Tensor:
        return torch.zeros(len(images), 30, 4)


class SimpleDecoder(seams.Decoder):
    """Shows the latents."""

    def forward(self, latents: Tensor, images: Any = None, step: Any = None) -> dict[str, Tensor]:
        return {"image": latents}


def test_refusals(quantizer, latents):
    for options, words in (
        ({"alpha": 1.5}, "alpha must lie in 0..1"),
        ({"beta": -0.1}, "beta"),
        ({"anneal": (0.6, 0.2)}, "anneal must not fall"),
        ({"final": 2.0}, "final"),
        ({"delta": 1}, "none is another; set delta to 2"),
    ):
        with pytest.raises(BadInput, match=words):
            LatentPerturbation(**options)
    with pytest.raises(BadInput, match="65 nearest codes: the codebook has 64"):
        nearest_codes(latents, quantizer, 65)
    with pytest.raises(BadInput, match="IndexBackpropagation chooses its codes otherwise"):
        nearest_codes(latents, IndexBackpropagation(64, 4), 2)
    quantizer.sub_codes = 2
    with pytest.raises(BadInput, match="sub-codes"):
        nearest_codes(latents, quantizer, 2)

"""Tokens of several sub-codes are drawn step by step as they are in full recomputation."""

import pytest
import torch

from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.ideas.post_training import MixedSampler
from alitok.ideas.sub_code_head import SubCodeHeadGenerator
from alitok.models.seams import draw, image_uniforms
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import BySubCode, Constant, PowerCosine, SoftCFG

SUB_CODES, CODES = 3, 8
LABELS = torch.tensor([0, 2, 1])
BY_SUB_CODE = BySubCode((Constant(1.75), PowerCosine(3.0, 0.8), Constant(2.0)))


class Watched(SoftCFG):
    """Keeps the confidences it is given in `seen`."""

    def value_weights(self, confidence):
        vars(self).setdefault("seen", []).append(confidence.clone())
        return super().value_weights(confidence)


@pytest.fixture(params=["sum", "concatenated"])
def small(request, golden, small_generator_block):
    block = small_generator_block(codebook_size=CODES, sub_codes=SUB_CODES, combine=request.param)
    generator = golden.randomize(build({**block, "class_path": "alitok.ideas.shared.sub_codes.SubCodeGenerator"}))
    generator.output.weight.data *= 3
    return generator


@torch.no_grad()
@pytest.mark.parametrize("rule", [None, PowerCosine(4.0, 1.5), BY_SUB_CODE])
def test_cached_steps_equal_full_recomputation(small, rule):
    seed, temperature, steps = 5, 0.9, small.num_tokens
    uniforms = image_uniforms(seed, range(3), steps, SUB_CODES)
    ids = torch.zeros(3, steps, SUB_CODES, dtype=torch.int64)
    for step in range(steps):
        logits = small(ids, LABELS)[:, step]
        if rule is not None:
            unconditional = small(ids, torch.full_like(LABELS, 3))[:, step]
            logits = rule.combine([logits, unconditional], torch.tensor([step]), steps)
        for sub_code in range(SUB_CODES):
            ids[:, step, sub_code] = draw(logits[:, sub_code] / temperature, uniforms[:, step, sub_code])
    found = generate(small, LABELS, 0.0 if rule is None else rule, temperature=temperature, seed=seed)
    assert torch.equal(found, ids)
    assert all(len(ids[..., sub_code].unique()) > 4 for sub_code in range(SUB_CODES))


def test_image_i_is_the_same_in_any_batch(small):
    whole = generate(small, LABELS, 3.0, seed=3)
    for part in ([1], [2, 0]):
        assert torch.equal(generate(small, LABELS[part], 3.0, seed=3, indices=part), whole[part])
    assert generate(small, LABELS[:0], 3.0).shape == (0, small.num_tokens, SUB_CODES)
    assert torch.equal(generate(small, LABELS, 3.0, seed=3, keep=4), whole[:, :4])


def test_a_rule_for_each_sub_code():
    with_class, without = torch.randn(2, 5, 3, CODES, generator=torch.Generator().manual_seed(0))
    found = BY_SUB_CODE.combine([with_class, without], torch.tensor([7]), 21)
    for sub_code, rule in enumerate(BY_SUB_CODE.rules):
        expected = rule.combine([with_class[:, sub_code], without[:, sub_code]], torch.tensor([7]), 21)
        torch.testing.assert_close(found[:, sub_code], expected)
    with pytest.raises(ValueError, match="longer"):
        BySubCode(BY_SUB_CODE.rules[:2]).combine([with_class, without], torch.tensor([7]), 21)


@torch.no_grad()
def test_confidence_of_a_token_is_that_of_all_its_sub_codes(small):
    ids = generate(small, LABELS, rule := Watched(2.0))
    largest = small(ids, LABELS).softmax(-1).amax(-1).prod(-1)
    torch.testing.assert_close(rule.seen[-1][:, :-1], largest[:, :-1], rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_confidence_of_a_token_counts_sub_codes_drawn_in_turn():
    torch.manual_seed(0)
    words = {"num_classes": 3, "num_prefix": 1, "grid": (2, 2), "width": 32, "depth": 1, "heads": 2}
    model = SubCodeHeadGenerator(CODES, 2, head={"width": 16, "depth": 1, "heads": 2}, **words).eval()
    for layer in model.output.last:
        torch.nn.init.normal_(layer.weight, std=0.5)
    ids = generate(model, LABELS, rule := Watched(2.0))
    hidden = model.hidden(ids, LABELS).flatten(0, 1)
    largest = model.output(hidden, ids.flatten(0, 1)[:, :1]).softmax(-1).amax(-1).prod(-1).view(3, 5)
    torch.testing.assert_close(rule.seen[-1][:, :-1], largest[:, :-1], rtol=1e-4, atol=1e-6)


def test_true_tokens_among_drawn_ones(small):
    true = torch.randint(CODES, (3, small.num_tokens, SUB_CODES), generator=torch.Generator().manual_seed(0))
    sampler = Sampler(small, Draw(3.0, seed=3))
    assert torch.equal(MixedSampler(sampler, 1.0).sample(true, LABELS, range(3)), true)
    drawn = MixedSampler(sampler, 0.0).sample(true, LABELS, range(3))
    assert torch.equal(drawn, generate(small, LABELS, 3.0, seed=3))
    half = MixedSampler(sampler, 0.5).sample(true, LABELS, range(3))
    assert 0.3 < (half == true).all(-1).float().mean() < 0.8

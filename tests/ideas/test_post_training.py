"""A share of true tokens among drawn ones."""

import pytest
import torch

from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.ideas.post_training import MixedSampler
from alitok.ideas.shared.sub_codes import SubCodeGenerator
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import PowerCosine, SoftCFG

LABELS = torch.tensor([0, 2, 1, 0])


@pytest.fixture
def small(golden, small_generator_block):
    generator = golden.randomize(build(small_generator_block()))
    generator.output.weight.data *= 3
    return generator


@pytest.fixture
def true(small) -> torch.Tensor:
    return torch.randint(small.codebook_size, (4, small.num_tokens), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("rule", [PowerCosine(3.0, 0.8), SoftCFG(4.0, 0.8)])
def test_no_true_token_is_sampling_and_nothing_else_is_copying(small, true, rule):
    sampler = Sampler(small, Draw(seed=3), rule)
    drawn = MixedSampler(sampler, 0.0).sample(true, LABELS, range(4))
    assert torch.equal(drawn, generate(small, LABELS, rule, seed=3))
    assert torch.equal(MixedSampler(sampler, 1.0).sample(true, LABELS, range(4)), true)


@torch.no_grad()
def test_true_tokens_stand_where_the_image_says_and_the_rest_follows_them(small, true):
    drawn = MixedSampler(Sampler(small, Draw(3.0, 0.8, seed=3)), 0.6).sample(true, LABELS, range(4))
    kept = torch.stack([torch.rand(small.num_tokens, generator=stream(3, "true tokens", i)) for i in range(4)]) < 0.6
    assert torch.equal(drawn[kept], true[kept])
    assert (drawn[~kept] != true[~kept]).float().mean() > 0.5
    # greedy: what is drawn is the likeliest after the sequence as it stands
    mixed = MixedSampler(Sampler(small, Draw(temperature=1e-4, seed=3)), 0.6).sample(true, LABELS, range(4))
    likeliest = small(mixed, LABELS).argmax(-1)
    assert torch.equal(mixed[~kept], likeliest[~kept])
    assert torch.equal(mixed[kept], true[kept])


def test_image_i_is_the_same_in_any_batch(small, true):
    sampler, other = (MixedSampler(Sampler(small, Draw(3.0, seed=seed)), 0.5) for seed in (1, 2))
    whole = sampler.sample(true, LABELS, [7, 8, 9, 11])
    parts = [sampler.sample(true[i : i + 2], LABELS[i : i + 2], [7, 8, 9, 11][i : i + 2]) for i in (0, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(other.sample(true, LABELS, [7, 8, 9, 11]), whole)


def test_tokens_of_several_sub_codes(true):
    torch.manual_seed(0)
    generator = SubCodeGenerator(
        codebook_size=24, sub_codes=2, num_classes=3, num_prefix=5, grid=(4, 4), width=32, depth=1, heads=2
    ).eval()
    ids = torch.stack([true, true.flip(1)], dim=-1)
    drawn = MixedSampler(Sampler(generator, Draw(3.0, seed=3)), 0.5).sample(ids, LABELS, range(4))
    kept = torch.stack([torch.rand(true.shape[1], generator=stream(3, "true tokens", i)) for i in range(4)]) < 0.5
    assert torch.equal(drawn[kept], ids[kept])
    assert (drawn[~kept] != ids[~kept]).float().mean() > 0.5


def test_a_share_outside_of_0_to_1_is_refused(small):
    with pytest.raises(BadInput, match="sigma"):
        MixedSampler(Sampler(small), 1.2)

"""Guidance by branches, and steps of several positions a row: each equals a plain computation without a cache."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.ideas.rar import AnyOrderGenerator
from alitok.models.generator import Generator
from alitok.models.seams import draw, image_uniforms
from alitok.sampling.cache import KeyValueCache
from alitok.sampling.generate import Sampler
from alitok.sampling.guidance import Branch, Guidance, SoftCFG

LABELS = torch.tensor([0, 2, 1])


@pytest.fixture
def pair(golden, small_generator_block) -> tuple[Generator, Generator]:
    """A generator, and one of another width for the same tokens."""
    torch.manual_seed(0)
    generator = golden.randomize(build(small_generator_block()))
    other = golden.randomize(build(small_generator_block(width=48, depth=1)))
    for each in (generator, other):
        each.output.weight.data *= 3
    return generator, other


@dataclass
class Mean(Guidance):
    """The mean of the logits of these branches: (network, condition, sources) each."""

    parts: list[tuple[Generator | None, Tensor | None, Tensor | None]]

    def branches(self, generator, labels, seed, indices):
        return [Branch(labels=labels, generator=g, condition=c, sources=s) for g, c, s in self.parts]

    def combine(self, logits, positions, steps):
        return torch.stack(list(logits)).mean(0)


def plain(pair, rule: Mean, seed: int) -> Tensor:
    """The same tokens drawn by whole sequences."""
    generator, _ = pair
    steps = generator.num_tokens
    uniforms, ids = image_uniforms(seed, range(3), steps), torch.zeros(3, steps, dtype=torch.int64)
    for step in range(steps):
        logits = []
        for network, condition, sources in rule.parts:
            network = network or generator
            x = torch.cat([network.embed_labels(LABELS), network.embed_tokens(ids[:, :-1])], dim=1)
            x = x if condition is None else x + condition
            logits.append(network.output(states(network, x, sources))[:, step])
        ids[:, step] = draw(torch.stack(logits).mean(0), uniforms[:, step])
    return ids


def states(network: Generator, x: Tensor, sources: Tensor | None) -> Tensor:
    """Hidden states with keys and values of other positions; for query p only the keys up to p are replaced."""
    rope = network.rope[: x.shape[1]]
    for block in network.blocks:
        layer = block.attention
        q, k, v = layer._project(block.norm1(x), rope)
        if sources is not None:
            index = sources[:, None, :, None].expand_as(k)
            k, v = k.gather(2, index), v.gather(2, index)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + layer.proj(out.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return network.norm(x)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["another network", "a condition a position", "one condition", "sources", "all"])
def test_a_branch_equals_whole_sequences(pair, kind):
    generator, other = pair
    steps, random = generator.num_tokens, torch.Generator().manual_seed(1)
    each = torch.randn(3, steps, 32, generator=random)
    one = torch.randn(3, 1, 32, generator=random)
    sources = torch.arange(steps).repeat(3, 1)
    for row, (place, source) in enumerate([(4, 2), (9, 0), (12, 12)]):
        sources[row, place] = source
    parts = {
        "another network": [(None, None, None), (other, None, None)],
        "a condition a position": [(None, each, None), (None, None, None)],
        "one condition": [(None, one, None)],
        "sources": [(None, None, None), (None, None, sources)],
        "all": [(other, None, sources), (None, each, None), (None, None, sources), (other, None, None)],
    }[kind]
    rule = Mean(parts)
    expected = plain(pair, rule, seed=5)
    sampler = Sampler(generator, Draw(seed=5), rule)
    for _ in range(2):  # the second time in the buffers of the first
        assert torch.equal(sampler.sample(LABELS), expected)
    assert not torch.equal(Sampler(generator, Draw(seed=5)).sample(LABELS), expected)


def test_a_network_of_other_tokens_is_refused(pair, small_generator_block):
    other = build(small_generator_block(codebook_size=7))
    with pytest.raises(BadInput, match=r"7 codes.*of the same tokens"):
        Sampler(pair[0], Draw(), Mean([(None, None, None), (other, None, None)])).sample(LABELS)


@torch.no_grad()
@pytest.mark.parametrize("kind", [Generator, AnyOrderGenerator])
@pytest.mark.parametrize("length", [1, 3])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_several_positions_a_row_are_those_of_the_whole_sequence(kind, length, shared, weighted):
    """Wrong drafts first, then the right ones over them: what was rejected leaves nothing behind."""
    torch.manual_seed(0)
    model = kind(codebook_size=16, num_classes=3, num_prefix=2, grid=(3, 3), width=32, depth=2, heads=2).eval()
    rows, steps = 3, model.num_tokens
    ids = torch.randint(16, (rows, steps))
    expected = model.hidden(ids, LABELS)
    inputs = torch.cat([model.embed_labels(LABELS), model.embed_tokens(ids[:, :-1])], dim=1)
    cache = KeyValueCache(2, rows, 2, steps, 16, torch.device("cpu"), torch.float32, weighted)
    cache.resize(steps)
    advance = torch.tensor([1, 1, 1] if shared else [1, 2, 3]).clamp_max(length)
    at = torch.zeros(rows, dtype=torch.int64)
    while int(at.min()) < steps:
        positions = (at[:, None] + torch.arange(length)).clamp_max(steps - 1)
        given = positions[0] if shared else positions
        own = inputs.gather(1, positions[..., None].expand(-1, -1, 32))
        for x in (own + torch.randn_like(own), own):
            cache.start_step(given)
            found = model.step(x, given, cache)
        wanted = expected.gather(1, positions[..., None].expand(-1, -1, 32))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
        at = at + advance


def test_softcfg_is_the_unconditional_branch_only(pair):
    first, second = SoftCFG(3.0).branches(pair[0], LABELS, 0, range(3))
    assert (first.value_weights, second.labels.tolist()) == (None, [3, 3, 3])
    assert second.value_weights is not None


@dataclass
class ByBatch(Guidance):
    """Whose branches differ from batch to batch: the first with weights on values, then with conditions."""

    condition: Tensor | None = None
    weighted: bool = True

    def branches(self, generator, labels, seed, indices):
        weights = (lambda confidence: 1 - 0.5 * confidence) if self.weighted else None
        return [Branch(labels=labels, condition=self.condition, value_weights=weights)]


def test_branches_of_another_kind_in_the_next_batch(pair):
    rule = ByBatch()
    sampler = Sampler(pair[0], Draw(seed=5), rule)
    one, each = torch.randn(2, 3, 1, 32)[0], torch.randn(3, pair[0].num_tokens, 32)
    for condition, weighted in ((None, True), (None, False), (one, False), (each, True), (None, True)):
        rule.condition, rule.weighted = condition, weighted
        expected = Sampler(pair[0], Draw(seed=5), ByBatch(condition, weighted)).sample(LABELS)
        assert torch.equal(sampler.sample(LABELS), expected), (condition, weighted)


def test_the_network_that_is_sampled_may_be_named(pair):
    named = Mean([(pair[0], None, None), (None, None, None)])
    sampler = Sampler(pair[0], Draw(seed=5), named)
    assert torch.equal(sampler.sample(LABELS), Sampler(pair[0], Draw(seed=5)).sample(LABELS))
    assert len(sampler.loop.lanes) == 1


def test_given_tokens_may_be_the_first_ones(pair):
    sampler = Sampler(pair[0], Draw(3.0, seed=5, keep=6))
    drawn = sampler.sample(LABELS)
    given = (drawn[:, :4] + 1) % pair[0].codebook_size
    mask = torch.tensor([[True, False, True, False]]).repeat(3, 1)
    mixed = sampler.sample(LABELS, given=given, given_mask=mask)
    assert mixed.shape == (3, 6)
    assert torch.equal(mixed[:, [0, 2]], given[:, [0, 2]])
    assert torch.equal(sampler.sample(LABELS, given=given)[:, :4], given)
    assert torch.equal(sampler.sample(LABELS), drawn)


def test_what_sampling_refuses(pair):
    sampler = Sampler(pair[0])
    with pytest.raises(BadInput, match="3 labels and 1 indices"):
        sampler.sample(LABELS, [7])
    with pytest.raises(BadInput, match="give them too"):
        sampler.sample(LABELS, given_mask=torch.ones(3, pair[0].num_tokens, dtype=torch.bool))
    for block in ({"init_args": {}}, {"class_path": "constant", "init_arg": {}}):
        with pytest.raises(BadInput, match="must be a map with class_path"):
            Sampler(pair[0], Draw(2.0, schedule=block))


@pytest.mark.parametrize("kind", [list, torch.tensor])
def test_an_index_is_a_number_of_whatever_type(pair, kind):
    sampler = Sampler(pair[0], Draw(seed=5))
    assert torch.equal(sampler.sample(LABELS, kind([4, 9, 2])), sampler.sample(LABELS, [4, 9, 2]))

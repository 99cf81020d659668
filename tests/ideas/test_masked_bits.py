"""The masked-bit head: its formulas one bit at a time, what its rounds do, and that it draws what it has learned."""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from alitok.common.compiler import has_compiler
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.masked_bits import MASK, MaskedBitGenerator, MaskedBitHead
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import Constant, PowerCosine, SoftCFG
from alitok.training.parallel import compile_blocks

STEP = Step(seed=3, number=7, total=10, size=12, places=range(12))
HEAD = {"rounds": [1, 2, 2], "width": 24, "depth": 2}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shaken(module: Any) -> Any:
    """The module with weights that are nowhere zero."""
    for number, (name, parameter) in enumerate(module.named_parameters()):
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(number)) + ("norm" in name))
    return module.eval()


def head(**changes: Any) -> MaskedBitHead:
    torch.manual_seed(0)
    return shaken(MaskedBitHead(16, 5, **{**HEAD, **changes}))


def generator(embeddings: str = "bits", **changes: Any) -> MaskedBitGenerator:
    torch.manual_seed(0)
    sizes = {"num_classes": 5, "num_prefix": 3, "grid": (2, 2), "width": 32, "depth": 2, "heads": 2}
    return shaken(MaskedBitGenerator(32, {**HEAD, **changes}, embeddings, **sizes))


def by_hand(module: Any, hidden: Tensor, symbols: list[int], share: float) -> Tensor:
    """Logits (k, 2) of one token."""

    def silu(x: Tensor) -> Tensor:
        return x / (1 + (-x).exp())

    def normed(x: Tensor, norm: Any) -> Tensor:
        return x / (x.square().mean() + 1e-5).sqrt() * norm.weight

    def linear(x: Tensor, layer: Any) -> Tensor:
        return layer.weight @ x + (0 if layer.bias is None else layer.bias)

    angles = [2 * math.pi * share * float(frequency) for frequency in module.frequencies]
    waves = torch.tensor([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])
    condition = silu(linear(silu(linear(waves, module.share[0])), module.share[2]) + linear(hidden, module.condition))
    x = normed(linear(torch.cat([module.embed.table.weight[s] for s in symbols]), module.embed.project), module.norm)
    for block in module.blocks:
        b, a, g = linear(silu(condition), block.modulation).split(len(x))
        y = normed(x, block.norm) * (1 + a) + b
        x = x + g * linear(silu(linear(y, block.mlp.w1)) * linear(y, block.mlp.w3), block.mlp.w2)
    b, a = linear(silu(condition), module.modulation).split(len(x))
    return linear(normed(x, module.last_norm) * (1 + a) + b, module.proj).view(-1, 2)


@torch.no_grad()
def test_logits_are_the_formulas() -> None:
    module, hidden = head(), torch.randn(2, 3, 16, generator=seeded())
    symbols = torch.randint(3, (2, 3, 5), generator=seeded())
    share = torch.rand(2, 3, generator=seeded())
    logits = module(hidden, symbols, share)
    assert logits.shape == (2, 3, 5, 2)
    for image in range(2):
        for token in range(3):
            one = by_hand(module, hidden[image, token], symbols[image, token].tolist(), float(share[image, token]))
            torch.testing.assert_close(logits[image, token], one, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_the_loss_is_the_weighted_mean_over_bits() -> None:
    module, hidden = head(), torch.randn(12, 3, 16, generator=seeded())
    ids = torch.randint(32, (12, 3), generator=seeded())
    nats = module.loss(hidden, ids, STEP)["nats"]
    masks, share = module._masks(3, STEP, ids.device)
    for image in range(12):
        total = weights = 0.0
        for token in range(3):
            bits = [int(ids[image, token]) >> place & 1 for place in range(5)]
            masked = masks[image, token].tolist()
            symbols = [MASK if hidden_bit else bit for bit, hidden_bit in zip(bits, masked, strict=True)]
            logs = module(hidden[image, token], torch.tensor(symbols), share[image, token]).log_softmax(-1)
            for place in range(5):
                weight = 1.0 if masked[place] else 0.1
                total, weights = total - weight * float(logs[place, bits[place]]), weights + weight
        assert float(nats[image].mean()) == pytest.approx(total / weights, rel=1e-4)


def test_masks_have_the_published_sizes() -> None:
    module = MaskedBitHead(16, 16, [16], width=16, depth=1)
    masks, share = module._masks(20, Step(0, 0, 1, 500, range(500)), torch.device("cpu"))
    expected = (16 * share).round().clamp(min=1)
    assert torch.equal(masks.sum(-1), expected.long())
    assert share.min() >= 1 / 16
    assert share.logit().mean() == pytest.approx(0.0, abs=0.03)
    assert share.logit().std() == pytest.approx(0.8, abs=0.02)
    torch.testing.assert_close(masks.float().mean((0, 1)), torch.full((16,), 0.5), atol=0.02, rtol=0)


@torch.no_grad()
def test_what_is_random_depends_on_the_step_and_the_place_alone() -> None:
    module, hidden = head(), torch.randn(12, 3, 16, generator=seeded())
    ids = torch.randint(32, (12, 3), generator=seeded())
    whole = module.loss(hidden, ids, STEP)["nats"]
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for first in range(0, 12, 4):
        part = replace(STEP, places=range(first, first + 4))
        nats = module.loss(hidden[first : first + 4], ids[first : first + 4], part)["nats"]
        torch.testing.assert_close(nats, whole[first : first + 4])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.allclose(module.loss(hidden, ids, replace(STEP, number=8))["nats"], whole)


@torch.no_grad()
def test_in_validation_the_masks_are_always_the_same() -> None:
    module, hidden = head(), torch.randn(6, 3, 16, generator=seeded())
    ids = torch.randint(32, (6, 3), generator=seeded())
    whole = module.loss(hidden, ids)["nats"]
    torch.testing.assert_close(module.loss(hidden[4:], ids[4:])["nats"], whole[4:])


def test_the_loss_begins_at_log_two_and_every_weight_gets_a_gradient_in_time() -> None:
    torch.manual_seed(0)
    module = MaskedBitHead(16, 5, **HEAD)
    hidden = torch.randn(12, 3, 16, generator=seeded())
    ids = torch.randint(32, (12, 3), generator=seeded())
    assert module.loss(hidden, ids, STEP)["nats"].mean().item() == pytest.approx(math.log(2))
    shaken(module).loss(hidden, ids, STEP)["nats"].mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in module.parameters())


class Oracle(MaskedBitHead):
    """Knows the probabilities of all ids, and gives the true p(bit | known bits)."""

    def __init__(self, table: Tensor, **arguments: Any) -> None:
        super().__init__(1, len(table).bit_length() - 1, width=4, depth=1, **arguments)
        self.chances, self.seen = table, []

    def forward(self, hidden: Tensor, symbols: Tensor, masked: Tensor) -> Tensor:
        self.seen.append((symbols, masked))
        bits = self.unpack(torch.arange(len(self.chances)))
        fits = ((symbols[:, None] == bits) | (symbols[:, None] == MASK)).all(-1).float()
        shares = torch.stack([(fits * self.chances) @ (bits == value).float() for value in (0, 1)], dim=-1)
        return (shares / shares.sum(-1, keepdim=True)).clamp_min(1e-30).log()


TABLE = torch.softmax(1.5 * torch.randn(16, generator=seeded(4)), 0)


def frequencies(module: Any, count: int, temperature: float = 1.0) -> Tensor:
    noise = torch.rand(count, *module.noise_shape, generator=seeded(1), dtype=torch.float64)
    with torch.no_grad():
        ids = module.draw(torch.ones(count, 1), noise, lambda logits: logits, temperature)
    return ids.bincount(minlength=16) / count


def distance(first: Tensor, second: Tensor) -> float:
    """Total variation."""
    return float((first - second).abs().sum()) / 2


def test_bit_by_bit_it_draws_the_true_table() -> None:
    count = 100_000
    found = frequencies(Oracle(TABLE, rounds=[1, 1, 1, 1], keep="random"), count)
    chi = float((count * (found - TABLE).square() / TABLE).sum())
    assert chi < 37.7  # of 15 degrees of freedom: one in a thousand is above


@pytest.mark.parametrize("temperature", [0.7, 1.6])
def test_one_round_draws_every_bit_alone_at_its_temperature(temperature: float) -> None:
    module = Oracle(TABLE, rounds=[4])  # annealing begins at T, and ends there
    bits = module.unpack(torch.arange(16))
    ones = (bits.float() * TABLE[:, None]).sum(0).logit().div(temperature).sigmoid()
    expected = torch.where(bits == 1, ones, 1 - ones).prod(-1)
    assert distance(frequencies(module, 100_000, temperature), expected) < 0.01
    assert distance(expected, TABLE) > 0.1  # so it matters that bits are drawn one after the other


def test_confident_bits_at_falling_temperature_are_sharper() -> None:
    sharp = frequencies(Oracle(TABLE, rounds=[1, 1, 1, 1]), 20_000)
    assert sharp.max() > TABLE.max() + 0.05
    assert sharp.argmax() == TABLE.argmax()


@pytest.mark.parametrize("keep", ["confident", "random"])
@pytest.mark.parametrize("rounds", [[4], [1, 3], [2, 2], [1, 1, 2], [1, 1, 1, 1]])
def test_each_round_adds_its_bits_and_keeps_the_others(rounds: list[int], keep: Any) -> None:
    module = Oracle(TABLE, rounds=rounds, keep=keep)
    frequencies(module, 50)
    assert len(module.seen) == len(rounds)
    for number, (symbols, share) in enumerate(module.seen):
        known = sum(rounds[:number])
        assert (symbols != MASK).sum(-1).eq(known).all()
        assert share.eq(1 - known / 4).all()
    for (before, _), (after, _) in pairwise(module.seen):
        assert torch.where(before == MASK, MASK, after).equal(before)


def test_a_head_learns_a_table_that_independent_bits_cannot() -> None:
    torch.manual_seed(0)
    module = MaskedBitHead(1, 4, [1, 1, 1, 1], width=32, depth=2, keep="random")
    optimizer = torch.optim.Adam(module.parameters())
    for number in range(120):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - number / 120)
        ids = torch.multinomial(TABLE, 8 * 256, True, generator=seeded(number)).view(8, 256)
        loss = module.loss(torch.ones(8, 256, 1), ids, Step(0, number, 120, 8, range(8)))["nats"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = distance(frequencies(module, 20_000), TABLE)
    module.rounds, module.noise_shape = [4], (1, 4, 2)
    alone = distance(frequencies(module, 20_000), TABLE)
    assert found < 0.06, found
    assert alone > 0.3, alone


@pytest.mark.parametrize("keep", ["confident", "random"])
def test_guidance_is_called_in_each_round_and_its_bits_go_to_both_branches(keep: Any) -> None:
    module = head(keep=keep)
    hidden, noise = torch.randn(8, 16, generator=seeded()), torch.rand(4, 3, 5, 2, generator=seeded())
    calls = []

    def guided(scale: float) -> Callable[[Tensor], Tensor]:
        def guide(logits: Tensor) -> Tensor:
            calls.append(logits.shape)
            conditional, unconditional = logits.chunk(2)
            return unconditional + scale * (conditional - unconditional)

        return guide

    with torch.no_grad():
        plain = module.draw(hidden[:4], noise, lambda logits: logits, 1.0)
        assert torch.equal(module.draw(hidden, noise, guided(1.0), 1.0), plain)
        assert calls == [(8, 5, 2)] * 3
        both = torch.cat([hidden[:4], hidden[:4]])  # no difference to strengthen: only if both read the same bits
        assert torch.equal(module.draw(both, noise, guided(3.0), 1.0), plain)
        assert not torch.equal(module.draw(hidden, noise, guided(5.0), 1.0), plain)


@pytest.mark.parametrize("embeddings", ["bits", "table"])
@pytest.mark.parametrize("rule", [None, Constant(3.0), PowerCosine(3.0)], ids=str)
def test_drawn_ids_do_not_depend_on_the_batch(embeddings: str, rule: Any) -> None:
    model, labels = generator(embeddings), torch.arange(5)
    ids = generate(model, labels, rule, seed=1)
    assert ids.shape == (5, 7)
    assert torch.equal(generate(model, labels[3:], rule, seed=1, indices=[3, 4]), ids[3:])
    assert 0 <= int(ids.min()) <= int(ids.max()) < 32
    assert len(ids.unique()) > 5


def test_a_bit_that_is_drawn_again_has_no_one_probability() -> None:
    with pytest.raises(BadInput, match="which MaskedBitHead does not give"):
        generate(generator(), torch.arange(2), SoftCFG(3.0))


@pytest.mark.parametrize("embeddings", ["bits", "table"])
def test_a_step_at_a_time_gives_the_hidden_states_of_the_whole(
    embeddings: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, labels = generator(embeddings), torch.arange(4)
    ids = generate(model, labels, 0.0)
    sampler, seen = Sampler(model), []
    draw = sampler.generator.output.draw
    monkeypatch.setattr(
        sampler.generator.output, "draw", lambda hidden, *rest: (seen.append(hidden), draw(hidden, *rest))[1]
    )
    with torch.no_grad():
        assert torch.equal(sampler.sample(labels), ids)
        torch.testing.assert_close(torch.stack(seen, 1), model.hidden(ids, labels), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_ready_for_inference_it_draws_the_same(precision: Any) -> None:
    model, labels = generator(), torch.arange(5)
    sampler = Sampler(model, Draw(precision=precision))
    ready = sampler.generator.output
    assert ready is not model.output
    assert {parameter.dtype for parameter in ready.parameters()} <= {torch.float32}
    assert ready.proj.dtype == ready.blocks[0].mlp.w1.dtype == torch.float32
    hidden, noise = torch.randn(4, 32, generator=seeded()), torch.rand(4, 3, 5, 2, generator=seeded())
    with torch.inference_mode():
        own, copied = (each.draw(hidden, noise, lambda logits: logits, 1.0) for each in (model.output, ready))
    assert torch.equal(own, copied)
    assert sampler.sample(labels).shape == (5, 7)


@pytest.mark.slow  # compiles forward, backward and the step
def test_compiled_blocks_train_and_draw_the_same() -> None:
    if not has_compiler():
        pytest.skip("torch.compile needs a C++ compiler, and there is none here")
    model, compiled, labels = generator(), generator(), torch.arange(5)
    compile_blocks(compiled)
    ids = torch.randint(32, (12, 7), generator=seeded())
    gradients = []
    for each in (model, compiled):
        each.losses(ids, torch.zeros(12, dtype=torch.int64), step=STEP)["nats"].mean().backward()
        gradients.append([parameter.grad for parameter in each.parameters()])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)
    assert torch.equal(Sampler(compiled, Draw(compiled=True)).sample(labels), Sampler(model).sample(labels))


def test_it_has_no_logits_and_accuracy_is_left_out_with_a_sentence() -> None:
    model = generator()
    assert not model.output.has_logits
    with pytest.raises(BadInput, match="MaskedBitHead draws tokens in rounds and has no logits"):
        model(torch.zeros(1, 7, dtype=torch.int64), torch.tensor([0]))
    assert "logits" not in model.losses(torch.zeros(1, 7, dtype=torch.int64), torch.tensor([0]))


@pytest.mark.parametrize("rounds", [[], [0, 5], [2, 2], [3, 2], [6], [-1, 6]], ids=str)
def test_rounds_that_do_not_fit_are_refused(rounds: list[int]) -> None:
    with pytest.raises(BadInput, match=r"A token of 5 bits takes rounds .* add up to 5, not \[.*: set head\.rounds\."):
        MaskedBitHead(16, 5, rounds)


@pytest.mark.parametrize("codes", [0, 1, 12, 4375])
def test_codes_that_are_no_power_of_two_are_refused(codes: int) -> None:
    with pytest.raises(BadInput, match=f"Masked bits take a power of two of codes, not {codes}: change codebook_size"):
        MaskedBitGenerator(codes, HEAD)


def test_unknown_words_are_refused() -> None:
    with pytest.raises(BadInput, match="keeps confident or random bits, not 'best'"):
        head(keep="best")
    with pytest.raises(BadInput, match="embeds bits or a table, not 'ids'"):
        generator("ids")


# --- trained

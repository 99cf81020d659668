"""Masked generation: the loss, the two samplers, and what they refuse."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.masked import Halton, MaskedGenerator, MaskGIT, halton_order, masked_after
from alitok.models.generator import Generator
from alitok.sampling.generate import Sampler
from alitok.sampling.guidance import Branch, PowerCosine, SoftCFG
from alitok.sampling.images import largest_batch

SHAPE: dict[str, Any] = {"num_classes": 5, "num_prefix": 3, "grid": (4, 4), "width": 32, "depth": 2, "heads": 2}
TOKENS, CODES = 19, 16
LABELS = torch.arange(4)


def generator(dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    model = MaskedGenerator(CODES, **SHAPE, dropout=dropout).eval()
    torch.nn.init.normal_(model.output.weight, std=0.3)
    return model


def draw(**more: Any) -> Draw:
    return Draw(2.0, schedule="linear", seed=1, **more)


@torch.no_grad()
def test_the_loss_by_hand() -> None:
    model, step = generator(), Step(0, 3, 10, 4, range(4))
    ids = torch.randint(CODES, (4, TOKENS), generator=torch.Generator().manual_seed(1))
    outputs = model.losses(ids, LABELS, step=step)
    masked = outputs["inputs"] == CODES
    assert torch.equal(outputs["inputs"][~masked], ids[~masked])
    logs = model.token_logits(outputs["inputs"], LABELS).log_softmax(-1)
    for image in range(4):
        total = weights = 0.0
        for place in range(TOKENS):
            row = logs[image, place]
            loss = -0.9 * float(row[ids[image, place]]) - 0.1 * float(row.mean())
            weight = 1.0 if masked[image, place] else 0.1
            total, weights = total + weight * loss, weights + weight
        assert float(outputs["nats"][image].mean()) == pytest.approx(total / weights, rel=1e-4)


def test_how_many_are_masked() -> None:
    model = generator()
    masks = model._masks(4000, Step(0, 0, 1, 4000, range(4000)), torch.device("cpu"))
    counts = masks.sum(1)
    assert counts.min() >= 1
    assert float(counts.float().mean()) == pytest.approx(TOKENS * 2 / math.pi, rel=0.03)  # of arccos(u) 2 / pi
    torch.testing.assert_close(masks.float().mean(0), torch.full((TOKENS,), 2 / math.pi), atol=0.04, rtol=0)
    part = model._masks(10, Step(0, 0, 1, 4000, range(50, 60)), torch.device("cpu"))
    assert torch.equal(part, masks[50:60])


@torch.no_grad()
def test_validation_measures_the_masked_half() -> None:
    model = generator()
    ids = torch.randint(CODES, (4, TOKENS), generator=torch.Generator().manual_seed(1))
    outputs = model.losses(ids, LABELS)
    masked = outputs["inputs"] == CODES
    assert masked.sum(1).tolist() == [9] * 4
    logits = model.token_logits(outputs["inputs"], LABELS)
    expected = F.cross_entropy(logits[masked], ids[masked])
    assert float(outputs["nats"].mean()) == pytest.approx(float(expected), rel=1e-5)
    torch.testing.assert_close(model.losses(ids[1:2], LABELS[1:2])["nats"][0], outputs["nats"][1])


@torch.no_grad()
def test_every_place_sees_all_known_places() -> None:
    model = generator()
    symbols = torch.full((1, TOKENS), CODES)
    symbols[0, 10] = 3
    base = model.token_logits(symbols, LABELS[:1])
    symbols[0, 10] = 4
    moved = (model.token_logits(symbols, LABELS[:1]) - base).abs().amax(-1)[0]
    assert (moved > 1e-6).all()


def test_the_halton_order() -> None:
    """The first places by hand: (0, 0), (1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9)."""
    order = halton_order(8, 9)
    assert order[:5].tolist() == [0 * 9 + 0, 4 * 9 + 3, 2 * 9 + 6, 6 * 9 + 1, 1 * 9 + 4]
    assert sorted(order.tolist()) == list(range(72))


def test_the_schedule_of_masked_tokens() -> None:
    assert [masked_after(64, step, 8) for step in range(8)] == [
        math.floor(64 * math.acos((step + 1) / 8) * 2 / math.pi) for step in range(8)
    ]
    assert masked_after(64, 7, 8) == 0


@pytest.mark.parametrize(
    "sampler",
    [MaskGIT(4, 2.0), MaskGIT(5, 0.0), MaskGIT(6, 3.0, prefix_steps=2), Halton(6), Halton(30, prefix_steps=2)],
    ids=str,
)
def test_images_are_their_own(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every place is known in the end, in the given number of steps; batch and other images decide nothing."""
    monkeypatch.setattr("alitok.sampling.generate.reveal_for", lambda *_: sampler)
    model, steps = generator(), []
    ids = Sampler(model, draw()).sample(LABELS, on_step=steps.append)
    assert ids.shape == (4, TOKENS)
    assert 0 <= int(ids.min()) <= int(ids.max()) < CODES
    assert steps == list(range(sampler.steps))
    alone = Sampler(model, draw()).sample(LABELS[2:3], [2])
    assert torch.equal(alone[0], ids[2])
    if sampler != MaskGIT(5, 0.0):  # which draws nothing
        assert not torch.equal(Sampler(model, draw()).sample(LABELS, range(10, 14)), ids)


@pytest.mark.parametrize("sampler", [MaskGIT(4, 2.0, prefix_steps=2), Halton(6)], ids=str)
def test_given_tokens_stay(sampler: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alitok.sampling.generate.reveal_for", lambda *_: sampler)
    given = torch.randint(CODES, (4, 8), generator=torch.Generator().manual_seed(5))
    mask = torch.rand(4, 8, generator=torch.Generator().manual_seed(6)) < 0.5
    ids = Sampler(generator(), draw()).sample(LABELS, given=given, given_mask=mask)
    assert torch.equal(ids[:, :8][mask], given[mask])


@torch.no_grad()
def test_one_step_of_maskgit_takes_the_most_likely_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = generator()
    monkeypatch.setattr("alitok.sampling.generate.reveal_for", lambda *_: MaskGIT(1))
    found = Sampler(model, Draw()).sample(LABELS)
    logits = model.token_logits(torch.full((4, TOKENS), CODES), LABELS)
    assert torch.equal(found, logits.argmax(-1))


@torch.no_grad()
def test_halton_draws_from_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prefix as it is, then one step over the grid: every place by itself, sharpened by beta."""
    model = generator()
    monkeypatch.setattr("alitok.sampling.generate.reveal_for", lambda *_: Halton(2, sharpen=3.0))
    labels, prefix = torch.zeros(3000, dtype=torch.int64), torch.tensor([[3, 1, 4]])
    read = torch.full((1, TOKENS), CODES)
    plain = model.token_logits(read, LABELS[:1])[0, 0].softmax(-1)
    first = Sampler(model, Draw()).sample(labels)[:, 0]
    assert float((torch.bincount(first, minlength=CODES) / 3000 - plain).abs().max()) < 0.03
    given = {"given": prefix.expand(3000, 3), "given_mask": torch.ones(3000, 3, dtype=torch.bool)}
    ids = Sampler(model, Draw()).sample(labels, **given)
    read[:, :3] = prefix
    for place in (3, 18):
        law = (3 * model.token_logits(read, LABELS[:1])[0, place]).softmax(-1)
        assert float((torch.bincount(ids[:, place], minlength=CODES) / 3000 - law).abs().max()) < 0.03


def test_tokens_without_a_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no prefix: MaskGIT has all its steps for them. Halton's order needs a grid."""
    torch.manual_seed(0)
    model = MaskedGenerator(CODES, **{**SHAPE, "num_prefix": 12, "grid": (0, 0)}).eval()
    torch.nn.init.normal_(model.output.weight, std=0.3)
    found = []
    for sampler in (MaskGIT(6, 3.0, prefix_steps=2), MaskGIT(6, 3.0)):
        monkeypatch.setattr("alitok.sampling.generate.reveal_for", lambda *_, sampler=sampler: sampler)
        found.append(Sampler(model, draw()).sample(LABELS))
    assert torch.equal(*found)
    monkeypatch.setattr("alitok.sampling.generate.reveal_for", lambda *_: Halton(6))
    with pytest.raises(BadInput, match="Halton needs a grid of tokens"):
        Sampler(model, draw()).sample(LABELS)


def test_the_sampler_of_the_card_and_of_the_draw() -> None:
    model = generator()
    assert Sampler(model, draw()).reveal == MaskGIT()
    block = {"class_path": "alitok.ideas.masked.Halton", "init_args": {"steps": 9}}
    model.card = {"sampler": block}
    assert Sampler(model, Draw.chosen(model.card)).reveal == Halton(9)
    assert Draw.chosen(model.card).record()["sampler"] == block
    assert Sampler(model, draw(sampler="alitok.ideas.masked.Halton")).reveal == Halton()
    assert "sampler" not in Draw().record()


@pytest.mark.parametrize("more", [{"keep": 3}, {"window": 4}, {"compiled": True}])
def test_what_belongs_to_token_by_token(more: dict[str, Any]) -> None:
    with pytest.raises(BadInput, match="MaskedGenerator draws many tokens in a step"):
        Sampler(generator(), draw(**more))


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="Generator is causal and drawn token by token"):
        Sampler(Generator(CODES, **SHAPE), draw(sampler="alitok.ideas.masked.Halton"))
    with pytest.raises(BadInput, match="Linear is no Reveal"):
        Sampler(generator(), draw(sampler="torch.nn.Linear"))
    with pytest.raises(BadInput, match="SoftCFG changes a cache"):
        Sampler(generator(), draw(), SoftCFG(2.0)).sample(LABELS)
    with pytest.raises(BadInput, match="more steps than prefix_steps, not 2 and 2"):
        MaskGIT(2, prefix_steps=2)
    with pytest.raises(BadInput, match="prefix_steps must be 0, or 2 or more"):
        MaskGIT(prefix_steps=1)
    with pytest.raises(BadInput, match="randomness must be 0 or more"):
        MaskGIT(randomness=-1.0)
    with pytest.raises(BadInput, match="at least 1 of prefix_steps"):
        Halton(prefix_steps=0)


def test_halton_counts_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """floor(n (1 - arccos((i + 1) / T) 2 / pi)) places are known after step i, at least one more each time."""
    model = MaskedGenerator(CODES, **{**SHAPE, "num_prefix": 0, "grid": (16, 16)}).eval()
    known: list[int] = []
    logits = model.token_logits

    def noted(symbols: torch.Tensor, *more: Any) -> torch.Tensor:
        known.append(int((symbols[0] != CODES).sum()))
        return logits(symbols, *more)

    monkeypatch.setattr(MaskedGenerator, "token_logits", lambda self, *words: noted(*words))
    block = {"class_path": "alitok.ideas.masked.Halton", "init_args": {"steps": 8}}
    Sampler(model, Draw(sampler=block)).sample(LABELS[:1])
    expected = [math.floor(256 * (1 - math.acos((step + 1) / 8) * 2 / math.pi)) for step in range(8)]
    assert known == [0, *expected[:-1]]


class Beside(PowerCosine):
    """Guidance by another network, which the test sets."""

    other: Any = None

    def branches(self, generator: Any, labels: torch.Tensor, seed: int, indices: Any) -> list[Branch]:
        return [Branch(labels=labels), Branch(labels=labels, generator=Beside.other)]


@pytest.mark.parametrize("sampled", ["masked", "causal"])
def test_a_masked_and_a_causal_generator_do_not_guide_each_other(sampled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"masked": generator(), "causal": Generator(CODES, **SHAPE).eval()}
    model = kinds.pop(sampled)
    monkeypatch.setattr(Beside, "other", next(iter(kinds.values())))
    with pytest.raises(BadInput, match="one is drawn token by token, the other is not"):
        Sampler(model, draw(), Beside(2.0)).sample(LABELS)


def test_a_set_names_the_generators_own_sampler() -> None:
    from alitok.sampling.sets import set_settings

    model, tokenizer = generator(), SimpleNamespace(card={"digest": "t"}, decoder=torch.nn.Linear(1, 1), image_size=16)
    tokenizer.decoder.generative = False
    model.card = {"digest": "g"}
    settings = set_settings(model, tokenizer, ("g", "t"), draw(), 4)  # type: ignore[arg-type]
    assert settings["sampler"]["class_path"] == "alitok.ideas.masked.MaskGIT"
    assert settings["sampler"]["init_args"]["steps"] == 8
    assert Sampler(model, Draw.of(settings)).reveal == MaskGIT()
    with pytest.raises(BadInput, match="leave out keep"):
        set_settings(model, tokenizer, ("g", "t"), draw(window=2), 4)  # type: ignore[arg-type]


def test_all_logits_of_a_masked_generator_are_counted() -> None:
    decoder = SimpleNamespace(modules=lambda: [torch.nn.Linear(4, 4)], length=None)
    tokenizer: Any = SimpleNamespace(decoder=decoder, num_tokens=TOKENS, image_size=16)
    masked, causal = (
        largest_batch(kind, tokenizer, draw(), 2**22) for kind in (generator(), Generator(CODES, **SHAPE))
    )
    assert masked != causal
    wide = MaskedGenerator(4096, **SHAPE)
    assert largest_batch(wide, tokenizer, draw(), 2**26) < 2**26 // (TOKENS * 4096 * 3 * 8)

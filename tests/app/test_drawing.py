"""A picture that forms: its frames, what its tokens were drawn from, and what follows another token."""

import itertools
import math
import threading
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from alitok.app.drawing import OTHERS, WORK, Painter, likely_tokens
from alitok.app.layout import GRAY, Layout
from alitok.app.opened import Opened
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.sampling.generate import Sampler

STAR = 2
LAST = torch.tensor([STAR])


@pytest.fixture
def painter(opened: Opened) -> Painter:
    (generator, tokenizer), *_ = opened.pairs
    draw = Draw(guidance=3.0, power=2.0, temperature=0.8, seed=5)
    return Painter(opened.generators[generator], opened.tokenizers[tokenizer], draw)


def ids_of(frame: Any) -> list[int]:
    return [token.ids[0] for token in frame.tokens]


def test_the_frames_grow_to_the_picture_that_sampling_gives(painter: Painter) -> None:
    frames = list(painter.frames(STAR, most=7))
    assert [frame.count for frame in frames] == [3, 6, 9, 12, 15, 18, 21]
    ids = Sampler(painter.generator, painter.draw).sample(LAST)
    assert ids_of(frames[-1]) == ids[0].tolist()
    assert_close(frames[-1].image, painter.tokenizer.decode(ids)[0].clamp(0, 1))
    gray = (frames[3].image == GRAY).all(0)  # 7 of 4 x 4 cells of 8 pixels are known
    cells = gray.view(4, 8, 4, 8).transpose(1, 2).flatten(2).all(-1).flatten()
    assert cells.tolist() == [False] * 7 + [True] * 9
    assert not frames[-2].tokens


@pytest.mark.parametrize("schedule", ["power-cosine", "softcfg"])
def test_probabilities_are_those_that_tokens_were_drawn_with(opened: Opened, schedule: str) -> None:
    (generator, tokenizer), *_ = opened.pairs
    network = opened.generators[generator]
    painter = Painter(
        network, opened.tokenizers[tokenizer], Draw(2.5, power=1.5, schedule=schedule, temperature=0.7, seed=3)
    )
    tokens = painter.picture(STAR).tokens
    for token in tokens:
        assert token.probability is not None
        values = [value for _, value in token.others]
        assert values == sorted(values, reverse=True)
        assert len(values) == OTHERS
        assert 0 < token.probability <= 1
    if schedule == "softcfg":
        return
    ids = torch.tensor([[token.ids[0] for token in tokens]])
    with torch.no_grad():
        with_class, without = (network(ids, torch.tensor([label]))[0].double() for label in (STAR, 3))
    scale = torch.tensor([1 + 1.5 * (1 - math.cos(math.pi * (i / 21) ** 1.5)) / 2 for i in range(21)])
    expected = ((without + scale[:, None] * (with_class - without)) / 0.7).softmax(-1)
    found = torch.tensor([token.probability for token in tokens], dtype=torch.float64)
    assert_close(found, expected.gather(1, ids[0][:, None])[:, 0], rtol=1e-3, atol=1e-5)
    for place, token in enumerate(tokens):
        best = expected[place].topk(OTHERS)
        assert [codes[0] for codes, _ in token.others[:2]] == best.indices[:2].tolist()
        assert_close(torch.tensor([v for _, v in token.others], dtype=torch.float64), best.values, rtol=1e-3, atol=1e-5)


def test_another_token_leaves_those_before_and_the_noise(painter: Painter) -> None:
    first = painter.picture(STAR)
    place = 8
    other = next(ids for ids, _ in first.tokens[place].others if ids != first.tokens[place].ids)
    second = painter.picture(STAR, [(place, other)])
    assert ids_of(second)[:place] == ids_of(first)[:place]
    assert second.tokens[place].ids == other
    assert second.tokens[place].probability == pytest.approx(dict(first.tokens[place].others)[other], rel=1e-5)
    known = torch.tensor([[*ids_of(first)[:place], other[0]]])
    expected = Sampler(painter.generator, painter.draw).sample(LAST, [0], given=known)
    assert ids_of(second) == expected[0].tolist()
    assert ids_of(second) != ids_of(first)


def test_its_own_token_changes_nothing(painter: Painter) -> None:
    first = painter.picture(STAR)
    again = painter.picture(STAR, [(8, first.tokens[8].ids)])
    assert ids_of(again) == ids_of(first)
    assert torch.equal(again.image, first.image)


def test_the_same_painter_draws_without_choices_again(painter: Painter) -> None:
    first = painter.picture(STAR)
    painter.picture(STAR, [(0, (1,))])
    assert ids_of(painter.picture(STAR)) == ids_of(first)


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ((21, (1,)), "no token 21: positions are 0 to 20"),
        ((0, (24,)), "24 is no token: give an id of 0 to 23"),
        ((0, (None,)), "no token"),
    ],
)
def test_a_chosen_token_that_is_not_there(painter: Painter, chosen: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=sentence):
        painter.picture(STAR, [chosen])
    with pytest.raises(BadInput, match="no token"):
        painter.picture(STAR, [(0, (1, 2))])


def test_nobody_waits_any_more(painter: Painter) -> None:
    before = threading.active_count()
    frames = painter.frames(STAR)
    next(frames)
    frames.close()
    assert threading.active_count() == before
    assert painter.picture(STAR).count == 21


def test_one_work_at_a_time(painter: Painter) -> None:
    painter.picture(STAR)
    with WORK:
        frames = painter.frames(STAR)
        waiting = threading.Thread(target=lambda: next(frames), daemon=True)
        waiting.start()
        waiting.join(0.3)
        assert waiting.is_alive()
    waiting.join(30)
    assert not waiting.is_alive()


def test_an_error_of_drawing_arrives(painter: Painter) -> None:
    with pytest.raises(BadInput, match=r"labels must lie in 0\.\.3"):
        painter.picture(9)


def test_the_best_tokens_of_several_sub_codes() -> None:
    logits = 3 * torch.randn(2, 3, 10, generator=torch.Generator().manual_seed(0))
    tokens = likely_tokens([[0, 1, 2], [9, 9, 9]], logits)
    for place, own in enumerate([(0, 1, 2), (9, 9, 9)]):
        shares = logits[place].double().softmax(-1)
        every = {
            codes: math.prod(float(shares[s, code]) for s, code in enumerate(codes))
            for codes in itertools.product(range(10), repeat=3)
        }
        best = sorted(every, key=lambda codes: -every[codes])[:OTHERS]
        assert [codes for codes, _ in tokens[place].others] == best
        assert tokens[place].probability == pytest.approx(every[own])


def test_tokens_of_sub_codes_are_drawn_and_chosen(opened: Opened, golden: Any, small_generator_block: Any) -> None:
    block = small_generator_block(sub_codes=2)
    generator = golden.randomize(build({**block, "class_path": "alitok.ideas.shared.sub_codes.SubCodeGenerator"}))

    class Tokens:  # a tokenizer of two sub-codes is not needed to see what is drawn
        num_tokens, any_length, decoder = 21, True, None

        def decode(self, ids: torch.Tensor, seed: int = 0, indices: Any = None) -> torch.Tensor:
            return torch.zeros(len(ids), 3, 32, 32)

    painter = Painter(generator, Tokens(), Draw(guidance=2.0))  # type: ignore[arg-type]
    tokens = painter.picture(STAR).tokens
    assert all(len(token.ids) == 2 and token.probability is not None for token in tokens)
    other = next(ids for ids, _ in tokens[4].others if ids != tokens[4].ids)
    second = painter.picture(STAR, [(4, other)]).tokens
    assert [token.ids for token in second[:5]] == [*(token.ids for token in tokens[:4]), other]


def test_a_generator_that_is_not_causal_has_no_probabilities(opened: Opened, golden: Any) -> None:
    arguments = {"codebook_size": 24, "num_classes": 3, "num_prefix": 5, "grid": [4, 4], "width": 32, "depth": 2}
    block = {"class_path": "alitok.ideas.masked.MaskedGenerator", "init_args": {**arguments, "heads": 2}}
    (_, tokenizer), *_ = opened.pairs
    painter = Painter(golden.randomize(build(block)), opened.tokenizers[tokenizer], Draw())
    frame = painter.picture(STAR, [(3, (7,))])
    assert [token.probability for token in frame.tokens] == [None] * 21
    assert frame.tokens[3].ids == (7,)
    assert painter.fixed == "This generator does not draw tokens one by one, so no probable others can be offered."


def test_why_no_other_token_is_offered(painter: Painter, monkeypatch: pytest.MonkeyPatch) -> None:
    assert painter.fixed == ""
    monkeypatch.setattr(type(painter.generator.output), "has_logits", False, raising=False)
    assert "head gives no logits" in Painter(painter.generator, painter.tokenizer, painter.draw).fixed


def test_the_layout_of_a_decoder_that_is_not_the_papers() -> None:
    class Other:
        num_tokens, decoder = 30, None

    layout = Layout.of(Other())  # type: ignore[arg-type]
    assert (layout.prefix, layout.rows) == (30, 0)
    image = torch.rand(3, 8, 8)
    assert torch.equal(layout.blank(image, 3), image)

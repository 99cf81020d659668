"""Latents only, tail drop and nested dropout: what a dropped token can influence, and how many are kept."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.nested_dropout import NestedDropout, powers_of_two
from alitok.ideas.tail_drop import TailDrop
from alitok.ideas.titok import TiTokDecoder
from alitok.models.seams import Quantized
from alitok.models.tokenizer import Tokenizer

TOKENS = 12  # fewer than the 16 patches
TAIL = {"class_path": "alitok.ideas.tail_drop.TailDrop"}


def nested(lengths: str = "uniform") -> dict[str, Any]:
    return {
        "class_path": "alitok.ideas.nested_dropout.NestedDropout",
        "init_args": {"code_dim": 8, "lengths": lengths},
    }


@pytest.fixture
def make(golden: Any, small_tokenizer_block: Any) -> Any:
    def make(bottleneck: dict[str, Any] | None) -> Tokenizer:
        block = small_tokenizer_block(1)
        parts = block["init_args"]
        parts["encoder"]["init_args"]["num_latents"] = TOKENS
        decoder = {"image_size": 32, "patch_size": 8, "num_latents": TOKENS, "code_dim": 8}
        decoder |= {"width": 64, "depth": 2, "heads": 2}
        parts["decoder"] = {"class_path": "alitok.ideas.titok.TiTokDecoder", "init_args": decoder}
        if bottleneck is not None:
            parts["bottleneck"] = bottleneck
        return golden.randomize(build(block))

    return make


def cut(bottleneck: Any, latents: Tensor, step: int, first: int = 0, seed: int = 0) -> Tensor:
    """What the bottleneck leaves of latents that are not quantized."""
    place = Step(seed, step, 10_000, 64, range(first, first + len(latents)))
    tokens = Quantized(latents=latents, quantized=None, ids=torch.zeros(latents.shape[:2], dtype=torch.int64))
    (decoding,) = bottleneck(tokens, None, place)
    return decoding.latents


def image(tokenizer: Tokenizer, latents: Tensor, step: int) -> Tensor:
    """What the decoder makes of latents in training."""
    with torch.no_grad():
        return tokenizer.decoder(cut(tokenizer.bottleneck, latents, step))["image"]


def test_every_latent_reaches_the_whole_image(make: Any) -> None:
    decoder = make(None).decoder
    latents = torch.randn(1, TOKENS, 8)
    for token in (0, 5, TOKENS - 1):
        other = latents.clone()
        other[:, token] += 1
        with torch.no_grad():
            change = (decoder(other)["image"] - decoder(latents)["image"]).abs()
        assert change.shape == (1, 3, 32, 32)
        assert (change.unfold(2, 8, 8).unfold(3, 8, 8).amax((1, 4, 5)) > 1e-5).all()


def test_latents_count_by_their_position(make: Any) -> None:
    decoder = make(None).decoder
    latents = torch.randn(1, TOKENS, 8)
    with torch.no_grad():
        assert not torch.allclose(decoder(latents)["image"], decoder(latents.flip(1))["image"], atol=1e-5)


@pytest.mark.parametrize("bottleneck", [TAIL, nested()])
def test_kept_tokens_alone_decide_the_image(make: Any, bottleneck: dict[str, Any]) -> None:
    tokenizer = make(bottleneck)
    latents = torch.randn(3, TOKENS, 8)
    for step in range(6):
        plain = image(tokenizer, latents, step)
        for token in range(TOKENS):
            other = latents.clone()
            other[:, token] += 1
            moved = (image(tokenizer, other, step) - plain).abs().amax((1, 2, 3)) > 1e-5
            assert torch.equal(moved, torch.tensor([token < count for count in kept(tokenizer, step, 3)]))


def kept(tokenizer: Tokenizer, step: int, images: int) -> list[int]:
    """How many tokens the first images of a batch keep, read off what the bottleneck leaves unchanged."""
    latents = torch.randn(images, TOKENS, 8)
    left = cut(tokenizer.bottleneck, latents, step)
    same = (left == latents[:, : left.shape[1]]).all(-1)
    counts = same.sum(1).tolist()
    assert all(same[row, :count].all() for row, count in enumerate(counts))
    return counts


@pytest.mark.parametrize("bottleneck", [TAIL, nested()])
def test_dropped_tokens_get_no_gradient_from_the_image_but_are_quantized(make: Any, bottleneck: dict[str, Any]) -> None:
    tokenizer = make(bottleneck).train()
    step = next(step for step in range(50) if kept(tokenizer, step, 1)[0] <= TOKENS // 2)
    (count,) = kept(tokenizer, step, 1)
    latents = torch.randn(1, TOKENS, 8, requires_grad=True)
    output = tokenizer.quantizer(latents)
    left = cut(tokenizer.bottleneck, output.quantized, step)
    (by_image,) = torch.autograd.grad(tokenizer.decoder(left)["image"].square().sum(), latents, retain_graph=True)
    (by_codes,) = torch.autograd.grad(output.losses["commitment"], latents)
    assert torch.equal(by_image.abs().amax(-1)[0] > 0, torch.arange(TOKENS) < count)
    assert (by_codes.abs().amax(-1) > 0).all()


def test_tail_drop_keeps_one_uniform_length_a_batch() -> None:
    bottleneck, latents = TailDrop(), torch.zeros(4, 16, 2)
    lengths = [cut(bottleneck, latents, step).shape[1] for step in range(8000)]
    counts = Counter(lengths)
    assert set(counts) == set(range(1, 17))
    # chi-squared of 15 degrees of freedom: below 37.7 but once in a thousand
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 37.7
    again = [cut(bottleneck, latents, step, first=2).shape[1] for step in range(20)]
    assert again == lengths[:20]  # every micro-batch and device cuts alike
    other = [cut(bottleneck, latents, step, seed=1).shape[1] for step in range(20)]
    assert other != lengths[:20]


@pytest.mark.parametrize(
    ("lengths", "shares"),
    [
        ("uniform", dict.fromkeys(range(1, 13), 1 / 12)),
        ("powers", dict.fromkeys([1, 2, 4, 8, 12], 1 / 5)),
        ("rounded", {1: 1 / 12, 2: 1 / 12, 4: 2 / 12, 8: 4 / 12, 12: 4 / 12}),
    ],
)
def test_nested_dropout_draws_the_lengths_it_says(lengths: Any, shares: dict[int, float]) -> None:
    bottleneck = NestedDropout(2, lengths)
    drawn = [
        bottleneck.kept(Step(0, step, 10_000, 64, range(0)), place, 12) for step in range(300) for place in range(20)
    ]
    counts = Counter(drawn)
    assert set(counts) == set(shares)
    for length, share in shares.items():
        assert counts[length] / 6000 == pytest.approx(share, abs=4 * (share * (1 - share) / 6000) ** 0.5)


def test_nested_dropout_is_a_function_of_seed_step_and_place() -> None:
    bottleneck, latents = NestedDropout(2, "uniform"), torch.randn(8, 16, 2)
    whole = cut(bottleneck, latents, 3)
    parts = [cut(bottleneck, latents[first : first + 4], 3, first) for first in (0, 4)]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, cut(bottleneck, latents, 4))
    assert not torch.equal(whole, cut(bottleneck, latents, 3, seed=1))


def test_the_mask_token_learns() -> None:
    bottleneck = NestedDropout(2)
    cut(bottleneck, torch.zeros(16, 8, 2), 0).sum().backward()
    assert bottleneck.mask_token.grad is not None
    assert (bottleneck.mask_token.grad > 0).all()


@pytest.mark.parametrize("bottleneck", [TAIL, nested()])
def test_a_prefix_decodes_as_it_did_in_training(make: Any, bottleneck: dict[str, Any]) -> None:
    tokenizer = make(bottleneck)
    ids = tokenizer.encode(torch.rand(1, 3, 32, 32))
    assert ids.shape == (1, TOKENS)
    assert torch.equal(tokenizer.decode(ids), tokenizer.decoder(tokenizer.quantizer.lookup(ids))["image"])
    for step in range(8):
        (count,) = kept(tokenizer, step, 1)
        trained = image(tokenizer, tokenizer.quantizer.lookup(ids), step)
        torch.testing.assert_close(tokenizer.decode(ids[:, :count]), trained)
        assert torch.equal(tokenizer(torch.rand(1, 3, 32, 32), ids=ids[:, :count])["image"], trained)
    assert tokenizer.any_length


@pytest.mark.parametrize("count", [0, TOKENS + 1])
def test_lengths_that_no_image_has(make: Any, count: int) -> None:
    with pytest.raises(BadInput, match=f"1 to {TOKENS} tokens for this tokenizer, not {count}"):
        make(TAIL).decode(torch.zeros(1, count, dtype=torch.int64))


def test_without_a_dropper_a_prefix_is_refused(make: Any) -> None:
    tokenizer = make(None)
    assert not tokenizer.any_length
    with pytest.raises(BadInput, match=r"decodes all 12 tokens, not the first 3: .*tail-drop\.yaml"):
        tokenizer.decode(torch.zeros(1, 3, dtype=torch.int64))


def test_a_mask_token_serves_the_aligned_decoder_too(golden: Any, small_tokenizer_block: Any) -> None:
    block = small_tokenizer_block(1)
    block["init_args"]["bottleneck"] = nested()
    tokenizer = golden.randomize(build(block))
    ids = tokenizer.encode(torch.rand(2, 3, 32, 32))
    assert tokenizer.decode(ids[:, :7]).shape == (2, 3, 32, 32)


def test_a_decoder_of_one_length_and_a_shorter_sequence_do_not_go_together(small_tokenizer_block: Any) -> None:
    block = small_tokenizer_block(1)
    block["init_args"]["bottleneck"] = TAIL
    with pytest.raises(BadInput, match="TailDrop hands on fewer tokens and Decoder needs all"):
        build(block)


def test_bad_arguments() -> None:
    with pytest.raises(BadInput, match="lengths must be uniform, powers or rounded, not log"):
        NestedDropout(4, "log")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="made for 4 latents and is given 5"):
        TiTokDecoder(32, 8, 4, 8, 32, 1, 1)(torch.zeros(1, 5, 8))


def test_powers_of_two() -> None:
    assert [powers_of_two(total) for total in (1, 2, 8, 12)] == [[1], [1, 2], [1, 2, 4, 8], [1, 2, 4, 8, 12]]

"""NesTok: two decodings of each step, their losses, and prefixes that decode as they did in training."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import DEMO, module_of
from torch import nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.config import compose_run
from alitok.ideas.nestok import AllAndPrefix, FirstLayer
from alitok.models.seams import Quantized
from alitok.studies import small
from alitok.training.records import MicroBatch, StepRecord

IDEAS = DEMO.parent / "ideas"
IMAGES = 4


def step(number: int, images: int = IMAGES, first: int = 0) -> Step:
    return Step(0, number, 10_000, 64, range(first, first + images))


def kept(number: int, total: int, images: int = IMAGES, first: int = 0) -> int:
    tokens = Quantized(
        latents=torch.randn(images, total, 4), quantized=None, ids=torch.zeros(images, total, dtype=torch.int64)
    )
    whole, prefix = AllAndPrefix()(tokens, None, step(number, images, first))  # type: ignore[arg-type]
    assert torch.equal(whole.latents, tokens.latents)
    count = prefix.latents.shape[1]
    assert torch.equal(prefix.latents, tokens.latents[:, :count])
    assert (whole.weight, prefix.weight) == (1, 1)
    return count


@pytest.fixture
def module(tmp_path: Path) -> Any:
    files = [DEMO / "tokenizer-stage1.yaml", IDEAS / "titok.yaml", IDEAS / "nestok.yaml"]
    made = module_of(small.small(compose_run(files, ["--define.run", str(tmp_path)])))
    for parameter in made.tokenizer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


def test_the_prefix_has_any_length_and_is_the_same_in_every_micro_batch() -> None:
    drawn = [kept(number, 5) for number in range(200)]
    assert set(drawn) == {1, 2, 3, 4, 5}
    assert [kept(number, 5, images=2, first=2) for number in range(20)] == drawn[:20]


def test_the_loss_is_that_of_both_decodings_and_their_alignment(module: Any) -> None:
    images, number = torch.rand(IMAGES, 3, 64, 64), 3
    moment, tokenizer = module.schedule.at(1), module.tokenizer.train()
    assert moment.phase.quantize
    part = MicroBatch({"image": images}, 1.0, step(number), True)
    loss = module._tokenizer_loss(part, moment, StepRecord(number, False))
    tokens = tokenizer.quantizer(tokenizer.encoder(images, part.step).float(), part.step)
    seen: list[Any] = []
    tokenizer.decoder.blocks[0].register_forward_hook(lambda _, __, output: seen.append(output))
    count = kept(number, tokenizer.num_tokens)
    whole, prefix = (tokenizer.decoder(z)["image"] for z in (tokens.quantized, tokens.quantized[:, :count]))
    full, part_of = (tokenizer.decoder.at_image(one) for one in seen)
    cosine = (full * part_of).sum(-1) / (full.norm(dim=-1) * part_of.norm(dim=-1))
    expected = F.mse_loss(whole, images) + F.mse_loss(prefix, images) + (1 - cosine).mean()
    torch.testing.assert_close(loss, expected + 2 * sum(tokens.losses.values()))


def test_the_alignment_moves_the_prefix_alone(module: Any) -> None:
    term = module.terms["align"]
    whole, prefix = (torch.randn(2, 96, 32, requires_grad=True) for _ in range(2))
    first = {"decoder.blocks.0": whole}
    value = term({"image": torch.rand(2, 3, 64, 64)}, {"decoder.blocks.0": prefix, "first": first})
    value.backward()
    assert whole.grad is None
    assert prefix.grad is not None
    assert prefix.grad[:, :64].any()
    assert not prefix.grad[:, 64:].any()  # latents, which differ in number
    assert term({"image": torch.rand(2, 3, 64, 64)}, first) == 0
    equal = term({"image": torch.rand(2, 3, 64, 64)}, {**first, "first": first})
    torch.testing.assert_close(equal, torch.zeros(()))


@torch.no_grad()
def test_any_prefix_decodes_and_what_follows_does_not_matter(module: Any) -> None:
    tokenizer = module.tokenizer
    images, total = torch.rand(IMAGES, 3, 64, 64), tokenizer.num_tokens
    for number in range(4):
        outputs = tokenizer.train()(images, step=step(number))
        count = kept(number, total)
        _, prefix = (one for _, one in outputs["decodings"])
        tokenizer.eval()
        torch.testing.assert_close(tokenizer.decode(outputs["ids"][:, :count]), prefix["image"], rtol=1e-4, atol=1e-5)
    ids = tokenizer.encode(images)
    shown = [tokenizer.decode(ids[:, :count]) for count in (1, 2, total)]
    assert min((one - other).abs().max() for one, other in ((shown[0], shown[1]), (shown[1], shown[2]))) > 1e-4


def test_a_decoder_without_patches_or_a_fixed_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="FirstLayer reads the first block of a tokenizer's decoder, and Linear has no"):
        FirstLayer().attach(nn.Linear(1, 1))
    files = [DEMO / "tokenizer-stage1.yaml", IDEAS / "nestok.yaml"]
    config = small.small(compose_run(files, ["--define.run", str(tmp_path)]))
    with pytest.raises(BadInput, match="AllAndPrefix hands on fewer tokens and Decoder needs all"):
        module_of(config)

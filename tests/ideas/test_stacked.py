"""Causal decoders that look elsewhere: the stack of causal and full blocks, the shift, more prefix tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import DEMO, module_of
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.config import compose_run
from alitok.ideas.shift import ShiftedDecoder
from alitok.ideas.stacked import CausalImage, StackedDecoder
from alitok.models.decoder import Decoder

PREFIX, IMAGE = 4, 16
SIZES: dict[str, Any] = {"image_size": 16, "patch_size": 4, "num_prefix": PREFIX, "code_dim": 4, "width": 32}
SIZES |= {"depth": 4, "heads": 2}


def stirred(decoder: Any) -> Any:
    torch.manual_seed(0)
    for parameter in decoder.parameters():
        nn.init.normal_(parameter, std=0.3)
    return decoder


@torch.no_grad()
def moved(decoder: Any, output: str, patches: int = IMAGE) -> Tensor:
    """(tokens, patches): whether the token reaches the patch of an output."""
    latents = torch.randn(1, PREFIX + IMAGE, 4)
    rows = []
    for token in range(PREFIX + IMAGE):
        other = latents.clone()
        other[:, token] += 1
        change = (decoder(other)[output] - decoder(latents)[output]).abs()
        rows.append(change.unfold(2, 4, 4).unfold(3, 4, 4).amax((1, 4, 5)).flatten())
    assert rows[0].shape == (patches,)
    return torch.stack(rows) > 1e-6


def seen_before(shift: int) -> Tensor:
    """(tokens, patches): patch i sees the prefix and the image tokens up to i - shift."""
    token, patch = torch.arange(PREFIX + IMAGE)[:, None], torch.arange(IMAGE)
    return token - PREFIX <= patch - shift


def test_the_causal_half_looks_back_and_the_whole_looks_everywhere() -> None:
    decoder = stirred(StackedDecoder(**SIZES, prefix_head=True))
    assert decoder.causal_depth == 2
    assert torch.equal(moved(decoder, "causal_image"), seen_before(0))
    assert moved(decoder, "image").all()
    strip = moved(decoder, "prefix", PREFIX)
    assert torch.equal(strip, torch.arange(PREFIX + IMAGE)[:, None] <= torch.arange(PREFIX))


@pytest.mark.parametrize(("share", "causal"), [(0.1, 1), (0.5, 2), (0.75, 3), (0.99, 3)])
def test_the_share_of_causal_blocks(share: float, causal: int) -> None:
    decoder: Any = StackedDecoder(**SIZES, causal_share=share, causal_head=False)
    assert [block.attention.causal for block in decoder.blocks] == [True] * causal + [False] * (4 - causal)
    assert "causal_image" not in decoder(torch.zeros(1, PREFIX + IMAGE, 4))


def test_the_causal_image_has_a_loss_that_moves_the_causal_half_alone() -> None:
    decoder = stirred(StackedDecoder(**SIZES))
    images = torch.rand(2, 3, 16, 16)
    outputs = decoder(torch.randn(2, PREFIX + IMAGE, 4))
    value = CausalImage()({"image": images}, outputs)
    torch.testing.assert_close(value, (outputs["causal_image"] - images).square().mean())
    value.backward()
    with_gradient = [any(p.grad is not None for p in block.parameters()) for block in decoder.blocks]
    assert with_gradient == [True, True, False, False]


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_a_patch_sees_the_tokens_up_to_the_shift(shift: int) -> None:
    decoder = stirred(ShiftedDecoder(shift, **SIZES, causal=True, prefix_head=True))
    assert torch.equal(moved(decoder, "image"), seen_before(shift))
    latents = torch.randn(1, PREFIX + IMAGE, 4, requires_grad=True)
    (gradient,) = torch.autograd.grad(decoder(latents)["image"].sum(), latents)
    last = PREFIX + IMAGE - shift
    assert torch.equal(gradient.abs().amax(-1)[0] > 0, torch.arange(PREFIX + IMAGE) < last)
    # the prefix is read where it was
    assert torch.equal(moved(decoder, "prefix", PREFIX), torch.arange(20)[:, None] <= torch.arange(PREFIX))


def test_no_shift_is_the_plain_decoder_and_a_tap_is_read_at_the_same_places() -> None:
    plain, none, one = (
        stirred(Decoder(**SIZES, causal=True)),
        stirred(ShiftedDecoder(0, **SIZES, causal=True)),
        stirred(ShiftedDecoder(1, **SIZES, causal=True)),
    )
    latents = torch.randn(2, PREFIX + IMAGE, 4)
    assert torch.equal(plain(latents)["image"], none(latents)["image"])
    places = torch.arange(1 + PREFIX + IMAGE)[None, :, None]  # of a block's output, with the buffer token
    assert torch.equal(one.at_image(places)[0, :, 0], torch.arange(PREFIX, PREFIX + IMAGE))


@pytest.mark.parametrize("prefix", [16, 128])
def test_holistic_queries_are_prefix_tokens_without_a_row(prefix: int, tmp_path: Path) -> None:
    files = [DEMO.parent / "imagenet256" / "tokenizer-stage1.yaml", DEMO.parent / "ideas" / "holistic.yaml"]
    files += [DEMO.parent / "ideas" / "shift.yaml"]
    words = ["--define.run", str(tmp_path), "--define.num_prefix", str(prefix)]
    with torch.device("meta"):
        module = module_of(compose_run(files, words))
    tokenizer = module.tokenizer
    assert (tokenizer.num_tokens, tokenizer.decoder.num_prefix) == (prefix + 256, prefix)
    assert type(tokenizer.decoder) is ShiftedDecoder
    assert tokenizer.decoder.prefix_head is None
    assert "prefix" not in module.terms


def test_bad_arguments() -> None:
    with pytest.raises(BadInput, match="shift must be 0 to the 4 prefix tokens, not 5"):
        ShiftedDecoder(5, **SIZES, causal=True)
    with pytest.raises(BadInput, match="set causal to true"):
        ShiftedDecoder(1, **SIZES, causal=False)
    for wrong in ({"causal_share": 1.0}, {"depth": 1}):
        with pytest.raises(BadInput, match="at least two blocks"):
            StackedDecoder(**{**SIZES, **wrong})

"""Drawing the first tokens of a sequence, and generators of latents without a grid."""

from typing import Any

import pytest
import torch

from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.models.seams import draw, image_uniforms
from alitok.sampling.generate import generate
from alitok.sampling.guidance import PowerCosine
from alitok.sampling.images import largest_batch


@pytest.fixture
def latents(golden: Any, small_generator_block: Any) -> Generator:
    """A generator of 12 tokens in one dimension."""
    module = golden.randomize(build(small_generator_block(num_prefix=12, grid=[0, 0])))
    module.output.weight.data *= 3  # a distribution that is neither flat nor certain
    return module


def test_tokens_without_a_grid_have_positions_in_one_dimension(latents: Generator) -> None:
    assert latents.num_tokens == 12
    assert latents.rope.shape == (13, 8, 2)
    angles = torch.atan2(latents.rope[1:, 0, 1], latents.rope[1:, 0, 0])
    assert torch.allclose(torch.tan(angles), torch.tan(torch.arange(12.0)), atol=1e-4)


@pytest.mark.parametrize("guidance", [0.0, 4.0])
@pytest.mark.parametrize("keep", [1, 5, 12])
def test_a_drawn_prefix_is_the_whole_sequences_and_the_uncached_one(
    latents: Generator, guidance: float, keep: int
) -> None:
    labels, seed = torch.tensor([0, 2, 1]), 5
    uniforms, rule = image_uniforms(seed, range(3), 12), PowerCosine(guidance, 1.5)
    ids = torch.zeros(3, 0, dtype=torch.int64)
    for step in range(keep):
        longer = torch.cat([ids, torch.zeros(3, 1, dtype=torch.int64)], dim=1)  # the last id is not looked at
        with torch.no_grad():
            logits = latents(longer, labels)[:, step]
            if guidance:
                unconditional = latents(longer, torch.full_like(labels, 3))[:, step]
                logits = rule.combine([logits, unconditional], torch.tensor([step]), 12)
        ids = torch.cat([ids, draw(logits, uniforms[:, step])[:, None]], dim=1)
    drawn = generate(latents, labels, guidance, 1.5, seed=seed, keep=keep)
    assert torch.equal(drawn, ids)
    assert torch.equal(drawn, generate(latents, labels, guidance, 1.5, seed=seed)[:, :keep])


def test_teacher_forcing_on_a_prefix_is_the_whole_sequences(latents: Generator) -> None:
    ids, labels = torch.randint(24, (2, 12)), torch.tensor([0, 3])
    with torch.no_grad():
        whole = latents(ids, labels)
        for count in (1, 7, 12):
            torch.testing.assert_close(latents(ids[:, :count], labels), whole[:, :count])


def test_a_batch_leaves_room_for_the_decoders_mask_tokens(
    latents: Generator, golden: Any, small_tokenizer_block: Any
) -> None:
    block = small_tokenizer_block(2)
    parts = block["init_args"]
    parts["encoder"]["init_args"]["num_latents"] = 12
    sizes = {"image_size": 32, "patch_size": 8, "code_dim": 8, "width": 128, "depth": 2, "heads": 2}
    fitting = {}
    for mask_tokens in (16, 64):
        sizes["patch_size"] = 32 // int(mask_tokens**0.5)
        parts["decoder"] = {"class_path": "alitok.ideas.titok.TiTokDecoder", "init_args": {**sizes, "num_latents": 12}}
        fitting[mask_tokens] = largest_batch(latents, build(block), Draw(), 2**26)
    assert 1 < fitting[64] < 0.6 * fitting[16]


def test_no_images_and_too_many_tokens(latents: Generator) -> None:
    assert generate(latents, torch.empty(0, dtype=torch.int64), keep=3).shape == (0, 3)
    for keep in (0, 13):
        with pytest.raises(BadInput, match=f"draws 12 tokens; it cannot keep {keep}"):
            generate(latents, torch.tensor([0]), keep=keep)

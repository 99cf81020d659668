"""A generator with a head for each sub-code: what it sees, and where its numbers come from."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from alitok.common.build import build
from alitok.common.errors import BadInput
from alitok.ideas.shared.sub_codes import SubCodeGenerator
from alitok.models.generator import Generator

SUB_CODES, CODES = 3, 8


def block_of(small_generator_block: Any, **arguments: Any) -> dict[str, Any]:
    block: dict[str, Any] = small_generator_block(codebook_size=CODES, sub_codes=SUB_CODES, **arguments)
    return {**block, "class_path": "alitok.ideas.shared.sub_codes.SubCodeGenerator"}


@pytest.fixture(params=["sum", "concatenated"])
def small(request, golden, small_generator_block) -> SubCodeGenerator:
    return golden.randomize(build(block_of(small_generator_block, combine=request.param)))


@pytest.fixture
def ids(small) -> torch.Tensor:
    return torch.randint(CODES, (2, *small.id_shape), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_embeddings_and_heads_are_those_of_their_sub_code(small, ids):
    table = small.embeddings.weight
    assert len(table) == SUB_CODES * CODES + 3 + 2
    parts = [table[sub_code * CODES + ids[..., sub_code]] for sub_code in range(SUB_CODES)]
    expected = sum(parts) if small.combine is None else torch.cat(parts, dim=-1) @ small.combine.weight.T
    assert_close(small.embed_tokens(ids), expected)
    for label in range(4):  # class rows come after all codes and one unused row; the last is "no class"
        assert torch.equal(small.embed_labels(torch.tensor([label]))[0, 0], table[SUB_CODES * CODES + 1 + label])
    hidden = []
    small.norm.register_forward_hook(lambda module, arguments, output: hidden.append(output))
    logits = small(ids, torch.tensor([0, 3]))
    assert logits.shape == (2, small.num_tokens, SUB_CODES, CODES)
    for sub_code in range(SUB_CODES):
        rows = slice(sub_code * CODES, (sub_code + 1) * CODES)
        expected = F.linear(hidden[0], small.output.weight[rows], small.output.bias[rows])
        assert_close(logits[:, :, sub_code], expected)


@torch.no_grad()
@pytest.mark.parametrize("sub_code", range(SUB_CODES))
@pytest.mark.parametrize("token", [0, 5, 19])
def test_logits_of_a_token_see_all_sub_codes_of_the_tokens_before_and_none_of_its_own(small, ids, token, sub_code):
    other = ids.clone()
    other[:, token, sub_code] = (ids[:, token, sub_code] + 1) % CODES
    labels = torch.tensor([1, 1])
    change = (small(other, labels) - small(ids, labels)).abs().amax(-1)  # (B, N, S)
    assert not (change[:, : token + 1] > 1e-5).any()
    assert (change[:, token + 1 :] > 1e-5).all()


def test_start_of_training(small_generator_block):
    torch.manual_seed(0)
    for combine in ("sum", "concatenated"):
        module = build(block_of(small_generator_block, combine=combine, width=64)).eval()
        embedded = module.embed_tokens(torch.randint(CODES, (50, 21, SUB_CODES)))
        assert embedded.std().item() == pytest.approx(0.02 * (SUB_CODES**0.5 if combine == "sum" else 1), rel=0.2)
        assert not module(torch.zeros(1, 21, SUB_CODES, dtype=torch.int64), torch.tensor([0])).any()


def test_the_shape_of_ids_is_said():
    with torch.device("meta"):
        assert Generator(8, 3, 5, (4, 4), 32, 1, 2).id_shape == (21,)
        generator = SubCodeGenerator(8, 3, num_classes=3, num_prefix=5, grid=(4, 4), width=32, depth=1, heads=2)
    assert generator.id_shape == (21, 3)
    assert (generator.codebook_size, generator.sub_codes) == (8, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"sub_codes": 1}, "2 or more sub_codes"), ({"sub_codes": 2, "combine": "product"}, "combine must be sum or")],
)
def test_what_cannot_be(small_generator_block, arguments, words):
    with pytest.raises(BadInput, match=words):
        build(block_of(small_generator_block) | {"init_args": small_generator_block()["init_args"] | arguments})

"""Finite scalar quantization, against its formulas one number at a time."""

import math

import pytest
import torch
from torch.testing import assert_close

from alitok.common.build import build
from alitok.common.digest import tokenizer_digest
from alitok.common.errors import BadInput
from alitok.ideas.fsq import FiniteScalarQuantizer


def by_hand(z: float, count: int) -> tuple[float, int]:
    """(bounded value, digit) of one channel."""
    h = (count - 1) * (1 + 1e-3) / 2
    o = 0.5 if count % 2 == 0 else 0.0
    b = math.tanh(z + math.atanh(o / h)) * h - o
    return b, round(b) + count // 2


@pytest.mark.parametrize("levels", [[8, 6, 5], [7, 5, 5, 5, 5], [2, 3, 4]])
def test_codes_and_ids_are_the_formulas(levels: list[int]) -> None:
    module = FiniteScalarQuantizer(levels)
    latents = 2 * torch.randn(2, 9, len(levels), generator=torch.Generator().manual_seed(0))
    outputs = module(latents)
    assert module.codebook_size == math.prod(levels)
    assert outputs.ids.shape == (2, 9)
    assert outputs.losses == {}
    assert outputs.statistics is None
    for image in range(2):
        for token in range(9):
            number, weight = 0, 1
            for channel, count in enumerate(levels):
                bounded, digit = by_hand(float(latents[image, token, channel]), count)
                number, weight = number + digit * weight, weight * count
                assert 0 <= digit < count
                code = (digit - count // 2) / (count // 2)
                assert float(outputs.quantized[image, token, channel]) == pytest.approx(code, abs=1e-5)
                assert float(outputs.latents[image, token, channel]) == pytest.approx(bounded / (count // 2), abs=1e-5)
            assert int(outputs.ids[image, token]) == number


@pytest.mark.parametrize("levels", [[8, 6, 5], [7, 5, 5, 5, 5], [2, 2, 2]])
def test_every_code_is_reached_and_looks_up(levels: list[int]) -> None:
    module = FiniteScalarQuantizer(levels)
    ids = torch.arange(module.codebook_size)[None]
    codes = module.lookup(ids)
    assert codes.dtype == torch.float32
    assert len(codes[0].unique(dim=0)) == module.codebook_size
    half = torch.tensor([count // 2 for count in levels])
    reach = (torch.tensor(levels) - 1) * 1.001 / 2
    offset = torch.tensor([0.5 if count % 2 == 0 else 0.0 for count in levels])
    latents = torch.atanh((codes * half + offset) / reach) - torch.atanh(offset / reach)  # what is bounded to the code
    outputs = module(latents)
    assert torch.equal(outputs.ids, ids)
    assert_close(outputs.quantized, codes)
    ends = module(torch.tensor([[[-50.0] * len(levels), [50.0] * len(levels)]])).ids
    assert ends.tolist() == [[0, module.codebook_size - 1]]


def test_gradient_is_that_of_the_bounded_latent() -> None:
    module = FiniteScalarQuantizer([8, 5])
    latents = torch.randn(1, 6, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    outputs = module(latents)
    (found,) = torch.autograd.grad(outputs.quantized.sum(), latents)
    h, s = 7 * 1.001 / 2, math.atanh(0.5 / (7 * 1.001 / 2))
    assert_close(found[..., 0], (1 - torch.tanh(latents[..., 0] + s) ** 2) * h / 4)
    assert_close(found[..., 1], (1 - torch.tanh(latents[..., 1]) ** 2) * (4 * 1.001 / 2) / 2)


def test_digests_tell_levels_apart(small_tokenizer_block) -> None:
    digests = set()
    for levels in ([4] * 8, [2, 8] * 4):
        block = small_tokenizer_block()
        block["init_args"]["quantizer"] = {
            "class_path": "alitok.ideas.fsq.FiniteScalarQuantizer",
            "init_args": {"levels": levels},
        }
        torch.manual_seed(0)
        digests.add(tokenizer_digest(build(block)))
    assert len(digests) == 2


def test_what_does_not_fit() -> None:
    for levels in ([], [5, 1]):
        with pytest.raises(BadInput, match="2 or more levels"):
            FiniteScalarQuantizer(levels)
    with pytest.raises(BadInput, match="takes 2 channels, the latents have 3; set code_dim to 2"):
        FiniteScalarQuantizer([5, 5])(torch.zeros(1, 2, 3))

"""Binary codes: signs, the gradient of tanh, ids as bits, and bits that are not all alike after a while of training."""

import math
from pathlib import Path

import pytest
import torch
from tiny import tiny, train

from alitok.common.errors import BadInput
from alitok.ideas.binary import BinaryQuantizer
from alitok.ideas.fsq import FiniteScalarQuantizer

LATENTS = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(0))


def test_codes_ids_and_gradients_are_the_formulas() -> None:
    module, latents = BinaryQuantizer(5), LATENTS.clone().requires_grad_()
    found = module(latents)
    assert module.codebook_size == 32
    assert found.losses == {}
    assert found.statistics is None
    for image in range(2):
        for token in range(9):
            signs = [math.copysign(1, value) for value in LATENTS[image, token].tolist()]
            assert found.quantized[image, token].tolist() == pytest.approx(signs)
            assert int(found.ids[image, token]) == sum(2**place for place, sign in enumerate(signs) if sign > 0)
    torch.testing.assert_close(found.latents, LATENTS.tanh())
    assert torch.equal(module.ids(LATENTS), found.ids)
    torch.testing.assert_close(module.lookup(found.ids), found.quantized)
    weights = torch.randn(LATENTS.shape, generator=torch.Generator().manual_seed(1))
    (weights * found.quantized).sum().backward()
    torch.testing.assert_close(latents.grad, weights * (1 - LATENTS.tanh() ** 2))


def test_every_id_has_a_code_of_its_own() -> None:
    module, ids = BinaryQuantizer(6), torch.arange(64)[None]
    codes = module.lookup(ids)
    assert len(codes[0].unique(dim=0)) == 64
    assert torch.equal(module.ids(codes), ids)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_latent_that_is_not_finite_reaches_the_loss(value: float) -> None:
    latents = LATENTS.clone()
    latents[0, 0, 0] = value
    assert BinaryQuantizer(5)(latents).quantized.isnan().sum() == 1


def test_the_threshold_lies_at_zero_and_that_of_fsq_does_not() -> None:
    assert 0.4 < BinaryQuantizer(5)(LATENTS).quantized.gt(0).float().mean() < 0.6
    assert FiniteScalarQuantizer([2] * 5)(LATENTS).ids.eq(31).all()  # why BAR's own form is not taken


def test_every_bit_takes_both_values_after_training(tmp_path: Path) -> None:
    block = "{class_path: alitok.ideas.binary.BinaryQuantizer, init_args: {code_dim: 8}}"
    options = ["--model.tokenizer.quantizer", block, "--define.codebook_size", "256", "--define.code_dim", "8"]
    options += ["--model.phases", "{continuous: null, main: {steps: 200, lr: 3.e-3}}", "--model.warmup_steps", "0"]
    module = train(tiny("tokenizer-stage1", tmp_path, *options, "--data.val_count", "64"), 200)
    batch = next(iter(module.trainer.datamodule.val_dataloader()))
    share = (module.tokenizer.encode_latents(batch["image"] / 255) > 0).float().mean((0, 1))
    assert 0 < share.min() < share.max() < 1, share
    entropy = -(share * share.log2() + (1 - share) * (1 - share).log2())  # of a bit; single bits range from 0.1 to 1
    assert entropy.mean() > 0.5, entropy


@pytest.mark.parametrize("bits", [0, -1, 25])
def test_other_numbers_of_bits_are_refused(bits: int) -> None:
    with pytest.raises(BadInput, match=f"have 1 to 24 channels, a bit for each, not {bits}: set code_dim"):
        BinaryQuantizer(bits)


def test_latents_of_another_width_are_refused() -> None:
    with pytest.raises(BadInput, match=r"of 4 bits take 4 channels, the latents have 5; set code_dim to 5\."):
        BinaryQuantizer(4)(LATENTS)

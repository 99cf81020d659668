"""Lookup-free codes: bits and ids by hand, and the entropy loss against its formula over all codes."""

import copy
from functools import reduce
from pathlib import Path

import pytest
import torch
from einops import rearrange
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.testing import assert_close

from alitok.common.build import build
from alitok.common.digest import tokenizer_digest
from alitok.common.errors import BadInput
from alitok.ideas import lookup_free as room
from alitok.ideas.lookup_free import LookupFreeQuantizer, ShareStatistics
from alitok.studies.processes import two_processes
from alitok.training.records import merge_over_processes


def latents_of(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def normed(latents: Tensor) -> Tensor:
    return latents / latents.square().mean(-1, keepdim=True).sqrt()


def probabilities(latents: Tensor, groups: int, tau: float) -> Tensor:
    """(S, T, V) softmax of 2 tau z.c over every code, the codes written out one by one."""
    z = rearrange(normed(latents), "b n (s d) -> s (b n) d", s=groups)
    bits = z.shape[-1]
    codes = torch.tensor([[1.0 if code >> bit & 1 else -1.0 for bit in range(bits)] for code in range(2**bits)])
    return (2 * tau * torch.einsum("std,vd->stv", z, codes)).softmax(-1)


def entropy_loss(latents: Tensor, groups: int, tau: float, gamma: float) -> Tensor:
    """E H(p) - gamma H(E p), summed over groups (MAGVIT-v2, equation 5)."""
    p = probabilities(latents, groups, tau)
    mean = p.mean(1)
    return (torch.special.entr(p).sum(-1).mean(1) - gamma * torch.special.entr(mean).sum(-1)).sum()


def settled(module: LookupFreeQuantizer, latents: Tensor) -> LookupFreeQuantizer:
    """The quantizer after a global batch of these latents."""
    module.update(module.train()(latents).statistics)
    return module


@pytest.mark.parametrize("sub_codes", [1, 3])
def test_ids_are_the_bits_of_the_signs_least_significant_first(sub_codes: int) -> None:
    module = LookupFreeQuantizer(16, sub_codes).eval()
    latents = latents_of(2, 5, 4 * sub_codes)
    outputs = module(latents)
    ids = outputs.ids if sub_codes > 1 else outputs.ids[..., None]
    assert ids.shape == (2, 5, sub_codes)
    assert outputs.ids.ndim == (3 if sub_codes > 1 else 2)
    for image, token, group in ((0, 0, 0), (1, 3, sub_codes - 1), (1, 4, 0)):
        channels = latents[image, token, 4 * group : 4 * group + 4]
        assert ids[image, token, group] == sum(2**bit for bit in range(4) if channels[bit] > 0)
    assert_close(outputs.quantized, latents.sign())
    assert torch.equal(module.lookup(outputs.ids), latents.sign())
    assert outputs.statistics is None


def test_every_id_looks_up_and_comes_back() -> None:
    module = LookupFreeQuantizer(32, 2).eval()
    ids = torch.cartesian_prod(torch.arange(32), torch.arange(32))[None]
    assert torch.equal(module(module.lookup(ids) * 0.3).ids, ids)
    single = LookupFreeQuantizer(1024).eval()
    assert torch.equal(single(single.lookup(torch.arange(1024)[None])).ids, torch.arange(1024)[None])


def test_gradient_passes_straight_to_the_normed_latent() -> None:
    module = LookupFreeQuantizer(16, 2)
    latents = latents_of(2, 3, 8).requires_grad_()
    outputs = module(latents)
    assert_close(outputs.latents, normed(latents.detach()))
    weights = latents_of(2, 3, 8, seed=1)
    (found,) = torch.autograd.grad((outputs.quantized * weights).sum(), latents)
    (expected,) = torch.autograd.grad((normed(latents) * weights).sum(), latents)
    assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert_close(module(7 * latents).quantized, outputs.quantized)


@pytest.mark.parametrize(("sub_codes", "tau", "gamma"), [(1, 0.5, 1.0), (3, 0.4, 0.7), (6, 1.5, 2.0)])
def test_entropy_loss_and_gradient_are_the_formulas(sub_codes: int, tau: float, gamma: float) -> None:
    latents = latents_of(4, 7, 12)
    module = LookupFreeQuantizer(2 ** (12 // sub_codes), sub_codes, tau, entropy=0.1, diversity=gamma)
    settled(module, latents)
    assert_close(module.usage, probabilities(latents, sub_codes, tau).mean(1), rtol=1e-4, atol=1e-7)
    module.usage.clamp_(min=1e-3 / module.codebook_size)
    ours, theirs = latents.clone().requires_grad_(), latents.clone().requires_grad_()
    loss, expected = module(ours).losses["entropy"], 0.1 * entropy_loss(theirs, sub_codes, tau, gamma)
    assert_close(loss, expected, rtol=1e-3, atol=1e-5)
    loss.backward()
    expected.backward()
    assert_close(ours.grad, theirs.grad, rtol=2e-3, atol=1e-6)


def test_published_sharpness_stays_finite() -> None:
    module = LookupFreeQuantizer(16, 1, tau=100.0)
    latents = torch.cat([latents_of(1, 6, 4), torch.tensor([[[1e-4, -1e-4, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]]])], dim=1)
    latents.requires_grad_()
    loss = module(latents).losses["entropy"]
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(latents.grad).all()


def test_commitment_pulls_to_the_code() -> None:
    module = LookupFreeQuantizer(16, commitment=0.5)
    latents = latents_of(2, 3, 4)
    expected = 0.5 * (normed(latents) - latents.sign()).square().mean()
    assert_close(module(latents).losses["commitment"], expected)


def test_the_loss_spreads_latents_over_all_codes() -> None:
    """Latents that begin in a few codes are spread over all 16 by the entropy loss alone, and grow more certain."""

    def spread() -> torch.Tensor:
        return module(latents).ids.flatten().bincount(minlength=16).float()

    module = LookupFreeQuantizer(16, tau=1.0, commitment=0.0)
    latents = (latents_of(1, 256, 4) * 0.4 + torch.tensor([1.0, 1.0, 1.0, 0.0])).requires_grad_()
    before, doubt = spread(), torch.special.entr(probabilities(latents.detach(), 1, 1.0)).sum(-1).mean()
    optimizer = torch.optim.Adam([latents], lr=0.05)
    for _ in range(100):
        outputs = module(latents)
        optimizer.zero_grad()
        outputs.losses["entropy"].backward()
        optimizer.step()
        module.update(outputs.statistics)
    assert (before > 0).sum() < 12
    assert (spread() > 0).all()
    assert spread().std() < 0.5 * before.std()
    assert torch.special.entr(probabilities(latents.detach(), 1, 1.0)).sum(-1).mean() < 0.5 * doubt
    assert module.usage.sum().item() == pytest.approx(1, abs=1e-4)


def test_forward_changes_no_state() -> None:
    module = LookupFreeQuantizer(16, 2)
    before = copy.deepcopy(module.state_dict())
    module(latents_of(2, 3, 8))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


@pytest.mark.parametrize("sizes", [(1,) * 12, (4, 4, 4), (1, 9, 2)])
def test_micro_batches_in_any_grouping_equal_one_batch(sizes: tuple[int, ...]) -> None:
    module, batch = settled(LookupFreeQuantizer(16, 2, tau=0.5), latents_of(12, 5, 8, seed=1)), latents_of(12, 5, 8)
    whole = batch.clone().requires_grad_()
    outputs = module(whole)
    outputs.losses["entropy"].backward()
    parts, statistics = batch.clone().requires_grad_(), []
    for part in parts.split(sizes):
        found = module(part)
        (found.losses["entropy"] * len(part) / 12).backward()
        statistics.append(found.statistics)
    assert_close(parts.grad, whole.grad)
    one, several = copy.deepcopy(module), copy.deepcopy(module)
    one.update(outputs.statistics)
    several.update(reduce(ShareStatistics.merge, statistics))
    assert_close(one.usage, several.usage)
    assert not torch.equal(one.usage, module.usage)


def test_blocks_equal_one_block(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = settled(LookupFreeQuantizer(16, 2, tau=0.5), latents_of(3, 10, 8, seed=1)), latents_of(3, 10, 8)
    found = []
    for elements in (room.BLOCK_ELEMENTS, 2 * 16 * 7):  # the second: seven tokens at a time
        monkeypatch.setattr(room, "BLOCK_ELEMENTS", elements)
        latents = batch.clone().requires_grad_()
        outputs = module(latents)
        outputs.losses["entropy"].backward()
        found.append((outputs.losses["entropy"].detach(), latents.grad, outputs.statistics.total))
    for whole, blocks in zip(*found, strict=True):
        assert_close(whole, blocks)


def of_one_process(rank: int, batch: Tensor, folder: Path) -> None:
    torch.distributed.init_process_group("gloo")
    module = LookupFreeQuantizer(16, 2, tau=0.5)
    gradients = []
    for step in range(2):  # the second step's loss knows what all processes took in the first
        latents = batch[step].chunk(2)[rank].clone().requires_grad_()
        outputs = module(latents)
        (outputs.losses["entropy"] / 2).backward()
        module.update(merge_over_processes([outputs.statistics]))
        gradients.append(latents.grad)
    torch.save({"usage": module.usage, "gradient": torch.stack(gradients)}, folder / f"{rank}.pt")


def test_two_processes_equal_one_batch(tmp_path: Path) -> None:
    batch = latents_of(2, 6, 5, 8)
    two_processes(of_one_process, batch, tmp_path)
    module, gradients = LookupFreeQuantizer(16, 2, tau=0.5), []
    for step in range(2):
        latents = batch[step].clone().requires_grad_()
        outputs = module(latents)
        outputs.losses["entropy"].backward()
        module.update(outputs.statistics)
        gradients.append(latents.grad)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(found[0]["usage"], found[1]["usage"])
    assert_close(found[0]["usage"], module.usage)
    assert_close(torch.cat([part["gradient"] for part in found], dim=1), torch.stack(gradients))


def test_float32_under_autocast() -> None:
    module, latents = LookupFreeQuantizer(16, 2), latents_of(2, 50, 8)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(latents.bfloat16())
    assert outputs.quantized.dtype == outputs.losses["entropy"].dtype == torch.float32
    plain = module(latents.bfloat16())
    assert torch.equal(outputs.ids, plain.ids)
    assert torch.equal(outputs.losses["entropy"], plain.losses["entropy"])


class TF32(TorchFunctionMode):
    """Rounds the factors of matrix products to ten bits, toward zero."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.Tensor.matmul:
            args = tuple((factor.contiguous().view(torch.int32) & ~0x1FFF).view(torch.float32) for factor in args)
        return func(*args, **(kwargs or {}))


def test_a_sure_latent_has_no_gradient_of_the_usage_in_tf32() -> None:
    module = LookupFreeQuantizer(4096, 1, tau=100.0)
    signs = latents_of(1, 5, 12).sign()
    with TF32():
        _, gradient, _ = module._shares(signs, module.usage.clamp_min(1e-3 / 4096).log())
    assert not gradient.any()


def test_digests_tell_how_bits_make_ids_and_forget_usage(small_tokenizer_block) -> None:
    digests = set()
    for codes, sub_codes, times in ((256, 1, 0), (16, 2, 0), (16, 2, 1)):
        block = small_tokenizer_block()
        block["init_args"]["quantizer"] = {
            "class_path": "alitok.ideas.lookup_free.LookupFreeQuantizer",
            "init_args": {"codebook_size": codes, "sub_codes": sub_codes},
        }
        torch.manual_seed(0)
        tokenizer = build(block).train()
        for _ in range(times):
            tokenizer.quantizer.update(tokenizer(torch.rand(2, 3, 32, 32))["statistics"])
        digests.add(tokenizer_digest(tokenizer))
    assert len(digests) == 2


def test_what_does_not_fit() -> None:
    for codes, sub_codes in ((12, 1), (1, 1), (16, 0)):
        with pytest.raises(BadInput, match="power of two"):
            LookupFreeQuantizer(codes, sub_codes)
    with pytest.raises(BadInput, match="take 8 channels, the latents have 6; set code_dim to 8"):
        LookupFreeQuantizer(16, 2)(torch.zeros(1, 2, 6))

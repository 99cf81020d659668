import copy
from dataclasses import fields
from functools import reduce

import pytest
import torch
import torch.multiprocessing as mp
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode

from alitok.common.distributed import all_stack
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.fsq import FiniteScalarQuantizer
from alitok.ideas.lookup_free import LookupFreeQuantizer
from alitok.ideas.nested_dropout import NestedDropout
from alitok.ideas.perturbation import LatentPerturbation, nearest_codes
from alitok.ideas.tail_drop import TailDrop
from alitok.models import quantizer as room
from alitok.models.quantizer import MOST_CODES, ClusteredQuantizer, ClusterStatistics


def make(codes: int = 16, dim: int = 4, **arguments) -> ClusteredQuantizer:
    torch.manual_seed(1)
    module = ClusteredQuantizer(codes, dim, **arguments).train()
    torch.nn.init.normal_(module.codebook.weight)
    module.usage.uniform_(0, 2e-5)
    return module


def features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def assert_same(ours: ClusterStatistics, theirs: ClusterStatistics) -> None:
    for field in fields(ours):
        assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), field.name


def test_four_batches_of_the_release(golden):
    arrays = golden.arrays("quantizer_release")
    module = ClusteredQuantizer(24, 8).train()
    module.codebook.weight.data.copy_(arrays["codebook_0"])
    module.usage.copy_(arrays["p_0"])
    for batch in range(4):
        outputs = module(arrays[f"z_{batch}"])
        module.update(outputs.statistics)
        assert torch.equal(outputs.ids, arrays[f"ids_{batch}"])
        assert_close(sum(outputs.losses.values()).double(), arrays[f"loss_{batch}"], rtol=1e-5, atol=0)
        assert_close(outputs.losses["commitment"].double(), arrays[f"commitment_{batch}"], rtol=1e-5, atol=0)
        assert_close(module.codebook.weight.detach(), arrays[f"codebook_{batch + 1}"], rtol=0, atol=1e-5)
        assert_close(module.usage, arrays[f"p_{batch + 1}"], rtol=1e-5, atol=1e-8)


def test_nearest_code_and_straight_through_gradient():
    module = make()
    latents = features(3, 5, 4).requires_grad_()
    outputs = module(latents)
    codes = module.codebook.weight.detach()
    assert torch.equal(outputs.ids, torch.cdist(latents.detach(), codes[None]).argmin(-1))
    assert_close(outputs.quantized, codes[outputs.ids])
    assert torch.equal(module.lookup(outputs.ids), codes[outputs.ids])
    outputs.quantized.sum().backward()
    assert torch.equal(latents.grad, torch.ones_like(latents))


def test_losses_are_means_with_gradients_on_one_side_each():
    module = make(commitment=0.5)
    latents = features(2, 6, 4).requires_grad_()
    losses = module(latents).losses
    assert_close(losses["commitment"], 0.5 * losses["codebook"])
    losses["codebook"].backward(retain_graph=True)
    assert latents.grad is None
    assert module.codebook.weight.grad.abs().sum() > 0
    module.zero_grad()
    losses["commitment"].backward()
    assert latents.grad.abs().sum() > 0
    assert module.codebook.weight.grad is None


def test_forward_changes_no_state():
    module = make()
    before = copy.deepcopy(module.state_dict())
    module(features(4, 8, 4))
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_statistics_only_when_something_is_to_be_updated():
    assert make()(features(1, 3, 4)).statistics is not None
    assert make().eval()(features(1, 3, 4)).statistics is None
    assert make(clustering=False)(features(1, 3, 4)).statistics is None


@pytest.mark.parametrize("sizes", [(1,) * 12, (4, 4, 4), (1, 9, 2), (11, 1)])
def test_micro_batches_in_any_grouping_equal_one_batch(sizes):
    module, batch = make(), features(12, 7, 4)
    parts = [module(part).statistics for part in batch.split(sizes)]
    whole = module(batch).statistics
    merged = reduce(ClusterStatistics.merge, parts)
    assert torch.equal(merged.count, whole.count)
    assert torch.equal(merged.feature, whole.feature)
    assert_close(merged.distance, whole.distance)
    nested = parts[0] if len(parts) == 1 else parts[0].merge(reduce(ClusterStatistics.merge, parts[1:]))
    assert_same(nested, merged)
    one, several = copy.deepcopy(module), copy.deepcopy(module)
    one.update(whole)
    several.update(merged)
    assert torch.equal(one.codebook.weight, several.codebook.weight)
    assert torch.equal(one.usage, several.usage)


def test_blocks_equal_one_block(monkeypatch):
    module, batch = make(), features(6, 10, 4)
    whole = module(batch)
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", 16 * 7)  # seven tokens at a time
    blocks = module(batch)
    assert torch.equal(blocks.ids, whole.ids)
    assert torch.equal(blocks.statistics.count, whole.statistics.count)
    assert torch.equal(blocks.statistics.feature, whole.statistics.feature)


def test_first_feature_wins_where_distances_are_equal():
    feature = torch.arange(2.0).view(2, 1, 1)
    parts = [ClusterStatistics(torch.ones(1), torch.ones(1), part) for part in feature]
    assert parts[0].merge(parts[1]).feature.item() == 0
    assert parts[1].merge(parts[0]).feature.item() == 1


def _of_one_process(rank: int, address: str, batch: torch.Tensor, folder) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=rank, world_size=2)
    module = make()
    own = module(batch.chunk(2)[rank]).statistics
    stacked = [all_stack(getattr(own, field.name)) for field in fields(own)]
    merged = reduce(ClusterStatistics.merge, (ClusterStatistics(*parts) for parts in zip(*stacked, strict=True)))
    module.update(merged)
    torch.save(module.state_dict(), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one_batch(tmp_path):
    batch = features(8, 7, 4)
    mp.spawn(_of_one_process, args=(tmp_path / "address", batch, tmp_path), nprocs=2)
    module = make()
    module.update(module(batch).statistics)
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, tensor in module.state_dict().items():
            assert torch.equal(state[name], tensor), (rank, name)


def test_update_moves_unused_codes_to_features_and_leaves_used_ones():
    module = make(codes=2, dim=1)
    module.codebook.weight.data = torch.tensor([[0.0], [100.0]])
    module.usage.zero_()
    batch = torch.tensor([0.1, -0.2, 0.3]).view(1, 3, 1)
    module.update(module(batch).statistics)
    # p of the used code is 0.01, so a = exp(-20); an unused one has a = exp(-1e-3)
    assert module.codebook.weight[0].item() == pytest.approx(0, abs=1e-7)
    rate = torch.exp(torch.tensor(-1e-3)).item()
    assert module.codebook.weight[1].item() == pytest.approx(100 * (1 - rate) + rate * 0.3, rel=1e-5)
    assert module.usage.tolist() == pytest.approx([0.01, 0.0])


def test_distances_are_in_float32_under_autocast():
    module = make(codes=64)
    latents = features(2, 50, 4)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = module(latents)
    assert outputs.quantized.dtype == torch.float32
    assert torch.equal(outputs.ids, module(latents).ids)


def anchors(
    module: ClusteredQuantizer, batch: torch.Tensor, sizes: tuple[int, ...], step: int = 3
) -> ClusterStatistics:
    """Merged statistics of the batch's parts in one step."""
    parts, first = [], 0
    for part in batch.split(sizes):
        place = Step(5, step, 9, len(batch), range(first, first + len(part)))
        parts.append(module(part, place).statistics)
        first += len(part)
    return reduce(ClusterStatistics.merge, parts)


@pytest.mark.parametrize("sizes", [(1,) * 12, (4, 4, 4), (1, 9, 2), (11, 1)])
@pytest.mark.parametrize("tokens_at_a_time", [7, 1000])
def test_random_anchors_in_any_grouping_are_those_of_the_global_batch(sizes, tokens_at_a_time, monkeypatch):
    monkeypatch.setattr(room, "BLOCK_ELEMENTS", 16 * tokens_at_a_time)
    module, batch = make(anchor="random"), features(12, 7, 4)
    whole = anchors(module, batch, (12,))
    torch.manual_seed(99)  # torch's own generator decides nothing
    assert_same(anchors(module, batch, sizes), whole)
    assert (whole.distance == 0).all()
    place = (whole.feature[:, None] == batch.flatten(0, 1)).all(-1)
    assert (place.sum(1) == 1).all()
    assert len(place.int().argmax(1).unique()) > 8
    assert not torch.equal(anchors(module, batch, (12,), step=4).feature, whole.feature)


def test_random_anchors_take_each_place_of_the_global_batch_alike():
    module, batch = make(codes=2000, anchor="random"), torch.arange(10.0).view(5, 2, 1).expand(5, 2, 4)
    drawn = anchors(module, batch, (2, 3)).feature[:, 0].long()
    assert drawn.bincount(minlength=10).float() == pytest.approx(200, abs=60)


QUANTIZERS = {
    "vq": lambda: make(codes=16, dim=4),
    "fsq": lambda: FiniteScalarQuantizer([5, 4, 3, 2]),
    "fsq of many levels": lambda: FiniteScalarQuantizer([2003, 1001, 2, 2]),
    "lfq": lambda: LookupFreeQuantizer(16),
    "grouped": lambda: LookupFreeQuantizer(4, sub_codes=2),
    "vq, random anchors": lambda: make(codes=16, dim=4, anchor="random"),
}


class Copies(TorchDispatchMode):
    """Notes what is copied from the host to a GPU while the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.ops.aten._to_copy.default and args[0].device.type != out.device.type:
            self.blocking += [] if kwargs.get("non_blocking") else [func]
        return out


BOTTLENECKS = {
    "tail drop": TailDrop,
    "nested dropout": lambda: NestedDropout(4),
    "perturbation": lambda: LatentPerturbation(beta=1.0, delta=3),
}


@pytest.mark.parametrize("name", [*QUANTIZERS, *BOTTLENECKS])
def test_the_host_does_not_wait_for_the_device(name, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)  # fake tensors know no pinned memory
    fake = FakeTensorMode(allow_non_fake_inputs=True)  # where asking for a value is an error, bincount's included
    with fake, torch.device("cuda"):
        quantizer, latents = QUANTIZERS.get(name, QUANTIZERS["vq"])().train(), torch.zeros(2, 6, 4)
        bottleneck = BOTTLENECKS.get(name, TailDrop)()
    with fake, Copies() as copies:
        outputs = quantizer(latents)
        if outputs.statistics is not None:
            quantizer.update(outputs.statistics.merge(outputs.statistics))
        bottleneck(outputs, quantizer, Step(0, 1, 2, 2, range(2)))
    assert copies.blocking == []


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_latents_that_are_not_finite_give_ids_of_codes_and_a_loss_that_is_not_finite(name, bad):
    module = QUANTIZERS[name]()
    latents = features(2, 6, 4)
    latents[1, 2, 3] = bad
    outputs = module(latents)
    assert 0 <= int(outputs.ids.min()) <= int(outputs.ids.max()) < module.codebook_size
    assert module.lookup(outputs.ids).isfinite().all()
    loss = outputs.quantized.square().mean() + sum(outputs.losses.values())
    assert not loss.isfinite()
    if module.sub_codes == 1:
        near = nearest_codes(outputs.latents, module, 3)
        assert 0 <= int(near.min()) <= int(near.max()) < module.codebook_size


@pytest.mark.parametrize("name", QUANTIZERS)
def test_large_latents_give_ids_of_codes_that_look_up_to_what_was_quantized(name):
    module = QUANTIZERS[name]()
    latents = 1e4 * features(8, 50, 4)
    outputs = module(latents)
    assert 0 <= int(outputs.ids.min()) <= int(outputs.ids.max()) < module.codebook_size
    assert_close(outputs.quantized, module.lookup(outputs.ids), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (
            lambda: FiniteScalarQuantizer([4] * 16),
            r"FSQ with levels \[4, .* has 4,294,967,296 codes, .* 1 to 16,777,216",
        ),
        (lambda: FiniteScalarQuantizer([4] * 32), "take fewer channels or levels"),
        (lambda: FiniteScalarQuantizer([MOST_CODES + 1]), "has 16,777,217 codes"),
        (lambda: LookupFreeQuantizer(1 << 40), "has 1,099,511,627,776 codes"),
        (lambda: LookupFreeQuantizer(1 << 23, sub_codes=4), "take smaller and more sub-codes"),
        (lambda: ClusteredQuantizer(1 << 40, 4), "change codebook_size"),
        (lambda: ClusteredQuantizer(0, 4), "has 0 codes"),
    ],
)
def test_a_codebook_that_is_too_large_is_refused_when_built(build, words):
    with pytest.raises(BadInput, match=words):
        build()


@pytest.mark.parametrize("levels", [[8, 8, 8, 5, 5, 5], [16] * 4, [8] * 6, [4] * 12])
def test_codebooks_of_the_literature_are_taken(levels):
    module = FiniteScalarQuantizer(levels)
    ids = torch.randint(module.codebook_size, (1, 100), generator=torch.Generator().manual_seed(0))
    half = torch.tensor([count // 2 for count in levels])
    digits = (module.lookup(ids) * half + half).round().long()
    places = torch.tensor(levels).cumprod(0) // torch.tensor(levels)
    assert torch.equal((digits * places).sum(-1), ids)

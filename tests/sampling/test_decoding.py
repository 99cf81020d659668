"""One step after another equals plain formulas: SoftCFG, the masked cache of a captured step, weights, precisions."""

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from alitok.artifacts.release import generator_from_release
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models import seams
from alitok.models.generator import Generator
from alitok.models.seams import draw, image_uniforms
from alitok.models.transformer import rotate
from alitok.sampling import guidance, weights
from alitok.sampling import loop as module
from alitok.sampling.cache import KeyValueCache
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import Constant, Guidance, Linear, PowerCosine, SoftCFG
from alitok.sampling.weights import Projection, for_inference

RULES = [Guidance(), PowerCosine(5.0, 1.2), Constant(2.0), Linear(3.0), SoftCFG(4.0, 0.8)]


@pytest.fixture
def small(golden, small_generator_block) -> Generator:
    generator = golden.randomize(build(small_generator_block()))
    generator.output.weight.data *= 3
    return generator


def scaled_values_logits(generator: Generator, ids: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """(B, T, V) with attention (B, T, T) times `weights` before the values, all positions at once."""
    x = torch.cat([generator.embed_labels(labels), generator.embed_tokens(ids[:, :-1])], dim=1)
    for block in generator.blocks:
        layer = block.attention
        q, k, v = rearrange(layer.qkv(block.norm1(x)), "b t (n h d) -> n b h t d", n=3, h=layer.heads)
        rope = generator.rope[: x.shape[1]]
        q, k = rotate(layer.q_norm(q), rope), rotate(layer.k_norm(k), rope)
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * q.shape[-1] ** -0.5
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        attention = scores.masked_fill(future, -torch.inf).softmax(-1) * weights[:, None]
        out = torch.einsum("bhqk,bhkd->bhqd", attention, v)
        x = x + layer.proj(rearrange(out, "b h t d -> b t (h d)"))
        x = x + block.mlp(block.norm2(x))
    return generator.output(generator.norm(x))


def test_softcfg_equals_the_direct_uncached_form(small):
    labels, seed = torch.tensor([0, 2, 1, 0]), 3
    rule, cosine = SoftCFG(4.0, 0.8), PowerCosine(4.0, 0.8)
    steps = small.num_tokens
    uniforms = image_uniforms(seed, range(4), steps)
    ids = torch.zeros(4, steps, dtype=torch.int64)
    confidence = torch.zeros(4, steps)
    weights = torch.ones(4, steps, steps)  # step, position; position 0 is the class token
    with torch.no_grad():
        for step in range(steps):
            if step:
                known = confidence[:, :step]
                weights[:, step, 1 : step + 1] = 1 - known / known.sum(1, keepdim=True)
            conditional = small(ids, labels)[:, step]
            unconditional = scaled_values_logits(small, ids, torch.full_like(labels, 3), weights)[:, step]
            confidence[:, step] = conditional.softmax(-1).amax(-1)
            ids[:, step] = draw(
                cosine.combine([conditional, unconditional], torch.tensor([step]), steps), uniforms[:, step]
            )
    assert torch.equal(generate(small, labels, rule, seed=seed), ids)
    assert torch.equal(generate(small, labels, 4.0, 0.8, seed=seed, schedule="softcfg"), ids)
    assert not torch.equal(generate(small, labels, cosine, seed=seed), ids)


@pytest.mark.parametrize("rule", RULES)
def test_layouts_of_the_cache_change_nothing(small, rule, monkeypatch):
    drawn = {}
    for layouts in (1, 8):  # 21 tokens: one layout, or three
        monkeypatch.setitem(module.LAYOUTS, "cpu", layouts)
        samplers = [Sampler(small, Draw(seed=seed), rule) for seed in (0, 1)]
        drawn[layouts] = [sampler.sample(torch.tensor([0, 1, 2])) for sampler in samplers]
    assert torch.equal(torch.stack(drawn[1]), torch.stack(drawn[8]))
    assert not torch.equal(*drawn[1])


def test_buffers_are_used_again_and_ids_are_not_theirs(small):
    sampler = Sampler(small, Draw(3.0, seed=1))
    first = sampler.sample(torch.tensor([0, 1]))
    kept, loop = first.clone(), sampler.loop
    sampler.sample(torch.tensor([2, 1]), [5, 6])
    assert sampler.loop is loop
    assert torch.equal(first, kept)
    assert torch.equal(sampler.sample(torch.tensor([0, 1])), kept)
    sampler.sample(torch.tensor([2]))
    assert sampler.loop is not loop


def test_schedules_by_name_and_from_the_card(small):
    labels = torch.tensor([0, 1, 2])
    for name, rule in (("constant", Constant(3.0)), ("linear", Linear(3.0))):
        ids = generate(small, labels, rule)
        assert torch.equal(generate(small, labels, 3.0, schedule=name), ids)
        vars(small)["card"] = {"guidance": 3.0, "power": None, "schedule": name}
        assert torch.equal(generate(small, labels), ids)
        del vars(small)["card"]


@pytest.mark.parametrize("rooms", [(9,), (2, 3, 9), (1, 2, 3, 4, 5, 6, 7, 8, 9)])
def test_cache_attends_as_the_fused_kernel(rooms):
    torch.manual_seed(0)
    cache = KeyValueCache(2, 3, 4, 9, 8, torch.device("cpu"), torch.float32, weighted=True)
    weights = torch.rand(3, 1, 9)
    for _ in range(2):  # the second sequence in the same memory
        keys, values = torch.randn(2, 2, 3, 4, 9, 8)
        for position in range(9):
            room = next(room for room in rooms if room > position)
            if room != cache.length:
                cache.resize(room)
            cache.start_step(torch.tensor([position]))
            for layer in range(2):
                k, v = keys[layer, :, :, : position + 1], values[layer, :, :, : position + 1]
                query = torch.randn(3, 4, 1, 8)
                last = k[:, :, -1:], v[:, :, -1:]
                cache.value_weights.fill_(1)
                torch.testing.assert_close(
                    cache.attend(layer, query, *last), F.scaled_dot_product_attention(query, k, v)
                )
                cache.value_weights.copy_(weights)
                attention = (query @ k.mT * 8**-0.5).softmax(-1) * weights[:, None, :, : position + 1]
                torch.testing.assert_close(cache.attend(layer, query, *last), attention @ v)
        assert torch.equal(cache.values.view(2, 3, 4, 9, 8), values)  # as they were


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 6, 70])
def test_projection_is_the_linear_layer(dtype, bias, rows):
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 80, bias=bias)
    x = torch.randn(rows, 1, 48)
    found = Projection(linear, dtype)(x)
    assert found.dtype == dtype
    assert found.shape == (rows, 1, 80)
    expected = linear.to(dtype)(x.to(dtype)).detach()
    torch.testing.assert_close(found, expected)


def test_the_generator_itself_stays_as_it_is(small):
    before = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    ready = for_inference(small, "bfloat16")
    assert ready is not small
    assert ready.output.dtype == torch.float32  # guidance multiplies the rounding of logits
    assert ready.blocks[0].attention.qkv.dtype == torch.bfloat16
    generate(small, torch.tensor([0]), 2.0, precision="bfloat16")
    assert {type(layer) for layer in small.modules()}.isdisjoint({Projection})
    assert all(torch.equal(tensor, before[name]) for name, tensor in small.state_dict().items())
    with pytest.raises(BadInput, match="'float16' is unknown"):
        for_inference(small, "float16")


def test_bfloat16_agrees_with_float32(golden):
    """Teacher-forced on the release's tokens, step by step: nearly all greedy tokens are the same."""
    tiny = Generator(64, 10, 17, (16, 16), 128, 3, 4).eval()
    tiny.load_state_dict(generator_from_release(golden.fill(golden.json("official_ar_tiny_keys"))))
    expected = golden.arrays("ar_tiny_release")
    ids, labels = expected["ids"], expected["classes"]
    ready = for_inference(tiny, "bfloat16")
    cache = KeyValueCache(3, len(labels), 4, tiny.num_tokens, 32, torch.device("cpu"), torch.bfloat16)
    cache.resize(60)
    same = []
    with torch.inference_mode():
        logits = tiny(ids, labels)
        x = ready.embed_labels(labels)
        for step in range(60):
            cache.start_step(torch.tensor([step]))
            found = ready.output(ready.step(x, torch.tensor([step]), cache)[:, 0])
            torch.testing.assert_close(found, logits[:, step], rtol=0, atol=0.1 * float(logits.std()))
            same.append(found.argmax(-1) == logits[:, step].argmax(-1))
            x = ready.embed_tokens(ids[:, step, None])
    assert torch.stack(same).float().mean() > 0.95


@pytest.mark.parametrize("layouts", [1, 8])
@pytest.mark.parametrize("half", [0, 1])  # keys, values
@pytest.mark.parametrize("row", [0, slice(None)])
def test_what_is_not_a_number_ends_with_its_sequence(small, layouts, half, row, monkeypatch):
    monkeypatch.setitem(module.LAYOUTS, "cpu", layouts)
    sampler, labels = Sampler(small, Draw(3.0, seed=3)), torch.tensor([0, 1, 2])
    expected = sampler.sample(labels)
    with torch.inference_mode():
        sampler.loop.cache.memory[half].view(6, -1)[row] = torch.nan
    assert torch.equal(sampler.sample(labels), expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("blocked", [True, False])  # False: as on a GPU
def test_the_copy_shares_nothing_that_is_used(small, precision, blocked, monkeypatch):
    if not blocked:
        monkeypatch.setattr(weights, "has_blocked_layout", lambda dtype: False)
    ready = for_inference(small, precision, leave=("norm",))
    dtype = weights.PRECISION[precision]
    cache = [KeyValueCache(2, 1, 2, 8, 16, torch.device("cpu"), dtype) for _ in range(2)]
    logits = []
    for each in cache:
        each.resize(8)
        each.start_step(torch.tensor([0]))
        with torch.no_grad():
            hidden = ready.step(ready.embed_labels(torch.tensor([1])), torch.tensor([0]), each)
            logits.append(ready.output(hidden))
            for name, tensor in (*small.named_parameters(), *small.named_buffers()):
                tensor.mul_(1.0 if name.startswith("norm.") else 3.0)
    assert torch.equal(*logits)
    assert ready.norm.weight is small.norm.weight


@pytest.mark.parametrize("rule", RULES)
def test_a_device_without_float64_needs_none(small, rule, monkeypatch):
    """As on a Mac's GPU."""
    for part in (module, guidance, seams):
        monkeypatch.setattr(part, "widest_float", lambda device: torch.float32)
    labels = torch.tensor([0, 1, 2])
    expected = Sampler(small, Draw(seed=3), rule).sample(labels)
    sampler = Sampler(small, Draw(seed=3), rule)
    with torch.inference_mode():
        branches = sampler.branches(labels, range(3))
        loop, uniforms = sampler.ready(branches), image_uniforms(3, range(3), small.num_tokens)
        with Types() as types:
            found = loop.run(branches, uniforms)
    assert torch.float64 not in types.seen
    assert torch.equal(found, expected)


class Types(TorchDispatchMode):
    """The types of all tensors that are made within it."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.seen.add(result.dtype)
        return result


@pytest.mark.parametrize("rule", RULES)
def test_a_device_of_any_other_kind_draws(small_generator_block, rule):
    with torch.device("meta"):
        generator = build(small_generator_block()).to("meta")
    sampler = Sampler(generator, None, rule)
    with torch.inference_mode():
        branches = sampler.branches(torch.zeros(2, dtype=torch.int64), range(2))
        ids = sampler.ready(branches).run(branches, image_uniforms(0, range(2), generator.num_tokens))
    assert (ids.shape, ids.device.type) == ((2, generator.num_tokens), "meta")


def test_broken_numbers_of_an_earlier_batch_are_gone_if_one_layout_holds_all_positions() -> None:
    """Masked entries still count as 0 x NaN. Eight tokens are one layout on a CPU."""
    torch.manual_seed(0)
    generator = Generator(16, 3, 0, (2, 4), width=32, depth=1, heads=2).eval()
    torch.nn.init.normal_(generator.output.weight, std=0.3)
    sampler, labels = Sampler(generator, Draw(2.0)), torch.arange(3)
    expected = sampler.sample(labels)
    assert sampler.loop is not None
    assert sampler.loop.cache.length == 8
    with torch.inference_mode():
        sampler.loop.cache.memory.fill_(torch.nan)
    assert torch.equal(sampler.sample(labels), expected)

import pytest
import torch

from alitok.artifacts.release import generator_from_release
from alitok.common import devices
from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.models.seams import draw, image_uniforms
from alitok.sampling.generate import Sampler, generate
from alitok.sampling.guidance import Branch, Guidance, PowerCosine


@pytest.fixture
def small(golden, small_generator_block) -> Generator:
    module = golden.randomize(build(small_generator_block()))
    module.output.weight.data *= 3  # a distribution that is neither flat nor certain
    return module


def test_greedy_tokens_are_the_releases(golden):
    expected = golden.arrays("ar_tiny_release")
    tiny = Generator(64, 10, 17, (16, 16), 128, 3, 4).eval()
    tiny.load_state_dict(generator_from_release(golden.fill(golden.json("official_ar_tiny_keys"))))
    names = [name for name in expected if name.startswith("greedy_")]
    assert len(names) == 4
    for name in names:
        _, guidance, power = name.split("_")
        ids = generate(tiny, expected["classes"], float(guidance), float(power), temperature=1e-6)
        assert torch.equal(ids, expected[name]), name


@pytest.mark.parametrize("guidance", [0.0, 4.0])
def test_cached_steps_equal_full_recomputation(small, guidance):
    labels, seed, temperature = torch.tensor([0, 2, 1]), 5, 0.9
    uniforms = image_uniforms(seed, range(3), small.num_tokens)
    ids = torch.zeros(3, small.num_tokens, dtype=torch.int64)
    rule = PowerCosine(guidance, 1.5)
    with torch.no_grad():
        for step in range(small.num_tokens):
            logits = small(ids, labels)[:, step]
            if guidance:
                unconditional = small(ids, torch.full_like(labels, 3))[:, step]
                logits = rule.combine([logits, unconditional], torch.tensor([step]), small.num_tokens)
            ids[:, step] = draw(logits / temperature, uniforms[:, step])
    assert torch.equal(generate(small, labels, guidance, 1.5, temperature, seed), ids)
    assert len(ids.unique()) > 5


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_image_i_is_the_same_in_any_batch(small, guidance):
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    whole = generate(small, labels, guidance, 1.0, seed=3)
    for part in ([0, 1], [5], [2, 4], [3, 1, 0]):
        ids = generate(small, labels[part], guidance, 1.0, seed=3, indices=part)
        assert torch.equal(ids, whole[part])
    assert not torch.equal(whole[0], whole[3])  # same label, other numbers
    assert not torch.equal(generate(small, labels, guidance, 1.0, seed=4), whole)


def test_card_recommends_guidance_and_power(small):
    labels = torch.tensor([0, 1])
    plain = generate(small, labels)
    assert torch.equal(plain, generate(small, labels, 0.0))
    vars(small)["card"] = {"guidance": 6.0, "power": 0.7}
    recommended = generate(small, labels)
    assert torch.equal(recommended, generate(small, labels, 6.0, 0.7))
    assert not torch.equal(recommended, plain)
    assert torch.equal(generate(small, labels, 0.0), plain)


def test_own_guidance_rule_and_steps(small):
    steps = []

    class Unconditional(Guidance):
        def branches(self, generator, labels, seed, indices):
            return [Branch(labels=torch.full_like(labels, generator.num_classes))]

        def combine(self, logits, positions, steps):
            assert steps == small.num_tokens
            return logits[0]

    ids = generate(small, torch.tensor([1]), Unconditional(), on_step=steps.append)
    assert steps == list(range(small.num_tokens))
    assert torch.equal(ids, generate(small, torch.tensor([3]), 0.0))  # label 3 is no class


def test_bad_arguments(small):
    with pytest.raises(BadInput, match=r"labels must lie in 0\.\.3"):
        generate(small, torch.tensor([4]))
    with pytest.raises(BadInput, match="labels"):
        generate(small, torch.tensor([-1]))
    with pytest.raises(BadInput, match="temperature must be above 0"):
        generate(small, torch.tensor([0]), temperature=0)


def test_draw_follows_the_softmax():
    logits = torch.tensor([0.0, 1.0, -2.0, 3.0, 0.5])
    count = 100_000
    even = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    shares = draw(logits.expand(count, -1), even).bincount(minlength=5) / count
    assert torch.allclose(shares, logits.softmax(0), atol=1.1 / count)

    count = 20_000
    uniform = torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = logits.softmax(0) * count
    found = draw(logits.expand(count, -1), uniform).bincount(minlength=5)
    chi_square = ((found - expected).square() / expected).sum()
    assert chi_square < 18.5  # 99.9 % quantile for four degrees of freedom


def test_draw_never_leaves_the_support():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.3, -torch.inf]]).expand(4, -1)
    uniform = torch.tensor([0.0, 5e-324, 1 - 2**-53, 0.5], dtype=torch.float64)
    assert draw(logits, uniform).tolist() == [1, 1, 3, 3]


def test_draw_at_the_ends_of_a_large_vocabulary():
    logits = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)).expand(2, -1)
    assert draw(logits, torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)).tolist() == [0, 4095]


def test_uniforms_are_a_function_of_seed_and_index():
    numbers = image_uniforms(1, [4, 7], 50)
    assert numbers.shape == (2, 50)
    assert torch.equal(numbers[1], image_uniforms(1, [7], 50)[0])
    assert torch.equal(numbers[0, :10], image_uniforms(1, [4], 10)[0])
    assert not torch.equal(numbers[0], image_uniforms(2, [4], 50)[0])


def test_bfloat16_is_warned_of_where_float32_is_faster(small, monkeypatch, caplog):
    monkeypatch.setattr(devices, "has_bfloat16", lambda device: False)
    devices.warn_of_bfloat16.cache_clear()
    Sampler(small, Draw())
    assert not caplog.records
    Sampler(small, Draw(precision="bfloat16"))
    devices.warn_of_bfloat16.cache_clear()
    assert "no products of bfloat16 matrices" in caplog.text

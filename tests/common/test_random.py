import torch

from alitok.common.random import derive_seed, open_uniforms, reseed, splitmix, stream


def test_seeds_stay_what_they_were():
    """Saved runs and samples depend on these values."""
    assert derive_seed(0) == 2_631_537_505_891_389_924
    assert derive_seed(42, "image", 7) == 8_276_368_484_724_844_489


def test_seeds_differ_by_key_and_order():
    seeds = [derive_seed(*keys) for keys in [(1, 2), (2, 1), (12,), ("1", 2), (1, "2"), (1, 2, 0)]]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_stream_and_reseed_are_functions_of_the_keys():
    assert torch.equal(torch.rand(3, generator=stream(1, "a")), torch.rand(3, generator=stream(1, "a")))
    reseed(1, 5)
    first = torch.rand(3)
    torch.rand(10)
    reseed(1, 5)
    assert torch.equal(torch.rand(3), first)
    reseed(1, 6)
    assert not torch.equal(torch.rand(3), first)


def test_splitmix_is_the_published_generator():
    """Against the reference in Python's own integers, whose first numbers from the seed 1234567 are known."""

    def reference(state: int, count: int) -> list[int]:
        numbers = []
        for _ in range(count):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = state
            z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
            numbers.append(z ^ z >> 31)
        return numbers

    assert reference(1234567, 2) == [6457827717110365317, 3203168211198807973]
    keys = torch.tensor([[1234567, 0], [2**62 + 5, -9]])
    found = splitmix(keys, 3)
    for key, numbers in zip(keys.flatten().tolist(), found.flatten(0, 1).tolist(), strict=True):
        assert [number % 2**64 for number in numbers] == reference(key % 2**64, 3)


def test_open_uniforms_are_never_0_or_1():
    ends = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    for dtype in (torch.float32, torch.float64):
        numbers = open_uniforms(ends, dtype)
        assert numbers.dtype == dtype
        assert (numbers > 0).all()
        assert (numbers < 1).all()
        assert torch.allclose(numbers, torch.tensor([0.0, 1.0, 0.5, 0.5], dtype=dtype), atol=1e-6)
    many = open_uniforms(splitmix(torch.tensor(3), 10_000))
    assert abs(many.mean().item() - 0.5) < 0.01
    assert abs(many.var().item() - 1 / 12) < 0.003

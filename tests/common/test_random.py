import torch

from alitok.common.random import derive_seed, reseed, stream


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

from contextlib import nullcontext

import pytest
import torch

from alitok.common.build import build
from alitok.sampling.images import CPU_BATCH, LARGEST_BATCH, ImageSampler, largest_batch, sample_images


@pytest.fixture
def pair(golden, small_generator_block, small_tokenizer_block):
    generator = golden.randomise(build(small_generator_block()))
    return generator, golden.randomise(build(small_tokenizer_block(2)))


def test_decoded_as_the_tokenizer_decodes(pair):
    generator, tokenizer = pair
    parts = list(sample_images(generator, tokenizer, [0, 1, 2, 0, 1], batch=2, guidance=2.0, seed=1))
    assert [indices for indices, *_ in parts] == [[0, 1], [2, 3], [4]]
    for _, ids, images in parts:
        torch.testing.assert_close(images, tokenizer.decode(ids))


def test_batches_of_any_indices(pair):
    generator, tokenizer = pair
    whole = torch.cat([ids for _, ids, _ in sample_images(generator, tokenizer, [0, 1, 2, 0, 1], seed=1)])
    sampler = ImageSampler(generator, tokenizer)
    for indices, ids, _ in sampler.draw([([4], [1]), ([1, 2], [1, 2]), ([0], [0])], seed=1):
        assert torch.equal(ids, whole[indices])


def test_largest_batch(pair):
    generator, tokenizer = pair
    assert largest_batch(generator, tokenizer, True, "float32", None) == CPU_BATCH
    found = {
        (guided, precision): largest_batch(generator, tokenizer, guided, precision, 2**23)
        for guided in (True, False)
        for precision in ("float32", "bfloat16")
    }
    assert 1 < found[True, "float32"] < found[True, "bfloat16"] < found[False, "bfloat16"] < LARGEST_BATCH
    assert found[True, "float32"] < found[False, "float32"]
    assert largest_batch(generator, tokenizer, True, "float32", 10) == 1
    assert largest_batch(generator, tokenizer, True, "float32", 2**45) == LARGEST_BATCH == 512
    batches = {largest_batch(generator, tokenizer, True, "float32", number * 2**22) for number in range(8, 80)}
    assert len(batches) > 2
    assert all(batch % 64 == 0 for batch in batches)


def test_streams_are_those_of_the_generators_device(pair, monkeypatch):
    """On a GPU that is not the present one, seen through stand-ins."""
    sampler, device = ImageSampler(*pair), torch.device("cuda", 1)
    sampler.device = device
    asked, waits = [], []

    class Stream:
        def __init__(self, device, name="side"):
            self.device, self.name = device, name

        def wait_stream(self, other):
            waits.append((self.name, other.name))

    def current_stream(device=None):
        asked.append(device)
        return Stream(device, "present")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    parts = list(sampler.draw([([0, 1], [0, 1]), ([2], [2])], seed=1, size=2))
    assert [indices for indices, *_ in parts] == [[0, 1], [2]]
    assert asked == [device] * 4
    assert sorted(waits) == [("present", "side")] * 2 + [("side", "present")] * 2

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
        (guided, precision): largest_batch(generator, tokenizer, guided, precision, 2**25)
        for guided in (True, False)
        for precision in ("float32", "bfloat16")
    }
    assert 1 < found[True, "float32"] < found[True, "bfloat16"] < found[False, "bfloat16"] < LARGEST_BATCH
    assert found[True, "float32"] < found[False, "float32"]
    assert largest_batch(generator, tokenizer, True, "float32", 10) == 1
    assert largest_batch(generator, tokenizer, True, "float32", 2**45) == LARGEST_BATCH

from contextlib import nullcontext

import pytest
import torch

from alitok.common.build import build
from alitok.common.draw import Draw
from alitok.sampling.images import CPU_BATCH, LARGEST_BATCH, ImageSampler, largest_batch, sample_images


@pytest.fixture
def pair(golden, small_generator_block, small_tokenizer_block):
    generator = golden.randomize(build(small_generator_block()))
    return generator, golden.randomize(build(small_tokenizer_block(2)))


def test_decoded_as_the_tokenizer_decodes(pair):
    generator, tokenizer = pair
    parts = list(sample_images(generator, tokenizer, [0, 1, 2, 0, 1], Draw(2.0, seed=1), batch=2))
    assert [indices for indices, *_ in parts] == [[0, 1], [2, 3], [4]]
    for _, ids, images in parts:
        torch.testing.assert_close(images, tokenizer.decode(ids))


def test_batches_of_any_indices(pair):
    generator, tokenizer = pair
    whole = torch.cat([ids for _, ids, _ in sample_images(generator, tokenizer, [0, 1, 2, 0, 1], Draw(seed=1))])
    sampler = ImageSampler(generator, tokenizer, Draw(seed=1))
    for indices, ids, _ in sampler.sample([([4], [1]), ([1, 2], [1, 2]), ([0], [0])]):
        assert torch.equal(ids, whole[indices])


def test_largest_batch(pair):
    generator, tokenizer = pair
    draws = {
        (scale, precision): Draw(scale, precision=precision)
        for scale in (2.0, 0.0)
        for precision in ("float32", "bfloat16")
    }
    guided = draws[2.0, "float32"]
    assert largest_batch(generator, tokenizer, guided, None) == CPU_BATCH
    found = {key: largest_batch(generator, tokenizer, draw, 2**23) for key, draw in draws.items()}
    assert 1 < found[2.0, "float32"] < found[2.0, "bfloat16"] < found[0.0, "bfloat16"] < LARGEST_BATCH
    assert found[2.0, "float32"] < found[0.0, "float32"]
    assert largest_batch(generator, tokenizer, guided, 10) == 1
    assert largest_batch(generator, tokenizer, guided, 2**45) == LARGEST_BATCH == 512
    batches = {largest_batch(generator, tokenizer, guided, number * 2**22) for number in range(8, 80)}
    assert len(batches) > 2
    assert all(batch % 64 == 0 for batch in batches)


def test_streams_are_those_of_the_generators_device(pair, monkeypatch):
    """On a GPU that is not the present one, seen through stand-ins."""
    sampler, device = ImageSampler(*pair, Draw(seed=1)), torch.device("cuda", 1)
    sampler.device = device
    asked, waits = [], []

    class Stream:
        def __init__(self, device, name="side"):
            self.device, self.name = device, name

        def wait_stream(self, other):
            waits.append((self.name, other.name))

        def wait_event(self, event):
            waits.append((self.name, event.number))

    class Event:
        count = 0

        def record(self, stream):
            assert stream.name == "side"
            self.number = Event.count
            Event.count += 1

    def current_stream(device=None):
        asked.append(device)
        return Stream(device, "present")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    parts = list(sampler.sample([([0, 1], [0, 1]), ([2], [2])], size=2))
    assert [indices for indices, *_ in parts] == [[0, 1], [2]]
    assert asked == [device] * 4
    # the second batch is under way on the side when the first, and only that, is waited for
    assert waits == [("side", "present"), ("side", "present"), ("present", 0), ("present", 1)]


def test_windows_hand_over_whole_batches_in_order(pair):
    """Also an empty one; and the caller's own computations stay outside of inference mode."""
    generator, tokenizer = pair
    batches = [([5, 6, 7], [0, 1, 2]), ([], []), ([1], [1])]
    plain, steps = ImageSampler(generator, tokenizer, Draw()), []
    expected = list(plain.sample(batches[:1] + batches[2:]))
    windows = ImageSampler(generator, tokenizer, Draw(window=3))
    for (indices, ids, images), (names, same, pixels) in zip(
        windows.sample(batches, steps.append), expected, strict=True
    ):
        assert not torch.is_inference_mode_enabled()
        assert indices == names
        assert torch.equal(ids, same)
        torch.testing.assert_close(images, pixels)
    assert len(steps) == 2 * generator.num_tokens

"""A frozen encoder, and k-means codes of its features."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.digit import FrozenDINOv2, FrozenVGG16, KMeansQuantizer
from alitok.ideas.shared import teachers
from alitok.ideas.shared.dino import DINOv2 as Network
from alitok.ideas.shared.teachers import DINOv2, VGG16Map
from alitok.networks.frozen import Network as Source


def blobs(count: int = 60) -> torch.Tensor:
    """(4, count, 2): tokens around four corners, well apart."""
    corners = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    return corners[:, None] + 0.1 * torch.randn(4, count, 2, generator=torch.Generator().manual_seed(0))


def test_the_encoder_is_the_teachers_map() -> None:
    encoder = FrozenVGG16(64, 8, 64, "random:0")
    encoder.setup(torch.device("cpu"))
    teacher = VGG16Map("random:0")
    teacher.setup("cpu")
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = encoder(images)
    torch.testing.assert_close(found, teacher.features(images, 8))
    assert (encoder.num_latents, found.shape) == (64, (2, 64, 512))
    assert not found.requires_grad
    torch.testing.assert_close(FrozenVGG16(32, 4, 64, "random:0").size, 64)


def test_a_loaded_encoder_has_its_weights_without_any_file() -> None:
    made = FrozenVGG16(32, 8, 16, "random:3")
    made.setup(torch.device("cpu"))
    with patch.object(VGG16Map, "check", side_effect=AssertionError):
        loaded = FrozenVGG16(32, 8, 16, "no/such/file.pth")
    loaded.load_state_dict(made.state_dict())
    images = torch.rand(1, 3, 32, 32)
    torch.testing.assert_close(loaded(images), made(images))
    with pytest.raises(BadInput, match=r"file\.pth"):
        loaded.setup(torch.device("cpu"))


def test_the_last_blocks_are_left_off_and_the_norm_stays() -> None:
    small = Source("small", "small.pth", lambda: Network(width=16, depth=4, heads=2))
    with patch.object(teachers.DINOv2, "source", small):
        encoder = FrozenDINOv2(32, 8, 16, "random:0", drop_blocks=2)
        encoder.setup(torch.device("cpu"))
        whole: Any = DINOv2("random:0").network("cpu")
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    resized = F.interpolate(images, size=(56, 56), mode="bicubic")
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (DINOv2.MEAN, DINOv2.STD))
    hidden: list[torch.Tensor] = []
    whole.blocks[1].register_forward_hook(lambda _, __, output: hidden.append(output))
    whole((resized - mean) / deviation)
    torch.testing.assert_close(encoder(images), whole.norm(hidden[0])[:, 1:])


def test_centers_are_the_means_of_their_latents() -> None:
    quantizer, z = KMeansQuantizer(4, 2), blobs()
    quantizer.fit(iter(z.split(1)))
    out = quantizer(z)
    assert torch.equal(out.ids, torch.cdist(z, quantizer.codebook).argmin(-1))
    for center in range(4):  # 20 iterations are enough for these to stay where they are
        torch.testing.assert_close(quantizer.codebook[center], z[out.ids == center].mean(0))
    torch.testing.assert_close(out.quantized, quantizer.lookup(out.ids))
    assert out.losses == {}


def test_every_iteration_brings_latents_nearer() -> None:
    z = torch.randn(1, 500, 3, generator=torch.Generator().manual_seed(0))
    errors = []
    for iterations in (1, 2, 5, 20):
        quantizer = KMeansQuantizer(16, 3, iterations)
        quantizer.fit(iter([z]))
        errors.append(float((quantizer(z).quantized - z).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]


def test_a_center_without_latents_moves_to_one() -> None:
    """Of many equal latents two are drawn to begin with: one of the two centers stays empty."""
    z = torch.cat([torch.zeros(1, 99, 2), torch.full((1, 1, 2), 5.0)], dim=1)
    quantizer = KMeansQuantizer(2, 2, iterations=3)
    quantizer.fit(iter([z]))
    assert sorted(quantizer.codebook[:, 0].tolist()) == [0.0, 5.0]


def test_a_fit_is_the_same_every_time_and_looks_at_no_more_than_it_may() -> None:
    first, second = KMeansQuantizer(4, 2, most=20), KMeansQuantizer(4, 2, most=20)
    for quantizer in (first, second):
        quantizer.fit(iter([blobs()]))
    assert torch.equal(first.codebook, second.codebook)
    with patch.object(KMeansQuantizer, "_nearest", autospec=True, side_effect=KMeansQuantizer._nearest) as nearest:
        first.fit(iter([blobs()]))
    assert {len(call.args[1]) for call in nearest.call_args_list} == {80}
    batches = iter([blobs(), blobs()])  # the first has enough
    first.fit(batches)
    assert len(list(batches)) == 1


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="iterations and most must be 1 or more, not 0 and 256"):
        KMeansQuantizer(4, 2, iterations=0)
    with pytest.raises(BadInput, match="has 0 codes"):
        KMeansQuantizer(0, 2)
    with pytest.raises(BadInput, match="centers of 2 channels, the latents 3"):
        KMeansQuantizer(4, 2)(torch.zeros(1, 1, 3))
    with pytest.raises(BadInput, match="a latent for each of its 16 places: set num_latents to that, not 20"):
        FrozenVGG16(32, 8, 20, "random:0")
    with pytest.raises(BadInput, match="a latent for each of its 300 centers, and `fit` gives 240"):
        KMeansQuantizer(300, 2).fit(iter([blobs()]))
    with pytest.raises(BadInput, match="drop_blocks must be 0 or more and below the 0 blocks of a VGG16Map, not 2"):
        FrozenVGG16(32, 8, 16, "random:0", drop_blocks=2)


def test_no_step_of_training_comes_before_a_fit_and_a_loaded_one_counts() -> None:
    fresh, quantizer = KMeansQuantizer(4, 2), KMeansQuantizer(4, 2)
    with pytest.raises(BadInput, match="has not been fitted: give the first phase `fit: N`"):
        fresh(blobs(), Step.alone(4))
    quantizer.fit(iter([blobs()]))
    fresh.load_state_dict(quantizer.state_dict())
    torch.testing.assert_close(fresh(blobs(), Step.alone(4)).quantized, quantizer(blobs()).quantized)


def test_it_is_no_trained_part() -> None:
    assert all(not parameter.requires_grad for parameter in FrozenVGG16(32, 8, 16, "random:0").parameters())
    assert isinstance(FrozenVGG16(32, 8, 16, "random:0").network, nn.Module)

"""Several codebooks for a token."""

from typing import Any

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.several_codebooks import Disentangling, SeveralCodebooks
from alitok.models.quantizer import ClusteredQuantizer

STEP = Step(0, 1, 10, 4, range(4))


def latents(width: int = 12, images: int = 4) -> torch.Tensor:
    return torch.randn(images, 5, width, generator=torch.Generator().manual_seed(0))


def quantizer(adapters: Any = None, **more: Any) -> SeveralCodebooks:
    torch.manual_seed(1)
    module = SeveralCodebooks(16, 4, 3, adapters=adapters, anchor="random", **more)
    torch.nn.init.normal_(module.codebook.weight)
    return module


def test_chunks_are_codebooks_side_by_side() -> None:
    """Each chunk is quantized, and its codebook moved, as a clustered codebook of its own does it."""
    module, z = quantizer().train(), latents()
    alone = []
    for part in range(3):
        one = ClusteredQuantizer(16, 4, anchor="random").train()
        one.codebook.weight.data.copy_(module.codebook.weight[16 * part : 16 * part + 16])
        alone.append(one)
    found, each = module(z, STEP), [one(part, STEP) for one, part in zip(alone, z.chunk(3, -1), strict=True)]
    assert torch.equal(found.ids, torch.stack([one.ids for one in each], -1))
    torch.testing.assert_close(found.quantized, torch.cat([one.quantized for one in each], -1))
    for name in ("codebook", "commitment"):
        torch.testing.assert_close(found.losses[name], torch.stack([one.losses[name] for one in each]).mean())
    module.update(found.statistics)
    for one, own in zip(alone, each, strict=True):
        one.update(own.statistics)
    torch.testing.assert_close(module.codebook.weight, torch.cat([one.codebook.weight for one in alone]))
    torch.testing.assert_close(module.usage, torch.cat([one.usage for one in alone]))


@pytest.mark.parametrize("adapters", [None, {"depth": 1, "heads": 2}])
def test_ids_and_lookup(adapters: Any) -> None:
    width = 8 if adapters else 12
    module, z = quantizer(adapters, latent_dim=width).eval(), latents(width)
    found = module(z)
    assert found.ids.shape == (4, 5, 3)
    assert found.quantized.shape == (4, 5, 12)
    assert torch.equal(module.ids(z), found.ids)
    torch.testing.assert_close(module.lookup(found.ids), found.quantized)
    assert found.statistics is None
    assert [part.shape for part in found.extra["parts"]] == [(4, 5, 4)] * 3


def test_adapters_learn() -> None:
    module = quantizer({"depth": 1, "heads": 2}, latent_dim=8).train()
    module(latents(8), STEP).quantized.square().sum().backward()
    assert all(parameter.grad is not None for parameter in module.adapters.parameters())  # type: ignore[union-attr]


def test_the_term_by_hand() -> None:
    parts = [torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    total = 0.0
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for image in range(2):
            for place in range(3):
                x, y = parts[a][image, place], parts[b][image, place]
                total += float((x @ y / x.norm() / y.norm()) ** 2) / 18
    batch = {"image": torch.zeros(2, 3, 4, 4)}
    assert float(Disentangling()(batch, {"parts": parts})) == pytest.approx(total, rel=1e-4)
    with pytest.raises(BadInput, match="take a quantizer that has several"):
        Disentangling()(batch, {})


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="2 or more sub_codes"):
        SeveralCodebooks(16, 4, 1)
    with pytest.raises(BadInput, match="adapters takes depth and heads, not blocks"):
        SeveralCodebooks(16, 4, 3, adapters={"blocks": 2})
    with pytest.raises(BadInput, match="not 3 x 4 of 8"):
        SeveralCodebooks(16, 4, 3, latent_dim=8)
    with pytest.raises(BadInput, match="take latents of 12 channels, the encoder gives 10"):
        quantizer()(latents(10))

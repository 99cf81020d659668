"""Bins that are fitted after training."""

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.ideas.token_bridge import MOST_LEVELS, BinQuantizer, bin_levels

NORMAL = torch.randn(400_000, 1, 2, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bins", "error", "bits"), [(8, 0.0404, 2.70), (16, 0.0103, 3.72), (32, 0.0026, 4.72)])
def test_the_error_of_a_normal_channel(bins: int, error: float, bits: float) -> None:
    """The figures for a scale of 0.6, which 1 / sqrt(3) nearly is; equal bins (scale 1) would have 0.0513 at 8."""
    quantizer = BinQuantizer(2, bins)
    ids = quantizer.ids(NORMAL)
    found = float((quantizer.lookup(ids) - NORMAL).square().mean())
    assert found == pytest.approx(error, rel=0.1)
    share = torch.bincount(ids[..., 0].flatten(), minlength=bins) / len(NORMAL)
    assert float(-(share * share.clamp_min(1e-12).log2()).sum()) == pytest.approx(bits, abs=0.1)


def test_levels_are_means_of_their_bins() -> None:
    levels = bin_levels(4)
    inside = NORMAL.flatten().clamp(-3, 3)
    edges = torch.tensor([-0.6745, 0.0, 0.6745])
    means = [float(inside[torch.bucketize(inside, edges) == bin].mean()) for bin in range(4)]
    assert levels.tolist() == pytest.approx(means, abs=0.02)
    torch.testing.assert_close(levels, -levels.flip(0))


def test_fit_measures_each_channel_over_all_batches() -> None:
    z = NORMAL[:1000] * torch.tensor([2.0, 0.5]) + torch.tensor([3.0, -1.0])
    quantizer = BinQuantizer(2, 64)
    quantizer.fit(iter(z.split(300)))
    torch.testing.assert_close(quantizer.mean, z.mean((0, 1)))
    torch.testing.assert_close(quantizer.deviation, z.std((0, 1), correction=0))
    assert float((quantizer.lookup(quantizer.ids(z)) - z).abs().mean() / z.std()) < 0.05


def test_ids_are_the_nearest_levels() -> None:
    quantizer, z = BinQuantizer(2, 8), NORMAL[:50]
    levels = quantizer.levels * 3**0.5
    expected = (z[..., None] - levels).abs().argmin(-1)
    found = quantizer(z)
    assert torch.equal(found.ids, expected)
    torch.testing.assert_close(found.quantized, levels[expected])


def test_what_does_not_fit() -> None:
    with pytest.raises(BadInput, match="2 or more channels and levels, not 1 and 8"):
        BinQuantizer(1, 8)
    with pytest.raises(BadInput, match="has 2 channels, the latents 3"):
        BinQuantizer(2, 8)(torch.zeros(1, 1, 3))


def test_no_bin_is_empty() -> None:
    assert BinQuantizer(2, MOST_LEVELS).levels.isfinite().all()
    with pytest.raises(BadInput, match="at most 740 levels, not 1024"):
        BinQuantizer(2, 1024)

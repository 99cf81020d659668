import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from alitok.common.errors import BadInput
from alitok.evaluation.precision_recall import precision_recall


def brute_force(samples: torch.Tensor, reference: torch.Tensor, k: int = 3) -> dict[str, float]:
    def radius(x: np.ndarray) -> np.ndarray:
        return np.sort(cdist(x, x), axis=1)[:, k]  # place 0 is the image itself

    x, y = samples.double().numpy(), reference.double().numpy()
    between = cdist(x, y)
    return {
        "precision": float((between <= radius(y)).any(axis=1).mean()),
        "recall": float((between <= radius(x)[:, None]).any(axis=0).mean()),
    }


@pytest.mark.parametrize("block", [1000, 37, 8])
def test_equals_brute_force_whatever_the_block(block: int) -> None:
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(120, 10, generator=generator) + 50
    samples = 0.9 * torch.randn(101, 10, generator=generator) + 50.4
    expected = brute_force(samples, reference)
    assert 0.2 < expected["precision"] < 1
    assert precision_recall(samples, reference, block=block) == pytest.approx(expected, rel=1e-12)


def test_copies_lie_at_no_distance() -> None:
    reference = torch.randn(10, 200, generator=torch.Generator().manual_seed(0)).repeat(5, 1) * 30  # radii of 0
    assert precision_recall(reference[:20], reference, block=7) == {"precision": 1.0, "recall": 1.0}
    assert precision_recall(reference[:20] + 1, reference)["precision"] == 0


def test_bad_features() -> None:
    with pytest.raises(BadInput, match="more than 3 images, there are 3 in the samples"):
        precision_recall(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(BadInput, match="width 2 and 4"):
        precision_recall(torch.zeros(9, 2), torch.zeros(9, 4))
    with pytest.raises(BadInput, match="reference hold NaN"):
        precision_recall(torch.zeros(9, 2), torch.full((9, 2), float("nan")))

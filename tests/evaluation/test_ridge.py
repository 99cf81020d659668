"""The linear probe in closed form."""

import pytest
import torch

from alitok.common.errors import BadInput
from alitok.evaluation.ridge import ridge_accuracy


def features(count: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Five classes around five points in 20 dimensions, all far from the origin."""
    centers = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(5, (count,), generator=generator)
    return 100 + centers[labels] + noise * torch.randn(count, 20, generator=generator), labels


def test_it_reads_what_is_linear_and_nothing_else() -> None:
    train, test = features(500, 0.3, 1), features(500, 0.3, 2)
    assert ridge_accuracy(*train, *test, 5)[0] > 0.98
    shuffled = train[1][torch.randperm(500, generator=torch.Generator().manual_seed(3))]
    assert ridge_accuracy(train[0], shuffled, *test, 5)[0] < 0.35


def test_the_solution_is_that_of_ridge_regression() -> None:
    """Against gradient descent on the same objective."""
    (x, labels), (test, wanted) = features(200, 1.5, 1), features(400, 1.5, 2)
    accuracy, strength = ridge_accuracy(x, labels, test, wanted, 5)
    z = ((x - x.mean(0)) / x.std(0)).double()
    y = torch.nn.functional.one_hot(labels, 5).double()
    weights = torch.zeros(20, 5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-12)

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (z @ weights - (y - y.mean(0))).square().sum() + strength * 200 * weights.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    scores = ((test - x.mean(0)) / x.std(0)).double() @ weights.detach() + y.mean(0)
    assert accuracy == pytest.approx(float((scores.argmax(1) == wanted).double().mean()), abs=0.005)


def test_more_features_than_images() -> None:
    x, labels = features(60, 0.3, 1)
    wide = torch.cat([x, torch.randn(60, 300, generator=torch.Generator().manual_seed(4))], 1)
    test, wanted = features(200, 0.3, 2)
    more = torch.cat([test, torch.randn(200, 300, generator=torch.Generator().manual_seed(5))], 1)
    assert ridge_accuracy(wide, labels, more, wanted, 5)[0] > 0.5


def test_what_it_refuses() -> None:
    x, labels = features(30, 1.0, 1)
    with pytest.raises(BadInput, match="at least 20 training images, not 19"):
        ridge_accuracy(x[:19], labels[:19], x, labels, 5)
    x[3, 3] = torch.nan
    with pytest.raises(BadInput, match="NaN or infinity"):
        ridge_accuracy(x, labels, x[:2], labels[:2], 5)

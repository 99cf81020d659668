"""A linear probe in closed form: how well frozen features predict a class, in seconds and without a seed."""

import torch
from torch import Tensor

from alitok.common.errors import BadInput

STRENGTHS = [10.0**power for power in range(-6, 4)]  # ridge strengths, relative to the features' mean square
TUNING = 10  # every tenth training image is used to choose the strength
LEAST = 2 * TUNING  # training images


def ridge_accuracy(
    features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, classes: int
) -> tuple[float, float]:
    """Top-1 accuracy of ridge regression on one-hot labels.

    Features are standardized with the training images' mean and deviation. The strength of the ridge is chosen on every
    tenth training image; then all training images are fitted.

    Args:
        features, held_out: (N, F) of the training images, (M, F) of the held-out ones.
        labels, held_out_labels: (N,) and (M,) in [0, classes).

    Returns:
        accuracy on the held-out images, and the strength.

    Raises:
        BadInput: fewer than 20 training images, or features that are not finite.
    """
    if len(features) < LEAST:
        raise BadInput(f"A linear probe needs at least {LEAST} training images, not {len(features)}.")
    x, y = features.double(), torch.nn.functional.one_hot(labels, classes).double()
    if not (x.isfinite().all() and held_out.isfinite().all()):
        raise BadInput("The features hold NaN or infinity: check the tokenizer and the images.")
    mean, deviation = x.mean(0), x.std(0).clamp_min(1e-6)
    x, test = (x - mean) / deviation, (held_out.double() - mean) / deviation
    tuning = torch.arange(len(x)) % TUNING == 0
    tried = {strength: _accuracy(x[~tuning], y[~tuning], x[tuning], labels[tuning], strength) for strength in STRENGTHS}
    best = max(STRENGTHS, key=lambda strength: tried[strength])
    return _accuracy(x, y, test, held_out_labels, best), best


def _accuracy(x: Tensor, y: Tensor, test: Tensor, labels: Tensor, strength: float) -> float:
    center = y.mean(0)
    gram = x.T @ x + strength * len(x) * torch.eye(x.shape[1], dtype=x.dtype)
    weights = torch.linalg.solve(gram, x.T @ (y - center))
    return float(((test @ weights + center).argmax(1) == labels).double().mean())

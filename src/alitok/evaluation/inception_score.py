"""Inception Score over splits of consecutive images, mergeable over batches and processes."""

import torch
from torch import Tensor

from alitok.common.distributed import all_stack, all_sum, is_distributed
from alitok.common.errors import BadInput


class InceptionScore:
    """exp of the mean KL(p(y|x) || p(y)) of each split of consecutive images, then the mean (Salimans et al. 2016).

    As in the ADM evaluator: splits of 5,000 in the order of the images (10 for 50,000); a shorter last split counts
    too. Only count, sum of p and sum of entropies are kept per split, in float64, so any process may see any image.
    """

    def __init__(self, split_size: int = 5000) -> None:
        if split_size < 1:
            raise BadInput(f"Inception Score splits of {split_size} images are impossible: give a positive number.")
        self.split_size = split_size
        self.reset()

    def reset(self) -> None:
        self._seen = 0
        # (splits, 2 + C): count, sum of entropies, sum of p
        self._sums = torch.zeros(0, 0, dtype=torch.float64)

    def update(self, probabilities: Tensor, index: Tensor | None = None) -> None:
        """Add class probabilities (B, C).

        Args:
            probabilities: rows that sum to 1.
            index: (B,) position of each image in the whole sample; None = right after the images before.

        Raises:
            BadInput: a different number of classes than before.
            ValueError: no index with several processes, which would lose the order.
        """
        if index is None:
            if is_distributed():
                raise ValueError("with several processes InceptionScore.update needs the index of each image")
            index = torch.arange(self._seen, self._seen + len(probabilities))
        self._seen += len(probabilities)
        if len(probabilities) == 0:
            return
        p = probabilities.detach().cpu().double()
        if self._sums.numel() and self._sums.shape[1] != p.shape[1] + 2:
            raise BadInput(f"Probabilities of {p.shape[1]} classes after {self._sums.shape[1] - 2}: use one extractor.")
        split = index.cpu() // self.split_size
        self._sums = _grown(self._sums, max(len(self._sums), int(split.max()) + 1), p.shape[1] + 2)
        entropy = torch.special.entr(p).sum(dim=1)
        rows = torch.cat([torch.ones(len(p), 1, dtype=torch.float64), entropy[:, None], p], dim=1)
        self._sums.index_add_(0, split, rows)

    def compute(self) -> dict[str, float]:
        """`inception_score`, equal on every process.

        Raises:
            BadInput: no image was seen.
        """
        shapes = all_stack(torch.tensor(self._sums.shape))
        rows, columns = (int(size) for size in shapes.amax(dim=0))
        sums = all_sum(_grown(self._sums, rows, columns))
        if not rows:
            raise BadInput("The Inception Score of no images is undefined: give samples.")
        sums = sums[sums[:, 0] > 0]
        count, entropy, marginal = sums[:, 0], sums[:, 1] / sums[:, 0], sums[:, 2:] / sums[:, :1]
        if len(count) == 0:
            raise BadInput("The Inception Score of no images is undefined: give samples.")
        divergence = torch.special.entr(marginal).sum(dim=1) - entropy
        return {"inception_score": float(divergence.exp().mean())}


def _grown(sums: Tensor, rows: int, columns: int) -> Tensor:
    if sums.shape == (rows, columns):
        return sums
    result = torch.zeros(rows, columns, dtype=sums.dtype)
    result[: sums.shape[0], : sums.shape[1]] = sums
    return result


def inception_score(probabilities: Tensor, split_size: int = 5000) -> float:
    """Inception Score of class probabilities (N, C) in their order, on one process.

    Raises:
        BadInput: no rows.
    """
    metric = InceptionScore(split_size)
    metric.update(probabilities, torch.arange(len(probabilities)))
    return metric.compute()["inception_score"]

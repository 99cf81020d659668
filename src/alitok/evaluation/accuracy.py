"""Teacher-forced accuracy of a generator."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput


class TokenAccuracy:
    """Top-1 accuracy and mean negative log-likelihood (nats a token), in all and by position, weighted by count.

    Where a token has sub-codes, accuracy is the share of sub-codes, and a token's nats are the sum of theirs.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.reset()

    def reset(self) -> None:
        # rows: predictions, hits, sum of nats
        self._sums = torch.zeros(3, self.num_tokens, dtype=torch.float64)

    def update(self, logits: Tensor, ids: Tensor) -> None:
        """Adds logits (B, N, V) for ids (B, N), or (B, N, S, V) for (B, N, S); logits[:, i] predict ids[:, i].

        Raises:
            BadInput: shapes that do not belong together.
        """
        if logits.shape[:-1] != ids.shape or ids.ndim not in (2, 3) or ids.shape[1] != self.num_tokens:
            raise BadInput(
                f"Logits {tuple(logits.shape)} and ids {tuple(ids.shape)} do not fit {self.num_tokens} tokens: "
                "expected (B, N, V) and (B, N), or (B, N, S, V) and (B, N, S)."
            )
        logits = logits.detach().float()
        nats = cross_entropy(logits.flatten(0, -2), ids.flatten(), reduction="none").view(ids.shape)
        hits = logits.argmax(dim=-1) == ids
        ones = torch.ones_like(nats)
        sub_codes = ids.shape[2] if ids.ndim == 3 else 1
        batch = torch.stack([ones, hits.to(nats.dtype), nats * sub_codes]).cpu().double()
        self._sums += batch.sum(dim=[axis for axis in range(1, batch.ndim) if axis != 2])

    def _totals(self) -> Tensor:
        sums = all_sum(self._sums)
        if not sums[0].any():
            raise BadInput("The token accuracy of no tokens is undefined: give a batch.")
        return sums

    def compute(self) -> dict[str, float]:
        """`token_accuracy` in [0, 1] and `token_nats`, equal on every process.

        Raises:
            BadInput: no batch was seen.
        """
        count, hits, nats = self._totals().sum(dim=1).tolist()
        return {"token_accuracy": hits / count, "token_nats": nats / count}

    def by_position(self) -> tuple[Tensor, Tensor]:
        """Accuracy (N,) and nats (N,) of each position, float64, equal on every process.

        Raises:
            BadInput: no batch was seen.
        """
        count, hits, nats = self._totals()
        return hits / count, nats / count

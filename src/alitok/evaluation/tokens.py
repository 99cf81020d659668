"""Token metrics: accuracy and nats of a generator, usage of a codebook."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput
from alitok.common.random import stream

REPLACED = 0.1  # share of the input tokens replaced, for the accuracy in a noisy context


class TokenAccuracy:
    """Top-1 accuracy and mean negative log-likelihood (nats per token), overall and by position, weighted by count.

    If a token has sub-codes, accuracy is the share of right sub-codes, and a token's nats are the sum of theirs.
    """

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        self.reset()

    def reset(self) -> None:
        # rows: predictions, hits, sum of nats
        self._sums = torch.zeros(3, self.num_tokens, dtype=torch.float64)

    def update(self, logits: Tensor, ids: Tensor) -> None:
        """Add logits (B, N, V) for ids (B, N), or (B, N, S, V) for (B, N, S); logits[:, i] predict ids[:, i].

        Raises:
            BadInput: shapes that do not fit together.
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


class CodebookUsage:
    """Share of the V codes that occur, and the perplexity exp(entropy) of their frequencies (1 to V).

    With S sub-codes per token each sub-code has its own counts, and the two numbers are means over them.
    """

    def __init__(self, codebook_size: int, sub_codes: int = 1) -> None:
        self.codebook_size = codebook_size
        self.sub_codes = sub_codes
        self.reset()

    def reset(self) -> None:
        self.counts = torch.zeros(self.sub_codes, self.codebook_size, dtype=torch.int64)

    def update(self, ids: Tensor) -> None:
        """Add ids (B, N) or, with sub-codes, (B, N, S), in [0, V).

        Raises:
            BadInput: an id outside the codebook, or a wrong number of sub-codes.
        """
        if self.sub_codes > 1 and (ids.ndim != 3 or ids.shape[-1] != self.sub_codes):
            raise BadInput(f"Ids have shape {tuple(ids.shape)}, expected (B, N, {self.sub_codes}) with sub-codes.")
        if ids.numel() == 0:
            return
        if ids.min() < 0 or ids.max() >= self.codebook_size:
            raise BadInput(
                f"Ids run from {int(ids.min())} to {int(ids.max())}, the codebook holds {self.codebook_size}: "
                "use the tokenizer that made them."
            )
        self.counts += count_codes(ids.detach().long().reshape(-1, self.sub_codes), self.codebook_size).cpu()

    def compute(self) -> dict[str, float]:
        """`codebook_usage` in [0, 1] and `codebook_perplexity`, equal on every process.

        Raises:
            BadInput: no ids were seen.
        """
        counts = all_sum(self.counts)
        if not counts.any():
            raise BadInput("The codebook usage of no tokens is undefined: give images.")
        usage, perplexity = usage_and_perplexity(counts)
        return {"codebook_usage": float(usage), "codebook_perplexity": float(perplexity)}


def count_codes(ids: Tensor, codebook_size: int) -> Tensor:
    """Counts each code in each column: ids (n, M) -> (M, V)."""
    columns = ids.shape[-1]
    flat = (ids + torch.arange(columns, device=ids.device) * codebook_size).flatten()
    return torch.bincount(flat, minlength=columns * codebook_size).view(columns, codebook_size)


def usage_and_perplexity(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the codes that occur, and exp(entropy) of their frequencies, () each, on the device of the counts.

    Args:
        counts: (S, V) how often each code was chosen; the two are means over S.
    """
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    return (counts > 0).double().mean(), torch.special.entr(share).sum(dim=1).exp().mean()


def replace_tokens(ids: Tensor, indices: list[int], codebook_size: int) -> Tensor:
    """Ids (B, N) or (B, N, S) with a tenth of their tokens replaced by random ones.

    Args:
        indices: number of each picture: it decides which tokens, and by what.
    """
    masks, codes = [], []
    for index in indices:
        noise = stream("trial noise", index)
        masks.append(torch.rand(ids.shape[1], generator=noise) < REPLACED)
        codes.append(torch.randint(codebook_size, ids.shape[1:], generator=noise))
    mask = torch.stack(masks).view(*ids.shape[:2], *[1] * (ids.ndim - 2)).to(ids.device)
    return torch.where(mask, torch.stack(codes).to(ids.device), ids)

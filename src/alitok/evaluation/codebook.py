"""How much of a codebook is in use."""

import torch
from torch import Tensor

from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput


class CodebookUsage:
    """Share of the V codes that occur, and the perplexity exp(entropy) of their frequencies (1 to V).

    With S sub-codes per token every sub-code has counts of its own, and the two numbers are means over them.
    """

    def __init__(self, codebook_size: int, sub_codes: int = 1) -> None:
        self.codebook_size = codebook_size
        self.sub_codes = sub_codes
        self.reset()

    def reset(self) -> None:
        self.counts = torch.zeros(self.sub_codes, self.codebook_size, dtype=torch.int64)

    def update(self, ids: Tensor) -> None:
        """Adds ids (B, N) or, with sub-codes, (B, N, S), in [0, V).

        Raises:
            BadInput: an id outside the codebook, or another number of sub-codes.
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
        groups = self.sub_codes
        flat = ids.detach().long().reshape(-1, groups) + torch.arange(groups, device=ids.device) * self.codebook_size
        counts = torch.bincount(flat.flatten(), minlength=groups * self.codebook_size)
        self.counts += counts.view(groups, -1).cpu()

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


def usage_and_perplexity(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Share of the codes that occur, and exp(entropy) of their frequencies, () each, on the device of the counts.

    Args:
        counts: (S, V) how often each code was chosen; the two are means over S.
    """
    share = counts.double() / counts.sum(dim=1, keepdim=True)
    return (counts > 0).double().mean(), torch.special.entr(share).sum(dim=1).exp().mean()

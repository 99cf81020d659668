"""A frozen codebook behind one trained linear layer (SimVQ, arXiv 2411.02038)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.models.quantizer import ClusteredQuantizer


class LinearCodes(nn.Module):
    """Codes W c + b: the vectors c (V, D) are fixed, W and b are trained. ids (...) -> (..., D)."""

    table: Tensor

    def __init__(self, codebook_size: int, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(codebook_size, code_dim) * code_dim**-0.5)
        self.linear = nn.Linear(code_dim, code_dim)

    @property
    def weight(self) -> Tensor:
        """All codes (V, D), with their gradient."""
        return self._moved(self.table)

    def forward(self, ids: Tensor) -> Tensor:
        return self._moved(F.embedding(ids, self.table))

    def _moved(self, vectors: Tensor) -> Tensor:
        with torch.autocast(vectors.device.type, enabled=False):  # a code is the same for everyone who looks it up
            return self.linear(vectors)


class SimVQ(ClusteredQuantizer):
    """Nearest code by squared L2 distance among codes W c + b; no clustering.

    The chosen codes give W and b a gradient, so every step also moves the codes that nobody chose. W and b start as in
    `nn.Linear`; the fixed c are normal with variance 1 / D, as in the paper's code. They are a buffer, so every
    checkpoint and artifact holds them.

    Args:
        codebook_size: V.
        code_dim: D; the paper has 128.
        commitment: weight of the commitment loss.

    Raises:
        BadInput: no codes, or more than 2^24.
    """

    def __init__(self, codebook_size: int, code_dim: int, commitment: float = 0.25) -> None:
        super().__init__(codebook_size, code_dim, commitment, clustering=False)
        del self.usage
        self.codebook = LinearCodes(codebook_size, code_dim)  # type: ignore[assignment]

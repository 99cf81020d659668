"""A generator of tokens with several sub-codes: their embeddings are combined, and each has its own head."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.models.transformer import init_weights


class SubCodeGenerator(Generator):
    """p(token i | class, tokens before i) = product over s of p(sub-code s of token i | the same).

    Given the past, a token's sub-codes are predicted independently by S heads on one hidden state (ELM, arXiv
    2410.16257); each sub-code has its own embeddings.

    Args:
        codebook_size: V, number of codes of a sub-code.
        sub_codes: S, 2 or more.
        combine: how the embeddings of a token's sub-codes are combined: their "sum" (WeTok), or a projection of them
            "concatenated" (ELM).
        arguments: the other arguments of `Generator`.

    Raises:
        BadInput: fewer than 2 sub-codes, or an unknown way to combine.
    """

    def __init__(
        self,
        codebook_size: int,
        sub_codes: int,
        combine: Literal["sum", "concatenated"] = "sum",
        **arguments: Any,
    ) -> None:
        if sub_codes < 2 or combine not in ("sum", "concatenated"):
            raise BadInput(
                "SubCodeGenerator takes 2 or more sub_codes, and combine sum or concatenated, not"
                f" {sub_codes} and {combine!r}; for one id a token take alitok.models.generator.Generator."
            )
        super().__init__(sub_codes * codebook_size, **arguments)  # one row and one output per code of each sub-code
        self.codebook_size = codebook_size
        self.sub_codes = self.output.sub_codes = sub_codes
        self.output.noise_shape = (sub_codes,)
        width = self.embeddings.embedding_dim
        self.combine = nn.Linear(sub_codes * width, width, bias=False) if combine == "concatenated" else None
        if self.combine is not None:
            init_weights(self.combine)
            self.combine.weight.data.mul_((sub_codes * width) ** -0.5 / 0.02)  # as large as one embedding

    def embed_labels(self, labels: Tensor) -> Tensor:
        # the rows of classes come after those of all sub-codes
        return super().embed_labels(labels + (self.sub_codes - 1) * self.codebook_size)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """ids (B, T, S) -> (B, T, width)."""
        first_rows = torch.arange(ids.shape[-1], device=ids.device) * self.codebook_size
        parts = self.embeddings(ids + first_rows)
        return parts.sum(-2) if self.combine is None else self.combine(parts.flatten(-2))

"""A head that draws a token's sub-codes one after the other (FAR, arXiv 2411.16681; TokenBridge, 2503.16430)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.sub_codes import SubCodeGenerator
from alitok.models.generator import GeneratorBlock, RMSNorm
from alitok.models.seams import Guide, Head, draw
from alitok.models.transformer import init_weights


class SubCodeHead(Head, nn.Module):
    """p(sub-code s | hidden state, sub-codes before s) by a small causal transformer over [hidden, q_1, .., q_S-1].

    FAR's form: a few blocks like the generator's, a linear layer per sub-code, and the mean of the S cross entropies.
    FAR uses rotary positions, and multiplies the first one by 0; here positions are learned.

    Args:
        inputs: width of the generator's hidden state.
        codebook_size: V, number of codes of a sub-code.
        sub_codes: S.
        width, depth, heads: size of the head's transformer. FAR has the generator's width and 3 or 4 blocks, and reads
            sub-codes by the generator's input tables; this head has tables of its own.
    """

    has_logits = False  # a sub-code's logits need the sub-codes before it
    no_rotation: Tensor

    def __init__(self, inputs: int, codebook_size: int, sub_codes: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        if width % heads or width // heads % 2:
            raise BadInput(f"The head's width {width} must divide into {heads} heads of even width: change head.heads.")
        self.codebook_size, self.sub_codes = codebook_size, sub_codes
        self.noise_shape = (sub_codes,)
        self.enter = nn.Linear(inputs, width)
        self.tables = nn.Embedding((sub_codes - 1) * codebook_size, width)
        self.positions = nn.Parameter(0.02 * torch.randn(sub_codes, width))
        self.blocks = nn.ModuleList(GeneratorBlock(width, heads, 0.0, 64) for _ in range(depth))
        self.norm = RMSNorm(width)
        self.last = nn.ModuleList(nn.Linear(width, codebook_size) for _ in range(sub_codes))
        table = torch.tensor([1.0, 0.0]).expand(sub_codes, width // heads // 2, 2)  # cosine and sine of no angle
        self.register_buffer("no_rotation", table.contiguous(), persistent=False)
        init_weights(self)
        layer: Any
        for layer in self.last:
            nn.init.zeros_(layer.weight)

    def forward(self, hidden: Tensor, known: Tensor) -> Tensor:
        """Logits of the sub-codes 0..s, each given those before it.

        Args:
            hidden: (M, inputs).
            known: (M, s) int64, the first s sub-codes, s below S.

        Returns:
            (M, s + 1, V).
        """
        count = known.shape[1]
        first_rows = torch.arange(count, device=known.device) * self.codebook_size
        x = torch.cat([self.enter(hidden)[:, None], self.tables(known + first_rows)], dim=1)
        x = x + self.positions[: count + 1]
        for block in self.blocks:
            x = block(x, self.no_rotation[: count + 1])
        x = self.norm(x)
        return torch.stack([layer(x[:, place]) for place, layer in enumerate(self.last[: count + 1])], dim=1)

    def loss(self, hidden: Tensor, ids: Tensor, step: Step | None = None) -> dict[str, Tensor]:
        logits = self(hidden.flatten(0, 1), ids.flatten(0, 1)[:, :-1]).float()
        nats = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
        return {"nats": nats.mean(-1)}

    def draw(self, hidden: Tensor, noise: Tensor, guide: Guide, temperature: float) -> Tensor:
        """See `Head.draw`. Guidance combines the branches at every sub-code; all branches read the drawn sub-code."""
        branches = len(hidden) // len(noise)
        known = torch.empty(len(noise), 0, dtype=torch.int64, device=hidden.device)
        for place in range(self.sub_codes):
            logits = self(hidden, known.repeat(branches, 1))[:, -1]
            drawn = draw(guide(logits.float()) / temperature, noise[:, place])
            known = torch.cat([known, drawn[:, None]], dim=1)
        return known


class SubCodeHeadGenerator(SubCodeGenerator):
    """A `SubCodeGenerator` whose sub-codes depend on one another: its head is a `SubCodeHead`.

    Args:
        codebook_size: V, number of codes of a sub-code.
        sub_codes: S, 2 or more.
        head: width, depth and heads of `SubCodeHead`.
        arguments: the other arguments of `SubCodeGenerator`.
    """

    def __init__(self, codebook_size: int, sub_codes: int, head: dict[str, Any], **arguments: Any) -> None:
        if head.keys() != {"width", "depth", "heads"}:
            raise BadInput(f"head takes width, depth and heads, not {', '.join(head) or 'nothing'}.")
        super().__init__(codebook_size, sub_codes, **arguments)
        self.output = SubCodeHead(self.embeddings.embedding_dim, codebook_size, sub_codes, **head)

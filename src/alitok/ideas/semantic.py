"""GigaTok's semantic regularization: a decoder's early features predict a frozen encoder's (arXiv 2504.08736)."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.decoder_blocks import decoder_with_blocks
from alitok.ideas.shared.teachers import Teacher, TeacherTerm
from alitok.losses.terms import Batch, Outputs


class Semantic(TeacherTerm):
    """Mean over images and patches of -cos(MLP(h), f): h is a decoder block's output, f the teacher's feature.

    The MLP is Linear(w, 4 w), SiLU, Linear(4 w, 4 w), SiLU, Linear(4 w, channels); it trains with the tokenizer and is
    not in the artifact. The teacher's map has the same grid as the patches.

    Args:
        teacher: a `Teacher`.
        block: number of the decoder block that is read, from 1; None for depth / 8, rounded up: the paper's third of
            ViT-L's 24.
        weight: weight of the term in phases that set none.

    Raises:
        BadInput: `teacher` is no Teacher, or (once attached) the decoder has no such block.
    """

    def __init__(self, teacher: Teacher, block: int | None = None, weight: float = 0.5) -> None:
        super().__init__(teacher)
        self.block = block
        self.weight = weight

    def attach(self, model: nn.Module) -> None:
        decoder = decoder_with_blocks(model, "Semantic reads a block")
        blocks = decoder.blocks
        block = math.ceil(len(blocks) / 8) if self.block is None else self.block
        if not 1 <= block <= len(blocks):
            raise BadInput(f"Semantic: the decoder has blocks 1 to {len(blocks)}, not {block}.")
        self.taps = (f"decoder.blocks.{block - 1}",)
        self._decoder = decoder
        width = blocks[0].norm1.normalized_shape[0]
        self.head = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, 4 * width),
            nn.SiLU(),
            nn.Linear(4 * width, self.teacher.channels),
        )

    def similarity(self, batch: Batch, outputs: Outputs) -> Tensor:
        """(B, H * W): the cosine at each patch."""
        assert self.head is not None
        hidden = self._decoder.at_image(outputs[self.taps[0]]).float()
        features = self.teacher.features(batch["image"].float(), math.isqrt(hidden.shape[1]))
        return F.cosine_similarity(self.head(hidden), features, dim=-1)

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return -self.similarity(batch, outputs).mean()

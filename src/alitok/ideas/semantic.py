"""GigaTok's semantic regularization: a decoder's early features predict a frozen encoder's (arXiv 2504.08736)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.teachers import Teacher
from alitok.losses.terms import Batch, LossTerm, Outputs
from alitok.models import seams
from alitok.models.tokenizer import Tokenizer


class Semantic(LossTerm):
    """-cos(MLP(h), f), the mean over images and patches: h of a decoder block, f the teacher's features.

    The MLP is Linear(w, 4 w), SiLU, Linear(4 w, 4 w), SiLU, Linear(4 w, channels); it trains beside the tokenizer and
    is no part of the artifact. The teacher's map is as fine as the grid of patches.

    Args:
        teacher: a `Teacher`.
        block: which block of the decoder is read, from 1; None for depth / 8, rounded up, which is the paper's third
            of ViT-L's 24.
        weight: of the term in phases that name none.

    Raises:
        BadInput: `teacher` is no Teacher, or (once attached) the decoder has no such block.
    """

    def __init__(self, teacher: Teacher, block: int | None = None, weight: float = 0.5) -> None:
        if not isinstance(teacher, Teacher):
            raise BadInput(f"Semantic: teacher must be a {Teacher.__module__}.Teacher, not a {type(teacher).__name__}.")
        self.teacher = teacher
        self.block = block
        self.weight = weight

    def attach(self, model: nn.Module) -> None:
        decoder: Any = model.decoder if isinstance(model, Tokenizer) else None
        blocks = dict(decoder.named_children()).get("blocks") if decoder is not None else None
        if blocks is None or type(decoder).at_image is seams.Decoder.at_image:
            raise BadInput(
                f"Semantic reads a block of a tokenizer's decoder, and {type(decoder or model).__name__} has no"
                " `blocks`, or no `at_image` that finds the patches in them."
            )
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

    def check(self) -> None:
        self.teacher.check()

    def setup(self, device: torch.device | str) -> None:
        self.teacher.setup(device)

    def similarity(self, batch: Batch, outputs: Outputs) -> Tensor:
        """(B, H * W): the cosine at each patch."""
        assert self.head is not None
        hidden = self._decoder.at_image(outputs[self.taps[0]]).float()
        features = self.teacher.features(batch["image"].float(), math.isqrt(hidden.shape[1]))
        return F.cosine_similarity(self.head(hidden), features, dim=-1)

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return -self.similarity(batch, outputs).mean()

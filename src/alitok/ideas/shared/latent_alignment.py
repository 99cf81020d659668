"""Loss terms that align latents with a frozen encoder's features, place by place."""

import math

from torch import Tensor, nn

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.teachers import Teacher, TeacherTerm
from alitok.losses.terms import Batch, Outputs, required
from alitok.models.tokenizer import Tokenizer


class LatentAlignment(TeacherTerm):
    """Compares a head's output for each image latent with the teacher's feature at its place.

    The head trains with the tokenizer and is not in the artifact.

    Args:
        teacher: a `Teacher`.
        channels: channels of a latent.
        prefix: number of prefix latents before the square grid.

    Attributes:
        output: name of the tokenizer's output, (B, N, channels), that is compared.

    Raises:
        BadInput: `teacher` is no Teacher, or (once attached) the latents after the prefix form no square grid.
    """

    output = "latents"

    def __init__(self, teacher: Teacher, channels: int, prefix: int) -> None:
        super().__init__(teacher)
        self.channels = channels
        self.prefix = prefix

    def make_head(self) -> nn.Module:
        """(..., channels) -> (..., channels of the teacher)."""
        raise NotImplementedError

    def distance(self, projected: Tensor, features: Tensor) -> Tensor:
        """(B, M, C) each, for the M patches -> ()."""
        raise NotImplementedError

    def attach(self, model: nn.Module) -> None:
        places = model.num_tokens - self.prefix if isinstance(model, Tokenizer) else 0
        if places < 1 or math.isqrt(places) ** 2 != places:
            raise BadInput(
                f"{type(self).__name__} compares latents with a map: without its prefix of {self.prefix} the model must"
                f" have a square grid of latents, not {places}. Set prefix, or leave the term out."
            )
        self.head = self.make_head()

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        assert self.head is not None
        name = type(self).__name__
        sentence = f"{name} reads {self.output!r} of an encoder and its quantizer: leave it out if there is none."
        latents = required(outputs, self.output, sentence)[:, self.prefix :].float()
        if latents.shape[-1] != self.channels:
            raise BadInput(f"{name}: the latents have {latents.shape[-1]} channels, not {self.channels}; set channels.")
        features = self.teacher.features(batch["image"].float(), math.isqrt(latents.shape[1]))
        return self.distance(self.head(latents), features)

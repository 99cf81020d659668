"""CCA: a trained generator learns to separate its class from others, so that it needs no guidance (2410.09347)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.losses.terms import Batch, LossTerm, Outputs
from alitok.models.generator import Generator


class ConditionContrast(LossTerm):
    """-log s(beta R(x, y)) - share log s(-beta R(x, y')), over max(share, 1); s is the sigmoid.

    R is the sum over tokens of log p(token) - log p_reference(token). y' is a different class, drawn uniformly by seed,
    step and the image's place; CCA's code takes the label of the next image in the batch. An image whose label was
    dropped has only the first part. Phases with this term turn off the head's loss: `weights: {nats: 0}`.

    R grows with the number of tokens N, so beta depends on N.

    Args:
        classes: C of the generator.
        beta: None for 11.52 / N, which is the published 0.02 at 576 tokens.
        share: weight of the negatives, published as 300 to 1,000 (lambda); 1 keeps more diversity, for use with
            guidance.

    Raises:
        BadInput: fewer than two classes, or a value that is not positive.
    """

    needs_reference = True

    def __init__(self, classes: int, beta: float | None = None, share: float = 1000.0) -> None:
        if classes < 2 or (beta is not None and beta <= 0) or share <= 0:
            raise BadInput(
                "ConditionContrast takes 2 or more classes, and beta and share above 0, not"
                f" {classes}, {beta} and {share}."
            )
        self.classes, self.beta, self.share = classes, beta, share

    def attach(self, model: nn.Module) -> None:
        """Refuse a generator whose "nats" are no log probabilities of the tokens."""
        if not (isinstance(model, Generator) and model.causal and model.output.has_logits):
            raise BadInput(
                f"ConditionContrast compares log probabilities, which {type(model).__name__} does not give: take a"
                " causal generator whose head has logits."
            )
        if self.beta is None:
            self.beta = 11.52 / model.num_tokens

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        if step is None:
            raise BadInput("ConditionContrast draws its negative classes by step, so it is a term of training only.")
        assert self.beta is not None  # once attached
        own = batch["label"]
        drawn = [
            torch.randint(self.classes - 1, (), generator=step.stream("negative class", place)) for place in step.places
        ]
        other = (own + 1 + send(torch.stack(drawn), own.device)) % self.classes
        positive = -F.logsigmoid(self.beta * log_ratio(outputs, outputs["reference"]))
        with torch.no_grad():
            reference = outputs["reference"]["with_labels"](other)
        negative = -F.logsigmoid(-self.beta * log_ratio(outputs["with_labels"](other), reference))
        negative = torch.where(outputs["labels"] == own, negative, 0.0)
        return (positive + self.share * negative).mean() / max(self.share, 1.0)


def log_ratio(ours: Outputs, theirs: Outputs) -> Tensor:
    """R (B,): log ratio of the two probabilities of all tokens."""
    targets = ours["targets"]
    sub_codes = targets.shape[2] if targets.ndim == 3 else 1  # "nats" is the mean over sub-codes
    return sub_codes * (theirs["nats"].float() - ours["nats"].float()).sum(1)

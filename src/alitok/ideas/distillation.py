"""A small generator learns a larger one's probabilities on the cached tokens."""

import torch.nn.functional as F
from torch import Tensor

from alitok.common.random import Step
from alitok.losses.terms import Batch, LossTerm, Outputs, required


class Distillation(LossTerm):
    """KL(teacher || student) in nats, mean over tokens; the teacher is `model.reference`.

    This is the plain form from which VARKD (Qualcomm, 2026) starts: forward KL on real tokens. Its second phase, on
    tokens that the student draws, is not implemented.
    """

    needs_reference = True

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        sentence = "Distillation compares logits: both generators need a head that has them."
        ours = required(outputs, "logits", sentence).float().log_softmax(-1)
        theirs = required(outputs["reference"], "logits", sentence).float().log_softmax(-1)
        total = F.kl_div(ours, theirs, reduction="sum", log_target=True)
        return total / outputs["targets"].numel()

"""Distances between pixels, and the quantizer's own losses."""

import torch.nn.functional as F
from torch import Tensor

from alitok.common.random import Step
from alitok.losses.term import Batch, LossTerm, Outputs, image_pair, required


class MSE(LossTerm):
    """Mean squared difference of the pixels."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return F.mse_loss(*image_pair(batch, outputs))


class L1(LossTerm):
    """Mean absolute difference of the pixels."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        return F.l1_loss(*image_pair(batch, outputs))


class QuantizerLoss(LossTerm):
    """Sum of the quantizer's losses (for a vector quantizer: codebook + commitment); 0 for one that has none."""

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        losses = required(outputs, "quantizer_losses", "The quantizer loss needs a tokenizer with a quantizer.")
        return sum((loss.float() for loss in losses.values()), start=batch["image"].new_zeros(()).float())

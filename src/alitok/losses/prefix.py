"""The auxiliary loss on the strip that the prefix tokens decode to (arXiv 2506.05289): the first row of patches."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.losses.perceptual import Perceptual
from alitok.losses.terms import Batch, LossTerm, Outputs, image_pair, required


def _strip_and_target(batch: Batch, outputs: Outputs, extra: int) -> tuple[Tensor, Tensor, int]:
    """(prefix strip (B, 3, p, p K), target image, K). Raises BadInput unless K is the patches of a row + `extra`."""
    strip = required(outputs, "prefix", "The prefix loss needs a decoder with prefix_head: true.").float()
    target = batch["image"].float()
    patch, width = strip.shape[-2], target.shape[-1]
    if strip.shape[-1] != width + extra * patch:
        raise BadInput(
            f"The prefix strip is {strip.shape[-1]} pixels wide and its patches {patch}, but this prefix loss needs "
            f"{width // patch + extra} prefix tokens for images {width} wide; change num_prefix or the loss."
        )
    return strip, target, strip.shape[-1] // patch


class PrefixStrip(LossTerm):
    """The release's form: the mean squared error of the strip [top-left patch ; first row], scaled.

    The scale is factor x K / (image tokens), where K is one more than the patches of a row.

    Args:
        factor: multiplies the share of prefix tokens.
    """

    def __init__(self, factor: float = 10.0) -> None:
        self.factor = factor

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        strip, image, count = _strip_and_target(batch, outputs, extra=1)
        patch = strip.shape[-2]
        row = image[:, :, :patch]
        target = torch.cat([row[..., :patch], row], dim=-1)
        image_tokens = (image.shape[-2] // patch) * (image.shape[-1] // patch)
        return F.mse_loss(strip, target) * (self.factor * count / image_tokens)


class PrefixRow(LossTerm):
    """The paper's form: pixel error and perceptual distance between the strip and the first row of patches.

    For the perceptual part the strip replaces the first row of the reconstruction. The other rows' gradient is stopped,
    so that only the prefix learns from it.

    Args:
        perceptual: distance between whole images; None leaves this part out.
        mse_weight: weight of the mean squared error over the strip.
        perceptual_weight: weight of the distance between the assembled image and the target.
    """

    def __init__(
        self, perceptual: Perceptual | None = None, mse_weight: float = 1.0, perceptual_weight: float = 1.0
    ) -> None:
        self.perceptual = perceptual
        self.mse_weight = mse_weight
        self.perceptual_weight = perceptual_weight

    def check(self) -> None:
        if self.perceptual is not None:
            self.perceptual.check()

    def setup(self, device: torch.device | str) -> None:
        if self.perceptual is not None:
            self.perceptual.setup(device)

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> Tensor:
        strip, target, _ = _strip_and_target(batch, outputs, extra=0)
        patch = strip.shape[-2]
        loss = self.mse_weight * F.mse_loss(strip, target[:, :, :patch])
        if self.perceptual is not None:
            image, _ = image_pair(batch, outputs)
            assembled = torch.cat([strip, image[:, :, patch:].detach()], dim=-2)
            loss = loss + self.perceptual_weight * self.perceptual.distance(assembled, target).mean()
        return loss

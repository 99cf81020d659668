"""Adversarial losses on a discriminator's logits, for the tokenizer and for the discriminator."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Statistics = dict[str, Tensor]


class AdversarialLoss(nn.Module):
    """What an adversarial loss gives: a term for the tokenizer, one for the discriminator, and an explicit update.

    The two loss functions change no state. `discriminator_loss` also returns statistics, detached scalars that are
    batch means: average them over micro-batches and processes and hand them to `update` once per global batch.
    """

    def generator_loss(self, fake_logits: Tensor) -> Tensor:
        """Weighted term for the tokenizer: logits of reconstructions (B, 1, h, w) -> float32 scalar."""
        raise NotImplementedError

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Statistics]:
        """Loss of the discriminator, and statistics: logits (B, 1, h, w) of images and of detached reconstructions."""
        raise NotImplementedError

    def update(self, statistics: Statistics) -> None:
        """Takes in the statistics of one global batch; nothing for losses that keep none."""
        return


def hinge(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0.5 x (mean relu(1 - real) + mean relu(1 + fake))."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


def _statistics(real_logits: Tensor, fake_logits: Tensor) -> Statistics:
    return {"real_mean": real_logits.detach().mean(), "fake_mean": fake_logits.detach().mean()}


class HingeGAN(AdversarialLoss):
    """The release's form: hinge loss x weight; the tokenizer's term is -mean(fake) x weight x generator_weight."""

    def __init__(self, weight: float = 0.1, generator_weight: float = 0.05) -> None:
        super().__init__()
        self.weight = weight
        self.generator_weight = generator_weight

    def generator_loss(self, fake_logits: Tensor) -> Tensor:
        return -fake_logits.float().mean() * (self.weight * self.generator_weight)

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Statistics]:
        real_logits, fake_logits = real_logits.float(), fake_logits.float()
        return self.weight * hinge(real_logits, fake_logits), _statistics(real_logits, fake_logits)


class MagvitGAN(AdversarialLoss):
    """The paper's form, that of Open-MAGVIT2 (arXiv 2409.04410): non-saturating for the tokenizer, hinge with LeCam.

    Tokenizer: weight x mean over images of softplus(-m), m the mean logit of an image. Discriminator: hinge + lecam x
    [mean relu(real - running fake)^2 + mean relu(running real - fake)^2] (LeCam: Tseng et al. 2021, arXiv 2104.03310);
    `weight` does not scale it. The running means start at 0, are those from before the batch, and are buffers.

    Args:
        weight: of the tokenizer's term (lambda).
        lecam: weight of the LeCam regulariser; 0 leaves it out.
        decay: of the running means of the logits, per update.
    """

    real_mean: Tensor
    fake_mean: Tensor

    def __init__(self, weight: float = 0.1, lecam: float = 0.05, decay: float = 0.999) -> None:
        super().__init__()
        self.weight = weight
        self.lecam = lecam
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    def generator_loss(self, fake_logits: Tensor) -> Tensor:
        image_means = fake_logits.float().flatten(1).mean(dim=1)
        return self.weight * F.softplus(-image_means).mean()

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Statistics]:
        real_logits, fake_logits = real_logits.float(), fake_logits.float()
        loss = hinge(real_logits, fake_logits)
        if self.lecam:
            real_above = F.relu(real_logits - self.fake_mean)
            fake_below = F.relu(self.real_mean - fake_logits)
            loss = loss + self.lecam * (real_above.square().mean() + fake_below.square().mean())
        return loss, _statistics(real_logits, fake_logits)

    @torch.no_grad()
    def update(self, statistics: Statistics) -> None:
        self.real_mean.lerp_(statistics["real_mean"].to(self.real_mean), 1 - self.decay)
        self.fake_mean.lerp_(statistics["fake_mean"].to(self.fake_mean), 1 - self.decay)

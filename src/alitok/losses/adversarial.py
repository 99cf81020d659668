"""Discriminators, and adversarial losses on their logits."""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alitok.common.errors import BadInput


class BlurDownsample(nn.Module):
    """Halves each channel's height and width with the (1, 3, 3, 1) binomial kernel (Zhang 2019, arXiv 1904.11486)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 3.0, 3.0, 1.0])
        self.register_buffer("kernel", torch.outer(line, line)[None, None] / 64)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H // 2, W // 2)."""
        channels = x.shape[1]
        return F.conv2d(x, self.kernel.expand(channels, -1, -1, -1), stride=2, padding=1, groups=channels)


class BlurDiscriminator(nn.Module):
    """The release's discriminator; its state dict has the release's keys and shapes.

    Args:
        width: channels of the first convolution.
        stages: channels after each halving of the resolution.
        groups: groups of the group norms; divides every entry of `stages`.
        map_size: side of the map of logits; smaller maps are enlarged to it by repetition, larger ones max-pooled.

    Raises:
        BadInput: `groups` does not divide a stage's width.
    """

    def __init__(
        self, width: int = 128, stages: Sequence[int] = (128, 256, 512), groups: int = 32, map_size: int = 16
    ) -> None:
        super().__init__()
        uneven = [channels for channels in stages if channels % groups]
        if uneven:
            raise BadInput(f"BlurDiscriminator: stages {uneven} are not multiples of groups ({groups}); change either.")
        self.block_in = nn.Sequential(nn.Conv2d(3, width, 5, padding=2), nn.LeakyReLU(0.1))
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(narrow, wide, 3, padding=1),
                    BlurDownsample(),
                    nn.GroupNorm(groups, wide),
                    nn.LeakyReLU(0.1),
                )
                for narrow, wide in pairwise((width, *stages))
            )
        )
        self.pool = nn.AdaptiveMaxPool2d(map_size)
        last = stages[-1]
        self.to_logits = nn.Sequential(nn.Conv2d(last, last, 1), nn.LeakyReLU(0.1), nn.Conv2d(last, 1, 5, padding=2))

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B, 1, map_size, map_size) float32."""
        with torch.autocast(images.device.type, enabled=False):
            return self.to_logits(self.pool(self.blocks(self.block_in(images.float()))))


class PatchGAN(nn.Module):
    """PatchGAN (Isola et al. 2017, arXiv 1611.07004) as in Open-MAGVIT2, the paper's discriminator.

    4x4 convolutions with BatchNorm (none on the first) and LeakyReLU 0.2, then one to the map of logits. The norms
    always use the batch's statistics and keep no running ones, so that a forward pass changes no state.

    Args:
        widths: channels of the convolutions; all except the last one halve the resolution.
    """

    def __init__(self, widths: Sequence[int] = (64, 128, 256, 512)) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for index, (narrow, wide) in enumerate(pairwise(widths), start=2):
            layers += [
                nn.Conv2d(narrow, wide, 4, stride=1 if index == len(widths) else 2, padding=1, bias=False),
                nn.BatchNorm2d(wide, track_running_stats=False),
                nn.LeakyReLU(0.2),
            ]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        self.least_size = 3 * 2 ** (len(widths) - 1)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.BatchNorm2d):
                nn.init.normal_(layer.weight, mean=1.0, std=0.02)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), RGB in [0, 1] -> (B, 1, h, w) float32, h = H / 8 - 2 with the default widths.

        Raises:
            BadInput: the images are too small for a map.
        """
        if min(images.shape[-2:]) < self.least_size:
            raise BadInput(
                f"This PatchGAN needs images of at least {self.least_size} pixels a side but got "
                f"{images.shape[-2]} x {images.shape[-1]}; give it fewer widths."
            )
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(images.float())


Statistics = dict[str, Tensor]


class AdversarialLoss(nn.Module):
    """Base of adversarial losses: a term for the tokenizer, one for the discriminator, and an explicit update.

    The two loss functions change no state. `discriminator_loss` also returns statistics, detached scalars that are
    batch means. Average them over micro-batches and processes, and pass them to `update` once per global batch.
    """

    def generator_loss(self, fake_logits: Tensor) -> Tensor:
        """Weighted term for the tokenizer: logits of reconstructions (B, 1, h, w) -> float32 scalar."""
        raise NotImplementedError

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> tuple[Tensor, Statistics]:
        """The discriminator's loss and statistics, from logits (B, 1, h, w) of images and detached reconstructions."""
        raise NotImplementedError

    def update(self, statistics: Statistics) -> None:
        """Applies the statistics of one global batch; does nothing for losses that keep none."""
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
    [mean relu(real - running fake)^2 + mean relu(running real - fake)^2] (LeCam: Tseng et al. 2021, arXiv 2104.03310),
    not scaled by `weight`. The running means are buffers, start at 0, and do not yet include the batch.

    Args:
        weight: weight of the tokenizer's term (lambda).
        lecam: weight of the LeCam regularizer; 0 leaves it out.
        decay: decay of the running means of the logits, per update.
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

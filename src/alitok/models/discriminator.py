"""Discriminators: images (B, 3, H, W), RGB in [0, 1] -> a map of logits (B, 1, h, w), high for real; in float32."""

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
        groups: of the group norms; divides every entry of `stages`.
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

    4x4 convolutions with BatchNorm (none on the first) and LeakyReLU 0.2, the last width without stride, then one to
    the map of logits. The norms use the batch's statistics in training and in evaluation and keep no running ones,
    so that a forward pass changes no state.

    Args:
        widths: channels of the convolutions; all but the last one halve the resolution.
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
            BadInput: the images are too small to leave a map.
        """
        if min(images.shape[-2:]) < self.least_size:
            raise BadInput(
                f"This PatchGAN needs images of at least {self.least_size} pixels a side but got "
                f"{images.shape[-2]} x {images.shape[-1]}; give it fewer widths."
            )
        with torch.autocast(images.device.type, enabled=False):
            return self.layers(images.float())

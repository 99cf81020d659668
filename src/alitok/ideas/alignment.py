"""Latents aligned with a frozen encoder's features: VA-VAE's VF loss, and REPA's loss.

The terms read the latents before quantization, so they train the encoder; `Semantic` reads the decoder.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from alitok.ideas.shared.latent_alignment import LatentAlignment
from alitok.ideas.shared.teachers import Teacher


class VF(LatentAlignment):
    """VA-VAE's vision-foundation loss (arXiv 2501.01423, section 3.2) of linearly projected latents z and features f.

    mean relu(1 - m1 - cos(z_i, f_i)) + mean over i, j relu(|cos(z_i, z_j) - cos(f_i, f_j)| - m2), for patches i and j
    of one image.

    Args:
        cosine_margin: m1.
        distance_margin: m2.
        weight: weight of the term in phases that set none. VA-VAE multiplies 0.1 by the ratio of the gradients of the
            reconstruction and of this term at the encoder's last layer; here the weight is constant.
    """

    def __init__(
        self,
        teacher: Teacher,
        channels: int,
        prefix: int,
        cosine_margin: float = 0.5,
        distance_margin: float = 0.25,
        weight: float = 0.1,
    ) -> None:
        super().__init__(teacher, channels, prefix)
        self.cosine_margin, self.distance_margin, self.weight = cosine_margin, distance_margin, weight

    def make_head(self) -> nn.Module:
        return nn.Linear(self.channels, self.teacher.channels, bias=False)

    def distance(self, projected: Tensor, features: Tensor) -> Tensor:
        ours, theirs = F.normalize(projected, dim=-1), F.normalize(features, dim=-1)
        apart = 1 - self.cosine_margin - (ours * theirs).sum(-1)
        structure = (ours @ ours.mT - theirs @ theirs.mT).abs() - self.distance_margin
        return apart.relu().mean() + structure.relu().mean()


class LatentREPA(LatentAlignment):
    """Mean over images and patches of -cos(MLP(z), f) (REPA, arXiv 2410.06940, on latents as in SoftVQ).

    The MLP is Linear, SiLU, Linear, SiLU, Linear with two hidden layers of `hidden` channels.

    Args:
        hidden: channels of the hidden layers.
        weight: weight of the term in phases that set none.
    """

    def __init__(self, teacher: Teacher, channels: int, prefix: int, hidden: int = 1024, weight: float = 0.1) -> None:
        super().__init__(teacher, channels, prefix)
        self.hidden, self.weight = hidden, weight

    def make_head(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(self.channels, self.hidden),
            nn.SiLU(),
            nn.Linear(self.hidden, self.hidden),
            nn.SiLU(),
            nn.Linear(self.hidden, self.teacher.channels),
        )

    def distance(self, projected: Tensor, features: Tensor) -> Tensor:
        return -F.cosine_similarity(projected, features, dim=-1).mean()

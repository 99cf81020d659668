"""Binary codes with losses or noise: BSQ's unit sphere, and Instella's Bernoulli bits."""

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.bits import ShareStatistics, bit_entropy, bits_of, check_bits, ids_of
from alitok.models.seams import Quantized, Quantizer


class SphereQuantizer(Quantizer):
    """u = z / |z|, q = sign(u) / sqrt(D) (BSQ, arXiv 2406.07548). Bit i of an id is whether channel i is positive.

    The loss is entropy (E H(p) - diversity H(E p)) in nats, summed over the bits, with p = sigmoid(4 tau u / sqrt(D)).
    H(E p) is replaced by -E p log m - E (1 - p) log(1 - m), with m the mean of p over the previous global batch, so
    that an image's loss does not depend on how a batch is cut. The published code takes E p of the local batch, ramps
    the weight down from 3 to 1 over 2,000 steps, and has no commitment.

    Args:
        code_dim: D, bits of a token.
        tau: sharpness of the bits' probabilities.
        entropy: weight of the loss.
        diversity: gamma.
        commitment: weight of |u - q|^2, mean over channels.

    Raises:
        BadInput: fewer than 1 or more than 24 bits.
    """

    usage: Tensor

    def __init__(
        self,
        code_dim: int,
        tau: float = 1.0,
        entropy: float = 0.1,
        diversity: float = 1.0,
        commitment: float = 0.0,
    ) -> None:
        super().__init__()
        check_bits(code_dim)
        self.code_dim, self.codebook_size = code_dim, 1 << code_dim
        self.tau, self.entropy, self.diversity, self.commitment = tau, entropy, diversity, commitment
        self.register_buffer("usage", torch.full((code_dim,), 0.5))

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        ids = self.ids(latents)
        with torch.autocast(latents.device.type, enabled=False):
            unit = F.normalize(latents.float(), dim=-1)
            codes = self.lookup(ids)
            sharp = 4 * self.tau * unit / self.code_dim**0.5
            uncertainty = bit_entropy(sharp).sum(-1).mean()
            usage = self.usage.clamp(1e-4, 1 - 1e-4)
            share = torch.sigmoid(sharp)
            evenness = -(share * usage.log() + (1 - share) * (1 - usage).log()).sum(-1).mean()
            losses = {
                "entropy": self.entropy * (uncertainty - self.diversity * evenness),
                "commitment": self.commitment * F.mse_loss(unit, codes),
            }
            through = unit + (codes - unit).detach()
        statistics = None
        if self.training:
            rows = share.detach().flatten(0, -2)
            statistics = ShareStatistics(rows.sum(0), rows.new_full((), len(rows)))
        return Quantized(latents=unit, quantized=through, ids=ids, losses=losses, statistics=statistics)

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        return ids_of(latents, self.code_dim)

    def lookup(self, ids: Tensor) -> Tensor:
        return (2 * bits_of(ids, self.code_dim).float() - 1) / self.code_dim**0.5

    @torch.no_grad()
    def update(self, statistics: ShareStatistics) -> None:
        """Store E p of one global batch."""
        self.usage.copy_(statistics.total / statistics.count)


class BernoulliQuantizer(Quantizer):
    """b ~ Bernoulli(sigmoid(a / temperature)) in training, else b = [a > 0] (Instella-T2I, arXiv 2506.21022).

    The decoder gets b in {0, 1}, with the gradient of p = sigmoid(a), so its first layer sums the vectors of the set
    bits. Draws depend on seed, step and place. The loss "saturation" is the mean of p (1 - p); its weight is not
    published.

    Args:
        code_dim: D, bits of a token; Instella has 64, here the limit is 24.
        temperature: temperature of the draws.
        saturation: weight of the loss.

    Raises:
        BadInput: fewer than 1 or more than 24 bits, or a temperature that is not positive.
    """

    def __init__(self, code_dim: int, temperature: float = 0.1, saturation: float = 0.0) -> None:
        super().__init__()
        check_bits(code_dim)
        if temperature <= 0:
            raise BadInput(f"BernoulliQuantizer: temperature must be above 0, not {temperature}.")
        self.code_dim, self.codebook_size = code_dim, 1 << code_dim
        self.temperature, self.saturation = temperature, saturation

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            share = torch.sigmoid(latents)
            bits = bits_of(self.ids(latents), self.code_dim).float()
            if self.training and step is not None:
                streams = [step.stream("bits", place) for place in step.places]
                noise = torch.stack([torch.rand(latents.shape[1:], generator=each) for each in streams])
                drawn = send(noise, latents.device) < torch.sigmoid(latents.detach() / self.temperature)
                # a comparison would hide a latent that is not finite; NaN reaches the loss
                bits = torch.where(latents.detach().isfinite(), drawn.float(), torch.nan)
            losses = {"saturation": self.saturation * (share * (1 - share)).mean()}
            through = share + (bits - share).detach()
        return Quantized(latents=share, quantized=through, ids=ids_of(bits, self.code_dim), losses=losses)

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        return ids_of(latents, self.code_dim)

    def lookup(self, ids: Tensor) -> Tensor:
        return bits_of(ids, self.code_dim).float()

"""Codes without a table: the signs of a latent's channels, in one id (LFQ) or in groups (WeTok)."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.bits import ShareStatistics, bit_entropy, bits_of
from alitok.models.quantizer import BLOCK_ELEMENTS, check_codebook
from alitok.models.seams import Quantized, Quantizer


class LookupFreeQuantizer(Quantizer):
    """q = sign(z) in {-1, 1}^D, D = S log2 V, with an entropy loss for each group of log2 V channels.

    S = 1 is LFQ (MAGVIT-v2, arXiv 2310.05737), S > 1 the grouped form (WeTok, arXiv 2508.05599), S = D nearly BSQ. The
    latent is first divided by its root mean square, without a learned scale. Bit i of a sub-code, from the least
    significant, is whether channel i of its group is positive.

    The loss of a group is `entropy` [E H(p) - `diversity` H(E p)] with p(c | z) = softmax(2 tau z.c) over its V codes:
    each latent should be certain, all together should use all codes evenly. E p is over whole global batches: `forward`
    returns each micro-batch's part as statistics, `update` stores that of the last global batch, m, and -H(E p) enters
    as E p . log m, which has its gradient if m = E p. So neither processes nor accumulation change a step.

    Args:
        codebook_size: V, number of codes of a sub-code; a power of two.
        sub_codes: S.
        tau: sharpness of p.
        commitment: weight of the mean squared distance between latent and code.
        entropy: weight of the entropy loss.
        diversity: gamma, weight of H(E p) in it.

    Raises:
        BadInput: V is no power of two, S is below 1, or S V is above 2^24.
    """

    usage: Tensor
    form: Tensor

    def __init__(
        self,
        codebook_size: int,
        sub_codes: int = 1,
        tau: float = 100.0,
        commitment: float = 0.25,
        entropy: float = 0.1,
        diversity: float = 1.0,
    ) -> None:
        super().__init__()
        self.bits = codebook_size.bit_length() - 1
        if codebook_size < 2 or codebook_size != 1 << self.bits or sub_codes < 1:
            raise BadInput(
                f"A lookup-free quantizer has a power of two of codes and 1 or more sub-codes, not {codebook_size} and"
                f" {sub_codes}; change codebook_size or sub_codes."
            )
        check_codebook(sub_codes * codebook_size, "The lookup-free quantizer", "take smaller and more sub-codes")
        self.codebook_size = codebook_size
        self.sub_codes = sub_codes
        self.tau = tau
        self.commitment, self.entropy, self.diversity = commitment, entropy, diversity
        self.register_buffer("usage", torch.full((sub_codes, codebook_size), 1 / codebook_size))
        # A buffer, so that the tokenizer's digest reflects how bits make ids.
        self.register_buffer("form", torch.tensor([float(sub_codes), float(codebook_size)]))

    def forward(self, latents: Tensor, step: Step | None = None) -> Quantized:
        """(B, N, D) -> codes, ids (B, N) or (B, N, S), losses "entropy" (nats) and "commitment".

        Raises:
            BadInput: D is not S log2 V.
        """
        ids = self.ids(latents)
        with torch.autocast(latents.device.type, enabled=False):
            latents = F.rms_norm(latents.float(), latents.shape[-1:])
            codes = self.lookup(ids)
            entropy, statistics = self._entropy(latents)
            losses = {
                "entropy": self.entropy * entropy,
                "commitment": self.commitment * F.mse_loss(latents, codes),
            }
            straight_through = latents + (codes - latents).detach()
        kept = statistics if self.training else None
        return Quantized(latents=latents, quantized=straight_through, ids=ids, losses=losses, statistics=kept)

    @torch.no_grad()
    def ids(self, latents: Tensor) -> Tensor:
        """(B, N, D) -> ids (B, N) or (B, N, S), without the entropy of `forward`, which goes over all V codes.

        Raises:
            BadInput: D is not S log2 V.
        """
        width = self.sub_codes * self.bits
        if latents.shape[-1] != width:
            raise BadInput(
                f"{self.sub_codes} sub-code(s) of {self.codebook_size} codes take {width} channels, the latents have"
                f" {latents.shape[-1]}; set code_dim to {width}."
            )
        positive = rearrange(latents > 0, "b n (s d) -> b n s d", s=self.sub_codes).long()
        ids = (positive << torch.arange(self.bits, device=positive.device)).sum(-1)
        return ids[..., 0] if self.sub_codes == 1 else ids

    def lookup(self, ids: Tensor) -> Tensor:
        """ids (B, N) or (B, N, S) -> latents (B, N, D) float32."""
        grouped = ids[..., None] if self.sub_codes == 1 else ids
        return rearrange(self._signs(grouped), "b n s d -> b n (s d)")

    def _signs(self, ids: Tensor) -> Tensor:
        """ids (...) of a group -> (..., log2 V) of -1 and 1."""
        return bits_of(ids, self.bits).float() * 2 - 1

    def _entropy(self, latents: Tensor) -> tuple[Tensor, ShareStatistics]:
        """E H(p) - gamma H(E p), summed over the groups, and the statistics of these latents."""
        # p is a product over bits, sigmoid(4 tau z) each, so its entropy is the sum of the bits' entropies.
        uncertainty = bit_entropy(latents, 4 * self.tau).sum(-1).mean()
        groups = rearrange(latents.detach(), "b n (s d) -> s (b n) d", s=self.sub_codes)
        weights = self.usage.clamp_min(1e-3 / self.codebook_size).log()
        value, gradient, total = self._shares(groups, weights)
        gradient = rearrange(gradient, "s (b n) d -> b n (s d)", b=latents.shape[0])
        # the value of E p . log m, with its gradient by the latents
        moved = (latents * gradient).sum(-1).mean()
        unevenness = value + (moved - moved.detach())
        count = latents.new_full((), groups.shape[1])
        return uncertainty + self.diversity * unevenness, ShareStatistics(total, count)

    @torch.no_grad()
    def _shares(self, groups: Tensor, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sum p, and p . weights with its gradient, block by block, so that p never exists as a whole.

        Args:
            groups: (S, T, d) latents.
            weights: (S, V).

        Returns:
            Mean over T of p . weights, summed over S; gradient (S, T, d) of each latent's; sums of p (S, V).
        """
        signs = self._signs(torch.arange(self.codebook_size, device=groups.device))
        total, value, gradients = torch.zeros_like(weights), groups.new_zeros(()), []
        for block in groups.split(max(1, BLOCK_ELEMENTS // (self.sub_codes * self.codebook_size)), dim=1):
            shares = (2 * self.tau * block @ signs.T).softmax(-1)
            weighted = shares * weights[:, None]
            mean = weighted.sum(-1, keepdim=True)
            # one product: the difference of two would be their TF32 rounding, if a share is nearly 1
            gradients.append(2 * self.tau * ((weighted - mean * shares) @ signs))
            total += shares.sum(1)
            value += mean.sum()
        return value / groups.shape[1], torch.cat(gradients, dim=1), total

    @torch.no_grad()
    def update(self, statistics: ShareStatistics) -> None:
        """Store E p of one global batch."""
        self.usage.copy_(statistics.total / statistics.count)

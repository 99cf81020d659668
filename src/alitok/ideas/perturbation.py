"""Latent perturbation and pFID: a decoder trains with wrong tokens, and is measured on them.

Robust Latent Matters (arXiv 2503.08354).
"""

from itertools import product
from math import floor
from typing import NamedTuple

import torch
from torch import Tensor

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.images import Quantization, to_uint8
from alitok.common.random import Step, stream
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.fid import FeatureStatistics, frechet_distance
from alitok.models.quantizer import relative_distances
from alitok.models.seams import Bottleneck, Decoding, Quantized, Quantizer
from alitok.models.tokenizer import Tokenizer


def check_swappable(quantizer: Quantizer, count: int) -> None:
    """Check that a token can be swapped for one of its `count` nearest codes.

    Raises:
        BadInput: tokens have several sub-codes, ids are not those of the nearest codes, or there are fewer codes.
    """
    if quantizer.sub_codes > 1:
        raise BadInput(
            "Near codes can be swapped only if a token is one id; this quantizer's tokens have sub-codes: leave the"
            " perturbation (or --pfid) out, or take a quantizer of one id."
        )
    if not quantizer.nearest:
        raise BadInput(
            f"Near codes are near by distance, and {type(quantizer).__name__} chooses its codes otherwise: leave the"
            " perturbation (or --pfid) out, or take a quantizer that chooses the nearest code."
        )
    if not 1 <= count <= quantizer.codebook_size:
        raise BadInput(
            f"A token cannot be swapped among its {count} nearest codes: the codebook has {quantizer.codebook_size}."
        )


@torch.no_grad()
def nearest_codes(latents: Tensor, quantizer: Quantizer, count: int) -> Tensor:
    """The codes nearest to each latent by squared L2 distance, the nearest first.

    Args:
        latents: (B, N, D), before quantization.
        quantizer: has one id per token, and codes in the space of the latents.

    Returns:
        ids (B, N, count) int64.

    Raises:
        BadInput: fewer codes than `count`, or tokens of several sub-codes.
    """
    check_swappable(quantizer, count)
    size = quantizer.codebook_size
    with torch.autocast(latents.device.type, enabled=False):
        codes = quantizer.lookup(torch.arange(size, device=latents.device)[None])[0].float()
        blocks = relative_distances(latents.float().flatten(0, -2), codes)
        found = [distances.topk(count, largest=False).indices for _, distances in blocks]
    return torch.cat(found).view(*latents.shape[:-1], count)


def swap_ids(ids: Tensor, near: Tensor, alpha: float, uniforms: Tensor) -> Tensor:
    """Replace each id with probability alpha by one of its near codes, which include the true one.

    Args:
        ids: (B, N).
        near: (B, N, delta) from `nearest_codes`.
        uniforms: (B, N, 2) in [0, 1): decide whether an id is replaced, and by which code.

    Returns:
        ids (B, N).
    """
    choice = (uniforms[..., 1:] * near.shape[-1]).long()
    return torch.where(uniforms[..., 0] < alpha, near.gather(-1, choice)[..., 0], ids)


class LatentPerturbation(Bottleneck):
    """A bottleneck that swaps the tokens of some images for near codes (Robust Latent Matters, arXiv 2503.08354).

    The first floor(beta B) images of a global batch of B are perturbed: each of their tokens becomes with probability
    alpha one of the delta codes nearest to its latent, drawn uniformly. The gradient goes straight through to the
    latent; ids and the quantizer's losses are those of the true codes. The latent of a given token (post-training) is
    its code. alpha and delta are multiplied by a ratio that falls linearly from 1 to `final` over the interval `anneal`
    of the run. An image's random numbers depend only on seed, step and its place in the global batch.

    Args:
        alpha, beta, delta: as above.
        anneal: start and end of the ratio's fall, in 0..1 of the run's steps.
        final: the ratio after the fall; 1 for no annealing.

    Raises:
        BadInput: a share outside 0..1, or a delta below 2, which is no perturbation.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        beta: float = 0.1,
        delta: int = 100,
        anneal: tuple[float, float] = (0.2, 0.6),
        final: float = 0.5,
    ) -> None:
        super().__init__()
        for name, share in (("alpha", alpha), ("beta", beta), ("anneal", min(anneal)), ("anneal", max(anneal))):
            if not 0 <= share <= 1:
                raise BadInput(f"LatentPerturbation: {name} must lie in 0..1, not {share}.")
        if not 0 <= final <= 1 or anneal[0] > anneal[1]:
            raise BadInput(f"LatentPerturbation: final must lie in 0..1, not {final}, and anneal must not fall.")
        if delta < 2:
            raise BadInput(f"LatentPerturbation: of {delta} nearest codes none is another; set delta to 2 or more.")
        self.alpha, self.beta, self.delta = alpha, beta, delta
        self.anneal, self.final = anneal, final

    def check(self, quantizer: Quantizer) -> None:
        """Raise BadInput if the quantizer's codes cannot be swapped in this way."""
        check_swappable(quantizer, self.delta)

    def ratio(self, progress: float) -> float:
        """The factor on alpha and delta after this share of the run."""
        begin, end = self.anneal
        if progress <= begin:
            return 1.0
        return 1 - (1 - self.final) * min(1.0, (progress - begin) / max(end - begin, 1e-9))

    def forward(self, tokens: Quantized, quantizer: Quantizer, step: Step) -> list[Decoding]:
        """(B, N, D), some tokens swapped; unchanged if the phase does not quantize."""
        count = min(floor(self.beta * step.size + 1e-9) - step.places.start, len(tokens.ids))
        if tokens.quantized is None or count <= 0:
            return [Decoding(latents=tokens.decodable)]
        ratio, latents, ids = self.ratio(step.progress), tokens.latents[:count], tokens.ids[:count]
        delta = max(1, floor(ratio * self.delta + 1e-9))
        drawn = [
            torch.rand(ids.shape[1], 2, generator=step.stream("perturbation", place)) for place in step.places[:count]
        ]
        with torch.no_grad():
            near = nearest_codes(latents, quantizer, delta)
            swapped = swap_ids(ids, near, ratio * self.alpha, send(torch.stack(drawn), ids.device))
            shift = quantizer.lookup(swapped) - latents
        return [Decoding(latents=torch.cat([latents + shift, tokens.quantized[count:]]))]


ALPHAS = (0.5, 0.6, 0.7, 0.8, 0.9)
DELTAS = {16384: (200, 280, 360), 8192: (100, 140, 180), 4096: (50, 70, 90), 1024: (10, 15, 20)}
SHARES = (0.0122, 0.0171, 0.022)  # of the codebook, for other sizes; taken from the first three rows


class Setting(NamedTuple):
    """Each token becomes, with probability alpha, one of the delta codes nearest to its latent."""

    alpha: float
    delta: int


def deltas_of(codebook_size: int) -> tuple[int, ...]:
    """The deltas of a codebook size: the three published ones, else the same shares of the codebook, each once."""
    if codebook_size in DELTAS:
        return DELTAS[codebook_size]
    return tuple(dict.fromkeys(min(codebook_size, max(2, round(share * codebook_size))) for share in SHARES))


class PerturbedFID:
    """FID of decoded perturbed codes, averaged over 15 settings (Robust Latent Matters, arXiv 2503.08354, pFID).

    Comparable only between tokenizers of one codebook size, and with equal numbers of images.

    Args:
        extractor: extractor of the features.
        tokenizer: its codebook size decides the deltas.

    Attributes:
        settings: the pairs of alpha and delta.

    Raises:
        BadInput: the tokenizer's tokens cannot be swapped.
    """

    def __init__(self, extractor: Extractor, tokenizer: Tokenizer) -> None:
        self.extractor = extractor
        self.deltas = deltas_of(tokenizer.codebook_size)
        check_swappable(tokenizer.quantizer, max(self.deltas))
        self.settings = [Setting(*pair) for pair in product(ALPHAS, self.deltas)]
        self.titles = [f"{setting.alpha:.0%} of {setting.delta}" for setting in (self.settings[0], self.settings[-1])]
        self.reasons = []
        if tokenizer.codebook_size not in DELTAS:
            self.reasons = [f"pFID has no published deltas for a codebook of {tokenizer.codebook_size:,} codes"]
        self.reset()

    def reset(self) -> None:
        self.statistics = [FeatureStatistics(self.extractor.num_features) for _ in self.settings]

    @torch.no_grad()
    def add(self, setting: Setting, images: Tensor) -> None:
        """Add uint8 images (B, 3, H, W) decoded from codes that were perturbed with one of the settings."""
        self.statistics[self.settings.index(setting)].update(self.extractor(images).pooled)

    @torch.no_grad()
    def update(self, tokenizer: Tokenizer, latents: Tensor, index: Tensor, quantization: Quantization) -> list[Tensor]:
        """Add the decodings in every setting of images, given as the encoder's latents (B, N, D).

        The random numbers depend on the image's number `index`, and are the same in all settings.

        Returns:
            uint8 (B, 3, H, W) of the mildest and of the harshest setting.
        """
        encoded: Quantized = tokenizer.quantizer(latents)  # its latents are in the codes' space: normed, or bounded
        ids = encoded.ids
        near = nearest_codes(encoded.latents, tokenizer.quantizer, max(self.deltas))
        drawn = [torch.rand(ids.shape[1], 2, generator=stream("pFID", number)) for number in index.tolist()]
        uniforms = torch.stack(drawn).to(ids.device)
        ends = []
        for setting in self.settings:
            swapped = swap_ids(ids, near[..., : setting.delta], setting.alpha, uniforms)
            images = to_uint8(tokenizer.decode(swapped, indices=index.tolist()), quantization)
            self.add(setting, images)
            if setting in (self.settings[0], self.settings[-1]):
                ends.append(images)
        return ends

    def compute(self, real: FeatureStatistics) -> dict[str, float | dict[str, float]]:
        """`pfid` and `pfid_by_setting` (by "alpha 0.5, delta 50", ...) against the images, equal on every process.

        Raises:
            BadInput: fewer than two images.
        """
        found = {
            f"alpha {setting.alpha:g}, delta {setting.delta}": frechet_distance(statistics.reduce(), real)
            for setting, statistics in zip(self.settings, self.statistics, strict=True)
        }
        return {"pfid": sum(found.values()) / len(found), "pfid_by_setting": found}

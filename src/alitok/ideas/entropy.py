"""The entropy loss of vector quantizers: each latent should be certain of its code, all together use codes evenly."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.common.random import Step
from alitok.ideas.shared.bits import ShareStatistics
from alitok.losses.terms import Batch, LossTerm, Outputs, required
from alitok.models.quantizer import BLOCK_ELEMENTS, ClusteredQuantizer
from alitok.models.tokenizer import Tokenizer


class CodebookEntropy(LossTerm):
    """E H(p) - diversity H(E p), p(c | z) = softmax(-|z - c|^2 / temperature), z and c on the unit sphere.

    With `products`, p(c | z) = softmax(z . c / temperature) of the vectors as they are, by which IBQ chooses.

    It is the loss of MAGVIT, LlamaGen and GigaTok (arXiv 2504.08736: weight 0.005 for its largest tokenizers, 0 for
    the others; FQGAN has 0.03), in nats; with several codebooks, the mean over them. The published code takes E p over
    the local batch, here it is over whole global batches: E p enters as E p . log m, with m from the last global
    batch, which has the value and gradient of -H(E p) if m = E p. So neither processes nor accumulation change a step.

    p compares directions, as the quantizers of these papers do. A quantizer that compares vectors, like AliTok's, may
    choose a code that is not p's most probable one: for 5 to 7 % of the tokens of trained tokenizers.

    Args:
        temperature: temperature of p; squared distances lie in 0..4.
        products: compare inner products, not directions.
        diversity: weight of H(E p).
        weight: weight of the term in phases that set none.

    Raises:
        BadInput: the temperature is not positive, or (once attached) the model has no codebook, or one codebook for
            all sub-codes.
    """

    def __init__(
        self, temperature: float = 0.01, diversity: float = 1.0, weight: float = 0.005, products: bool = False
    ) -> None:
        if temperature <= 0:
            raise BadInput(f"CodebookEntropy: temperature must be above 0, not {temperature}.")
        self.products = products
        self.temperature, self.diversity, self.weight = temperature, diversity, weight

    def attach(self, model: nn.Module) -> None:
        quantizer = model.quantizer if isinstance(model, Tokenizer) else None
        if not isinstance(quantizer, ClusteredQuantizer):
            raise BadInput(
                f"CodebookEntropy reads a codebook, and {type(quantizer or model).__name__} has none: take a"
                " ClusteredQuantizer. Quantizers of bits have an entropy loss of their own."
            )
        self._quantizer = quantizer
        groups, codes = quantizer.sub_codes, quantizer.codebook_size
        if quantizer.codebook.weight.shape[0] != groups * codes:
            raise BadInput(
                "CodebookEntropy takes a codebook for each sub-code, and those of"
                f" {type(quantizer).__name__} share one: leave the term out."
            )
        self.head = nn.Module()
        self.head.register_buffer("share", torch.full((groups, codes), 1 / codes))

    def compute(self, batch: Batch, outputs: Outputs, step: Step | None) -> tuple[Tensor, ShareStatistics | None]:
        assert self.head is not None
        sentence = "CodebookEntropy needs an encoder's latents: leave it out if the tokens are given."
        latents = required(outputs, "latents", sentence).float()
        groups = self._quantizer.sub_codes
        features = self._scaled(latents.reshape(-1, groups, latents.shape[-1] // groups)).unbind(1)
        every = torch.arange(self._quantizer.codebook_size, device=latents.device)
        ids = every[None] if groups == 1 else every[None, :, None].expand(1, -1, groups)
        codes = self._quantizer.lookup(ids)[0].unflatten(-1, (groups, -1))  # as the decoder gets them
        codebooks = self._scaled(codes).unbind(1)
        share = self.head.get_buffer("share")
        logs = share.clamp_min(1e-3 / share.shape[1]).log()
        value, totals = latents.new_zeros(()), []
        for feature, codes, log in zip(features, codebooks, logs, strict=True):
            total = torch.zeros_like(log)
            for block in feature.split(max(1, BLOCK_ELEMENTS // len(codes))):
                # the probabilities are recomputed in the backward pass: (tokens, V) would not fit at full size
                certain, even, took = checkpoint(self._block, block, codes, log, use_reentrant=False)
                value = value + (certain + self.diversity * even) / (groups * len(feature))
                total += took
            totals.append(total)
        count = latents.new_full((), len(features[0]))
        return value, ShareStatistics(torch.stack(totals), count) if step is not None else None

    def _scaled(self, vectors: Tensor) -> Tensor:
        return vectors if self.products else F.normalize(vectors, dim=-1)

    def _block(self, features: Tensor, codes: Tensor, log: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """features (m, d), codes (V, d) -> sums over m of H(p) and of p . log, and of p (V,) without a gradient."""
        with float32_products(tf32=False):  # TF32's ten bits are too few for differences divided by the temperature
            logits = (1 if self.products else 2) / self.temperature * features @ codes.T  # -|z - c|^2 = 2 z.c - 2
        logs = logits.log_softmax(-1)
        p = logs.exp()
        return -(p * logs).sum(), (p @ log).sum(), p.detach().sum(0)

    @torch.no_grad()
    def update(self, statistics: ShareStatistics) -> None:
        """Store E p of one global batch."""
        assert self.head is not None
        self.head.get_buffer("share").copy_(statistics.total / statistics.count)

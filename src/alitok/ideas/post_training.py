"""Post-training of a decoder on pairs of a real image and a generator's tokens for it (arXiv 2509.12474)."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.data.batches import Batch, ImageBatches
from alitok.data.datamodule import ImageNetDataModule
from alitok.data.sources import fingerprint
from alitok.data.token_cache import TokenCache
from alitok.sampling.generate import Sampler

Form = Literal["direct", "reencoded"]
FORMS: tuple[Form, ...] = get_args(Form)  # the views of a cache of pairs


class PairedDataModule(ImageNetDataModule):
    """Center crops of training images with a generator's tokens for each as `tokens` (B, N); validation is unchanged.

    Args:
        pairs: folder that `alitok pairs` made from the same images.
        form: "direct" takes the drawn tokens; "reencoded" the encoder's tokens of the picture that they decode to, as
            in the paper.
        arguments: arguments of `ImageNetDataModule`; `count` must be that of the pairs. There is no random cropping
            and no flipping.

    Raises (in setup):
        BadInput: missing pairs, or pairs of other images.
    """

    def __init__(self, pairs: str, form: Form = "reencoded", **arguments: Any) -> None:
        super().__init__(**{**arguments, "augment": False, "flip": False})
        if form not in FORMS:
            raise BadInput(f"Pairs come in the forms {' and '.join(FORMS)}, not {form!r}.")
        self.pairs, self.form = pairs, form

    def setup(self, stage: str | None = None) -> None:
        """As the parent's; also checks that the pairs belong to the training images."""
        super().setup(stage)
        train = self.splits.get("train")
        if self.token_cache is not None or not isinstance(train, ImageBatches):
            return
        cache = TokenCache(self.pairs)
        if cache.views != len(FORMS) or "sigma" not in cache.recipe:
            raise BadInput(f"{self.pairs} is a token cache, but not one of pairs; make them with `alitok pairs`.")
        if cache.metadata.get("source") != fingerprint(train.source):
            raise BadInput(
                f"The pairs in {self.pairs} are of {cache.metadata.get('source_description')}, not of"
                f" {train.source.description}; give data.source and data.count as `alitok pairs` had them."
            )
        self.token_cache = cache
        self.descriptions["train"] += f", {self.form} tokens (sigma {cache.recipe['sigma']:g})"

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add the tokens to a training batch."""
        if self.token_cache is None or self.trainer is None or not self.trainer.training:
            return batch
        views = torch.full_like(batch["index"], FORMS.index(self.form))
        return {**batch, "tokens": self.token_cache.gather(batch["index"], views)}


def check_sigma(sigma: float) -> None:
    """Raise BadInput if sigma is no share of tokens."""
    if not 0 <= sigma <= 1:
        raise BadInput(f"The share of true tokens, sigma, must lie in 0..1, not {sigma}.")


class MixedSampler:
    """Draws sequences in which about a share sigma of the tokens comes from real images.

    Args:
        sampler: the generator's sampler.
        sigma: probability that a token is the true one, 0..1.

    Raises:
        BadInput: sigma outside 0..1.
    """

    def __init__(self, sampler: Sampler, sigma: float) -> None:
        check_sigma(sigma)
        self.sampler, self.sigma = sampler, sigma

    def sample(self, ids: Tensor, labels: Tensor, indices: Sequence[int]) -> Tensor:
        """Draw sequences for images with given tokens; image i is the same in any batch on a CPU.

        Args:
            ids: (B, N) or (B, N, S) the images' tokens.
            labels: (B,) their classes.
            indices: numbers of the images; with the seed they decide which tokens are true, and the draws.

        Returns:
            ids of the same shape.
        """
        tokens, seed = ids.shape[1], self.sampler.draw.seed
        drawn = torch.stack([torch.rand(tokens, generator=stream(seed, "true tokens", index)) for index in indices])
        true = (drawn < self.sigma).to(ids.device)
        return self.sampler.sample(labels, indices, given=ids, given_mask=true)

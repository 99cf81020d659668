"""Real images together with tokens that a generator wrote for them: what a decoder is post-trained on."""

from typing import Any, Literal, get_args

import torch

from alitok.common.errors import BadInput
from alitok.data.batches import Batch, ImageBatches
from alitok.data.datamodule import ImageNetDataModule
from alitok.data.sources import fingerprint
from alitok.data.token_cache import TokenCache

Form = Literal["direct", "reencoded"]
FORMS: tuple[Form, ...] = get_args(Form)  # the views of a cache of pairs


class PairedDataModule(ImageNetDataModule):
    """Centre crops of training images and, as `tokens` (B, N), what a generator wrote for each; validation as ever.

    Args:
        pairs: folder that `alitok pairs` made of the same images.
        form: "direct" takes the tokens that were drawn; "reencoded" those that the encoder finds in the picture that
            they decode to, as in the paper.
        arguments: of `ImageNetDataModule`; `count` as the pairs were made with. There is no cropping and no flipping.

    Raises (in setup):
        BadInput: an unknown form, pairs that are missing or of other images.
    """

    def __init__(self, pairs: str, form: Form = "reencoded", **arguments: Any) -> None:
        super().__init__(**{**arguments, "augment": False, "flip": False})
        if form not in FORMS:
            raise BadInput(f"Pairs come in the forms {' and '.join(FORMS)}, not {form!r}.")
        self.pairs, self.form = pairs, form

    def setup(self, stage: str | None = None) -> None:
        """As the parent's; holds the pairs against the training images."""
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
        """Adds the tokens to a training batch."""
        if self.token_cache is None or self.trainer is None or not self.trainer.training:
            return batch
        views = torch.full_like(batch["index"], FORMS.index(self.form))
        return {**batch, "tokens": self.token_cache.gather(batch["index"], views)}

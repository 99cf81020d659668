"""Training of the autoregressive generator on cached tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alitok.common.errors import BadInput
from alitok.models.generator import Generator
from alitok.training.base import TrainingModule, build_on
from alitok.training.optimizer import adamw, generator_decays


class GeneratorTraining(TrainingModule):
    """Next-token prediction with dropped classes.

    Args:
        generator: class block of the generator.
        phases, warmup_steps, weight_decay, betas, clip, seed: see `TrainingModule`.
        class_dropout: probability that an image's label becomes "no class".
        guidance, power, sampling_seed: what the artifact's card recommends for sampling.
    """

    def __init__(
        self,
        generator: dict[str, Any],
        phases: dict[str, Any],
        warmup_steps: int = 0,
        weight_decay: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.96),
        clip: float | None = 1.0,
        seed: int = 0,
        class_dropout: float = 0.1,
        guidance: float = 0.0,
        power: float = 1.0,
        sampling_seed: int = 0,
    ) -> None:
        super().__init__(phases, warmup_steps, weight_decay, betas, clip, seed)
        self.generator: Generator = build_on(generator)  # type: ignore[assignment]
        self.class_dropout = class_dropout
        self.recommended = {"guidance": guidance, "power": power, "seed": sampling_seed}
        self.parents: dict[str, str] = {}

    def setup(self, stage: str) -> None:
        """Holds the generator against the cache it is given.

        Raises:
            BadInput: another number of tokens, codes or classes.
        """
        cache = getattr(self.trainer.datamodule, "token_cache", None)  # type: ignore[attr-defined]
        if cache is None:
            raise BadInput("The generator trains on a token cache: give data.cache the folder `alitok tokenize` made.")
        if cache.num_tokens != self.generator.num_tokens:
            raise BadInput(
                f"The cache has {cache.num_tokens} tokens an image, the generator expects {self.generator.num_tokens}:"
                " it was made with another tokenizer."
            )
        if cache.codebook_size is not None and cache.codebook_size != self.generator.codebook_size:
            raise BadInput(
                f"The cache's codebook has {cache.codebook_size} codes, the generator's {self.generator.codebook_size}."
            )
        if len(cache.class_names or []) > self.generator.num_classes:
            raise BadInput(
                f"The cache has {len(cache.class_names)} classes, the generator only {self.generator.num_classes}:"
                " set num_classes."
            )
        if cache.digest is not None:
            self.parents["tokenizer"] = cache.digest

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self.generator.named_parameters(), self.weight_decay, self.betas, generator_decays)

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        step = self.trainer.global_step
        moment = self.schedule.at(step)
        for part, share in self.micro_batches(batch, step):
            labels = part["label"]
            dropped = torch.rand(labels.shape, device=labels.device) < self.class_dropout
            labels = torch.where(dropped, self.generator.num_classes, labels)
            logits = self.generator(part["tokens"], labels).float()
            loss = F.cross_entropy(logits.flatten(0, -2), part["tokens"].flatten())
            self.log("train/loss", loss, batch_size=len(labels))
            self.manual_backward(loss * share)
        self.optimize(0, moment, self.generator.parameters())

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        logits = self.generator(batch["tokens"], batch["label"]).float()
        loss = F.cross_entropy(logits.flatten(0, -2), batch["tokens"].flatten())
        self.log("val/loss", loss, batch_size=len(batch["label"]), sync_dist=True)
        return {"logits": logits}

    test_step = validation_step

"""Training of the autoregressive generator on cached tokens."""

from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.models.generator import Generator
from alitok.training.base import TrainingModule, build_with_block
from alitok.training.optimizer import AdamW, adamw, generator_decays
from alitok.training.schedule import Moment


class GeneratorTraining(TrainingModule):
    """Next-token prediction with dropped classes.

    Args:
        generator: class block of the generator.
        phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks: see
            `TrainingModule`.
        class_dropout: probability that an image's label becomes "no class".
        guidance, power, schedule, sampling_seed: what the artifact's card recommends for sampling.
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
        schedule: str | None = None,
        sampling_seed: int = 0,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__(
            phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks
        )
        self.generator: Generator = build_with_block(generator)  # type: ignore[assignment]
        self.class_dropout = class_dropout
        self.recommended = {"guidance": guidance, "power": power, "schedule": schedule, "seed": sampling_seed}

    @property
    def model(self) -> Generator:
        return self.generator

    @property
    def leaves_unused(self) -> bool:
        return False

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
                " it was made with another tokenizer, or data.keep is not the generator's length."
            )
        theirs, ours = getattr(cache, "sub_codes", None), self.generator.sub_codes
        if theirs != ours:
            raise BadInput(
                f"The cache's tokens have {theirs or 'no'} sub-codes, the generator's {ours or 'none'}: lay the"
                " generator's file of that quantizer (experiments/ideas/) over the configuration, or take it away."
            )
        if cache.codebook_size is not None and cache.codebook_size != self.generator.codebook_size:
            raise BadInput(
                f"The cache's codebook has {cache.codebook_size} codes, the generator's {self.generator.codebook_size}."
            )
        if len(cache.class_names or []) > self.generator.num_classes:
            raise BadInput(
                f"The cache has {len(cache.class_names)} classes, the generator only {self.generator.num_classes}:"
                f" give it as many (--define.num_classes {len(cache.class_names)})."
            )
        if cache.digest is not None:
            self.parents["tokenizer"] = cache.digest

    def configure_optimizers(self) -> AdamW:
        return adamw(self.generator.named_parameters(), self.weight_decay, self.betas, generator_decays)

    def train_batch(self, batch: dict[str, Tensor], step: int, moment: Moment) -> None:
        for part in self.micro_batches(batch, step):
            labels = self._drop_classes(part.batch, step)
            logits = self.generator(part.batch["tokens"], labels).float()
            loss = F.cross_entropy(logits.flatten(0, -2), part.batch["tokens"].flatten())
            self.note("loss", loss, part.share)
            self.backward_part(loss, part)
        self.finish_gradients(self.generator.parameters(), averaged=isinstance(self.trainer.strategy, DDPStrategy))
        self.optimize(0, moment, self.generator.parameters())

    def _drop_classes(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Labels, some of them "no class": which ones depends on seed and position, not on processes."""
        size = self.trainer.datamodule.global_batch  # type: ignore[attr-defined]
        drawn = send(torch.rand(size, generator=stream(self.seed, "class", step)), batch["label"].device)
        dropped = drawn[batch["position"] - step * size] < self.class_dropout
        return torch.where(dropped, self.generator.num_classes, batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        logits = self.generator(batch["tokens"], batch["label"]).float()
        loss = F.cross_entropy(logits.flatten(0, -2), batch["tokens"].flatten())
        self.note_validation("loss", loss, len(batch["label"]))
        return {"logits": logits}

    test_step = validation_step

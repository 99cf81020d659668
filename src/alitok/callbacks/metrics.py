"""Metrics of a run on its validation split: reconstruction, codebook, accuracy, and FID / IS of samples."""

from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from alitok.callbacks.average import evaluated
from alitok.callbacks.loggers import show_counts
from alitok.callbacks.pictures import draw_in_training, load_matching
from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput
from alitok.common.images import to_uint8
from alitok.evaluation.extractors import Extractor, open_extractor
from alitok.evaluation.fid import FeatureStatistics
from alitok.evaluation.generation import GenerationMetrics
from alitok.evaluation.metric import Metric
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.evaluation.reference import file_reference, refuse_for_samples
from alitok.evaluation.tokens import CodebookUsage, TokenAccuracy
from alitok.sampling.images import sample_images


class ValidationMetric(Callback):
    """Passes validation batches to evaluation metrics, and logs the results as `val/NAME`.

    A subclass makes its metrics in `metrics` and passes batches to them in `update`.
    """

    def metrics(self, module: Any) -> dict[str, Metric]:
        """New metrics by name, for one validation."""
        raise NotImplementedError

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        """Adds one batch to `self.running`."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.running = self.metrics(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.running:
            self.update(outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metric in self.running.values():
            log_everywhere(pl_module, metric.compute())

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


class Reconstruction(ValidationMetric):
    """PSNR, SSIM and, with an extractor, rFID of reconstructions; usage and perplexity of the codebook.

    Args:
        extractor: argument of `open_extractor`; None for no rFID.
        count: number of validation images to measure, the same ones for any number of processes; None for all.
    """

    def __init__(self, extractor: str | None = None, count: int | None = None) -> None:
        if count is not None and count < 2:
            raise BadInput(f"Reconstruction metrics need a count of at least 2 images, not {count}.")
        self.extractor, self.count = extractor, count
        self._extractor: Extractor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.extractor is not None and self._extractor is None:
            self._extractor = open_extractor(self.extractor, trainer.strategy.root_device)

    def metrics(self, module: Any) -> dict[str, Metric]:
        codes = CodebookUsage(module.tokenizer.codebook_size, module.tokenizer.sub_codes)
        return {"reconstruction": ReconstructionMetrics(self._extractor), "codebook": codes}

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        images, copies, ids = batch["image"], outputs["image"], outputs["ids"]
        if self.count is not None:
            chosen = batch["position"] < self.count  # the order is shuffled, so these are of all classes
            images, copies, ids = images[chosen], copies[chosen], ids[chosen]
        self.running["reconstruction"].update(images, copies)
        self.running["codebook"].update(ids)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        codes = self.running.get("codebook")
        if isinstance(codes, CodebookUsage) and not trainer.sanity_checking:
            show_counts(trainer, "codes", all_sum(codes.counts).flatten())

    on_test_epoch_end = on_validation_epoch_end


class Accuracy(ValidationMetric):
    """Teacher-forced top-1 accuracy and nats per token, if the generator's head has logits."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        head = cast(Any, pl_module).generator.output
        if not head.has_logits and trainer.is_global_zero:
            print(
                f"{type(head).__name__} has no logits of tokens: token accuracy and token nats are left out.",
                flush=True,
            )

    def metrics(self, module: Any) -> dict[str, Metric]:
        if not module.generator.output.has_logits:
            return {}
        return {"accuracy": TokenAccuracy(module.generator.num_tokens)}

    def update(self, outputs: Any, batch: dict[str, Tensor]) -> None:
        self.running["accuracy"].update(outputs["logits"], batch["tokens"])


class Generation(Callback):
    """FID and Inception Score of samples drawn at each validation, with all classes in turn and fixed random numbers.

    Draws with the trained weights, or with their average if `callbacks.average` keeps one.

    Args:
        tokenizer: artifact that decodes the samples.
        extractor: argument of `open_extractor`.
        reference: statistics (.npz) of the same extractor; None for no FID.
        count: number of samples over all processes.
        batch: samples drawn at a time.
        guidance, power, schedule: guidance of the sampling; a guidance of 0 for none, a schedule of None for
            power-cosine.
    """

    def __init__(
        self,
        tokenizer: str,
        extractor: str,
        reference: str | None = None,
        count: int = 1000,
        batch: int = 50,
        guidance: float = 0.0,
        power: float = 1.0,
        seed: int = 0,
        schedule: str | dict[str, Any] | None = None,
    ) -> None:
        if count < 2 or batch < 1:
            raise BadInput(f"Samples need a count of at least 2 and a batch of at least 1, not {count} and {batch}.")
        self.tokenizer, self.extractor, self.reference = tokenizer, extractor, reference
        self.count, self.batch = count, batch
        self.draw = {"guidance": guidance, "power": power, "schedule": schedule, "seed": seed}
        self._ready: tuple[Any, Extractor, FeatureStatistics | None] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Opens tokenizer, extractor and reference at the start, before hours of training."""
        if self._ready is None:
            device = trainer.strategy.root_device
            extractor, reference = open_extractor(self.extractor, device), None
            if self.reference is not None:
                stored = file_reference(Path(self.reference), extractor)
                if stored.pooled is None:
                    raise BadInput(f"{self.reference} holds no mu and sigma: make it with evaluate --save-statistics.")
                refuse_for_samples(stored)
                reference = stored.pooled
            tokenizer = load_matching(self.tokenizer, trainer, pl_module, device)
            self._ready = tokenizer, extractor, reference

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or self._ready is None:
            return
        tokenizer, extractor, reference = self._ready
        generator: Any = evaluated(trainer, pl_module)
        metrics = GenerationMetrics(extractor, reference)
        classes = len(trainer.datamodule.class_names)  # type: ignore[attr-defined]
        mine = range(trainer.global_rank, self.count, trainer.world_size)
        labels = [index % classes for index in mine]
        draw = draw_in_training(pl_module, self.draw)
        for indices, _, images in sample_images(generator, tokenizer, labels, draw, mine, self.batch):
            metrics.update(to_uint8(images), torch.tensor(indices))
        log_everywhere(pl_module, metrics.compute())


def log_everywhere(module: LightningModule, values: dict[str, float]) -> None:
    """Logs numbers, which are equal on every process, on every process, so that all callbacks have them."""
    for name, value in values.items():
        module.log(f"val/{name}", value, sync_dist=True)

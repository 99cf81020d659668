"""Metrics of a run on its validation split: reconstruction, codebook, accuracy, and FID / IS of samples."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from alitok.artifacts.folder import load_tokenizer
from alitok.evaluation.accuracy import TokenAccuracy
from alitok.evaluation.codebook import CodebookUsage
from alitok.evaluation.extractors import Extractor
from alitok.evaluation.generation import GenerationMetrics
from alitok.evaluation.quantise import to_uint8
from alitok.evaluation.reconstruction import ReconstructionMetrics
from alitok.evaluation.statistics import FeatureStatistics
from alitok.sampling.images import sample_images


class ValidationMetric(Callback):
    """Feeds validation batches to evaluation metrics and logs what they compute as `val/NAME`.

    A subclass says in `metrics` which metrics there are and in `update` what they see.
    """

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Any]:
        """The metrics by name, made anew for each validation."""
        raise NotImplementedError

    def update(self, module: Any, outputs: Any, batch: dict[str, Tensor]) -> None:
        """Adds one batch to `self.running`."""
        raise NotImplementedError

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.running = self.metrics(trainer, pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.update(pl_module, outputs, batch)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for metric in self.running.values():
            for name, value in metric.compute().items():
                pl_module.log(f"val/{name}", value, rank_zero_only=True)

    on_test_epoch_start = on_validation_epoch_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end


class Reconstruction(ValidationMetric):
    """PSNR, SSIM and, with an extractor, rFID of reconstructions; usage and perplexity of the codebook.

    Args:
        extractor: anything `open_extractor` takes; None for no rFID.
    """

    def __init__(self, extractor: str | None = None) -> None:
        self.extractor = extractor

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Any]:
        extractor = None if self.extractor is None else open_extractor(self.extractor, module.device)
        codes = CodebookUsage(module.tokenizer.codebook_size, getattr(module.tokenizer.quantizer, "sub_codes", None))
        return {"reconstruction": ReconstructionMetrics(extractor), "codebook": codes}

    def update(self, module: Any, outputs: Any, batch: dict[str, Tensor]) -> None:
        self.running["reconstruction"].update(batch["image"], outputs["image"])
        self.running["codebook"].update(outputs["ids"])


class Accuracy(ValidationMetric):
    """Teacher-forced top-1 accuracy and nats per token."""

    def metrics(self, trainer: Trainer, module: Any) -> dict[str, Any]:
        return {"accuracy": TokenAccuracy(module.generator.num_tokens)}

    def update(self, module: Any, outputs: Any, batch: dict[str, Tensor]) -> None:
        self.running["accuracy"].update(outputs["logits"], batch["tokens"])


class Generation(Callback):
    """FID and Inception Score of samples drawn at each validation, with classes cycling and fixed random streams.

    Args:
        tokenizer: artifact that decodes the samples.
        extractor: anything `open_extractor` takes.
        reference: statistics (.npz) of the same extractor; None for no FID.
        count: samples in all; processes share them without repeats.
        batch: samples drawn at a time.
        guidance, power: of the sampling; None for no guidance.
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
    ) -> None:
        self.tokenizer, self.extractor, self.reference = tokenizer, extractor, reference
        self.count, self.batch, self.seed = count, batch, seed
        self.guidance, self.power = guidance, power

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        generator: Any = pl_module.generator
        tokenizer = load_tokenizer(self.tokenizer, device=pl_module.device)
        reference = None if self.reference is None else FeatureStatistics.load(self.reference)
        metrics = GenerationMetrics(open_extractor(self.extractor, pl_module.device), reference)
        classes = len(trainer.datamodule.class_names)  # type: ignore[attr-defined]
        mine = range(trainer.global_rank, self.count, trainer.world_size)
        labels = [index % classes for index in mine]
        for indices, _, images in sample_images(
            generator, tokenizer, labels, mine, self.batch, self.guidance, self.power, seed=self.seed
        ):
            metrics.update(to_uint8(images), torch.tensor(indices))
        for name, value in metrics.compute().items():
            pl_module.log(f"val/{name}", value, rank_zero_only=True)


def open_extractor(spec: str, device: torch.device | str) -> Extractor:
    """An extractor: "inception" (as clean-fid keeps it), a TorchScript file, or the folder of a classifier."""
    from alitok.evaluation.classifier import Classifier, ClassifierExtractor
    from alitok.evaluation.extractors import InceptionExtractor

    if Path(spec).is_dir():
        return ClassifierExtractor(Classifier.load(spec), Path(spec).name, device)
    return InceptionExtractor(None if spec == "inception" else spec, device)

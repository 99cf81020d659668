"""Picture grids of a run, written at each validation."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from alitok.artifacts.folder import load_tokenizer, locate, read_card
from alitok.callbacks.average import evaluated
from alitok.callbacks.loggers import show_picture
from alitok.common.draw import Draw
from alitok.common.errors import BadInput
from alitok.common.images import save_grid
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.images import sample_images


def picture_path(trainer: Trainer, name: str) -> Path:
    """Path of a run's picture of the present step."""
    return Path(trainer.default_root_dir) / "pictures" / f"{name}-{trainer.global_step:07d}.png"


class ReconstructionGrid(Callback):
    """Rows of originals, each above its reconstructions, from the first validation batch."""

    def __init__(self, count: int = 16, columns: int = 8) -> None:
        self.count, self.columns = count, columns

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *args: Any
    ) -> None:
        if batch_idx or not trainer.is_global_zero or trainer.sanity_checking:
            return
        columns = min(self.columns, len(batch["image"]))
        count = min(self.count, len(batch["image"])) // columns * columns  # whole rows, so that pairs stand together
        pairs = zip(batch["image"][:count].split(columns), outputs["image"][:count].split(columns), strict=True)
        path = picture_path(trainer, "reconstruction")
        save_grid(torch.cat([row for pair in pairs for row in pair]), path, columns)
        show_picture(trainer, "reconstruction", path, "Rows of originals, each above its reconstructions.")


def load_matching(path: str, trainer: Any, module: Any, device: torch.device | str = "cpu") -> Tokenizer:
    """The tokenizer that decodes the samples of a training run.

    Raises:
        BadInput: there is none, it did not make the token cache, or it cannot decode as few tokens as the generator
            draws.
    """
    digest = read_card(locate(path), "tokenizer").get("digest")
    cache = trainer.datamodule.token_cache
    if cache is not None and cache.digest not in (None, digest):
        raise BadInput(
            f"Token cache {cache.folder} was made by tokenizer {cache.digest[:12]}, but {path} is"
            f" {str(digest)[:12]}; give the one that made it, of stage 1 or 2 (make: TOKENIZER=)."
        )
    tokenizer = load_tokenizer(path, device)
    if module.generator.num_tokens < tokenizer.num_tokens:
        tokenizer.check_length(module.generator.num_tokens)
    return tokenizer


def draw_in_training(module: Any, given: dict[str, Any]) -> Draw:
    """The draw of a run's callback: its settings, and the sampler that the run's artifact will recommend."""
    return Draw.chosen({"sampler": module.recommended.get("sampler")}, **given)


class SampleGrid(Callback):
    """Samples of the first classes, a column per class, at each validation.

    Args:
        tokenizer: artifact that decodes the samples.
        classes: number of classes.
        rows: samples per class.
        guidance, power, schedule: guidance of the sampling; a schedule of None = power-cosine.

    Raises (in setup):
        BadInput: there is no such tokenizer, it did not make the token cache, or it cannot decode as few tokens as the
            generator draws.
    """

    def __init__(
        self,
        tokenizer: str,
        classes: int = 10,
        rows: int = 4,
        guidance: float = 0.0,
        power: float = 1.0,
        seed: int = 0,
        schedule: str | dict[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.classes, self.rows = tokenizer, classes, rows
        self.draw = {"guidance": guidance, "power": power, "schedule": schedule, "seed": seed}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checks the tokenizer at the start, before hours of training."""
        load_matching(self.tokenizer, trainer, pl_module)

    @torch.no_grad()
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        generator: Any = evaluated(trainer, pl_module)
        if not trainer.is_global_zero:
            return
        names = trainer.datamodule.class_names  # type: ignore[attr-defined]
        classes = min(self.classes, len(names) or generator.num_classes)
        labels = [index % classes for index in range(classes * self.rows)]
        tokenizer = load_tokenizer(self.tokenizer, device=pl_module.device)
        draw = draw_in_training(pl_module, self.draw)
        images = torch.cat([images for _, _, images in sample_images(generator, tokenizer, labels, draw)])
        path = picture_path(trainer, "samples")
        save_grid(images, path, classes, names)
        caption = ", ".join(names[:classes]) if names else f"classes 0 to {classes - 1}"
        show_picture(trainer, "samples", path, f"Columns: {caption}; guidance {draw.guidance:g}.")

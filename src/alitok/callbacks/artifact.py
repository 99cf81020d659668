"""Writes the artifact at the end of a run."""

import json
from pathlib import Path
from typing import Any, cast

import lightning
from lightning import LightningModule

from alitok.artifacts.folder import save_artifact
from alitok.callbacks.average import evaluated
from alitok.callbacks.loggers import show_configuration, show_text
from alitok.callbacks.progress import images_seen
from alitok.training.finish import Exporter


class ExportArtifact(Exporter):
    """Writes the trained model to `folder` (default: `artifact` in the run's folder) when all steps are done.

    Writes the average of the weights if there is one. `alitok.training.finish.Trainer` calls `write`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.written: str | None = None  # description of the artifact, on the process that wrote it

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.measured = trainer.global_step

    def write(self, trainer: lightning.Trainer) -> None:
        """Writes the artifact. All processes must call it."""
        training: Any = trainer.lightning_module
        module = evaluated(trainer, training)  # on all processes, because it gathers shards
        if not trainer.is_global_zero:
            return
        card: dict[str, Any] = {
            "kind": training.kind,
            "data": trainer.datamodule.description,  # type: ignore[attr-defined]
            "class_names": trainer.datamodule.class_names,  # type: ignore[attr-defined]
            "steps": trainer.global_step,
            "images_seen": images_seen(trainer),
            "parents": training.parents,
            "metrics": {
                name.removeprefix("val/"): float(value)
                for name, value in trainer.callback_metrics.items()
                if name.startswith("val/")
            },
        }
        if card["kind"] == "generator":
            card |= training.recommended
            card["tokenizer"] = training.parents.get("tokenizer")
        extra = {name: (part.block, part) for name, part in training.extra_modules().items()}
        block = training.model.block
        written = save_artifact(self._place(trainer), block, module, card, extra)
        show_text(trainer, "card", json.dumps(written, indent=2, default=str))
        self.written = f"the {card['kind']} after {trainer.global_step:,} steps"

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:
        show_configuration(trainer, cast(Any, pl_module).configuration)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: LightningModule) -> None:
        if self.written is not None:  # printed after the curves are drawn; a short run may have none
            folder = self._place(trainer)
            beside = [name for name in ("curves.png", "logs") if (folder.parent / name).exists()]
            print(f"{folder}: {self.written}" + f"; {' and '.join(beside)} next to it" * bool(beside), flush=True)

    def _place(self, trainer: lightning.Trainer) -> Path:
        return Path(self.folder or Path(trainer.default_root_dir) / "artifact")

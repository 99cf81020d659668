"""Training of the tokenizer: stage 1 and, started from its artifact, stage 2."""

import functools
from typing import Any

import torch
from torch import Tensor

from alitok.artifacts.folder import load_extra, load_tokenizer
from alitok.common.build import build, nearest
from alitok.common.distributed import all_stack
from alitok.common.errors import BadInput
from alitok.losses.adversarial import AdversarialLoss
from alitok.models.tokenizer import Tokenizer
from alitok.training.base import TrainingModule, build_on
from alitok.training.optimizer import adamw
from alitok.training.schedule import Moment


class TokenizerTraining(TrainingModule):
    """Both stages of the tokenizer; they differ in configuration only.

    Args:
        tokenizer: class block of the tokenizer.
        losses: loss terms, class blocks by name; their weights are the phases'.
        phases, warmup_steps, weight_decay, betas, clip, seed: see `TrainingModule`.
        discriminator: class block; needed where a phase is adversarial.
        adversarial: class block of the adversarial loss; likewise.
        start_from: artifact of the stage before; every tensor whose shape fits carries over.
        trainable: parts of the tokenizer that train (stage 2: [decoder]); None for all.
        codebook_lr: factor on the learning rate for the codebook, so that it follows an encoder that learns fast.

    Raises:
        BadInput: a phase names a loss term or a part that does not exist, or lacks a discriminator.
    """

    def __init__(
        self,
        tokenizer: dict[str, Any],
        losses: dict[str, Any],
        phases: dict[str, Any],
        warmup_steps: int = 0,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        clip: float | None = None,
        seed: int = 0,
        discriminator: dict[str, Any] | None = None,
        adversarial: dict[str, Any] | None = None,
        start_from: str | None = None,
        trainable: list[str] | None = None,
        codebook_lr: float = 1.0,
    ) -> None:
        super().__init__(phases, warmup_steps, weight_decay, betas, clip, seed)
        self.tokenizer: Tokenizer = build_on(tokenizer)  # type: ignore[assignment]
        self.terms = {name: build(block) for name, block in losses.items() if self.schedule.uses(name)}
        self.start_from = start_from
        self.codebook_lr = codebook_lr
        self.parents: dict[str, str] = {}
        self.discriminator = build_on(discriminator) if discriminator and self.schedule.adversarial else None
        self.adversarial: AdversarialLoss | None = None
        if adversarial and self.schedule.adversarial:
            self.adversarial = build(adversarial)
        if self.schedule.adversarial and (self.discriminator is None or self.adversarial is None):
            raise BadInput("A phase is adversarial, but the model has no discriminator and adversarial loss.")
        parts = [name for name, _ in self.tokenizer.named_children()]
        for name, phase in self.schedule.phases.items():
            for term in phase.weights:
                if term not in losses:
                    raise BadInput(f"phases.{name}.weights: no loss term {term!r}{nearest(term, losses)}")
            for part in phase.trainable or trainable or []:
                if part not in parts:
                    raise BadInput(f"trainable: the tokenizer has no part {part!r}{nearest(part, parts)}")
        self.trainable_of = {
            name: phase.trainable or trainable or parts for name, phase in self.schedule.phases.items()
        }
        self.set_trainable(next(iter(self.schedule.phases)))

    def set_trainable(self, phase: str) -> None:
        """Lets the phase's parts train; the others are in eval mode and get no gradient."""
        self.current_parts = self.trainable_of[phase]
        for name, part in self.tokenizer.named_children():
            part.requires_grad_(name in self.current_parts)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TokenizerTraining":
        """As `nn.Module.train`, but for the frozen parts."""
        super().train(mode)
        for name, part in self.tokenizer.named_children():
            part.train(mode and name in self.current_parts)
        return self

    def setup(self, stage: str) -> None:
        for term in self.terms.values():
            term.setup(self.trainer.strategy.root_device)
        if stage == "fit" and self.start_from is not None:
            self._start_from(self.start_from)

    def _start_from(self, path: str) -> None:
        """Stage 2's start: encoder, quantizer and every decoder tensor whose shape fits carry over."""
        parent = load_tokenizer(path)
        carried, own = parent.state_dict(), self.tokenizer.state_dict()
        for name, tensor in own.items():
            if name.startswith("decoder."):
                continue
            if name not in carried or carried[name].shape != tensor.shape:
                raise BadInput(f"start_from {path}: {name} does not fit this configuration's encoder and quantizer.")
        fits = {name: t for name, t in carried.items() if name in own and own[name].shape == t.shape}
        self.tokenizer.load_state_dict(fits, strict=False)
        self.fresh = sorted(set(own) - set(fits))
        discriminator = load_extra(path, "discriminator") if self.discriminator is not None else None
        if discriminator is not None and self.discriminator is not None:
            self.discriminator.load_state_dict(discriminator.state_dict())
        self.parents["stage1"] = parent.card["digest"]

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        ever = {part for parts in self.trainable_of.values() for part in parts}
        named = [(n, p) for n, p in self.tokenizer.named_parameters() if n.split(".")[0] in ever]
        optimizers: list[torch.optim.Optimizer] = [
            adamw(named, self.weight_decay, self.betas, lr_factor=self._lr_factor)
        ]
        if self.discriminator is not None:
            optimizers.append(adamw(self.discriminator.named_parameters(), self.weight_decay, self.betas))
        return optimizers

    def _lr_factor(self, name: str) -> float:
        return self.codebook_lr if name == "quantizer.codebook.weight" else 1.0

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> None:
        step = self.trainer.global_step
        moment = self.schedule.at(step)
        if self.trainable_of[moment.name] != self.current_parts:
            self.set_trainable(moment.name)
        turn = self._discriminator_part if moment.discriminator else self._tokenizer_part
        statistics, adversarial = [], []
        for part, share in self.micro_batches(batch, step):
            cluster, logits = turn(part, share, moment)
            statistics.append(cluster)
            adversarial.append(logits)
        if statistics[0] is not None:
            merged = functools.reduce(lambda a, b: a.merge(b), statistics)
            self.tokenizer.quantizer.update(merge_over_processes(merged))
        if moment.discriminator:
            assert self.discriminator is not None
            assert self.adversarial is not None
            self.adversarial.update(mean_over_processes(adversarial))
            self.optimize(1, moment, self.discriminator.parameters())
        else:
            self.optimize(0, moment, self.tokenizer.parameters())

    def _tokenizer_part(self, part: dict[str, Tensor], share: float, moment: Moment) -> tuple[Any, Any]:
        outputs = self.tokenizer(part["image"], quantize=moment.phase.quantize)
        loss = torch.zeros((), device=self.device)
        for name, term in self.terms.items():
            weight = moment.phase.weights.get(name, 1.0)
            if weight:
                value = term(part, outputs)
                self.log(f"train/{name}", value, batch_size=len(part["image"]))
                loss = loss + weight * value
        if moment.phase.adversarial:
            assert self.adversarial is not None
            value = self.adversarial.generator_loss(self._judge(outputs["image"], train=False))
            self.log("train/gan", value, batch_size=len(part["image"]))
            loss = loss + value
        self.log("train/loss", loss, batch_size=len(part["image"]))
        self.manual_backward(loss * share)
        return outputs["statistics"], None

    def _discriminator_part(self, part: dict[str, Tensor], share: float, moment: Moment) -> tuple[Any, Any]:
        assert self.adversarial is not None
        with torch.no_grad():
            outputs = self.tokenizer(part["image"])
        real = self._judge(part["image"], train=True)
        fake = self._judge(outputs["image"], train=True)
        loss, logits = self.adversarial.discriminator_loss(real, fake)
        self.log("train/discriminator", loss, batch_size=len(part["image"]))
        self.manual_backward(loss * share)
        return outputs["statistics"], {name: value * share for name, value in logits.items()}

    def _judge(self, images: Tensor, train: bool) -> Tensor:
        """The discriminator's logits, in float32; its parameters get a gradient on its own batches only."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(train)
        with torch.autocast(images.device.type, enabled=False):
            return self.discriminator(images.float())

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Any]:
        outputs = self.tokenizer(batch["image"])
        for name, term in self.terms.items():
            self.log(f"val/{name}", term(batch, outputs), batch_size=len(batch["image"]), sync_dist=True)
        return {"image": outputs["image"].float(), "ids": outputs["ids"]}

    test_step = validation_step


def merge_over_processes(statistics: Any) -> Any:
    """Statistics of all processes, merged in the order of ranks, so that every process gets the same."""
    gathered = {name: all_stack(value) for name, value in vars(statistics).items()}
    ranks = len(next(iter(gathered.values())))
    parts = [type(statistics)(**{name: value[rank] for name, value in gathered.items()}) for rank in range(ranks)]
    return functools.reduce(lambda a, b: a.merge(b), parts)


def mean_over_processes(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batch means of a global batch from the micro-batches' shares."""
    return {name: all_stack(sum(part[name] for part in parts)).mean(0) for name in parts[0]}  # type: ignore[arg-type]

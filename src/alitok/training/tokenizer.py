"""Training of the tokenizer: stage 1 and, started from its artifact, stage 2."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn

from alitok.artifacts.folder import check_weights, load_extra, load_tokenizer
from alitok.common.build import build_a, nearest
from alitok.common.digest import tokenizer_digest
from alitok.common.distributed import all_stack
from alitok.common.errors import BadInput
from alitok.losses.adversarial import AdversarialLoss
from alitok.models.seams import Part, Quantizer
from alitok.models.tokenizer import Tokenizer
from alitok.training.base import MicroBatch, TrainingModule, build_with_block, merge_over_processes
from alitok.training.optimizer import adamw
from alitok.training.schedule import Moment


class TokenizerTraining(TrainingModule):
    """Both stages of the tokenizer; they differ in configuration only.

    Args:
        tokenizer: class block of the tokenizer.
        losses: loss terms, class blocks by name; their weights are the phases'.
        phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks: see
            `TrainingModule`.
        discriminator: class block; needed where a phase is adversarial.
        adversarial: class block of the adversarial loss; likewise.
        start_from: artifact of the stage before; every tensor whose shape fits carries over.
        trainable: parts of the tokenizer that train (stage 2: [decoder]); None for all.
        codebook_lr: factor on the learning rate for the codebook, so that it follows an encoder that learns fast.

    Raises:
        BadInput: a phase names a loss term or a part that does not exist, or lacks a discriminator.
    """

    kind = "tokenizer"

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
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__(
            phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks
        )
        self.tokenizer: Tokenizer = build_with_block(tokenizer)  # type: ignore[assignment]
        self.attach_terms(losses)
        self.start_from = start_from
        self.codebook_lr = codebook_lr
        self.discriminator = build_with_block(discriminator) if discriminator and self.schedule.adversarial else None
        self.adversarial: AdversarialLoss | None = None
        if adversarial and self.schedule.adversarial:
            self.adversarial = build_a(AdversarialLoss, adversarial)
        if self.schedule.adversarial and (self.discriminator is None or self.adversarial is None):
            raise BadInput("A phase is adversarial, but the model has no discriminator and adversarial loss.")
        parts = [name for name, _ in self.tokenizer.named_children()]
        for name, phase in self.schedule.phases.items():
            for term in phase.weights:
                if term not in losses:
                    raise BadInput(f"phases.{name}.weights: no loss term {term!r}{nearest(term, losses)}")
            quantizer = type(self.tokenizer.quantizer)
            if phase.fit and quantizer.fit is Quantizer.fit:
                raise BadInput(f"phases.{name}.fit: {quantizer.__name__} cannot be fitted; take `fit` out.")
            for part in phase.trainable or trainable or []:
                if part not in parts:
                    raise BadInput(f"trainable: the tokenizer has no part {part!r}{nearest(part, parts)}")
        self.trainable_of = {
            name: phase.trainable or trainable or parts for name, phase in self.schedule.phases.items()
        }
        self.set_trainable(next(iter(self.schedule.phases)))

    @property
    def model(self) -> Tokenizer:
        return self.tokenizer

    def extra_modules(self) -> dict[str, Any]:
        return {} if self.discriminator is None else {"discriminator": self.discriminator}

    def replicated(self) -> list[nn.Parameter]:
        return list(self.tokenizer.quantizer.parameters())

    def configure_model(self) -> None:
        # DDP sees to what has a gradient when it begins: all that any phase trains.
        for name, part in self.tokenizer.named_children():
            part.requires_grad_(name in self._ever_trained())
        super().configure_model()

    def on_train_start(self) -> None:
        self.set_trainable(self.schedule.at(self.trainer.global_step).name)

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
        self.setup_terms()
        if stage == "fit" and not self.trainer.ckpt_path:
            for part in self.tokenizer.children():
                if isinstance(part, Part):
                    part.setup(self.trainer.strategy.root_device)
        if stage == "fit" and self.start_from is not None:
            self._start_from(self.start_from)
        pairs = self.trainer.datamodule.token_cache  # type: ignore[attr-defined]
        if stage == "fit" and pairs is not None:
            self._check_pairs(pairs.digest)

    def _check_pairs(self, digest: str | None) -> None:
        """Refuses to train on given tokens what they do not reach, or with a codebook that is not theirs."""
        if self._ever_trained() != {"decoder"}:
            raise BadInput(
                "Given tokens train the decoder alone: set trainable to [decoder] in the model or its phases."
            )
        if digest is not None and digest != (own := tokenizer_digest(self.tokenizer)):
            raise BadInput(
                f"The tokens are of tokenizer {digest[:12]}, {self.start_from} is {own[:12]}; make the pairs with it."
            )

    def _start_from(self, path: str) -> None:
        """Stage 2's start: encoder, quantizer and all else whose shape fits carry over.

        Raises:
            BadInput: encoder or quantizer do not fit, or the discriminator is another one.
        """
        parent = load_tokenizer(path)
        carried, own = parent.state_dict(), self.tokenizer.state_dict()
        for name, tensor in own.items():
            held = name.startswith(("encoder.", "quantizer."))
            if held and (name not in carried or carried[name].shape != tensor.shape):
                raise BadInput(f"start_from {path}: {name} does not fit this configuration's encoder and quantizer.")
        if parent.codebook_size != self.tokenizer.codebook_size:
            raise BadInput(
                f"start_from {path}: its quantizer has {parent.codebook_size} codes, this configuration's"
                f" {self.tokenizer.codebook_size}; give the quantizer the same arguments."
            )
        fits = {name: t for name, t in carried.items() if name in own and own[name].shape == t.shape}
        self.tokenizer.load_state_dict(fits, strict=False)
        self.fresh = sorted(set(own) - set(fits))
        discriminator = load_extra(path, "discriminator") if self.discriminator is not None else None
        if discriminator is not None and self.discriminator is not None:
            weights = discriminator.state_dict()
            try:
                check_weights(weights, self.discriminator.state_dict(), path)
            except BadInput as error:
                raise BadInput(
                    f"start_from {path}: its discriminator is a {type(discriminator).__name__} and does not fit this"
                    f" configuration's {type(self.discriminator).__name__}; set model.discriminator to the same one."
                ) from error
            self.discriminator.load_state_dict(weights)
        self.parents["stage1"] = parent.card["digest"]

    def _ever_trained(self) -> set[str]:
        return {part for parts in self.trainable_of.values() for part in parts}

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        ever = self._ever_trained()
        named = [(n, p) for n, p in self.tokenizer.named_parameters() if n.split(".")[0] in ever]
        named += self.named_heads()
        optimizers: list[torch.optim.Optimizer] = [
            adamw(named, self.weight_decay, self.betas, lr_factor=self._lr_factor)
        ]
        if self.discriminator is not None:
            optimizers.append(adamw(self.discriminator.named_parameters(), self.weight_decay, self.betas))
        return optimizers

    def _lr_factor(self, name: str) -> float:
        return self.codebook_lr if name == "quantizer.codebook.weight" else 1.0

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        step = self.trainer.global_step
        if batches := self.schedule.fits(step):
            self.eval()
            with torch.no_grad():
                self.tokenizer.quantizer.fit(self._latents(step, batches))
            self.train()

    @torch.no_grad()
    def _latents(self, step: int, count: int) -> Iterator[Tensor]:
        """Latents (B, N, D) float32 of the global batches from this step on, the same on every process."""
        trainer: Any = self.trainer
        data = trainer.datamodule
        for batch in islice(data.batches_from(lambda: step), count):
            images = data.on_after_batch_transfer(trainer.strategy.batch_to_device(batch), 0)["image"]
            with trainer.precision_plugin.forward_context():
                parts = [self.tokenizer.encode_latents(part) for part in images.split(data.micro_batch or len(images))]
            yield all_stack(torch.cat(parts)).flatten(0, 1)

    def train_batch(self, batch: dict[str, Tensor], step: int, moment: Moment) -> None:
        if self.trainable_of[moment.name] != self.current_parts:
            self.set_trainable(moment.name)
        turn = self._discriminator_part if moment.discriminator else self._tokenizer_part
        statistics, adversarial = [], []
        for part in self.micro_batches(batch, step):
            cluster, logits = turn(part, moment)
            statistics.append(cluster)
            adversarial.append(logits)
        moved: nn.Module = self.tokenizer
        if moment.discriminator:
            assert self.discriminator is not None
            moved = self.discriminator
        ddp = isinstance(self.trainer.strategy, DDPStrategy)
        self.finish_gradients(moved.parameters(), averaged=ddp and not moment.discriminator)
        quantizer = self.tokenizer.quantizer
        if statistics[0] is not None:
            merged = merge_over_processes(statistics)
            self.unless_bad(quantizer, lambda: quantizer.update(merged))
        self.update_terms()
        if moment.discriminator:
            loss = self.adversarial
            assert loss is not None
            means = mean_over_processes(adversarial)
            self.unless_bad(loss, lambda: loss.update(means))
        self.optimize(int(moment.discriminator), moment, moved.parameters())

    def _outputs(self, part: MicroBatch, moment: Moment) -> dict[str, Any]:
        """What the tokenizer makes of the images, or of the tokens that stand for them."""
        quantize, ids = moment.phase.quantize, part.batch.get("tokens")
        with self.tapped() as seen:
            outputs: dict[str, Any] = self.tokenizer(part.batch["image"], quantize, ids, part.step)
        return seen.join(outputs)

    def _tokenizer_part(self, part: MicroBatch, moment: Moment) -> tuple[Any, Any]:
        outputs = self._outputs(part, moment)
        self.record.ids.append(outputs["ids"])
        loss = self.add_terms(part, outputs, moment)
        if moment.phase.adversarial:
            assert self.adversarial is not None
            value = self.adversarial.generator_loss(self._judge(outputs["image"], train=False))
            self.note("gan", value, part.share)
            loss = loss + value
        self.note("loss", loss, part.share)
        self.backward_part(loss, part)
        return outputs["statistics"], None

    def _discriminator_part(self, part: MicroBatch, moment: Moment) -> tuple[Any, Any]:
        assert self.adversarial is not None
        with torch.no_grad():
            outputs = self._outputs(part, moment)
        self.record.ids.append(outputs["ids"])
        real = self._judge(part.batch["image"], train=True)
        fake = self._judge(outputs["image"], train=True)
        loss, logits = self.adversarial.discriminator_loss(real, fake)
        self.note("discriminator", loss, part.share)
        self.backward_part(loss, part, reduce=False)
        return outputs["statistics"], {name: value * part.share for name, value in logits.items()}

    def _judge(self, images: Tensor, train: bool) -> Tensor:
        """The discriminator's logits, in float32; its parameters get a gradient on its own batches only."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(train)
        with torch.autocast(images.device.type, enabled=False):
            return self.discriminator(images.float())

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Any]:
        with self.tapped() as seen:
            outputs = self.tokenizer(batch["image"])
        seen.join(outputs)
        for name, term in self.terms.items():
            self.note_validation(name, term(batch, outputs), len(batch["image"]))
        return reconstructed(self.tokenizer, batch, outputs)

    test_step = validation_step


def reconstructed(tokenizer: Tokenizer, batch: dict[str, Tensor], outputs: dict[str, Any]) -> dict[str, Tensor]:
    """What validation measures: "image" float32 and "ids", from the tokenizer's outputs for a batch."""
    image = outputs["image"]
    if tokenizer.decoder.generative:  # what it trains on is no reconstruction
        image = tokenizer.decode(outputs["ids"], indices=batch["index"].tolist())
    return {"image": image.float(), "ids": outputs["ids"]}


def mean_over_processes(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Batch means of a global batch from the micro-batches' shares."""
    return {name: all_stack(sum(part[name] for part in parts)).mean(0) for name in parts[0]}  # type: ignore[arg-type]

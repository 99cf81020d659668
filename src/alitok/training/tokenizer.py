"""Training of the tokenizer: stage 1, and stage 2, which starts from stage 1's artifact."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn

from alitok.artifacts.folder import check_weights, load_extra, load_tokenizer
from alitok.common.build import build_a, nearest
from alitok.common.digest import tokenizer_digest
from alitok.common.distributed import all_stack
from alitok.common.errors import BadInput
from alitok.losses.adversarial import AdversarialLoss
from alitok.models.seams import Part, Quantizer
from alitok.models.tokenizer import Tokenizer
from alitok.training.base import TrainingModule, build_with_block
from alitok.training.optimizer import adamw
from alitok.training.parallel import parallelize
from alitok.training.records import Means, MicroBatch, StepRecord
from alitok.training.schedule import Moment
from alitok.training.step import Player, first_places
from alitok.training.terms import Terms


class TokenizerTraining(TrainingModule):
    """Both stages of the tokenizer; they differ only in configuration.

    Args:
        tokenizer: class block of the tokenizer.
        losses: loss terms, class blocks by name; the phases set their weights.
        phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks, tf32: see
            `TrainingModule`.
        discriminator: class block of the discriminator; required if a phase is adversarial.
        adversarial: class block of the adversarial loss; likewise.
        start_from: artifact of the stage before; every tensor whose shape fits is copied.
        trainable: parts of the tokenizer that train (stage 2: [decoder]); None for all.
        codebook_lr: factor on the codebook's learning rate, so that it can follow an encoder that learns fast.

    Raises:
        BadInput: a phase names a loss term or a part that does not exist, or there is no discriminator for it.
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
        compile_blocks: bool | Literal["auto"] = "auto",
        tf32: bool = True,
    ) -> None:
        super().__init__(
            phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks, tf32
        )
        self.tokenizer: Tokenizer = build_with_block(tokenizer)  # type: ignore[assignment]
        self.terms = Terms(losses, self.schedule, self.tokenizer)
        self.heads = self.terms.heads
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

    def configure_model(self) -> None:
        # DDP averages the parameters that have a gradient when it begins: those that any phase trains.
        for name, part in self.tokenizer.named_children():
            part.requires_grad_(name in self._ever_trained())
        parallelize(self, self.tokenizer, self.tokenizer.quantizer.parameters(), unused_parameters=True)

    def on_train_start(self) -> None:
        self.set_trainable(self.schedule.at(self.trainer.global_step).name)

    def set_trainable(self, phase: str) -> None:
        """Puts the phase's parts in training mode; the others are in eval mode and get no gradient."""
        self.current_parts = self.trainable_of[phase]
        for name, part in self.tokenizer.named_children():
            part.requires_grad_(name in self.current_parts)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TokenizerTraining":
        """As `nn.Module.train`, except that frozen parts stay in eval mode."""
        super().train(mode)
        for name, part in self.tokenizer.named_children():
            part.train(mode and name in self.current_parts)
        return self

    def setup(self, stage: str) -> None:
        self.terms.setup(self.trainer.strategy.root_device, len(first_places(self.trainer)))
        if stage == "fit" and not self.resumed:
            for part in self.tokenizer.children():
                if isinstance(part, Part):
                    part.setup(self.trainer.strategy.root_device)
        if stage == "fit" and self.start_from is not None:
            self._start_from(self.start_from)
        pairs = self.trainer.datamodule.token_cache  # type: ignore[attr-defined]
        if stage == "fit" and pairs is not None:
            self._check_pairs(pairs.digest)

    def _check_pairs(self, digest: str | None) -> None:
        """Refuses given tokens unless only the decoder trains and the tokens are of this tokenizer."""
        if self._ever_trained() != {"decoder"}:
            raise BadInput(
                "Given tokens train the decoder alone: set trainable to [decoder] in the model or its phases."
            )
        if digest is not None and digest != (own := tokenizer_digest(self.tokenizer)):
            raise BadInput(
                f"The tokens are of tokenizer {digest[:12]}, {self.start_from} is {own[:12]}; make the pairs with it."
            )

    def _start_from(self, path: str) -> None:
        """Copies the encoder, the quantizer and every other tensor whose shape fits from the artifact.

        Raises:
            BadInput: the encoder, the quantizer or the discriminator does not fit.
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
        named += self.terms.named_heads()
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

    def player(self, moment: Moment) -> Player:
        if self.trainable_of[moment.name] != self.current_parts:
            self.set_trainable(moment.name)
        optimizers = self.optimizers()
        first, *others = optimizers if isinstance(optimizers, list) else [optimizers]
        updates: dict[str, tuple[nn.Module, Callable[[Any], None]]] = {}
        updates["quantizer"] = (self.tokenizer.quantizer, self.tokenizer.quantizer.update)
        if moment.discriminator:
            assert self.discriminator is not None
            assert self.adversarial is not None
            updates["adversarial"] = (self.adversarial, self._update_adversarial)
            loss, model = self._discriminator_loss, self.discriminator
            # DDP cannot average two models in turns, so the step averages the discriminator's gradients.
            return Player(loss, model, others[0], updates, nn.ModuleDict(), "discriminator", in_ddp=False)
        return Player(self._tokenizer_loss, self.tokenizer, first, updates | self.terms.updates(), self.heads)

    def _outputs(self, part: MicroBatch, moment: Moment, record: StepRecord) -> dict[str, Any]:
        """The tokenizer's outputs for images, or for the batch's tokens if it has any."""
        with self.terms.tapped() as seen:
            outputs: dict[str, Any] = self.tokenizer(
                part.batch["image"], moment.phase.quantize, part.batch.get("tokens"), part.step
            )
        record.ids.append(outputs["ids"])
        if outputs["statistics"] is not None:
            record.statistics.setdefault("quantizer", []).append(outputs["statistics"])
        return seen.join(outputs)

    def _tokenizer_loss(self, part: MicroBatch, moment: Moment, record: StepRecord) -> Tensor:
        outputs = self._outputs(part, moment, record)
        loss = self.terms.loss(part, outputs, moment, record)
        if moment.phase.adversarial:
            assert self.adversarial is not None
            value = self.adversarial.generator_loss(self._logits(outputs["image"], train=False))
            record.note("gan", value, part.share)
            loss = loss + value
        return loss

    def _discriminator_loss(self, part: MicroBatch, moment: Moment, record: StepRecord) -> Tensor:
        assert self.adversarial is not None
        with torch.no_grad():
            outputs = self._outputs(part, moment, record)
        real = self._logits(part.batch["image"], train=True)
        fake = self._logits(outputs["image"], train=True)
        loss, means = self.adversarial.discriminator_loss(real, fake)
        weighed = {name: value * part.share for name, value in means.items()}
        share = torch.full((), part.share, device=loss.device)
        record.statistics.setdefault("adversarial", []).append(Means(share=share, **weighed))
        return loss

    def _update_adversarial(self, sums: Means) -> None:
        assert self.adversarial is not None
        self.adversarial.update({name: value / sums.share for name, value in vars(sums).items() if name != "share"})

    def _logits(self, images: Tensor, train: bool) -> Tensor:
        """The discriminator's logits in float32. Its parameters get a gradient only if `train`."""
        assert self.discriminator is not None
        self.discriminator.requires_grad_(train)
        with torch.autocast(images.device.type, enabled=False):
            return self.discriminator(images.float())

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Any]:
        with self.terms.tapped() as seen:
            outputs = self.tokenizer(batch["image"])
        seen.join(outputs)
        for name, term in self.terms.items():
            self.note_validation(name, term(batch, outputs), len(batch["image"]))
        return reconstructed(self.tokenizer, batch, outputs)

    test_step = validation_step


def reconstructed(tokenizer: Tokenizer, batch: dict[str, Tensor], outputs: dict[str, Any]) -> dict[str, Tensor]:
    """The outputs for validation, "image" float32 and "ids", from the tokenizer's outputs for a batch."""
    image = outputs["image"]
    if tokenizer.decoder.generative:  # `forward` gives no reconstruction
        image = tokenizer.decode(outputs["ids"], indices=batch["index"].tolist())
    return {"image": image.float(), "ids": outputs["ids"]}

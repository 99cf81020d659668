"""Training of the autoregressive generator on cached tokens."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from alitok.artifacts.folder import load_generator, load_tokenizer
from alitok.common.build import build_a, nearest
from alitok.common.devices import send
from alitok.common.errors import BadInput
from alitok.common.random import stream
from alitok.models.generator import Generator
from alitok.models.seams import Corruption, Order
from alitok.training.base import TrainingModule, build_with_block, log
from alitok.training.optimizer import AdamW, adamw, generator_decays
from alitok.training.parallel import parallelize
from alitok.training.records import MicroBatch, StepRecord
from alitok.training.schedule import Moment
from alitok.training.step import Player, first_places
from alitok.training.terms import Terms


class GeneratorTraining(TrainingModule):
    """Next-token prediction with dropped classes.

    Args:
        generator: class block of the generator.
        phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks, tf32: see
            `TrainingModule`.
        class_dropout: probability that an image's label becomes "no class".
        guidance, power, schedule, sampling_seed, sampler: recommendations for sampling, for the artifact's card.
        losses: loss terms in addition to the head's loss, class blocks by name. The phases set their weights, and that
            of the head's loss under the name "nats".
        corruptions: changes of the tokens that the generator reads, class blocks by name, applied in order.
        order: class block of the order in which the tokens are written; None for 0..N-1.
        tokenizer: artifact of the tokenizer, for terms that need its codebook.
        reference: artifact of a frozen generator, for terms that compare with it; not in checkpoints or artifacts.
        start_from: artifact of a generator. Every tensor whose shape fits is copied; if only the classes differ, also
            the embeddings of the codes.

    Raises:
        BadInput: a block's class is of the wrong kind, or `order` is set for a generator that has only one order.
    """

    kind = "generator"

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
        schedule: str | dict[str, Any] | None = None,
        sampling_seed: int = 0,
        activation_checkpointing: bool = False,
        compile_blocks: bool | Literal["auto"] = "auto",
        tf32: bool = True,
        losses: dict[str, Any] | None = None,
        corruptions: dict[str, Any] | None = None,
        order: dict[str, Any] | None = None,
        tokenizer: str | None = None,
        start_from: str | None = None,
        reference: str | None = None,
        sampler: str | dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            phases, warmup_steps, weight_decay, betas, clip, seed, activation_checkpointing, compile_blocks, tf32
        )
        self.generator: Generator = build_with_block(generator)  # type: ignore[assignment]
        self.class_dropout = class_dropout
        self.recommended = {"guidance": guidance, "power": power, "schedule": schedule, "seed": sampling_seed}
        if sampler is not None:
            self.recommended["sampler"] = sampler
        if fitted := [name for name, phase in self.schedule.phases.items() if phase.fit]:
            raise BadInput(f"phases.{fitted[0]}.fit: only a tokenizer's phases fit a quantizer; take `fit` out.")
        for name, phase in self.schedule.phases.items():
            others = {"trainable": phase.trainable, "adversarial": phase.adversarial, "quantize": not phase.quantize}
            if key := next((key for key, given in others.items() if given), None):
                raise BadInput(f"phases.{name}.{key}: only a tokenizer's phases have it; take it out.")
            known = ["nats", *(losses or {})]
            if other := next((term for term in phase.weights if term not in known), None):
                raise BadInput(f"phases.{name}.weights: there is no loss {other!r}{nearest(other, known)}")
        self.terms = Terms(losses or {}, self.schedule, self.generator)
        self.heads = self.terms.heads
        self.corruptions: list[Corruption] = [build_a(Corruption, block) for block in (corruptions or {}).values()]
        self.order: Order | None = build_a(Order, order) if order else None
        if self.order is not None and not self.generator.ordered:
            raise BadInput(
                f"model.order needs a generator that writes in any order, not {type(self.generator).__name__}; lay the"
                " idea's own generator over the configuration."
            )
        self.tokenizer_path = tokenizer
        self.start_from = start_from
        self.reference_path = reference
        self._reference: list[Generator] = []  # in a list, so that it is not a submodule

    @property
    def model(self) -> Generator:
        return self.generator

    def configure_model(self) -> None:
        parallelize(self, self.generator)

    def setup(self, stage: str) -> None:
        """Sets up terms and generator, and checks that the generator fits the cache.

        Raises:
            BadInput: generator and cache differ in tokens, codes or classes.
        """
        self.terms.setup(self.trainer.strategy.root_device, len(first_places(self.trainer)))
        self._load_reference()
        if stage == "fit" and not self.resumed:
            self.generator.setup(self.trainer.strategy.root_device)
        if stage == "fit" and self.start_from is not None:
            self._start_from(self.start_from)
        cache = self.trainer.datamodule.token_cache  # type: ignore[attr-defined]
        if cache is None:
            raise BadInput("The generator trains on a token cache: give data.cache the folder `alitok tokenize` made.")
        if cache.num_tokens != self.generator.num_tokens:
            raise BadInput(
                f"The cache has {cache.num_tokens} tokens an image, the generator expects {self.generator.num_tokens}:"
                " it was made with another tokenizer, or data.keep is not the generator's length."
            )
        theirs, ours = cache.sub_codes, self.generator.sub_codes
        if theirs != ours:
            raise BadInput(
                f"The cache's tokens have {theirs} sub-code(s), the generator's {ours}: lay that"
                " quantizer's generator file (experiments/ideas/) over the configuration, or leave such a file out."
            )
        if cache.codebook_size is not None and cache.codebook_size != self.generator.codebook_size:
            raise BadInput(
                f"The cache's codebook has {cache.codebook_size} codes, the generator's {self.generator.codebook_size}."
            )
        for split in self.trainer.datamodule.splits.values():  # type: ignore[attr-defined]
            if split.cache.codebook_size is None:
                split.cache.codebook_size = self.generator.codebook_size  # so that an id beyond it is refused
        classes, known = len(cache.class_names or []), self.generator.num_classes
        if classes > known:
            raise BadInput(
                f"The cache has {classes} classes, the generator only {known}: give it as many"
                f" (--define.num_classes {classes})."
            )
        if 0 < classes < known and self.global_rank == 0:
            log.warning("The cache has %d classes, the generator %d: the last ones learn nothing.", classes, known)
        if cache.digest is not None:
            self.parents["tokenizer"] = cache.digest
        self._use_codebook(cache.digest)

    def _use_codebook(self, wanted: str | None) -> None:
        """Passes the frozen quantizer to the terms that need it.

        Args:
            wanted: digest of the tokenizer that made the cache, if it is known.

        Raises:
            BadInput: no tokenizer is named, or it did not make the cache.
        """
        asking = [name for name, term in self.terms.items() if term.needs_codebook]
        if not asking:
            return
        if self.tokenizer_path is None:
            raise BadInput(f"losses.{asking[0]} reads the codebook: set model.tokenizer to the tokenizer's artifact.")
        tokenizer = load_tokenizer(self.tokenizer_path)
        if wanted not in (None, digest := tokenizer.card["digest"]):
            raise BadInput(
                f"The cache has tokens of tokenizer {str(wanted)[:12]}, but model.tokenizer {self.tokenizer_path} is"
                f" {digest[:12]}; give the tokenizer (of stage 1 or 2) that made the cache."
            )
        quantizer = tokenizer.quantizer.requires_grad_(False)
        if quantizer.codebook_size != self.generator.codebook_size or quantizer.sub_codes != self.generator.sub_codes:
            raise BadInput(
                f"model.tokenizer {self.tokenizer_path} has {quantizer.sub_codes} x {quantizer.codebook_size} codes,"
                f" the generator {self.generator.sub_codes} x {self.generator.codebook_size}; give the tokenizer of the"
                " cache."
            )
        for name in asking:
            self.terms[name].use_codebook(quantizer.to(self.trainer.strategy.root_device))

    def _load_reference(self) -> None:
        """Loads the frozen generator, which is not in checkpoints.

        Raises:
            BadInput: a term needs it, and none is named or its tokens, codes or classes differ.
        """
        asking = [name for name, term in self.terms.items() if term.needs_reference]
        if not asking:
            return
        if self.reference_path is None:
            raise BadInput(f"losses.{asking[0]} compares with a frozen generator: set model.reference to its artifact.")
        model = load_generator(self.reference_path, self.trainer.strategy.root_device)
        theirs, ours = ((one.id_shape, one.codebook_size, one.num_classes) for one in (model, self.generator))
        if theirs != ours:
            raise BadInput(
                f"model.reference {self.reference_path} has tokens, codes and classes {theirs}, the generator {ours}:"
                " give one with the same."
            )
        if self.order is not None and not model.ordered:
            raise BadInput(
                f"model.reference {self.reference_path} knows one order of the tokens, and model.order gives it others:"
                f" take a reference like {type(self.generator).__name__}, or leave the order out."
            )
        self._reference = [model.requires_grad_(False).eval()]
        self.parents["reference"] = model.card["digest"]

    def _start_from(self, path: str) -> None:
        """Copies every tensor that fits. If only the number of classes differs, copies the rows of the codes.

        Raises:
            BadInput: a layer of the blocks does not fit.
        """
        parent = load_generator(path)
        carried, own = parent.state_dict(), self.generator.state_dict()
        fits = {name: tensor for name, tensor in carried.items() if name in own and own[name].shape == tensor.shape}
        old, new = carried["embeddings.weight"], own["embeddings.weight"].clone()
        codes = len(new) - self.generator.num_classes - 2
        as_before = (len(old) - parent.num_classes - 2, old.shape[1]) == (codes, new.shape[1])
        if as_before and "embeddings.weight" not in fits:
            new[: codes + 1], new[-1] = old[: codes + 1], old[-1]  # the last row is "no class"
            fits["embeddings.weight"] = new
        other = [name for name in own if name.startswith("blocks.") and name not in fits]
        if other:
            raise BadInput(f"start_from {path}: {other[0]} has another shape there; give the generator the same sizes.")
        self.generator.load_state_dict(fits, strict=False)
        fresh = sorted(set(own) - set(fits))
        if self.global_rank == 0:
            classes = f"; {self.generator.num_classes} new classes" * (parent.num_classes != self.generator.num_classes)
            new_ones = f"; new are {', '.join(fresh[:8])}{' ...' * (len(fresh) > 8)}" * bool(fresh)
            print(f"start_from {path}: {len(fits)} of {len(own)} tensors carry over{classes}{new_ones}.", flush=True)
        self.parents["start_from"] = parent.card["digest"]

    def configure_optimizers(self) -> AdamW:
        named = [*self.generator.named_parameters(), *self.terms.named_heads()]
        return adamw(named, self.weight_decay, self.betas, generator_decays)

    def player(self, moment: Moment) -> Player:
        return Player(self._loss, self.generator, self.optimizers(), self.terms.updates(), self.heads)

    def _loss(self, part: MicroBatch, moment: Moment, record: StepRecord) -> Tensor:
        tokens = inputs = part.batch["tokens"]
        for corruption in self.corruptions:
            inputs = corruption(inputs, self.generator.codebook_size, part.step)
        ordering = None
        if self.order is not None:
            ordering = self.order(self.generator.num_tokens, self.generator.num_prefix, part.step)
        labels = self._drop_classes(part.batch, record.step)
        places = None if ordering is None else send(ordering.places, tokens.device)
        read = {"ids": tokens, "inputs": inputs, "order": places, "step": part.step}
        half = torch.is_autocast_enabled(tokens.device.type)
        with self.terms.tapped() as seen:
            outputs = outputs_of(self.generator, read, half, labels)
        if self._reference:
            with torch.no_grad():
                outputs["reference"] = outputs_of(self._reference[0], read, half, labels)
        nats, weight = outputs["nats"], moment.phase.weights.get("nats", 1.0)
        if ordering is not None and ordering.weights is not None:
            nats = nats * send(ordering.weights, nats.device)
        terms = self.terms.loss(part, seen.join(outputs), moment, record)
        if weight == 0:
            return terms
        return (nats.mean() if weight == 1 else weight * nats.mean()) + terms

    def _drop_classes(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """Labels, some of them changed to "no class". The choice depends only on seed and position."""
        size = self.trainer.datamodule.global_batch  # type: ignore[attr-defined]
        drawn = send(torch.rand(size, generator=stream(self.seed, "class", step)), batch["label"].device)
        dropped = drawn[batch["position"] - step * size] < self.class_dropout
        return torch.where(dropped, self.generator.num_classes, batch["label"])

    def validation_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Tensor]:
        outputs = self.generator.losses(batch["tokens"], batch["label"])
        self.note_validation("loss", outputs["nats"].mean(), len(batch["label"]))
        return {"logits": outputs["logits"]} if "logits" in outputs else {}

    test_step = validation_step


def outputs_of(generator: Generator, read: Mapping[str, Any], half: bool, labels: Tensor) -> dict[str, Any]:
    """A generator's outputs for loss terms.

    Args:
        read: `ids`, `inputs`, `order` and `step` of `Generator.losses`.
        half: run under autocast. Terms run without it, so `with_labels` must switch it on.
    """
    with torch.autocast(labels.device.type, enabled=half):
        outputs: dict[str, Any] = dict(generator.losses(labels=labels, **read))
    return outputs | {"with_labels": partial(outputs_of, generator, read, half)}

"""What all LightningModules share: one training step is one global batch, split into micro-batches."""

import inspect
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alitok.artifacts.folder import check_weights
from alitok.common.build import build_a
from alitok.common.compiler import need_compiler
from alitok.common.distributed import all_sum
from alitok.common.errors import BadInput
from alitok.common.random import Step, reseed
from alitok.losses.terms import LossTerm
from alitok.training.parallel import (
    FSDP2,
    average_gradients,
    check_strategy,
    clip_gradients,
    compile_blocks,
    gradient_norm,
    recompute_activations,
    shard,
)
from alitok.training.records import MicroBatch, StepRecord, Taps, merge_over_processes, tapped
from alitok.training.schedule import Moment, Schedule

log = logging.getLogger("alitok")


class TrainingModule(L.LightningModule):
    """Base of the stages: schedule, seeds, micro-batches, strategy, learning rate.

    A loader's batch is this process's share of one global batch, and every batch ends in exactly one optimizer step, so
    `trainer.global_step` counts batches, and checkpoints fall between global batches. What is random in a step (dropped
    classes, bottlenecks, random anchors) depends on seed, step and place in the global batch alone. Dropout is the
    exception: it draws from torch's own generator, which is seeded for each micro-batch by seed, step and first place.

    A step whose loss or gradient is not finite changes nothing, neither weights nor moments nor the codebook; the
    `Health` callback says so and decides what follows.

    Args:
        phases: the schedule, by name (see `Schedule`).
        warmup_steps: updates over which the learning rate rises from 0.
        weight_decay, betas: of AdamW.
        clip: largest norm of the gradient; None for no clipping.
        seed: of everything random in a step.
        activation_checkpointing: transformer blocks compute their activations again in the backward pass, which takes
            a third more time and far less memory, and changes nothing else.
        compile_blocks: transformer blocks are compiled (`torch.compile`): faster, above all on a GPU, with other
            rounding and other random numbers in dropout.

    Attributes:
        kind: of artifact that it trains, "tokenizer" or "generator".
    """

    kind: str

    def __init__(
        self,
        phases: Mapping[str, Mapping[str, Any]],
        warmup_steps: int,
        weight_decay: float,
        betas: tuple[float, float],
        clip: float | None,
        seed: int,
        activation_checkpointing: bool = False,
        compile_blocks: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.schedule = Schedule(phases, warmup_steps)
        self.weight_decay = weight_decay
        self.betas = betas
        self.clip = clip
        self.seed = seed
        self.activation_checkpointing = activation_checkpointing
        self.compile_blocks = compile_blocks
        self.configuration: dict[str, Any] = {}  # of the run; kept in its checkpoints
        self.parents: dict[str, str] = {}  # digests of the artifacts that the run builds on, by name
        self.batch_ended = 0.0
        self._row: dict[str, Tensor | float] = {}
        self._window: dict[str, tuple[Tensor, Tensor]] = {}
        self._configured = False
        self.terms: dict[str, LossTerm] = {}
        self.heads = nn.ModuleDict()  # what of loss terms trains; no part of the artifact

    def attach_terms(self, blocks: Mapping[str, Any]) -> None:
        """Builds the loss terms that a phase uses, and takes on what of them trains."""
        self.terms = {name: build_a(LossTerm, block) for name, block in blocks.items() if self.schedule.uses(name)}
        for name, term in self.terms.items():
            term.attach(self.model)
            if term.head is not None:
                self.heads[name] = term.head

    def setup_terms(self) -> None:
        """Loads what the terms need, and refuses a term that couples images if they do not stay together.

        Raises:
            BadInput: a term needs the whole global batch in one micro-batch on one device.
        """
        for name, term in self.terms.items():
            term.setup(self.trainer.strategy.root_device)
            if term.whole_batch and len(self.first_places()) > 1:
                raise BadInput(
                    f"losses.{name} couples the images of a batch, which is cut into {len(self.first_places())} parts;"
                    " train on one device with data.micro_batch null, or take the term out."
                )

    def named_heads(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, parameter) of what trains of the loss terms."""
        for name, parameter in self.heads.named_parameters():
            yield f"heads.{name}", parameter

    def tapped(self) -> AbstractContextManager[Taps]:
        """Within it, the outputs that the terms' taps name."""
        return tapped(self.model, {path for term in self.terms.values() for path in term.taps})

    def add_terms(self, part: "MicroBatch", outputs: Mapping[str, Any], moment: Moment) -> Tensor:
        """The weighted sum of the terms, over all decodings of the outputs, as the phase weighs them."""
        loss = torch.zeros((), device=self.device)
        for name, term in self.terms.items():
            weight = moment.phase.weights.get(name, term.weight)
            if not weight:
                continue
            for share, one in outputs.get("decodings") or [(1.0, outputs)]:
                value, statistics = term.evaluate(part.batch, one, part.step)
                if statistics is not None:
                    self.record.statistics.setdefault(name, []).append(statistics)
                value = value if share == 1.0 else share * value
                self.note(name, value, part.share)
                loss = loss + weight * value
        return loss

    def update_terms(self) -> None:
        """Hands each term the statistics of the global batch, unless the step is bad."""
        for name, parts in self.record.statistics.items():
            term = self.terms[name]
            self.unless_bad(term.head or nn.Module(), partial(term.update, merge_over_processes(parts)))

    @property
    def model(self) -> nn.Module:
        """What is trained: the tokenizer or the generator."""
        raise NotImplementedError

    def extra_modules(self) -> dict[str, Any]:
        """Modules, with their class blocks, that go into the artifact beside the model."""
        return {}

    def replicated(self) -> list[nn.Parameter]:
        """Parameters of the model that stay whole under every strategy."""
        return []

    def configure_model(self) -> None:
        """Prepares the model for the trainer's strategy.

        Raises:
            BadInput: a strategy or precision that is not supported, or no compiler where blocks are to be compiled.
        """
        if self._configured:
            return
        self._configured = True
        strategy = self.trainer.strategy
        check_strategy(strategy)
        if self.trainer.precision == "16-mixed":
            raise BadInput("precision 16-mixed is not supported; use bf16-mixed or 32-true.")
        if self.compile_blocks:
            need_compiler("model.compile_blocks")
            compile_blocks(self.model)
        if self.activation_checkpointing:
            recompute_activations(self.model)
        if isinstance(strategy, FSDP2):
            shard(self.model, strategy.device_mesh["data_parallel"], str(self.trainer.precision), self.replicated())
        elif isinstance(strategy, DDPStrategy):
            # Which parameters a batch moves depends on its phase; buffers are the same by construction. What is not
            # the model (the discriminator) is averaged by `finish_gradients`: DDP cannot do both in turns.
            known = inspect.signature(DistributedDataParallel).parameters
            buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
            mine = {"find_unused_parameters": self.leaves_unused, buffers: False}
            strategy._ddp_kwargs = mine | strategy._ddp_kwargs
            inside = {id(parameter) for parameter in self.model.parameters()}
            others = [name for name, parameter in self.named_parameters() if id(parameter) not in inside]
            DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(self, others)

    @property
    def leaves_unused(self) -> bool:
        """Whether some batches leave parameters without a gradient."""
        return True

    def micro_batches(self, batch: dict[str, Tensor], step: int) -> Iterator[MicroBatch]:
        """Parts of the batch that one device can hold; reseeds before each."""
        size = len(next(iter(batch.values())))
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        limit = data.micro_batch or size
        for start in range(0, size, limit):
            part = {name: value[start : start + limit] for name, value in batch.items()}
            count, first = len(next(iter(part.values()))), self.global_rank * size + start
            reseed(self.seed, "step", step, first, 0)  # the 0 keeps the numbers of runs that version 0.1 began
            places = range(first, first + count)
            this = Step(self.seed, step, self.schedule.total_steps, data.global_batch, places)
            yield MicroBatch(part, count / size, this, start + limit >= size)

    def first_places(self) -> list[int]:
        """Where the micro-batches of all processes begin in the global batch: what dropout depends on."""
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        share = data.global_batch // self.trainer.world_size
        starts = range(0, share, data.micro_batch or share)
        return [rank * share + start for rank in range(self.trainer.world_size) for start in starts]

    def training_step(self, batch: dict[str, Tensor], batch_index: int) -> dict[str, Any]:
        step = self.trainer.global_step
        moment = self.schedule.at(step)
        self.record = StepRecord(step, moment.discriminator)
        self.train_batch(batch, step, moment)
        self._log_step(moment)
        return {"record": self.record}

    def reports(self, step: int) -> bool:
        """Whether the logs get a row at this step."""
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return every > 0 and (step + 1) % every == 0

    def report(self, values: Mapping[str, Tensor | float]) -> None:
        """Puts values into this step's row of the logs (Lightning's `log` would repeat them in all later rows)."""
        self._row.update(values)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._row:
            row = {name: float(value) for name, value in self._row.items()}
            for logger in self.trainer.loggers:
                logger.log_metrics(row, self.record.step)
            self._row = {}
        self.batch_ended = time.perf_counter()  # after the callbacks; what follows is waiting for the next batch

    def train_batch(self, batch: dict[str, Tensor], step: int, moment: Moment) -> None:
        """Gradients of a batch, and one optimizer step."""
        raise NotImplementedError

    def note(self, name: str, value: Tensor, share: float) -> None:
        """Adds a micro-batch's value to the batch's mean; `train/NAME` is the mean since the last row of the logs."""
        self.record.notes[name] = self.record.notes.get(name, 0.0) + value.detach().float() * share

    def backward_part(self, loss: Tensor, part: MicroBatch, reduce: bool = True) -> None:
        """Adds the gradient of a micro-batch; DDP averages over the processes with the last one, if `reduce`."""
        index = part.batch.get("index")
        if index is not None:
            self.record.parts.append((index, ~loss.detach().isfinite()))
        strategy: Any = self.trainer.strategy
        blocked = isinstance(strategy, DDPStrategy) and not (part.last and reduce)
        # Within autocast the backward pass would round the gradients of what runs in float32 on purpose.
        with (
            strategy.block_backward_sync() if blocked else nullcontext(),
            torch.autocast(self.device.type, enabled=False),
        ):
            self.manual_backward(loss * part.share)

    def finish_gradients(self, parameters: Iterable[nn.Parameter], averaged: bool) -> None:
        """Averages over the processes what is not averaged yet, measures the norm, clips, and judges the step.

        Args:
            averaged: whether DDP has averaged these gradients in the backward pass.
        """
        parameters = list(parameters)
        if not averaged:
            average_gradients(parameters)
        if not self.record.discriminator and len(self.heads):
            average_gradients(self.heads.parameters())
            parameters += self.heads.parameters()
        norm = gradient_norm(parameters)
        bad = torch.stack([~norm.isfinite(), *(flag for _, flag in self.record.parts)]).any()
        self.record.norm, self.record.bad = norm, all_sum(bad.float()) > 0
        if self.clip is not None:
            clip_gradients(parameters, norm, self.clip)

    def unless_bad(self, module: nn.Module, change: Callable[[], None]) -> None:
        """Runs `change`, and takes back what it did to the module's parameters and buffers where the step is bad."""
        tensors = [*module.parameters(), *module.buffers()]
        before = [tensor.detach().clone() for tensor in tensors]
        change()
        with torch.no_grad():
            for tensor, old in zip(tensors, before, strict=True):
                tensor.copy_(torch.where(self.record.bad, old, tensor))

    def optimize(self, index: int, moment: Moment, parameters: Iterable[nn.Parameter]) -> None:
        """Steps optimizer `index` at the moment's learning rate, unless the step is bad, and clears the gradients."""
        optimizers = self.optimizers()
        optimizer: Any = optimizers[index] if isinstance(optimizers, list) else optimizers
        for group in optimizer.param_groups:
            group["lr"] = moment.lr * group["lr_factor"]
        optimizer.optimizer.found_inf = self.record.bad.float()  # the fused kernel then leaves all as it is
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _log_step(self, moment: Moment) -> None:
        """Adds the batch to the means since the last row of the logs, or writes them, over all processes."""
        turn = "discriminator_" if moment.discriminator else ""
        self.note(f"{turn}grad_norm", self.record.norm, 1.0)
        good = (~self.record.bad).float()
        for name, value in self.record.notes.items():
            total, count = self._window.get(name, (torch.zeros_like(value), torch.zeros_like(good)))
            self._window[name] = (total + torch.where(self.record.bad, 0.0, value), count + good)
        if not self.reports(self.record.step):
            return
        sums = all_sum(torch.stack([torch.stack(pair) for pair in self._window.values()]))
        means = {f"train/{name}": total / count for name, (total, count) in zip(self._window, sums, strict=True)}
        self._window = {}
        if "train/loss" in means:
            self.log("train/loss", means["train/loss"], logger=False)  # for the progress bar
        seen = (self.record.step + 1) * self.trainer.datamodule.global_batch  # type: ignore[attr-defined]
        self.report({**means, "train/lr": moment.lr, "images_seen": seen})

    def note_validation(self, name: str, value: Tensor, count: int) -> None:
        """Adds the mean over `count` images to the mean over the split, which is logged as `val/NAME`."""
        value = value.detach().double() if value.device.type != "mps" else value.detach()
        total, images = self._validation.get(name, (0.0, 0))
        self._validation[name] = (total + value * count, images + count)

    def on_validation_epoch_start(self) -> None:
        self._validation: dict[str, tuple[Any, int]] = {}

    def on_validation_epoch_end(self) -> None:
        # Not by Lightning's sync_dist, which rounds the mean of the processes' counts down.
        for name, (total, count) in self._validation.items():
            sums = all_sum(torch.stack([total, torch.as_tensor(count).to(total)]))
            self.log(f"val/{name}", (sums[0] / sums[1]).float(), rank_zero_only=True)

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["configuration"] = self.configuration
        checkpoint["parents"] = dict(self.parents)
        dropout = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in self.modules())
        checkpoint["dropout_by"] = self.first_places() if dropout else None

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Holds the checkpoint against the model.

        Raises:
            BadInput: its weights do not fit, or the run's parents (tokenizer, stage 1) are not the same.
        """
        check_weights(checkpoint["state_dict"], self.state_dict(), "the checkpoint")
        if self.trainer.state.fn == "fit":
            for name, digest in checkpoint.get("parents", {}).items():
                if self.parents.get(name) != digest:
                    raise BadInput(
                        f"The run began with {name} {digest[:12]}, which is now {str(self.parents.get(name))[:12]}:"
                        " give it back, or train anew in another folder."
                    )
            before, now = checkpoint.get("dropout_by"), self.first_places()
            if before not in (None, now) and self.global_rank == 0:
                log.warning(
                    "Dropout draws other masks from here on: the global batch is cut into %d micro-batches,"
                    " before into %d.",
                    len(now),
                    len(before),
                )


def build_with_block(block: Mapping[str, Any]) -> nn.Module:
    """A model of its class block, with the block as `module.block`: the artifact is written with it."""
    module: nn.Module = build_a(nn.Module, block)
    module.block = dict(block)  # type: ignore[assignment]
    return module

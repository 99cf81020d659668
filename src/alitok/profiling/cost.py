"""The cost of a composed run, found by rehearsing its training step on fake tensors."""

import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn

from alitok.common.build import build, import_class
from alitok.common.devices import float32_products
from alitok.common.errors import BadInput
from alitok.models.seams import Part
from alitok.networks.frozen import without_weights
from alitok.profiling.flops import Ledger, gpu_kernels
from alitok.profiling.strategies import bytes_of, parameters_of, shards_of, strategy_bytes

PRECISIONS = {"32-true": None, "bf16-mixed": torch.bfloat16}  # precision -> dtype of autocast
# On a CPU a process needs more than its tensors: the runtime's own memory, and allocator fragmentation, since gradients
# rarely fit into the holes that freed activations leave. Measured, see the tests.
RUNTIME_BYTES = 50_000_000
PIECES_OVERHEAD = 0.2
SHORT = {"32": "32-true", "bf16": "bf16-mixed"}


@dataclass(frozen=True)
class Layout:
    """The devices of a run and how it uses them.

    Attributes:
        device: "cpu" or "cuda": whose attention kernels the run uses.
        devices: number of devices over all nodes.
        strategy: kind of Lightning's strategy.
        shards: number of devices over which FSDP divides weights, gradients and optimizer state.
        bucket_view: DDP's gradients live in the buckets that it sends, not next to them.
    """

    device: Literal["cpu", "cuda"]
    devices: int = 1
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    shards: int = 1
    bucket_view: bool = False


@dataclass
class Turn:
    """One kind of training step. Phases that differ only in length and learning rate share one.

    Attributes:
        name: names of the phases; with the suffix "discriminator" if the step trains the discriminator.
        start: number of a step of this kind.
        steps: number of the run's steps of this kind.
        flops: (part, precision) -> FLOPs of one step over the global batch, forward and backward.
        memory: bytes on one device at the step's peak, by kind.
        trainable: number of the model's parameters that train.
    """

    name: str
    start: int
    steps: int
    flops: dict[tuple[str, str], float]
    memory: dict[str, int]
    trainable: int = 0

    @property
    def memory_bytes(self) -> int:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Cost:
    """The cost of a run.

    Attributes:
        model: "tokenizer" or "generator".
        parts: number of parameters by part; the sum is `total`.
        trainable: number of the model's parameters that train, in the turn that trains most.
        beside: number of parameters of the other networks: discriminator, networks of losses.
        tokens: N.
        codebook_size, sub_codes: V and S of a token; S is 1 if a token is one id.
        micro_batch, accumulation: images per device in a forward pass, and forward passes per step.
    """

    model: str
    parts: dict[str, int]
    trainable: int
    beside: dict[str, int]
    tokens: int
    codebook_size: int
    sub_codes: int
    global_batch: int
    micro_batch: int
    accumulation: int
    precision: str
    layout: Layout
    turns: list[Turn]

    @property
    def bits_per_token(self) -> float:
        return self.sub_codes * math.log2(self.codebook_size)

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    @property
    def steps(self) -> int:
        return sum(turn.steps for turn in self.turns)

    @property
    def images_seen(self) -> int:
        return self.steps * self.global_batch

    @property
    def flops(self) -> dict[tuple[str, str], float]:
        """(part, precision) -> FLOPs of a step, averaged over the run."""
        mean: Counter[tuple[str, str]] = Counter()
        for turn in self.turns:
            for key, value in turn.flops.items():
                mean[key] += value * turn.steps / self.steps  # type: ignore[assignment]
        return dict(mean)

    @property
    def peak(self) -> Turn:
        """The turn that needs most memory."""
        return max(self.turns, key=lambda turn: turn.memory_bytes)


def cost(config: Mapping[str, Any], layout: Layout) -> Cost:
    """Rehearse one step of every kind in the run. Allocates nothing; opens no data and no weight file.

    Args:
        config: the result of `compose_run`.

    Raises:
        BadInput: the global batch does not divide by the devices, or the precision is unknown.
    """
    precision = str(config["trainer"].get("precision", "32-true"))
    precision = SHORT.get(precision, precision)
    if precision not in PRECISIONS:
        raise BadInput(f"describe knows the precisions {', '.join(PRECISIONS)}, not {precision!r}.")
    data = config["data"].get("init_args") or {}
    global_batch = data.get("global_batch", 256)
    if global_batch % layout.devices:
        raise BadInput(f"The global batch of {global_batch} does not divide by {layout.devices} devices; change one.")
    share = global_batch // layout.devices
    micro_batch = min(data.get("micro_batch") or share, share)
    for name, block in ((config["model"].get("init_args") or {}).get("losses") or {}).items():
        kind = import_class(block["class_path"])
        if kind.needs_codebook:
            print(f"alitok: losses.{name} reads another artifact, so its step is not counted.", file=sys.stderr)
        if kind.needs_reference:
            print(f"alitok: the reference of losses.{name} is counted as large as the generator.", file=sys.stderr)
    ledger = Ledger()
    with _rehearsal(config, ledger) as (module, networks):
        model = module.model
        parts = {part: parameters_of(child) for part, child in model.named_children() if parameters_of(child)}
        direct = sum(parameter.numel() for parameter in model.parameters(recurse=False))
        parts |= {"rest": direct} if direct else {}
        beside = {name: parameters_of(network) for name, network in networks.items()}
        if (discriminator := getattr(module, "discriminator", None)) is not None:
            beside["discriminator"] = parameters_of(discriminator)
        tokens, codes, sub_codes = model.num_tokens, model.codebook_size, model.sub_codes
        turns = _turns(module.schedule, config["trainer"].get("max_steps"))
        _rehearse(ledger, turns, module, networks, layout, precision, share, micro_batch)
        if _keeps_average(config):
            for turn in turns:
                turn.memory["average of weights"] = bytes_of([*model.parameters(), *model.buffers()])
    return Cost(
        model=_name_of(module),
        parts=parts,
        trainable=max(turn.trainable for turn in turns),
        beside=beside,
        tokens=tokens,
        codebook_size=codes,
        sub_codes=sub_codes,
        global_batch=global_batch,
        micro_batch=micro_batch,
        accumulation=-(-share // micro_batch),
        precision=precision,
        layout=layout,
        turns=turns,
    )


def _turns(schedule: Any, max_steps: int | None) -> list[Turn]:
    """The kinds of step in a schedule, cut or extended to `max_steps`."""
    turns: dict[Any, Turn] = {}
    left = max_steps if max_steps and max_steps > 0 else schedule.total_steps
    start = 0
    for name, phase in schedule.phases.items():
        steps = left if name == list(schedule.phases)[-1] else min(left, phase.steps)
        updates = phase.updates(steps)
        for count, discriminator in ((updates, False), (steps - updates, True)):
            if count:
                off = sorted(term for term, weight in phase.weights.items() if not weight)
                key = (*off, phase.adversarial, phase.quantize, str(phase.trainable), discriminator)
                turn = turns.setdefault(key, Turn("", start + discriminator, 0, {}, {}))
                turn.steps += count
                turn.name += f"{', ' if turn.name else ''}{name}{' discriminator' if discriminator else ''}"
        start, left = start + phase.steps, left - steps
    return list(turns.values())


@contextmanager
def _rehearsal(config: Mapping[str, Any], ledger: Ledger) -> Iterator[tuple[Any, dict[str, nn.Module]]]:
    """The run's LightningModule and its losses' networks on fake CPU tensors; meta tensors have no autocast."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    fake = FakeTensorMode(allow_non_fake_inputs=True)
    cuda = torch.cuda.is_available()  # called at every operation; without a GPU it opens the driver's library each time
    stack = patch.object(torch.cuda, "is_available", lambda: cuda)
    with stack, torch.random.fork_rng(devices=[]), fake, ledger, without_weights() as networks:
        module = import_class(config["model"]["class_path"])(**(config["model"].get("init_args") or {}))
        terms = module.terms
        for name in [name for name, term in terms.items() if term.needs_codebook]:
            del terms[name]
        for term in terms.values():
            term.setup("cpu")
        beside: dict[str, nn.Module] = {name: network for (name, _), network in networks.items()}
        if any(term.needs_reference for term in terms.values()):
            reference = build(module.model.block).requires_grad_(False).eval()
            beside["reference"], module._reference = reference, [reference]
            ledger.attribute(beside["reference"], "reference")
        yield module, beside


def _rehearse(
    ledger: Ledger,
    turns: list[Turn],
    module: Any,
    networks: Mapping[str, nn.Module],
    layout: Layout,
    precision: str,
    share: int,
    micro_batch: int,
) -> None:
    """Fill in each turn's cost."""
    autocast = PRECISIONS[precision]
    trainer = _stand_in(module, share, micro_batch, precision)  # kept: the module has only a weak reference
    module.configure_model()
    shards = shards_of(module, layout)
    ledger.claim(module.buffers(), "weights")
    for parameter in module.parameters():
        ledger.claim([parameter], "weights", shards[id(parameter)])
        ledger.claim_gradient(parameter, shards[id(parameter)])
    for network in networks.values():
        ledger.claim([*network.parameters(), *network.buffers()], "loss networks")
    ledger.forget("activations")  # constants that are no buffers
    _name_parts(ledger, module)
    optimizers = module.configure_optimizers()
    first, *others = optimizers if isinstance(optimizers, list) else [optimizers]
    for turn in turns:
        trainer.global_step = turn.start
        moment = module.schedule.at(turn.start)
        model = module.player(moment).model
        # the previous turn has switched the discriminator's gradients off
        moved = [parameter for parameter in model.parameters() if parameter.requires_grad or moment.discriminator]
        turn.trainable = sum(p.numel() for p in module.model.parameters() if p.requires_grad)
        batch = _batch(module.model, micro_batch, turn.start * share)
        with ExitStack() as stack:
            moments = _moment_bytes([first, *(others if moment.phase.adversarial else [])], shards)
            ledger.hold("optimizer", moments)
            if share > micro_batch:  # the second micro-batch finds the gradients of the first
                for parameter in moved:
                    parameter.grad = torch.zeros_like(parameter)
                    ledger.claim([parameter.grad], "gradients")  # whole: FSDP2 reduces them in the last one
            ledger.restart()
            stack.enter_context(torch.autocast("cpu", autocast) if autocast else nullcontext())
            stack.enter_context(gpu_kernels() if layout.device == "cuda" else nullcontext())
            stack.enter_context(float32_products(module.tf32))  # the step itself sets this on a GPU only
            module.training_step(batch, 0)
            module.record = None  # frees its tensors before the next turn
            module.zero_grad()
            ledger.hold("optimizer", -moments)
        turn.flops = {key: value / micro_batch * share * layout.devices for key, value in ledger.flops.items()}
        turn.memory = {kind: ledger.peak.get(kind, 0) for kind in ("weights", "gradients", "optimizer", "activations")}
        turn.memory |= {kind: size for kind, size in ledger.peak.items() if size}
        turn.memory["activations"] += (share - micro_batch) * sum(bytes_of([t[0]]) for t in batch.values())
        if layout.device == "cpu":
            later = max(0, bytes_of(moved) - turn.memory["gradients"])
            turn.memory["allowance"] = RUNTIME_BYTES + max(
                round(PIECES_OVERHEAD * ledger.peak_pieces), min(later, ledger.peak_pieces)
            )
        if extra := strategy_bytes(module, layout, precision):
            turn.memory[layout.strategy] = extra


def _keeps_average(config: Mapping[str, Any]) -> bool:
    from alitok.callbacks.average import WeightAverage

    callbacks = (config["trainer"].get("callbacks") or {}).values()
    return any(issubclass(import_class(block["class_path"]), WeightAverage) for block in callbacks)


def _moment_bytes(optimizers: Iterable[torch.optim.Optimizer], shards: Mapping[int, int]) -> int:
    """AdamW's state after a first step: two moments and a count for each parameter, on one device."""
    size = 0
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                size += 2 * (bytes_of([parameter]) // shards[id(parameter)]) + 4 // shards[id(parameter)]
    return size


def _name_parts(ledger: Ledger, module: Any) -> None:
    ledger.attribute(module.model, _name_of(module))
    if getattr(module, "discriminator", None) is not None:
        ledger.attribute(module.discriminator, "discriminator")
    for entry in module.model.entries if isinstance(module.model, Part) else ():
        setattr(module.model, entry, ledger.attributed(_name_of(module), getattr(module.model, entry)))
    for name, term in module.terms.items():
        term.evaluate = ledger.attributed(f"loss {name}", term.evaluate)


def _batch(model: Any, images: int, first: int) -> dict[str, Tensor]:
    """A batch of the one form that all runs share."""
    index = torch.zeros(images, dtype=torch.int64)
    batch = {"label": index, "index": index, "position": torch.arange(first, first + images)}
    if hasattr(model, "image_size"):
        return {"image": torch.zeros(images, 3, model.image_size, model.image_size), **batch}
    return {"tokens": torch.zeros(images, *model.id_shape, dtype=torch.int64), **batch}


def _stand_in(module: Any, share: int, micro_batch: int, precision: str) -> Any:
    """Replace what the module calls in Lightning during a step; the update only clears the gradients."""
    from lightning.pytorch.strategies import SingleDeviceStrategy

    trainer = SimpleNamespace(
        global_step=0,
        global_rank=0,
        world_size=1,
        log_every_n_steps=0,
        precision=precision,
        datamodule=SimpleNamespace(micro_batch=micro_batch, global_batch=share),
        strategy=SingleDeviceStrategy(torch.device("cpu")),
    )
    module.trainer = trainer

    def idle() -> Any:  # a new one each time, so that no tensor stays in it
        clear = module.zero_grad
        return SimpleNamespace(param_groups=[], optimizer=SimpleNamespace(), step=int, zero_grad=lambda **_: clear())

    module.optimizers = lambda: [idle(), idle()] if module.schedule.adversarial else idle()
    module._log = lambda record: None
    module.manual_backward = lambda loss, *_, **__: loss.backward()
    return trainer


def _name_of(module: Any) -> str:
    return next(name for name, child in module.named_children() if child is module.model)

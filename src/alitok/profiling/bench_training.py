"""Training speed of both models, compared with plain attention and AdamW in float32; the clustering update alone."""

import logging
import statistics
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from alitok.common.build import import_class
from alitok.config import compose_run
from alitok.models.quantizer import ClusteredQuantizer
from alitok.profiling.bench_machine import Machine, Options, Row, if_it_fits, per_second, typical, wait
from alitok.profiling.cost import Layout, cost
from alitok.profiling.flops import Ledger
from alitok.training.bare import bare_trainer

STEPS = {"cpu": 2, "cuda": 20}
PLAIN_STEPS = {"cpu": 1, "cuda": 5}
WARM_UP = {"cpu": 2, "cuda": 3}  # the second step still allocates memory
TRAINER = {"float32": "32-true", "bfloat16": "bf16-mixed"}
CPU_BATCH = {"generator": 4, "tokenizer-stage1": 2}
CLUSTERED = (48, 273, 4096, 32)  # images, tokens, codes, channels: a GPU's share of a batch in the recipe


def training(options: Options) -> Iterator[Row]:
    """Rows `training-SIZE-bBATCH-PRECISION`, `training-stage1-bBATCH-PRECISION` and `clustering-...`."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for size in options.sizes:
        yield from steps(options, "generator", options.label(size), size)
    stage1 = None
    for row in steps(options, "tokenizer-stage1", "stage1"):
        stage1 = row
        yield row
    assert stage1 is not None
    sizes = options.model("tokenizer-stage1")["tokenizer"]["init_args"]
    known = (sizes["encoder"]["init_args"].get("num_latents"), sizes["quantizer"]["init_args"].get("codebook_size"))
    same = stage1.value is not None and known == CLUSTERED[1:3]  # else the step is not that of these tokens
    yield from clustering(options.machine, CLUSTERED[0] / stage1.value if same and stage1.value else None)


def steps(options: Options, part: str, label: str, size: str | None = None) -> Iterator[Row]:
    """Rows of a part's training step, from forward to update, on prepared batches."""
    machine = options.machine
    for batch in options.batches or (None,):
        plain = None
        for precision in options.precisions:
            config = training_config(options, part, size, precision, batch)
            images = config["data"]["init_args"]["global_batch"]
            if plain is None:
                few = machine.baseline_batch(images)
                written_out = training_config(options, part, size, "float32", few)
                plain = per_second(few, if_it_fits(partial(step_seconds, written_out, machine.device, plain=True)))
            seconds = if_it_fits(partial(step_seconds, config, machine.device))
            (turn,) = cost(config, Layout("cuda" if machine.cuda else "cpu")).turns
            yield Row(
                f"training-{label}-b{images}-{precision}",
                per_second(images, seconds),
                "images/s",
                plain,
                images / machine.seconds(turn.flops),
                "matrix products at peak",
                notes={"step_seconds": seconds, "step_flops": sum(turn.flops.values()), "baseline_batch": few},
            )


def training_config(options: Options, part: str, size: str | None, precision: str, batch: int | None) -> dict[str, Any]:
    """The experiment's configuration with one micro-batch per step and its longest phase without a discriminator."""
    config = compose_run(options.files(part, size), ["--trainer.precision", TRAINER[precision]])
    data = config["data"]["init_args"]
    usual = (data.get("micro_batch") or data["global_batch"]) if options.machine.cuda else CPU_BATCH[part]
    data["global_batch"] = data["micro_batch"] = batch or usual
    return one_phase(config)


def one_phase(config: dict[str, Any]) -> dict[str, Any]:
    """Reduce the configuration, in place, to its longest phase without a discriminator; no files are read."""
    model = config["model"]["init_args"]
    phases = {name: phase for name, phase in model["phases"].items() if not phase.get("adversarial")}
    name = max(phases, key=lambda name: phases[name]["steps"])
    model["phases"] = {name: phases[name]}
    model.pop("start_from", None)
    _random_networks(model)
    return config


def _random_networks(value: Any) -> None:
    """Give the losses' networks random weights, in place: speed does not depend on them, and files may be missing."""
    if isinstance(value, dict):
        if str(value.get("class_path")).startswith("alitok.losses.perceptual."):
            name = "vgg_weights" if value["class_path"].endswith("LPIPS") else "weights"
            value["init_args"] = {**(value.get("init_args") or {}), name: "random:0"}
        for item in value.values():
            _random_networks(item)


class Ready(L.LightningDataModule):
    """Batches of random numbers, made before the first step, and the attributes of a token cache."""

    def __init__(self, model: Any, images: int, steps: int) -> None:
        super().__init__()
        self.global_batch = self.micro_batch = images
        self.token_cache = None
        self.splits: dict[str, Any] = {}
        random = torch.Generator().manual_seed(0)
        if hasattr(model, "image_size"):
            content = {"image": torch.rand(images, 3, model.image_size, model.image_size, generator=random)}
        else:
            ids = torch.randint(model.codebook_size, (images, *model.id_shape), generator=random)
            content = {"tokens": ids}
            self.token_cache = SimpleNamespace(
                num_tokens=model.num_tokens,
                sub_codes=model.sub_codes,
                codebook_size=model.codebook_size,
                class_names=[],
                digest=None,
            )
        places = torch.arange(images)
        self.batches = [
            {**content, "label": torch.zeros_like(places), "index": places, "position": places + step * images}
            for step in range(steps)
        ]

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


class Clock(L.Callback):
    """Records when each step ended on the device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.times: list[float] = []

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        self.times.append(wait(self.device))


def step_seconds(config: dict[str, Any], device: torch.device, plain: bool = False, count: int | None = None) -> float:
    """The median seconds of a training step in a bare Trainer with the run's precision.

    Args:
        plain: use plain attention, exact float32 products, no compiler, and AdamW parameter by parameter.
        count: steps that are timed; None = a default by device.
    """
    kind = device.type
    warm_up, count = WARM_UP[kind], count or (PLAIN_STEPS if plain else STEPS)[kind]
    torch.manual_seed(0)
    own_form = {"compile_blocks": False, "tf32": False} if plain else {}
    module = import_class(config["model"]["class_path"])(**config["model"]["init_args"] | own_form)
    if plain:
        own = module.configure_optimizers
        module.configure_optimizers = lambda: one_by_one(own())
    clock = Clock(device)
    trainer = bare_trainer(
        warm_up + count,
        accelerator="gpu" if kind == "cuda" else "cpu",
        devices=[device.index or 0] if kind == "cuda" else 1,
        precision=config["trainer"]["precision"],
        callbacks=[clock],
    )
    data = Ready(module.model, config["data"]["init_args"]["global_batch"], warm_up + count)
    with warnings.catch_warnings(), PlainAttention() if plain else nullcontext():
        warnings.simplefilter("ignore")  # Lightning's, about the missing validation
        trainer.fit(module, datamodule=data)
    times = clock.times[warm_up - 1 :]
    return statistics.median(after - before for before, after in pairwise(times))


def one_by_one(optimizers: Any) -> Any:
    """A module's optimizers, each replaced by a loop over parameters."""
    if isinstance(optimizers, list):
        return [one_by_one(optimizer) for optimizer in optimizers]
    kept = ("params", "weight_decay", "lr_factor", "betas")
    groups = [{key: group[key] for key in kept} for group in optimizers.param_groups]
    return LoopedAdamW(groups, lr=0.0, foreach=False, fused=False)


class LoopedAdamW(torch.optim.AdamW):
    """AdamW as a loop over parameters."""

    def step(self, closure: Any = None) -> Any:
        self.__dict__.pop("found_inf", None)  # for the fused kernel only
        return super().step(closure)


class PlainAttention(TorchFunctionMode):
    """In this context attention is softmax(q k^T / sqrt(d)) v, operation by operation."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return written_out(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def written_out(q: Tensor, k: Tensor, v: Tensor, is_causal: bool = False, dropout_p: float = 0.0) -> Tensor:
    scores = q @ k.mT / q.shape[-1] ** 0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores, dtype=torch.bool).triu(1), float("-inf"))
    return F.dropout(scores.softmax(-1), dropout_p) @ v


def clustering(machine: Machine, step_seconds: float | None) -> Iterator[Row]:
    """Code search and clustering update of one GPU's batch, compared with distances and one-hot rows of all tokens.

    Args:
        step_seconds: seconds of a training step with this batch, if known; the limit is 2 % of it.
    """
    images, tokens, codes, channels = CLUSTERED
    peaks = [peak_bytes(update) for update in (merged_update, one_hot_update)]
    name = f"clustering-{images}x{tokens}-v{codes}"
    ours_mb, plain_mb = (peak / 1e6 for peak in peaks)
    yield Row(f"{name}-memory", ours_mb, "MB", plain_mb, plain_mb / 20, "1/20 of the one-hot form", less=True)
    torch.manual_seed(0)
    quantizer = ClusteredQuantizer(codes, channels).to(machine.device).train()
    features = torch.randn(images * tokens, channels, device=machine.device) * 0.02
    ours, plain = (
        typical(partial(update, quantizer, features), machine.device, 3) for update in (merged_update, one_hot_update)
    )
    limit = None if step_seconds is None else 0.02 * step_seconds
    yield Row(f"{name}-time", ours, "s", plain, limit, "2 % of the step", less=True)


@torch.no_grad()
def merged_update(quantizer: ClusteredQuantizer, features: Tensor) -> None:
    """Search for the codes, then update from the resulting statistics."""
    quantizer.update(quantizer(features[None]).statistics)


@torch.no_grad()
def one_hot_update(quantizer: ClusteredQuantizer, features: Tensor) -> None:
    """The update of `ClusteredQuantizer` as in the paper's code: all distances, and one-hot rows."""
    weight, usage = quantizer.codebook.weight, quantizer.usage
    distances = features.square().sum(1, keepdim=True) + weight.square().sum(1) - 2 * features @ weight.T
    ids = distances.argmin(1)
    one_hot = torch.zeros_like(distances).scatter_(1, ids[:, None], 1)
    usage.mul_(quantizer.decay).add_(one_hot.mean(0), alpha=1 - quantizer.decay)
    nearest = features[distances.argmin(0)]
    rate = torch.exp(-10 * len(weight) * usage / (1 - quantizer.decay) - 1e-3)[:, None]
    weight.copy_((1 - rate) * weight + rate * nearest)


def peak_bytes(update: Callable[[ClusteredQuantizer, Tensor], None]) -> int:
    """Bytes of an update's own tensors at its peak, found with fake tensors."""
    images, tokens, codes, channels = CLUSTERED
    with FakeTensorMode():
        quantizer = ClusteredQuantizer(codes, channels).train()
        features = torch.zeros(images * tokens, channels)
        ledger = Ledger()
        ledger.claim([features, *quantizer.parameters(), *quantizer.buffers()], "given")
        with ledger:
            update(quantizer, features)
    return ledger.peak["activations"]

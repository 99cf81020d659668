"""Checks an idea's YAML against the contract that the rest of the project relies on.

The idea builds at full size. Made small, it trains, resumes exactly and saves an artifact. The gradient of a step is
the same for one process, two micro-batches, DDP and FSDP2. A generator's cached step equals its forward pass.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alitok.artifacts.folder import load_artifact, save_artifact
from alitok.common.build import build, import_class
from alitok.common.errors import fault_of
from alitok.common.random import stream
from alitok.config import compose_run
from alitok.models.generator import Generator
from alitok.models.tokenizer import Tokenizer
from alitok.sampling.cache import KeyValueCache
from alitok.sampling.generate import generate
from alitok.studies.processes import two_processes
from alitok.studies.small import BATCH, STEPS, prepare, small
from alitok.training.bare import bare_trainer
from alitok.training.base import TrainingModule
from alitok.training.checkpoint import AtomicCheckpointIO
from alitok.training.parallel import FSDP2

TOLERANCE = 1e-5  # relative to the gradient's norm


@dataclass(frozen=True)
class Finding:
    """One rule of the contract, and what broke it (None: it holds)."""

    rule: str
    fault: str | None


def findings(stack: Sequence[str | Path], folder: Path, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Check the rules one by one, except those of `strategy_findings`.

    Args:
        stack: files for `compose_run`.
        folder: empty folder for runs.
    """
    yield from _tried("it builds at full size", lambda: _full_size(compose_run(stack, overrides)))
    config = small(compose_run(stack, [*overrides, "--define.run", str(folder)]))
    for rule, check in (
        ("it trains three steps and resumes to the same weights", _resumes),
        ("its artifact holds the model alone and gives the same outputs", _artifact),
        ("what it states it can do holds", _capabilities),
    ):
        yield from _tried(rule, lambda check=check: check(copy.deepcopy(config), folder))  # type: ignore[misc]


def all_findings(stack: Sequence[str | Path], folder: Path, overrides: Sequence[str] = ()) -> Iterator[Finding]:
    """Check every rule, those of strategies last and only if no other rule is broken."""
    broken = False
    for finding in findings(stack, folder, overrides):
        broken |= finding.fault is not None
        yield finding
    if broken:
        return
    config = small(compose_run(stack, [*overrides, "--define.run", str(folder)]))
    if couples_images(config):
        yield Finding("its images depend on one another, so micro-batches and devices are not compared", None)
        return
    whole, micro = micro_batch_finding(config)
    yield micro
    yield from strategy_findings({"idea": (config, whole)}, folder)["idea"]


def _tried(rule: str, check: Callable[[], None]) -> Iterator[Finding]:
    try:
        check()
    except Exception as error:  # any error of an idea is a finding
        yield Finding(rule, fault_of(error))
    else:
        yield Finding(rule, None)


def _full_size(config: Mapping[str, Any]) -> None:
    with torch.device("meta"):
        module = import_class(config["model"]["class_path"])(**config["model"]["init_args"])
    if not module.schedule.total_steps:
        raise ValueError("its schedule has no steps")
    real = [name for name, parameter in module.named_parameters() if not parameter.is_meta]
    if real:
        raise ValueError(f"{real[0]} is created on a fixed device, so it cannot be built without memory")


def _trained(config: Mapping[str, Any], folder: Path, steps: int, start: Path | None = None) -> tuple[Any, Path]:
    """The module after this many steps, and its checkpoint."""
    module, data = _made(config)
    trainer = _trainer(steps)
    trainer.fit(module, datamodule=data, ckpt_path=None if start is None else str(start))
    path = folder / f"contract-{steps}.ckpt"
    trainer.save_checkpoint(path)
    return module, path


def _made(config: Mapping[str, Any]) -> tuple[TrainingModule, Any]:
    torch.manual_seed(0)
    module = import_class(config["model"]["class_path"])(**config["model"]["init_args"])
    return module, import_class(config["data"]["class_path"])(**config["data"]["init_args"])


def _trainer(steps: int, strategy: Any = "auto", devices: int = 1) -> lightning.Trainer:
    return bare_trainer(steps, strategy=strategy, devices=devices, plugins=[AtomicCheckpointIO()])


def _resumes(config: dict[str, Any], folder: Path) -> None:
    prepare(config)
    whole, _ = _trained(config, folder, STEPS)
    _, half = _trained(config, folder, 1)
    again, _ = _trained(config, folder, STEPS, half)
    first, second = whole.state_dict(), again.state_dict()
    if first.keys() != second.keys():
        raise ValueError(f"{sorted(first.keys() ^ second.keys())[0]} is in only one of the two runs")
    other = [name for name, tensor in first.items() if not torch.equal(tensor, second[name])]
    if other:
        raise ValueError(
            f"{other[0]} differs after a resumed run: something is drawn or kept outside of the checkpoint"
        )
    fresh = _made(config)[0].state_dict()
    if all(torch.equal(tensor, fresh[name]) for name, tensor in first.items()):
        raise ValueError("three steps change no weight: no gradient reaches one, or the loss is not finite")


def _artifact(config: dict[str, Any], folder: Path) -> None:
    prepare(config)
    module, _ = _trained(config, folder, STEPS)
    model: Any = module.model.eval()
    kind = "tokenizer" if isinstance(model, Tokenizer) else "generator"
    beyond = sorted(model.state_dict().keys() ^ build(model.block).state_dict().keys())
    if beyond:
        raise ValueError(f"{beyond[0]} belongs to training and must not be part of the {kind}: make it a term's head")
    save_artifact(folder / "contract", model.block, model, {"kind": kind})
    read: Any = load_artifact(folder / "contract")
    with torch.no_grad():
        if not torch.equal(_outputs(model), _outputs(read)):
            raise ValueError(f"the {kind} read from its artifact gives other outputs")


def _outputs(model: Any) -> Tensor:
    """A model's output for fixed inputs."""
    if isinstance(model, Tokenizer):
        return model.decode(model.encode(_pictures(model, 2)), seed=3)
    return generate(model, torch.tensor([0, 1]), guidance=2.0, seed=3)


def _pictures(model: Tokenizer, count: int) -> Tensor:
    return torch.rand(count, 3, model.image_size, model.image_size, generator=stream("contract"))


@torch.no_grad()
def _capabilities(config: dict[str, Any], folder: Path) -> None:
    prepare(config)
    module, _ = _made(config)
    _stirred(module)
    model = module.model.eval()
    if isinstance(model, Tokenizer):
        _check_tokenizer(model)
    elif isinstance(model, Generator):
        _check_generator(model)
    else:
        raise ValueError(f"{type(model).__name__} is neither a Tokenizer nor a Generator")


def _stirred(module: TrainingModule) -> None:
    """Add small noise to all weights: weights that start at zero would hide faults."""
    for name, parameter in module.named_parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=stream("stirred", name))


def _check_tokenizer(model: Tokenizer) -> None:
    images = _pictures(model, 3)
    latents = model.encode_latents(images)
    before = {name: tensor.clone() for name, tensor in model.quantizer.state_dict().items()}
    tokens = model.quantizer.train()(latents)
    changed = [name for name, tensor in model.quantizer.state_dict().items() if not torch.equal(tensor, before[name])]
    if changed:
        raise ValueError(f"the quantizer's forward changes {changed[0]}; only `update` may")
    model.quantizer.eval()
    if not torch.equal(model.quantizer.ids(latents), tokens.ids):
        raise ValueError("the quantizer's `ids` are not those of its `forward`")
    if not torch.allclose(model.quantizer.lookup(tokens.ids), tokens.quantized, rtol=1e-4, atol=1e-5):
        raise ValueError("the quantizer's `lookup` of its ids is not what `forward` quantized")
    whole = model.decode(tokens.ids, seed=1)
    alone = model.decode(tokens.ids[1:2], seed=1, indices=[1])
    if not torch.allclose(whole[1:2], alone, atol=1e-5):
        raise ValueError("an image decodes to something else in another batch: draw by seed and index")


def _check_generator(model: Generator) -> None:
    labels = torch.tensor([0, 1])
    ids = torch.randint(model.codebook_size, (2, *model.id_shape), generator=stream("contract ids"))
    hidden = model.hidden(ids, labels)
    if model.causal:
        place = model.num_tokens // 2
        other = ids.clone()
        other[:, place] = (other[:, place] + 1) % model.codebook_size
        moved = model.hidden(other, labels)
        if not torch.allclose(moved[:, : place + 1], hidden[:, : place + 1], atol=1e-5):
            raise ValueError("it sees the token that it predicts, or later ones")
        if torch.allclose(moved[:, place + 1 :], hidden[:, place + 1 :], atol=1e-7):
            raise ValueError("it does not see the tokens before")
    if model.cached:
        cache = KeyValueCache(
            len(model.blocks), 2, model.heads, model.num_tokens, model.head_dim, torch.device("cpu"), torch.float32
        )
        cache.resize(model.num_tokens)
        x = model.embed_labels(labels)
        for place in range(model.num_tokens):
            position = torch.tensor([place])
            cache.start_step(position)
            if not torch.allclose(model.step(x, position, cache)[:, 0], hidden[:, place], atol=1e-3):
                raise ValueError(f"its cached step at position {place} is not its forward pass")
            x = model.embed_tokens(ids[:, place : place + 1])
        window = torch.tensor([[1, 2], [2, 3]])  # each row its own positions, two at once
        cache.start_step(window)
        x = model.embed_tokens(torch.stack([row[at - 1] for row, at in zip(ids, window, strict=True)]))
        expected = torch.stack([row[at] for row, at in zip(hidden, window, strict=True)])
        if not torch.allclose(model.step(x, window, cache), expected, atol=1e-3):
            raise ValueError("its cached step at several positions of each row is not its forward pass")
    if model.output.has_logits and model(ids, labels).shape != (*ids.shape, model.codebook_size):
        raise ValueError(f"its logits must be {(*ids.shape, model.codebook_size)}")
    drawn = generate(model, torch.tensor([0, 1, 2]), guidance=2.0)
    if not torch.equal(generate(model, torch.tensor([1, 2]), guidance=2.0, indices=[1, 2]), drawn[1:]):
        raise ValueError("an image changes with its batch: draw by seed and index")


def gradient(config: Mapping[str, Any], micro: int | None, strategy: Any = "auto", devices: int = 1) -> dict[str, Any]:
    """The gradient of the first step before the optimizer, by name, and the step's ids."""
    config = copy.deepcopy(dict(config))
    config["data"]["init_args"]["micro_batch"] = micro
    module, data = _made(config)
    _stirred(module)
    found: dict[str, Any] = {}

    def keep(optimizer: Any) -> None:
        for name, parameter in module.named_parameters():
            if parameter.grad is not None:
                whole = parameter.grad.full_tensor() if isinstance(parameter.grad, DTensor) else parameter.grad
                found[name] = whole.clone()

    module.on_before_optimizer_step = keep  # type: ignore[method-assign]
    _trainer(1, strategy, devices).fit(module, datamodule=data)
    return found


def compare(whole: Mapping[str, Any], other: Mapping[str, Any], what: str) -> Finding:
    """Whether two gradients of one step agree."""
    rule = f"the gradient with {what} is that of one batch"
    names = sorted(whole.keys() | other.keys())
    absent = [name for name in names if name not in whole or name not in other]
    if absent:
        return Finding(rule, f"{absent[0]} has a gradient in only one of the two")
    norm = torch.stack([whole[name].double().norm() for name in names]).norm()
    gaps = {name: float((whole[name].double() - other[name].double()).norm() / norm) for name in names}
    worst = max(gaps, key=lambda name: gaps[name])
    if not gaps[worst] <= TOLERANCE:
        return Finding(rule, f"{worst} differs by {gaps[worst]:.1e} of the norm: draw by the places of `Step`")
    return Finding(rule, None)


def micro_batch_finding(config: Mapping[str, Any]) -> tuple[dict[str, Any], Finding]:
    """The gradient of one batch, and whether two micro-batches give the same."""
    whole = gradient(config, None)
    return whole, compare(whole, gradient(config, BATCH // 2), "two micro-batches")


def couples_images(config: Mapping[str, Any]) -> bool:
    """Whether an image's gradient depends on the others in its micro-batch, by a loss term or by batch norm."""
    module, _ = _made(config)
    coupled = any(term.whole_batch for term in module.terms.values())
    return coupled or any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules())


def strategy_findings(
    jobs: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]], folder: Path
) -> dict[str, list[Finding]]:
    """Whether DDP and FSDP2 give the gradients of one batch; one pair of processes serves all jobs.

    Args:
        jobs: name -> (configuration, gradient of one batch).
    """
    configs = [(name, config) for name, (config, _) in jobs.items()]
    two_processes(_of_one_process, configs, str(folder))
    found: dict[str, list[Finding]] = {}
    for name, (_, whole) in jobs.items():
        result = torch.load(folder / f"{name}.pt", weights_only=True)
        if isinstance(result, str):
            found[name] = [Finding("it trains under DDP and FSDP2 on two devices", result)]
        else:
            found[name] = [compare(whole, other, what) for what, other in result.items()]
    return found


def _of_one_process(number: int, jobs: Sequence[tuple[str, Mapping[str, Any]]], out: str) -> None:
    """Compute the gradients of each job under both strategies; the first process writes them."""
    for name, config in jobs:
        result: Any
        try:
            result = {
                "DDP": gradient(config, None, DDPStrategy(process_group_backend="gloo"), 2),
                "FSDP2": gradient(config, None, FSDP2("gloo"), 2),
            }
        except Exception as error:  # any error of an idea is a finding
            result = fault_of(error)
        if number == 0:
            torch.save(result, Path(out) / f"{name}.pt")

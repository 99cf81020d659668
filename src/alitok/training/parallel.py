"""Adds parallelism to models, whose own code is for a single device.

Under DDP every process has the whole model. Under FSDP2 the transformers are sharded. The discriminator, and the
quantizer, whose codebook also changes outside the optimizer, stay whole on every process.
"""

import inspect
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from importlib.util import find_spec
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from alitok.common.build import build
from alitok.common.compiler import has_compiler, need_compiler
from alitok.common.distributed import all_stack, all_sum, is_distributed, world_size
from alitok.common.errors import BadInput
from alitok.models.seams import Part


class FSDP2(ModelParallelStrategy):
    """Lightning's FSDP2 with one shard per device. Its checkpoints have the same form as those of other strategies.

    Args:
        process_group_backend: nccl or gloo; None for the device's default.
        reduce_once: reduce gradients only in a step's last micro-batch. Until then each device keeps all gradients in
            float32, 4 bytes per parameter. False reduces in every micro-batch, for models too large for this.
    """

    def __init__(self, process_group_backend: str | None = None, reduce_once: bool = True) -> None:
        self.reduce_once = reduce_once
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)  # already by name and whole; see `AdamW`

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        return Strategy.load_checkpoint(self, checkpoint_path, weights_only)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        options = StateDictOptions(full_state_dict=True, strict=strict)
        set_model_state_dict(self.lightning_module, dict(checkpoint["state_dict"]), options=options)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)


@contextmanager
def synced_last(strategy: Strategy, model: nn.Module, last: bool, averaged: bool) -> Iterator[None]:
    """Inside, a backward pass reduces the model's gradients over the processes only if it is the step's last.

    Args:
        averaged: whether DDP, if it is the strategy, averages this model's gradients.
    """
    if isinstance(strategy, DDPStrategy) and not (last and averaged):
        with strategy.block_backward_sync():
            yield
        return
    if isinstance(strategy, FSDP2) and isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or not strategy.reduce_once)
    yield


def check_strategy(strategy: Strategy) -> None:
    """Raises BadInput for a strategy that is not supported."""
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy | FSDP2):
        raise BadInput(
            f"Strategy {type(strategy).__name__} is not supported: lay experiments/strategies/ddp.yaml or fsdp.yaml"
            " over the configuration."
        )


def parallelize(
    module: Any, model: nn.Module, replicated: Iterable[nn.Parameter] = (), unused_parameters: bool = False
) -> None:
    """Prepares a LightningModule for its trainer's strategy: compiles, recomputes activations, shards. Runs only once.

    Args:
        module: the `TrainingModule`.
        model: FSDP2 shards it, DDP averages its gradients. The optimizer step averages all other gradients.
        replicated: parameters of the model that stay whole under every strategy.
        unused_parameters: some batches leave parameters without a gradient.

    Raises:
        BadInput: the strategy or precision is not supported, or `compile_blocks` is true and there is no compiler.
    """
    if module.parallel:
        return
    module.parallel = True
    strategy, precision = module.trainer.strategy, str(module.trainer.precision)
    check_strategy(strategy)
    if precision not in ("32-true", "bf16-mixed"):
        raise BadInput(f"precision {precision} is not supported; use bf16-mixed or 32-true.")
    if module.compile_blocks == "auto":
        if strategy.root_device.type == "cuda" and has_compiler() and find_spec("triton"):
            compile_blocks(model, or_plain=True)
    elif module.compile_blocks:
        need_compiler("model.compile_blocks")
        compile_blocks(model)
    if module.activation_checkpointing:
        recompute_activations(model)
    if isinstance(strategy, FSDP2):
        shard(model, strategy.device_mesh["data_parallel"], precision, replicated)
    elif isinstance(strategy, DDPStrategy):
        # Buffers are always the same on all processes, so DDP need not send them.
        known = inspect.signature(DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        strategy._ddp_kwargs = {"find_unused_parameters": unused_parameters, buffers: False} | strategy._ddp_kwargs
        inside = {id(parameter) for parameter in model.parameters()}
        others = [name for name, parameter in module.named_parameters() if id(parameter) not in inside]
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, others)


@contextmanager
def children_end_with_this(module: Any) -> Iterator[None]:
    """If the block fails, ends the other processes that Lightning has started for the module's run.

    Lightning does so only after Ctrl-C. Otherwise they would wait for this process in a collective until its timeout,
    and keep their GPUs' memory.
    """
    try:
        yield
    except BaseException:
        trainer = getattr(module, "_trainer", None)
        launcher = None if trainer is None else trainer.strategy.launcher
        if launcher is not None:
            launcher.kill(signal.SIGTERM)
        raise


def is_sharded(value: Tensor | nn.Module) -> bool:
    """Whether a tensor, or any parameter of a module, is sharded over the processes."""
    if isinstance(value, nn.Module):
        return any(isinstance(parameter, DTensor) for parameter in value.parameters())
    return isinstance(value, DTensor)


def shard(module: nn.Module, mesh: Any, precision: str, replicated: Iterable[nn.Parameter] = ()) -> None:
    """Applies FSDP2: a unit for each transformer block, one for the rest.

    With "bf16-mixed" the blocks are gathered in bfloat16 and reduced in float32. The rest (embeddings, positions,
    heads) stays float32, so that the residual stream is the same as under autocast alone.

    Args:
        replicated: parameters that stay whole; their gradients are averaged by `average_gradients`.
    """
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for block in blocks(module):
        fully_shard(block, mesh=mesh, mp_policy=half if precision == "bf16-mixed" else policy)
    # reshard after each forward: the discriminator's turn has no backward pass that would do it
    fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=set(replicated), reshard_after_forward=True)
    for entry in module.entries if isinstance(module, Part) else ():
        register_fsdp_forward_method(module, entry)


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The transformer blocks: members of every `nn.ModuleList` named `blocks`."""
    for name, layer in module.named_modules():
        if name.split(".")[-1] == "blocks" and isinstance(layer, nn.ModuleList):
            yield from layer


def compile_blocks(module: nn.Module, or_plain: bool = False) -> None:
    """Compiles the forward and backward pass of each block at its first step, without the hooks of strategies.

    Args:
        or_plain: run blocks that do not compile uncompiled, and print a line.
    """
    # validation, an uneven last micro-batch and the discriminator's turn each cause a recompilation
    torch._dynamo.config.recompile_limit = max(32, torch._dynamo.config.recompile_limit)
    for block in blocks(module):
        # a bound method, so that a deep copy of the module has its own
        block.forward = MethodType(_compiled_or_plain if or_plain else _compiled, block)


def _compiled(block: nn.Module, *arguments: Any) -> Any:
    return _compiled_forward(type(block).forward)(block, *arguments)


_does_not_compile: set[type] = set()


def _compiled_or_plain(block: nn.Module, *arguments: Any) -> Any:
    if type(block) not in _does_not_compile:
        try:
            return _compiled(block, *arguments)
        except (torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            _does_not_compile.add(type(block))
            reason = " ".join(str(error).split())[:200]
            print(f"alitok: {type(block).__name__} does not compile and runs as it is: {reason}", file=sys.stderr)
    return type(block).forward(block, *arguments)


@cache
def _compiled_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(forward)


def recompute_activations(module: nn.Module) -> None:
    """Activation checkpointing: the backward pass computes each block's activations again, so they are not stored."""
    for block in blocks(module):
        forward: Any = block.forward
        block.forward = MethodType(partial(_recomputed, forward.__func__), block)


def _recomputed(forward: Callable[..., Any], block: nn.Module, *arguments: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(block, *arguments)
    return checkpoint(forward, block, *arguments, use_reentrant=False)


def whole(module: nn.Module) -> nn.Module:
    """The module itself; if it is sharded, a copy with all its weights. All processes must call it."""
    if not is_sharded(module):
        return module
    state: Any = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    device = next(iter(state.values())).device
    with torch.device(device):
        copy: nn.Module = build(module.block)  # type: ignore[arg-type]
    copy.to(device)  # buffers that are not weights may always be made on the CPU
    copy.load_state_dict(state)
    copy.block = module.block
    return copy.train(module.training)


def whole_tensor(tensor: Tensor) -> Tensor:
    """The tensor itself; if it is sharded, the whole tensor on the CPU. All processes must call it."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def like(value: Tensor, parameter: Tensor) -> Tensor:
    """A copy of a whole tensor on the parameter's device, sharded if the parameter is and the shapes agree."""
    value = value.to(parameter.device, copy=True)
    if isinstance(parameter, DTensor) and value.shape == parameter.shape:
        return distribute_tensor(value, parameter.device_mesh, parameter.placements)
    return value


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replaces the gradients of unsharded parameters by their mean over the processes."""
    if not is_distributed():
        return
    gradients = [p.grad for p in parameters if p.grad is not None and not isinstance(p.grad, DTensor)]
    if not gradients:
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world_size()
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm of all gradients together, (), with the shards of all processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    sharded = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    plain = nn.utils.get_total_norm([g for g in gradients if not isinstance(g, DTensor)])
    if not sharded:
        return plain
    return (all_sum(nn.utils.get_total_norm(sharded).square()) + plain.square()).sqrt()


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scales gradients with the norm `norm` down to the norm `limit`, if it is larger."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    locals_ = [g.to_local() if isinstance(g, DTensor) else g for g in gradients]
    torch._foreach_mul_(locals_, (limit / (norm + 1e-6)).clamp(max=1.0))


def check_replicas(module: nn.Module) -> None:
    """Compares the unsharded parameters and buffers of all processes.

    Raises:
        BadInput: a tensor's bits differ from rank 0's; the message names it.
    """
    if not is_distributed():
        return
    tensors = {name: tensor for name, tensor in module.state_dict().items() if not isinstance(tensor, DTensor)}
    if not tensors:
        return
    sums = all_stack(torch.stack([_checksum(tensor) for tensor in tensors.values()]))
    differ = (sums != sums[0]).nonzero()
    if len(differ):
        rank, place = differ[0].tolist()
        raise BadInput(
            f"The replicas differ: {list(tensors)[place]} on process {rank} is not that of process 0; the checkpoints"
            " before this one are good, so look for what makes the processes compute different things, and continue."
        )


def _checksum(tensor: Tensor) -> Tensor:
    """Sum of a tensor's values, with their bits read as integers, (), int64."""
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(kinds[flat.element_size()]).sum(dtype=torch.int64)

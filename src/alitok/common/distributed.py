"""Collectives that are the identity in a single process."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alitok.common.ends import alone_in
from alitok.common.errors import BadInput


def is_distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size() -> int:
    return dist.get_world_size() if is_distributed() else 1


def rank() -> int:
    return dist.get_rank() if is_distributed() else 0


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over processes, on the tensor's own device; the argument itself in a single process.

    Every process must pass the same shape. No gradient flows through the sum.
    """
    if not is_distributed():
        return tensor
    total = tensor.detach().to(_collective_device(), copy=True)
    dist.all_reduce(total)
    return total.to(tensor.device)


def all_stack(tensor: Tensor) -> Tensor:
    """(...) -> (processes, ...), in the order of ranks, on the tensor's own device. Conditions as for `all_sum`."""
    if not is_distributed():
        return tensor.unsqueeze(0)
    mine = tensor.detach().to(_collective_device()).contiguous()
    parts = [torch.empty_like(mine) for _ in range(world_size())]
    dist.all_gather(parts, mine)
    return torch.stack(parts).to(tensor.device)


def _collective_device() -> torch.device:
    """The device on which the process group's backend needs its tensors; NCCL takes none in host memory."""
    if dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def barrier() -> None:
    if is_distributed():
        dist.barrier()


@contextmanager
def process_group(device: torch.device, patience: timedelta | None = None) -> Iterator[torch.device]:
    """Opens the process group of a `torchrun` launch; does nothing in a single process or inside a group.

    Yields the device of this process: "cuda" becomes the GPU of its local rank.

    Args:
        patience: how long a process waits for the others in a collective; None = torch's default.
    """
    if dist.is_initialized() or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    gpu = device.type == "cuda"
    # NCCL's barrier would otherwise have to guess the GPU.
    store, number, count = next(dist.rendezvous("env://"))
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        store=store,
        rank=number,
        world_size=count,
        timeout=patience,
        device_id=device if gpu else None,
    )
    try:
        yield device
        dist.barrier()
        _leave_together(store, number, count)
    finally:
        dist.destroy_process_group()


def _leave_together(store: Any, number: int, count: int) -> None:
    """Waits until all processes have left their last collective: gloo aborts a process whose peer closes before."""
    others = range(1, count)
    store.set(f"alitok/out/{number}", "")
    store.wait([f"alitok/out/{other}" for other in range(count)])
    if number:
        store.set(f"alitok/left/{number}", "")
    else:  # the first process may serve the store, so it leaves last
        store.wait([f"alitok/left/{other}" for other in others])


@contextmanager
def all_or_none() -> Iterator[None]:
    """Fails in every process if the block fails in one; the others raise BadInput.

    No process then waits in a collective for one that has failed. The block itself must not use collectives.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    failed = bool(all_sum(torch.tensor(float(error is not None))))
    if error is not None:
        raise error
    if failed:
        raise BadInput("Another process failed and prints why; correct that and start again.")


@contextmanager
def group_alone_in(folder: Path) -> Iterator[None]:
    """`alone_in` for a group of processes: the first one locks, and all are refused together. A collective."""
    with ExitStack() as stack:
        with all_or_none():
            if rank() == 0:
                stack.enter_context(alone_in(folder))
        yield

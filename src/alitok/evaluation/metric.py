"""The one form of every metric, and the sum over processes that all of them use."""

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from alitok.common.distributed import all_sum, is_distributed


class Metric(Protocol):
    """Accumulates batches on its own process; `compute` gives the same numbers on every process.

    `compute` is a collective: every process calls it, also one that saw no batch. It changes no state.
    """

    def update(self, *args: Any, **kwargs: Any) -> None: ...

    def compute(self) -> dict[str, float]: ...

    def reset(self) -> None: ...


def collective_device() -> torch.device:
    """Where the process group's backend wants its tensors; NCCL moves nothing that lies in host memory."""
    if is_distributed() and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def sum_over_processes(tensor: Tensor) -> Tensor:
    """The sum of a tensor of equal shape over processes, on the device it came from."""
    return all_sum(tensor.to(collective_device())).to(tensor.device)

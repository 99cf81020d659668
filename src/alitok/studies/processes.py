"""Two processes on this machine, as `torchrun` starts them, to check what is distributed."""

import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.multiprocessing as mp
from lightning.fabric.utilities.rank_zero import rank_zero_only


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def two_processes(work: Callable[..., None], *arguments: Any) -> None:
    """Calls `work(rank, *arguments)`, a function of a module, in two processes; fails where one of them does."""
    mp.spawn(_enter, args=(free_port(), work, arguments), nprocs=2)


def _enter(rank: int, port: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "test",
        "OMP_NUM_THREADS": "1",
    }
    # which Lightning reads when it is imported: here, before the environment is set
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    work(rank, *arguments)
    torch.distributed.barrier()  # a process that ends while the other still talks to it may abort
    torch.distributed.destroy_process_group()

"""Starts two processes on this machine, as `torchrun` would, to check distributed code."""

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
    """Call `work(rank, *arguments)`, a module's function, in two processes; fails if one of them fails."""
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
    # Lightning reads the rank when it is imported, which was before the environment is set
    rank_zero_only.rank = rank  # type: ignore[attr-defined]
    work(rank, *arguments)
    torch.distributed.barrier()  # a process may abort if the other ends during communication
    torch.distributed.destroy_process_group()

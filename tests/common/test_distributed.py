import time
from datetime import timedelta
from threading import Thread

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from alitok.common.distributed import (
    _leave_together,
    all_or_none,
    all_stack,
    all_sum,
    barrier,
    is_distributed,
    process_group,
    rank,
    world_size,
)
from alitok.common.errors import BadInput


def test_identity_in_a_single_process():
    tensor = torch.arange(3.0)
    assert not is_distributed()
    assert (rank(), world_size()) == (0, 1)
    assert all_sum(tensor) is tensor
    assert torch.equal(all_stack(tensor), tensor[None])
    barrier()
    with process_group(torch.device("cpu")) as device:
        assert device == torch.device("cpu")
        assert not is_distributed()
    with all_or_none():
        pass
    for kind in (BadInput, torch.OutOfMemoryError, ValueError):
        with pytest.raises(kind, match="mine"), all_or_none():
            raise kind("mine")


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_the_group_knows_its_device(name, monkeypatch):
    """Seen through stand-ins of torch's."""
    calls = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(device))
    store = dist.HashStore()
    store.set("alitok/out/0", "")  # the other process has come to its end
    monkeypatch.setattr(dist, "rendezvous", lambda address: iter([(store, 1, 2)]))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **words: calls.append((backend, words)))
    monkeypatch.setattr(dist, "barrier", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("end"))
    device = torch.device("cuda", 1) if name == "cuda" else torch.device("cpu")
    with process_group(torch.device(name)) as found:
        assert found == device
    cuda = device if name == "cuda" else None
    mine = {"store": store, "rank": 1, "world_size": 2, "timeout": None, "device_id": cuda}
    start = [device, ("nccl", mine)] if name == "cuda" else [("gloo", mine)]
    assert calls == [*start, "end"]


def test_no_process_leaves_before_all_are_out_of_the_last_collective() -> None:
    store, left = dist.HashStore(), []

    def leave(number: int) -> None:
        _leave_together(store, number, 3)
        left.append(number)

    first = [Thread(target=leave, args=(number,)) for number in (0, 1)]
    for thread in first:
        thread.start()
    time.sleep(0.3)
    assert left == []
    leave(2)
    for thread in first:
        thread.join(10)
    assert sorted(left) == [0, 1, 2]


def _fail(index: int, error: Exception) -> None:
    if index:
        raise error


def _of_one_process(index: int, address: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=20)  # one that waits for the other for good fails
    dist.init_process_group("gloo", f"file://{address}", timeout=patience, rank=index, world_size=2)
    assert (rank(), world_size()) == (index, 2)
    tensor = torch.tensor([1.0, 10.0]) * (index + 1)
    assert all_sum(tensor).tolist() == [3, 30]
    assert tensor.tolist() == [index + 1, 10 * (index + 1)]  # the argument is left alone
    for error in (BadInput("mine"), torch.OutOfMemoryError("mine"), OSError("mine")):
        kind = type(error) if index else BadInput
        with pytest.raises(kind, match="mine" if index else "Another process"), all_or_none():
            _fail(index, error)
    strided = torch.stack([tensor, tensor]).T
    assert all_stack(strided)[:, 0, 0].tolist() == [1, 2]
    barrier()
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    mp.spawn(_of_one_process, args=(tmp_path / "address",), nprocs=2)

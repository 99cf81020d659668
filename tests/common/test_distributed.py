import pytest
import torch
import torch.multiprocessing as mp

from alitok.common.distributed import (
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
    with pytest.raises(BadInput, match="mine"), all_or_none():
        raise BadInput("mine")


def _fail(index: int) -> None:
    if index:
        raise BadInput("mine")


def _of_one_process(index: int, address: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{address}", rank=index, world_size=2)
    assert (rank(), world_size()) == (index, 2)
    tensor = torch.tensor([1.0, 10.0]) * (index + 1)
    assert all_sum(tensor).tolist() == [3, 30]
    assert tensor.tolist() == [index + 1, 10 * (index + 1)]  # the argument is left alone
    with pytest.raises(BadInput, match="mine" if index else "Another process"), all_or_none():
        _fail(index)
    strided = torch.stack([tensor, tensor]).T
    assert all_stack(strided)[:, 0, 0].tolist() == [1, 2]
    barrier()
    torch.distributed.destroy_process_group()


def test_two_processes(tmp_path):
    mp.spawn(_of_one_process, args=(tmp_path / "address",), nprocs=2)
